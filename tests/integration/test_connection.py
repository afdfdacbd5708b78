"""What the errors of a real server look like to those who decide whether to wait or to stop."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
from redis.exceptions import ResponseError

from common.connection import group_is_missing, server_is_away
from tests.integration.seeds import full_memory, submit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis

    from common.queue import JobQueue


@contextlib.asynccontextmanager
async def too_few_replicas(redis: Redis) -> AsyncIterator[None]:
    await redis.config_set("min-replicas-to-write", 1)
    try:
        yield
    finally:
        await redis.config_set("min-replicas-to-write", 0)


@contextlib.asynccontextmanager
async def demoted(redis: Redis) -> AsyncIterator[None]:
    """Let the server follow one that does not exist: it refuses writes."""
    await redis.execute_command("REPLICAOF", "127.0.0.1", "1")
    try:
        yield
    finally:
        await redis.execute_command("REPLICAOF", "NO", "ONE")


@contextlib.asynccontextmanager
async def cut_off(redis: Redis) -> AsyncIterator[None]:
    """Let the server follow one that does not exist, and not answer with what may be old."""
    await redis.config_set("replica-serve-stale-data", "no")
    try:
        async with demoted(redis):
            yield
    finally:
        await redis.config_set("replica-serve-stale-data", "yes")


@pytest.mark.parametrize(
    "trouble",
    [
        too_few_replicas,
        full_memory,
        demoted,
        cut_off,
    ],
)
async def test_a_server_that_refuses_writes_for_now_is_away(queue: JobQueue, redis: Redis, trouble) -> None:
    """Clients wait it out or answer 503: stopping, or answering 500, would turn a delay into a failure."""
    async with trouble(redis):
        with pytest.raises(ResponseError) as caught:
            await submit(queue)

    assert server_is_away(caught.value)


async def test_a_wrong_call_is_no_outage(redis: Redis) -> None:
    """Waiting for a bug to pass would hide it."""
    with pytest.raises(ResponseError) as caught:
        await redis.execute_command("XADD", "nothing")

    assert not server_is_away(caught.value)
    assert not group_is_missing(caught.value)


async def test_a_connection_that_is_refused_is_an_outage(settings) -> None:
    """The commonest of all: the server restarts."""
    from common.connection import connect

    nobody = connect(settings.model_copy(update={"redis_url": type(settings.redis_url)("redis://127.0.0.1:1/0")}))
    with pytest.raises(Exception, match="onnect") as caught:
        await nobody.ping()

    assert server_is_away(caught.value)
    await nobody.aclose(close_connection_pool=True)
