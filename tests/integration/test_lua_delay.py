"""delay: retire the entry of an attempt that failed and bring its job back later."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from common.entries import Settled
from common.outcomes import Delay
from tests.integration.seeds import (
    FAILURE,
    FAILURE_JSON,
    LATER_MS,
    PARTS,
    PARTS_GONE,
    begun,
    cancelling,
    counted,
    full_memory,
    read_one,
    rescued,
    result,
    running,
    running_with_parts,
    settle,
)
from tests.integration.state import ENTRY_ID, NOW, changes, whole_state

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from common.queue import JobQueue
    from common.streams import JobStreams

DELAY = Delay(FAILURE, 30_000)


@pytest.mark.parametrize("batch_id", [None, "b"])
async def test_a_failed_attempt_is_scheduled_again(
    queue: JobQueue, consumer: JobStreams, redis: Redis, batch_id: str | None
) -> None:
    """Between two attempts a job is in the delayed set and nowhere else, so it can be neither lost nor doubled."""
    task = await running(queue, consumer, batch_id=batch_id)
    before = await whole_state(redis)

    assert await settle(consumer, task, DELAY) is Settled.DONE
    assert changes(before, await whole_state(redis)) == {
        "job:a.state": "scheduled",
        "job:a.error": FAILURE_JSON,
        "job:a.entry_id": None,
        "jobs:normal": [],
        "jobs:normal pending": [],
        "delayed.a": NOW,
        "events": ["id=a state=scheduled"],
        **counted(batch_id, running=0, scheduled=1),
    }


async def test_the_next_attempt_goes_on_from_the_parts(queue: JobQueue, consumer: JobStreams, redis: Redis) -> None:
    """An engine that failed at the end of two hours must not do them again."""
    task = await running_with_parts(queue, consumer)
    before = await whole_state(redis)

    assert await settle(consumer, task, Delay(FAILURE, 0)) is Settled.DONE
    assert changes(before, await whole_state(redis)).keys().isdisjoint(PARTS_GONE)
    await consumer.keep_house(LATER_MS)
    assert (await begun(consumer, await read_one(consumer))).parts == PARTS


async def test_the_delay_counts_from_now_on_the_servers_clock(
    queue: JobQueue, consumer: JobStreams, redis: Redis
) -> None:
    """Hosts whose clocks differ must agree on when a job is due."""
    task = await running(queue, consumer)
    earliest_ms = await queue.now_ms() + DELAY.delay_ms
    await settle(consumer, task, DELAY)
    latest_ms = await queue.now_ms() + DELAY.delay_ms

    assert earliest_ms <= await redis.zscore(queue.keys.delayed, "a") <= latest_ms


async def test_attempts_add_up_over_delays(queue: JobQueue, consumer: JobStreams) -> None:
    """A job that fails each time must reach its last attempt."""
    task = await running(queue, consumer)
    for attempts in (2, 3):
        await settle(consumer, task, Delay(FAILURE, 0))
        await consumer.keep_house(gone_ms=60_000)
        task = await begun(consumer, await read_one(consumer))

        assert task.attempts == attempts


@pytest.mark.parametrize("batch_id", [None, "b"])
async def test_a_job_that_is_being_cancelled_is_not_tried_again(
    queue: JobQueue, consumer: JobStreams, redis: Redis, batch_id: str | None
) -> None:
    """A cancellation must not be forgotten because the attempt happened to fail."""
    task = await cancelling(queue, consumer, batch_id=batch_id)
    before = await whole_state(redis)

    assert await settle(consumer, task, DELAY) is Settled.CANCELLED
    assert changes(before, await whole_state(redis)) == {
        "job:a.state": "cancelled",
        "job:a.finished_ms": NOW,
        "job:a.cancel_requested": None,
        "jobs:normal": [],
        "jobs:normal pending": [],
        "results": [(ENTRY_ID, result("a", "cancelled"))],
        "events": ["id=a state=cancelled"],
        **counted(batch_id, running=0, cancelled=1),
    }


async def test_an_attempt_that_lost_its_lease_schedules_nothing(
    queue: JobQueue, consumer: JobStreams, rescuer: JobStreams, redis: Redis
) -> None:
    """A job that another consumer runs must not come back a second time."""
    late = await running(queue, consumer)
    await begun(rescuer, await rescued(rescuer))
    before = await whole_state(redis)

    assert await settle(consumer, late, DELAY) is Settled.LOST
    assert changes(before, await whole_state(redis)) == {}


async def test_a_full_server_takes_the_retry(queue: JobQueue, consumer: JobStreams, redis: Redis) -> None:
    """A retry refused for memory would leave the entry to the lease, and the failure untold."""
    task = await running(queue, consumer)

    async with full_memory(redis):
        assert await settle(consumer, task, DELAY) is Settled.DONE
    assert await redis.zcard(queue.keys.delayed) == 1
