"""A server that sentinels watch: when it dies, the same clients go on at the replica that was promoted."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING

import pytest
from redis.exceptions import AuthenticationError, ConnectionError

from common.connection import connect, connect_thread, server_is_away
from common.entries import Settled
from common.keys import Keys
from common.queue import JobQueue, Submitted
from common.settings import load_settings
from common.streams import JobStreams
from tests.integration.nodes import LIMIT_S, SENTINEL_PASSWORD, SERVICE, watched
from tests.integration.seeds import PUBLISH, begun, new_server, read_one, running, settle, submit
from tests.until import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable

    from redis.asyncio import Redis

    from common.settings import Settings
    from tests.integration.nodes import Node, Watched

pytestmark = pytest.mark.slow


@pytest.fixture(params=["valkey", "redis"])
async def servers(request, tmp_path) -> AsyncIterator[Watched]:
    async with watched(request.param, tmp_path) as servers:
        yield servers


@pytest.fixture
def settings(servers: Watched) -> Settings:
    return load_settings({"STTREAM_REDIS_URL": servers.url})


@pytest.fixture
async def redis(settings: Settings) -> AsyncIterator[Redis]:
    async with connect(settings) as redis:
        yield redis


@pytest.fixture
def queue(redis: Redis, settings: Settings) -> JobQueue:
    return JobQueue(redis, Keys(settings.queue))


@pytest.fixture
def consumer(queue: JobQueue, settings: Settings) -> JobStreams:
    return JobStreams(queue.redis, queue.keys, settings, "host-1-aaa")


async def succeeds(call: Awaitable[object]) -> bool:
    """Do it, as everybody does who waits for a server that is away."""
    try:
        await call
    except Exception as exc:
        if not server_is_away(exc):
            raise
        return False
    return True


async def replicated(redis: Redis) -> bool:
    return await redis.execute_command("WAIT", 1, 1000) == 1


@pytest.mark.parametrize(
    ("servers", "end"),
    # A server that hangs is told from one that ended by our time-outs alone: one kind of server shows it.
    [("valkey", signal.SIGKILL), ("redis", signal.SIGKILL), ("valkey", signal.SIGSTOP)],
    indirect=["servers"],
)
async def test_the_same_clients_go_on_at_the_promoted_replica(servers, settings, queue, consumer, end) -> None:
    """Nobody restarts the services at night because a server died: connections, jobs and functions move with it."""
    await new_server(queue.redis, queue.keys)
    in_thread = connect_thread(settings)
    await asyncio.to_thread(in_thread.ping)
    task = await running(queue, consumer, "before")
    await asyncio.gather(*(queue.redis.ping() for _ in range(5)))  # idle connections that nobody has missed
    await until(lambda: replicated(queue.redis), within_s=LIMIT_S, what="the replica has it all")

    servers.primary.send(end)

    await until(lambda: succeeds(submit(queue, "after")), within_s=LIMIT_S, what="the new primary takes a job")
    assert await servers.replica.role() == "master"
    assert await settle(consumer, task, PUBLISH) is Settled.DONE
    assert (await begun(consumer, await read_one(consumer))).id == "after"
    await until(
        lambda: succeeds(asyncio.to_thread(in_thread.ping)), within_s=LIMIT_S, what="the blocking client follows"
    )
    assert in_thread.role()[0] == "master"
    in_thread.close()

    await come_back(servers.primary, end)

    later = [f"later-{number}" for number in range(20)]
    assert {*await asyncio.gather(*(submit(queue, job_id) for job_id in later))} == {Submitted.QUEUED}
    await until(lambda: is_follower(servers.primary), within_s=LIMIT_S, what="the old primary follows the new one")
    assert None not in await queue.jobs(later)
    assert (await queue.redis.info("server"))["tcp_port"] == servers.replica.port


async def come_back(node: Node, end: signal.Signals) -> None:
    if end is signal.SIGKILL:
        await node.start()
    else:
        node.send(signal.SIGCONT)


async def is_follower(node: Node) -> bool:
    with contextlib.suppress(ConnectionError):
        return await node.role() == "slave"
    return False


async def test_a_reader_that_waits_during_a_switch_goes_on_reading(servers, queue, consumer) -> None:
    """Idle consumers sit in a blocking read when an operator switches over: they must hear of the next job."""
    await new_server(queue.redis, queue.keys)
    await until(lambda: replicated(queue.redis), within_s=LIMIT_S, what="the replica has it all")
    read = []

    async def read_on() -> None:
        while not read:
            with contextlib.suppress(ConnectionError):
                await succeeds(read_into(consumer, read))

    reader = asyncio.create_task(read_on())
    await servers.sentinels[0].ask("SENTINEL", "FAILOVER", SERVICE)
    await until(lambda: is_follower(servers.primary), within_s=LIMIT_S, what="the old primary follows the new one")
    await until(lambda: succeeds(submit(queue, "after")), within_s=LIMIT_S, what="the new primary takes a job")
    await asyncio.wait_for(reader, LIMIT_S)

    assert [entry.fields["id"] for entry in read] == ["after"]


async def read_into(consumer: JobStreams, read: list) -> None:
    read.extend(await consumer.read(1, 500))


async def test_a_wrong_password_of_the_sentinels_is_told_at_once(servers) -> None:
    """It would be tried for ever, and the reason looks like a server that is down."""
    url = servers.url.replace(SENTINEL_PASSWORD, "wrong")
    async with connect(load_settings({"STTREAM_REDIS_URL": url})) as redis:
        with pytest.raises(AuthenticationError, match=f"nobody names the primary of the service '{SERVICE}'") as caught:
            await redis.ping()

    assert not server_is_away(caught.value)
    assert "wrong" not in str(caught.value)


async def test_a_service_that_no_sentinel_knows_is_named(servers) -> None:
    """A typing mistake in the URL; but sentinels may also be told of the service later."""
    url = servers.url.replace(SERVICE, "speach")
    async with connect(load_settings({"STTREAM_REDIS_URL": url})) as redis:
        with pytest.raises(ConnectionError, match=r"service 'speach'; asked 127\.0\.0\.1:") as caught:
            await redis.ping()

    assert server_is_away(caught.value)
