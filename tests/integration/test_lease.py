"""The lease keeper on a real server: what one round of it does to the leases that it holds."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING

import pytest
from redis.exceptions import ResponseError
from structlog.testing import capture_logs

from common.keys import TRANSCRIBERS
from common.lease import Ended, Lease, LeaseKeeper
from common.outage import Server
from tests.integration.seeds import (
    LATER_MS,
    PARTS,
    PUBLISH,
    begun,
    make_idle,
    read_one,
    rescued,
    running,
    settle,
    transcribed,
)
from tests.integration.state import changes, whole_state

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis.asyncio import Redis

    from common.entries import Task
    from common.queue import JobQueue
    from common.settings import Settings
    from common.streams import JobStreams, ResultStream


@pytest.fixture
def keeper(settings: Settings) -> Iterator[LeaseKeeper]:
    """A keeper whose thread was not started: its rounds are the test's."""
    keeper = LeaseKeeper(settings, Server("Redis"))
    yield keeper
    keeper._redis.close()


def held(keeper: LeaseKeeper, streams: JobStreams | ResultStream, task: Task) -> Lease:
    lease = Lease(
        lambda progress, parts: streams.renewal(task, progress, parts),
        cancellation=lambda: streams.cancellation(task),
        clock=time.monotonic,
    )
    keeper.hold(lease)
    return lease


async def test_one_round_trip_asks_for_all_jobs_whether_they_are_cancelled(
    queue: JobQueue, consumer: JobStreams, writer: ResultStream, redis: Redis, keeper: LeaseKeeper
) -> None:
    """Whoever cancels waits for it; the other jobs, and results on their way, go on."""
    await transcribed(queue, consumer, "stored")
    result = held(keeper, writer, await begun(writer, await read_one(writer)))
    leases = {job_id: held(keeper, consumer, await running(queue, consumer, job_id)) for job_id in "abc"}
    await queue.cancel("b")
    before = await whole_state(redis)

    await asyncio.to_thread(keeper.look_for_cancellations)
    assert {job_id: lease.ended for job_id, lease in leases.items()} == {"a": None, "b": Ended.CANCELLED, "c": None}
    assert result.ended is None
    assert changes(before, await whole_state(redis)) == {}


async def test_a_cancelled_job_is_renewed_until_it_is_settled(
    queue: JobQueue, consumer: JobStreams, rescuer: JobStreams, redis: Redis, keeper: LeaseKeeper
) -> None:
    """Its work may take a while to stop; nobody else must begin it meanwhile."""
    task = await running(queue, consumer)
    lease = held(keeper, consumer, task)
    await queue.cancel("a")
    await asyncio.to_thread(keeper.look_for_cancellations)
    await make_idle(redis, TRANSCRIBERS, "host-1-aaa", task.entry)

    await asyncio.to_thread(keeper.renew_all)
    assert lease.ended is Ended.CANCELLED
    assert await rescuer.rescue(16, LATER_MS) == []


async def test_a_round_carries_progress_and_parts(
    queue: JobQueue, consumer: JobStreams, redis: Redis, keeper: LeaseKeeper
) -> None:
    """The checkpoint costs no call of its own."""
    lease = held(keeper, consumer, await running(queue, consumer))
    lease.report(0.25)
    for part in PARTS.items():
        lease.keep(*part)

    await asyncio.to_thread(keeper.renew_all)
    assert await redis.hgetall(queue.keys.parts("a")) == PARTS
    assert await redis.hget(queue.keys.job("a"), "progress") == "0.250"


async def test_a_lost_lease_is_let_go_and_the_others_are_renewed(
    queue: JobQueue, consumer: JobStreams, rescuer: JobStreams, redis: Redis, keeper: LeaseKeeper
) -> None:
    """A parts hash written by a consumer that lost its job could outlive the job."""
    lost = held(keeper, consumer, await running(queue, consumer, "a"))
    await settle(rescuer, await begun(rescuer, await rescued(rescuer)), PUBLISH)
    kept = held(keeper, consumer, await running(queue, consumer, "b"))
    for lease in (lost, kept):
        lease.keep("chunk-0", "{}")

    await asyncio.to_thread(keeper.renew_all)
    assert (lost.ended, kept.ended) == (Ended.LOST, None)
    assert await redis.keys(queue.keys.parts("*")) == [queue.keys.parts("b")]


async def test_a_server_that_refuses_renewals_is_not_heard(
    queue: JobQueue, consumer: JobStreams, redis: Redis, keeper: LeaseKeeper
) -> None:
    """Others could not renew either: when it takes writes again, whoever comes first must not take their entries."""
    now_s = 1e6
    keeper.idle_clock = lambda: now_s
    lease_s = keeper._lease_s
    held(keeper, consumer, await running(queue, consumer))
    await redis.config_set("min-replicas-to-write", 1)
    try:
        for _ in range(10):
            now_s += lease_s / 10
            with pytest.raises(ResponseError, match="NOREPLICAS"):
                await asyncio.to_thread(keeper.renew_all)
    finally:
        await redis.config_set("min-replicas-to-write", 0)
    refused = keeper.others_have_renewed
    await asyncio.to_thread(keeper.renew_all)

    assert (refused, keeper.others_have_renewed) == (False, False)
    for _ in range(6):
        now_s += lease_s / 10
        keeper.heard()
    assert keeper.others_have_renewed


def test_idle_time_goes_on_while_the_machine_sleeps(keeper: LeaseKeeper) -> None:
    """A laptop that wakes up finds all entries idle for hours: to take them for abandoned costs each job an attempt."""
    if sys.platform != "linux":
        pytest.skip("the clock that counts sleep is Linux's")
    before_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert before_s <= keeper.idle_clock() <= time.clock_gettime(time.CLOCK_BOOTTIME)


async def test_a_lease_that_can_never_be_renewed_ends_and_the_others_go_on(
    queue: JobQueue, consumer: JobStreams, keeper: LeaseKeeper, redis: Redis
) -> None:
    """A key of the wrong type, made by hand, fails each time: it is told once, not every second for ever."""
    broken, sound = [held(keeper, consumer, await running(queue, consumer, job_id)) for job_id in "ab"]
    await redis.set(queue.keys.parts("a"), "no hash")
    for lease in (broken, sound):
        lease.keep("part", "said")

    with capture_logs() as lines:
        for _ in range(2):
            await asyncio.to_thread(keeper.renew_all)

    assert (broken.ended, sound.ended) == (Ended.LOST, None)
    assert [line["event"] for line in lines] == ["lease_not_renewed"]
    await redis.delete(queue.keys.parts("a"))
