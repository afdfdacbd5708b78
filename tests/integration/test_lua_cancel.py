"""cancel: take a job out of the queue, or ask the consumer that runs it to stop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from common.entries import Settled
from common.keys import RELEASED, TRANSCRIBERS
from common.outcomes import Delay, Release
from common.queue import Cancellation, JobQueue
from common.scripts import call
from tests.integration.seeds import (
    FAILURE,
    FAILURE_JSON,
    LATER_MS,
    PARTS_GONE,
    PUBLISH,
    RACES,
    both,
    cancelled,
    cancelling,
    counted,
    failed,
    full_memory,
    queued,
    read_one,
    result,
    running,
    running_with_parts,
    scheduled,
    settle,
    store_one,
    transcribed,
)
from tests.integration.state import ENTRY_ID, NOW, changes, whole_state

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from common.streams import JobStreams, ResultStream

# What changes in the job, its outcome and the events wherever it is cancelled.
ENDED = {
    "job:a.state": "cancelled",
    "job:a.finished_ms": NOW,
    "results": [(ENTRY_ID, result("a", "cancelled"))],
    "events": ["id=a state=cancelled"],
}


@pytest.mark.parametrize("batch_id", [None, "b"])
async def test_a_waiting_job_is_cancelled_at_once(queue: JobQueue, redis: Redis, batch_id: str | None) -> None:
    """Nobody will spend a GPU on it, and its record says so."""
    await queued(queue, batch_id=batch_id)
    before = await whole_state(redis)

    assert await queue.cancel("a") is Cancellation.CANCELLED
    assert changes(before, await whole_state(redis)) == {
        **ENDED,
        "jobs:normal": [],
        **counted(batch_id, queued=0, cancelled=1),
    }


@pytest.mark.parametrize("batch_id", [None, "b"])
async def test_a_scheduled_job_is_cancelled_at_once(queue: JobQueue, redis: Redis, batch_id: str | None) -> None:
    """It must not come back when it is due."""
    await scheduled(queue, batch_id=batch_id)
    before = await whole_state(redis)

    assert await queue.cancel("a") is Cancellation.CANCELLED
    assert changes(before, await whole_state(redis)) == {
        **ENDED,
        "delayed.a": None,
        **counted(batch_id, scheduled=0, cancelled=1),
    }


async def test_a_job_between_two_attempts_is_cancelled_at_once(
    queue: JobQueue, consumer: JobStreams, redis: Redis
) -> None:
    """Waiting for a retry is waiting; what went wrong before stays readable."""
    await settle(consumer, await running(queue, consumer), Delay(FAILURE, 30_000))
    before = await whole_state(redis)

    assert await queue.cancel("a") is Cancellation.CANCELLED
    assert before["job:a.error"] == FAILURE_JSON
    assert changes(before, await whole_state(redis)) == {**ENDED, "delayed.a": None}


@pytest.mark.parametrize("waits", ["released", "for its retry", "queued for its retry", "deleted by hand"])
async def test_the_parts_of_a_job_that_is_cancelled_at_once_are_gone(
    queue: JobQueue, consumer: JobStreams, redis: Redis, waits: str
) -> None:
    """Nobody comes after the cancellation who would delete them."""
    task = await running_with_parts(queue, consumer)
    match waits:
        case "released":
            await settle(consumer, task, Release())
        case "deleted by hand":
            await redis.xdel(task.entry.stream, task.entry.entry_id)
            await consumer.rescue(16, 0)
        case _:
            await settle(consumer, task, Delay(FAILURE, 0 if waits.startswith("queued") else LATER_MS))
            await consumer.keep_house(LATER_MS)
    before = await whole_state(redis)

    assert await queue.cancel("a") is Cancellation.CANCELLED
    assert changes(before, await whole_state(redis)).items() >= PARTS_GONE.items()


@pytest.mark.parametrize("batch_id", [None, "b"])
async def test_a_running_job_is_asked_to_stop(
    queue: JobQueue, consumer: JobStreams, redis: Redis, batch_id: str | None
) -> None:
    """Only its consumer can end it; asking twice asks once."""
    await running(queue, consumer, batch_id=batch_id)
    before = await whole_state(redis)

    assert await queue.cancel("a") is Cancellation.CANCELLING
    assert await queue.cancel("a") is Cancellation.CANCELLING
    assert changes(before, await whole_state(redis)) == {"job:a.cancel_requested": "1"}


async def test_a_job_that_was_read_but_not_started_is_cancelled_at_once(
    queue: JobQueue, consumer: JobStreams, redis: Redis
) -> None:
    """Between the read and the start its entry is pending: the start must find it gone."""
    await queued(queue)
    entry = await read_one(consumer)
    before = await whole_state(redis)

    assert await queue.cancel("a") is Cancellation.CANCELLED
    assert await consumer.begin([entry]) == []
    assert changes(before, await whole_state(redis)) == {**ENDED, "jobs:normal": [], "jobs:normal pending": []}


async def test_a_released_job_is_cancelled_at_once(queue: JobQueue, consumer: JobStreams, redis: Redis) -> None:
    """Its entry is pending for nobody, and must not be left there."""
    await settle(consumer, await running(queue, consumer), Release())
    before = await whole_state(redis)

    assert [holder for _, holder, _ in before["jobs:normal pending"]] == [RELEASED]
    assert await queue.cancel("a") is Cancellation.CANCELLED
    assert changes(before, await whole_state(redis)) == {**ENDED, "jobs:normal": [], "jobs:normal pending": []}


async def test_a_job_released_while_it_was_being_cancelled_is_cancelled_at_once(
    queue: JobQueue, consumer: JobStreams, redis: Redis
) -> None:
    """The request of before must not wait in the hash for a later run."""
    await settle(consumer, await cancelling(queue, consumer), Release())
    before = await whole_state(redis)

    assert await queue.cancel("a") is Cancellation.CANCELLED
    assert changes(before, await whole_state(redis)) == {
        **ENDED,
        "job:a.cancel_requested": None,
        "jobs:normal": [],
        "jobs:normal pending": [],
    }


async def test_a_running_job_whose_entry_was_deleted_is_ended_here(
    queue: JobQueue, consumer: JobStreams, redis: Redis
) -> None:
    """No consumer holds it any more, so none would ever stop it: it would run for ever and could not be retried."""
    task = await running(queue, consumer)
    await redis.xdel(task.entry.stream, task.entry.entry_id)
    await consumer.rescue(16, 0)
    before = await whole_state(redis)

    assert await queue.cancel("a") is Cancellation.CANCELLED
    assert changes(before, await whole_state(redis)) == ENDED


async def test_a_transcribed_job_is_too_late_to_cancel(queue: JobQueue, consumer: JobStreams, redis: Redis) -> None:
    """Its transcript is on the way to the writer: it will be completed."""
    await transcribed(queue, consumer)
    before = await whole_state(redis)

    assert await queue.cancel("a") is Cancellation.TOO_LATE
    assert changes(before, await whole_state(redis)) == {}


@pytest.mark.parametrize("end", ["completed", "failed", "cancelled"])
async def test_an_ended_job_is_too_late_to_cancel(
    queue: JobQueue, consumer: JobStreams, writer: ResultStream, redis: Redis, end: str
) -> None:
    """A job has one terminal record."""
    match end:
        case "completed":
            await transcribed(queue, consumer)
            await store_one(writer)
        case "failed":
            await failed(queue, consumer)
        case _:
            await cancelled(queue)
    before = await whole_state(redis)

    assert await queue.cancel("a") is Cancellation.TOO_LATE
    assert changes(before, await whole_state(redis)) == {}


async def test_an_unknown_job_is_not_made(queue: JobQueue, redis: Redis) -> None:
    """A typing mistake must not leave a hash behind."""
    before = await whole_state(redis)

    assert await queue.cancel("a") is Cancellation.UNKNOWN
    # The job may also go between the look and the call.
    keys = queue.keys
    names = [keys.job("a"), keys.events, keys.results, keys.delayed, keys.lane("normal"), keys.parts("a")]
    assert (
        Cancellation(await call(redis, "cancel", [*names, keys.batch("b")], ["a", TRANSCRIBERS]))
        is Cancellation.UNKNOWN
    )
    assert changes(before, await whole_state(redis)) == {}


async def test_of_two_who_cancel_one_is_told_so(queue: JobQueue, other_redis: Redis, redis: Redis) -> None:
    """Two clicks on one button make one outcome."""
    other = JobQueue(other_redis, queue.keys)
    for number in range(RACES):
        await queued(queue, f"job-{number}")

        answers = await both(queue.cancel(f"job-{number}"), other.cancel(f"job-{number}"))
        assert answers == {Cancellation.CANCELLED, Cancellation.TOO_LATE}
    assert await redis.xlen(queue.keys.results) == RACES


async def test_a_job_that_starts_while_it_is_cancelled_ends_once(
    queue: JobQueue, consumer: JobStreams, other_redis: Redis, redis: Redis
) -> None:
    """Either it never starts, or its consumer is told to stop."""
    other = JobQueue(other_redis, queue.keys)
    for number in range(RACES):
        await queued(queue, f"job-{number}")
        entry = await read_one(consumer)

        answer, tasks = await asyncio.gather(other.cancel(f"job-{number}"), consumer.begin([entry]))
        assert (answer is Cancellation.CANCELLING) == bool(tasks)
        for task in tasks:
            assert await settle(consumer, task, PUBLISH) is Settled.CANCELLED
        assert await redis.xlen(queue.keys.results) == number + 1


async def test_a_job_that_completes_while_it_is_cancelled_ends_once(
    queue: JobQueue, consumer: JobStreams, other_redis: Redis, redis: Redis
) -> None:
    """The answer to the request and the outcome agree."""
    other = JobQueue(other_redis, queue.keys)
    for number in range(RACES):
        task = await running(queue, consumer, f"job-{number}")

        answer, settled = await asyncio.gather(other.cancel(f"job-{number}"), settle(consumer, task, PUBLISH))
        assert (answer, settled) in {
            (Cancellation.CANCELLING, Settled.CANCELLED),
            (Cancellation.TOO_LATE, Settled.DONE),
        }
        assert await redis.xlen(queue.keys.results) == number + 1


async def test_a_full_server_can_be_relieved_by_cancelling(queue: JobQueue, redis: Redis) -> None:
    """It is what an operator will try first."""
    await queued(queue)

    async with full_memory(redis):
        assert await queue.cancel("a") is Cancellation.CANCELLED
    assert await redis.xlen(queue.keys.lane("normal")) == 0
