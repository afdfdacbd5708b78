"""release: leave an entry for another consumer to take at once; the attempt does not count."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from common.entries import Settled
from common.keys import RELEASED
from common.outcomes import Release
from tests.integration.seeds import (
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
    transcribed,
)
from tests.integration.state import ENTRY_ID, NOW, changes, whole_state

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from common.queue import JobQueue
    from common.streams import JobStreams, ResultStream


@pytest.mark.parametrize("batch_id", [None, "b"])
async def test_a_released_job_is_queued_again_where_it_was(
    queue: JobQueue, consumer: JobStreams, redis: Redis, batch_id: str | None
) -> None:
    """A drained process must cost its jobs neither an attempt nor their place."""
    task = await running(queue, consumer, batch_id=batch_id)
    before = await whole_state(redis)

    assert await settle(consumer, task, Release()) is Settled.DONE
    assert changes(before, await whole_state(redis)) == {
        "job:a.state": "queued",
        "job:a.attempts": "0",
        "jobs:normal pending": [(task.entry.entry_id, RELEASED, 1)],
        "events": ["id=a state=queued"],
        **counted(batch_id, running=0, queued=1),
    }


async def test_the_next_rescue_takes_a_released_entry_at_once(
    queue: JobQueue, consumer: JobStreams, rescuer: JobStreams
) -> None:
    """A deployment must not stall its jobs for a lease."""
    await settle(consumer, await running(queue, consumer), Release())

    [entry] = await rescuer.rescue(16, LATER_MS)
    task = await begun(rescuer, entry)
    assert (task.id, task.attempts, entry.deliveries) == ("a", 1, 2)


async def test_the_parts_of_a_released_job_go_with_it(
    queue: JobQueue, consumer: JobStreams, rescuer: JobStreams, redis: Redis
) -> None:
    """A deployment in the middle of a long recording costs its last seconds, not its first hour."""
    task = await running_with_parts(queue, consumer)
    before = await whole_state(redis)

    assert await settle(consumer, task, Release()) is Settled.DONE
    assert changes(before, await whole_state(redis)).keys().isdisjoint(PARTS_GONE)
    assert (await begun(rescuer, await rescued(rescuer))).parts == PARTS


async def test_an_attempt_that_lost_its_lease_releases_nothing(
    queue: JobQueue, consumer: JobStreams, rescuer: JobStreams, redis: Redis
) -> None:
    """A process that drains late must not take the job from the consumer that rescued it."""
    late = await running(queue, consumer)
    await begun(rescuer, await rescued(rescuer))
    before = await whole_state(redis)

    assert await settle(consumer, late, Release()) is Settled.LOST
    assert changes(before, await whole_state(redis)) == {}


async def test_a_cancellation_outlives_the_release(
    queue: JobQueue, consumer: JobStreams, rescuer: JobStreams, redis: Redis
) -> None:
    """The next consumer ends the job without running it."""
    await settle(consumer, await cancelling(queue, consumer), Release())
    before = await whole_state(redis)

    assert await rescuer.begin([await rescued(rescuer)]) == []
    assert changes(before, await whole_state(redis)) == {
        "job:a.state": "cancelled",
        "job:a.finished_ms": NOW,
        "job:a.cancel_requested": None,
        "jobs:normal": [],
        "jobs:normal pending": [],
        "results": [(ENTRY_ID, result("a", "cancelled"))],
        "events": ["id=a state=cancelled"],
    }


async def test_a_released_result_is_the_next_writers(
    queue: JobQueue, consumer: JobStreams, writer: ResultStream, redis: Redis
) -> None:
    """A result has no state of its own to change: only the entry moves."""
    await transcribed(queue, consumer)
    task = await begun(writer, await read_one(writer))
    before = await whole_state(redis)

    assert await settle(writer, task, Release()) is Settled.DONE
    assert changes(before, await whole_state(redis)) == {"results pending": [(task.entry.entry_id, RELEASED, 1)]}
    assert [entry.entry_id for entry in await writer.rescue(16, LATER_MS)] == [task.entry.entry_id]


async def test_a_full_server_can_be_drained_from(queue: JobQueue, consumer: JobStreams, redis: Redis) -> None:
    """A process must be able to stop whatever the server's memory."""
    task = await running(queue, consumer)

    async with full_memory(redis):
        assert await settle(consumer, task, Release()) is Settled.DONE


async def test_a_released_job_whose_hash_was_deleted_is_still_run(
    queue: JobQueue, consumer: JobStreams, rescuer: JobStreams, redis: Redis
) -> None:
    """Left of the hash, an attempt less would make the entry a stray: accepted, and never heard of again."""
    task = await running(queue, consumer)
    await redis.delete(queue.keys.job("a"))

    assert await settle(consumer, task, Release()) is Settled.DONE
    assert (await begun(rescuer, await rescued(rescuer))).id == "a"
