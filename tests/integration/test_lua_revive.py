"""revive: queue a failed or cancelled job again, as a new run of the same id."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from redis.exceptions import OutOfMemoryError

from common.entries import Settled
from common.queue import JobQueue, Revival
from common.scripts import call
from tests.integration.seeds import (
    BURY,
    PUBLISH,
    RACES,
    add_by_hand,
    begun,
    both,
    cancelled,
    counted,
    failed,
    fields,
    full_memory,
    queued,
    read_one,
    running,
    scheduled,
    settle,
    store_one,
    transcribed,
)
from tests.integration.state import ENTRY_ID, changes, whole_state

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from common.streams import JobStreams, ResultStream


@pytest.mark.parametrize("batch_id", [None, "b"])
async def test_a_failed_job_is_queued_again_and_its_dead_letter_taken_back(
    queue: JobQueue, consumer: JobStreams, redis: Redis, batch_id: str | None
) -> None:
    """It starts as new, with all its attempts, under the id that its owner knows."""
    await failed(queue, consumer, batch_id=batch_id)
    before = await whole_state(redis)

    assert await queue.revive("a") is Revival.QUEUED
    after = changes(before, await whole_state(redis))
    after.pop("job:a.queued_ms", None)  # may fall into the same millisecond
    assert after == {
        "job:a.state": "queued",
        "job:a.run": "2",
        "job:a.attempts": "0",
        "job:a.entry_id": ENTRY_ID,
        "job:a.dead_id": None,
        "job:a.error": None,
        "job:a.worker": None,
        "job:a.progress": None,
        "job:a.started_ms": None,
        "job:a.finished_ms": None,
        "jobs:normal": [(after["job:a.entry_id"], fields("a", batch_id))],
        "dead": [],
        "events": ["id=a state=queued"],
        **counted(batch_id, failed=0, queued=1),
    }


@pytest.mark.parametrize("batch_id", [None, "b"])
async def test_a_cancelled_job_is_queued_again(queue: JobQueue, redis: Redis, batch_id: str | None) -> None:
    """Cancelling is not for ever."""
    await cancelled(queue, batch_id=batch_id)
    before = await whole_state(redis)

    assert await queue.revive("a") is Revival.QUEUED
    after = changes(before, await whole_state(redis))
    after.pop("job:a.queued_ms", None)  # may fall into the same millisecond
    assert after == {
        "job:a.state": "queued",
        "job:a.run": "2",
        "job:a.attempts": "0",
        "job:a.entry_id": ENTRY_ID,
        "job:a.finished_ms": None,
        "jobs:normal": [(after["job:a.entry_id"], fields("a", batch_id))],
        "events": ["id=a state=queued"],
        **counted(batch_id, cancelled=0, queued=1),
    }


async def test_a_revived_job_does_not_expire(queue: JobQueue, writer: ResultStream, redis: Redis) -> None:
    """The time to live of its first end would take the hash away from under its second run."""
    await cancelled(queue)
    await store_one(writer)
    before = await whole_state(redis)

    assert await queue.revive("a") is Revival.QUEUED
    assert before["job:a expires"] is True
    assert "job:a expires" not in await whole_state(redis)


async def test_reviving_a_job_that_was_added_by_hand_adds_one_run(
    queue: JobQueue, consumer: JobStreams, redis: Redis
) -> None:
    """Its first run is a time; the next one is above it, and below the time of any entry that is added later."""
    await add_by_hand(redis, queue.keys.lane("normal"), **fields())
    task = await begun(consumer, await read_one(consumer))
    await settle(consumer, task, BURY)

    assert await queue.revive("a") is Revival.QUEUED
    assert task.job is not None
    assert await redis.hget(queue.keys.job("a"), "run") == str(task.job.run + 1)


async def test_the_outcome_of_the_run_before_leaves_the_revived_job_alone(
    queue: JobQueue, consumer: JobStreams, writer: ResultStream, redis: Redis
) -> None:
    """The writer may store it late: it must neither end nor expire the run that is under way."""
    await failed(queue, consumer)
    await queue.revive("a")
    task = await begun(consumer, await read_one(consumer))
    before = await whole_state(redis)

    assert await store_one(writer) is Settled.DONE
    assert changes(before, await whole_state(redis)) == {"results": []}
    assert await settle(consumer, task, PUBLISH) is Settled.DONE
    assert await store_one(writer) is Settled.DONE
    assert await redis.hget(queue.keys.job("a"), "state") == "completed"


@pytest.mark.parametrize("state", ["scheduled", "queued", "running", "transcribed", "completed"])
async def test_a_job_that_has_not_failed_is_left_alone(
    queue: JobQueue, consumer: JobStreams, writer: ResultStream, redis: Redis, state: str
) -> None:
    """A second entry of a job under way would run it twice."""
    match state:
        case "scheduled":
            await scheduled(queue)
        case "queued":
            await queued(queue)
        case "running":
            await running(queue, consumer)
        case _:
            await transcribed(queue, consumer)
    if state == "completed":
        await store_one(writer)
    before = await whole_state(redis)

    assert before["job:a.state"] == state
    assert await queue.revive("a") is Revival.NOT_ENDED
    assert changes(before, await whole_state(redis)) == {}


async def test_an_unknown_job_is_not_made(queue: JobQueue, redis: Redis) -> None:
    """The caller submits it anew from the database's record."""
    before = await whole_state(redis)

    assert await queue.revive("a") is Revival.UNKNOWN
    # The hash may also expire between the look and the call.
    names = [queue.keys.job("a"), queue.keys.events, queue.keys.lane("normal"), queue.keys.dead, queue.keys.batch("b")]
    assert Revival(await call(redis, "revive", names, ["a", "/audio/a.mp3", "b"])) is Revival.UNKNOWN
    assert changes(before, await whole_state(redis)) == {}


async def test_of_two_who_revive_a_job_one_does(
    queue: JobQueue, consumer: JobStreams, redis: Redis, other_redis: Redis
) -> None:
    """Two clicks on one button make one run."""
    other = JobQueue(other_redis, queue.keys)
    for number in range(RACES):
        await failed(queue, consumer, f"job-{number}")

        answers = await both(queue.revive(f"job-{number}"), other.revive(f"job-{number}"))
        assert answers == {Revival.QUEUED, Revival.NOT_ENDED}
        await read_one(consumer)
    assert await redis.xlen(queue.keys.lane("normal")) == RACES


async def test_a_full_server_refuses_it(queue: JobQueue, consumer: JobStreams, redis: Redis) -> None:
    """It is new work; the dead letter keeps it until there is room."""
    await failed(queue, consumer)
    before = await whole_state(redis)

    async with full_memory(redis):
        with pytest.raises(OutOfMemoryError):
            await queue.revive("a")
        assert changes(before, await whole_state(redis)) == {}
