"""epoch: read the epoch; the answer shows that the library is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from common.connection import library_is_missing, right_is_missing
from common.scripts import call, library_is_there, load_library
from tests.integration.seeds import full_memory
from tests.integration.state import changes, whole_state

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from common.keys import Keys


async def test_the_epoch_is_read_and_nothing_is_written(redis: Redis, keys: Keys) -> None:
    """Every process asks, again and again."""
    before = await whole_state(redis)

    assert await call(redis, "epoch", [keys.epoch], []) == await redis.get(keys.epoch)
    assert changes(before, await whole_state(redis)) == {}


async def test_an_emptied_server_has_none(redis: Redis, keys: Keys) -> None:
    """FLUSHALL takes the data and leaves the library."""
    await redis.flushall()

    assert await call(redis, "epoch", [keys.epoch], []) is None


async def test_a_full_server_still_tells(redis: Redis, keys: Keys) -> None:
    """A writer that starts on it has to find out that all is there."""
    async with full_memory(redis):
        assert await library_is_there(redis, keys.epoch)


async def test_a_missing_library_is_told_from_trouble(redis: Redis, keys: Keys) -> None:
    """FUNCTION FLUSH, or a failover to a replica that never had it: whoever may loads it again."""
    await redis.function_flush()
    assert not await library_is_there(redis, keys.epoch)
    with pytest.raises(Exception, match="not found") as missing:
        await call(redis, "epoch", [keys.epoch], [])
    assert library_is_missing(missing.value)

    await load_library(redis)
    assert await library_is_there(redis, keys.epoch)


async def test_a_right_that_is_missing_inside_a_function_is_recognized(redis: Redis, keys: Keys, user) -> None:
    """The two servers say it in words of their own, and not with the code that they use outside."""
    async with user("+fcall") as limited:
        with pytest.raises(Exception, match="script") as denied:
            await library_is_there(limited, keys.epoch)
    assert right_is_missing(denied.value)
