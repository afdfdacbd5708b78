"""A cluster: the queue is on one of its nodes, and its clients are there too, wherever it moves."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import pytest
from redis.exceptions import AskError, ConnectionError, TryAgainError

from common.connection import blames_the_server, connect, connect_thread, library_is_missing, server_is_away
from common.entries import Settled
from common.keys import Keys
from common.queue import JobQueue
from common.scripts import load_library
from common.settings import load_settings
from common.streams import JobStreams
from common.topology import Cluster
from tests.integration.nodes import LIMIT_S, clustered
from tests.integration.seeds import PUBLISH, begun, new_server, read_one, running, settle, submit
from tests.until import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis

    from common.settings import Settings
    from tests.integration.nodes import Clustered, Node

pytestmark = pytest.mark.slow


@pytest.fixture(params=["valkey", "redis"])
async def cluster(request, tmp_path) -> AsyncIterator[Clustered]:
    async with clustered(request.param, tmp_path) as cluster:
        yield cluster


@pytest.fixture
def slot() -> int:
    return Cluster([], load_settings({}).queue).slot


@pytest.fixture
async def owner(cluster: Clustered, slot: int) -> Node:
    return await cluster.owner(slot)


@pytest.fixture
def others(cluster: Clustered, owner: Node) -> list[Node]:
    return [node for node in cluster.nodes if node is not owner]


@pytest.fixture
def seed(others: list[Node]) -> Node:
    """The one node that the URL names."""
    return others[0]


@pytest.fixture
def target(others: list[Node]) -> Node:
    """Where the slot goes."""
    return others[1]


@pytest.fixture
def settings(cluster: Clustered, seed: Node) -> Settings:
    return load_settings({"STTREAM_REDIS_URL": cluster.url(seed)})


@pytest.fixture
async def redis(settings: Settings) -> AsyncIterator[Redis]:
    async with connect(settings) as redis:
        await new_server(redis, Keys(settings.queue))
        yield redis


@pytest.fixture
def queue(redis: Redis, settings: Settings) -> JobQueue:
    return JobQueue(redis, Keys(settings.queue))


@pytest.fixture
def consumer(queue: JobQueue, settings: Settings) -> JobStreams:
    return JobStreams(queue.redis, queue.keys, settings, "host-1-aaa")


async def test_a_queue_is_reached_from_any_node(cluster, settings, slot, owner) -> None:
    """An operator names some nodes, and not by which slots they own today."""
    assert slot == await owner.ask("CLUSTER", "KEYSLOT", Keys(settings.queue).results)
    for number, seed in enumerate(cluster.nodes):
        own = load_settings({"STTREAM_REDIS_URL": cluster.url(seed)})
        async with connect(own) as redis:
            await new_server(redis, Keys(own.queue))
            queue = JobQueue(redis, Keys(own.queue))
            task = await running(queue, JobStreams(redis, queue.keys, own, f"host-{number}-aaa"), f"job-{number}")
            assert await settle(JobStreams(redis, queue.keys, own, f"host-{number}-aaa"), task, PUBLISH) is Settled.DONE
        in_thread = connect_thread(own)
        assert await asyncio.to_thread(in_thread.xlen, queue.keys.results) == number + 1
        in_thread.close()


async def test_clients_follow_their_slot_to_another_node(
    cluster, settings, slot, owner, target, queue, consumer
) -> None:
    """Clusters are rebalanced while they are used; the new node may not hold the functions."""
    in_thread = connect_thread(settings)
    await asyncio.to_thread(in_thread.ping)
    task = await running(queue, consumer, "before")
    await asyncio.gather(*(queue.redis.ping() for _ in range(5)))

    await cluster.begin_move(slot, owner, target)
    with pytest.raises((AskError, TryAgainError)) as caught:
        await submit(queue, "meanwhile")
    assert server_is_away(caught.value)
    await cluster.end_move(slot, owner, target)

    await until(lambda: succeeds(queue, "after"), within_s=LIMIT_S, what="the new owner takes a job")
    assert await settle(consumer, task, PUBLISH) is Settled.DONE
    assert (await begun(consumer, await read_one(consumer))).id == "after"
    ports = [info["tcp_port"] for info in await asyncio.gather(*(queue.redis.info("server") for _ in range(5)))]
    assert ports == [target.port] * 5
    await until(lambda: asyncio.to_thread(reads, in_thread, queue), within_s=LIMIT_S, what="the other client follows")
    in_thread.close()


async def test_clients_go_on_at_the_replica_that_takes_over(cluster, owner, queue, consumer) -> None:
    """A node dies at night; its replica has the queue and the functions."""
    replica = await cluster.add_replica(owner)
    task = await running(queue, consumer, "before")
    await until(lambda: replicated(queue.redis), within_s=LIMIT_S, what="the replica has it all")

    owner.send(signal.SIGKILL)

    await until(lambda: succeeds(queue, "after"), within_s=LIMIT_S, what="the new owner takes a job")
    assert await replica.role() == "master"
    assert await settle(consumer, task, PUBLISH) is Settled.DONE


async def replicated(redis: Redis) -> bool:
    return await redis.execute_command("WAIT", 1, 1000) == 1


async def succeeds(queue: JobQueue, job_id: str) -> bool:
    """Submit, as everybody does who waits for a server that is away."""
    try:
        await submit(queue, job_id)
    except Exception as exc:
        if library_is_missing(exc):
            await load_library(queue.redis)
        elif not server_is_away(exc):
            raise
        return False
    return True


def reads(in_thread, queue: JobQueue) -> bool:
    try:
        return in_thread.xlen(queue.keys.results) == 1
    except Exception as exc:
        if not server_is_away(exc):
            raise
        return False


async def test_a_reader_that_waits_while_its_slot_moves_goes_on_reading(
    cluster, slot, owner, target, queue, consumer
) -> None:
    """Idle consumers sit in a blocking read when a cluster is rebalanced: they must hear of the next job."""
    read = []

    async def read_on() -> None:
        while not read:
            try:
                read.extend(await consumer.read(1, 500))
            except Exception as exc:
                if not blames_the_server(exc):  # functions are not moved with a slot; who needs them brings them
                    raise

    reader = asyncio.create_task(read_on())
    await until(lambda: is_blocked(owner), within_s=LIMIT_S, what="the reader waits")
    await cluster.begin_move(slot, owner, target)
    await cluster.end_move(slot, owner, target)
    await until(lambda: succeeds(queue, "after"), within_s=LIMIT_S, what="the new owner takes a job")
    await asyncio.wait_for(reader, LIMIT_S)

    assert [entry.fields["id"] for entry in read] == ["after"]


async def is_blocked(node: Node) -> bool:
    return bool((await node.client.info("clients"))["blocked_clients"])


async def test_nodes_that_were_learnt_are_asked_when_the_named_one_is_gone(seed, redis) -> None:
    """The one node that the URL names must not be the weak link of a whole cluster."""
    seed.send(signal.SIGKILL)
    await redis.connection_pool.disconnect()

    assert await redis.ping()


async def test_nodes_that_do_not_answer_are_all_named() -> None:
    """Which addresses were tried is the first thing that an operator wants to know."""
    url = "redis+cluster://:hush@127.0.0.1:1,127.0.0.1:2"
    async with connect(load_settings({"STTREAM_REDIS_URL": url})) as redis:
        with pytest.raises(
            ConnectionError, match=r"nobody names the owner of slot \d+.*:1: .*; 127.0.0.1:2: "
        ) as caught:
            await redis.ping()

    assert server_is_away(caught.value)
    assert "hush" not in str(caught.value)
