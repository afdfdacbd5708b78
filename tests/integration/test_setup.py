"""Set-up: run by every service at every start, on whatever state the server is in."""

from __future__ import annotations

import asyncio

import pytest

from common.errors import DataLost
from common.keys import TRANSCRIBERS
from common.setup import Epoch, set_up
from tests.integration.seeds import full_memory


async def test_a_service_starts_on_a_full_server(redis, keys):
    """Only a writer that comes up again can drain it: creating what is there must not be tried."""
    async with full_memory(redis):
        await asyncio.wait_for(set_up(redis, keys), 10)


async def test_many_processes_set_up_at_once(redis, keys):
    """A whole fleet starts together."""
    await redis.flushall()
    await redis.function_flush()

    epochs = await asyncio.gather(*(set_up(redis, keys) for _ in range(20)))

    for epoch in epochs:
        await epoch.check()
    assert [group["name"] for group in await redis.xinfo_groups(keys.lane("low"))] == [TRANSCRIBERS]


async def test_entries_added_before_the_group_are_delivered(redis, keys, consumer):
    """A group that begins at the end of the stream would never see them."""
    await redis.flushall()
    await redis.xadd(keys.lane("normal"), {"id": "early", "source": "/a.wav"})

    await set_up(redis, keys)

    assert [entry.fields["id"] for entry in await consumer.read(10, 1)] == ["early"]


async def test_an_emptied_server_is_told_from_the_one_before(redis, keys):
    """Silence about a loss is the worst loss."""
    epoch = await Epoch.begin(redis, keys)
    await redis.flushall()

    with pytest.raises(DataLost, match="emptied or replaced"):
        await epoch.check()
