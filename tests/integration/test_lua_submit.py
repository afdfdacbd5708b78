"""submit: accept a job once, or say why not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from redis.exceptions import OutOfMemoryError

from common.queue import JobQueue, Submitted
from common.records import PRIORITIES
from tests.integration.seeds import (
    LATER_MS,
    RACES,
    cancelled,
    counted,
    failed,
    fields,
    full_memory,
    queued,
    running,
    scheduled,
    spec,
    store_one,
    transcribed,
)
from tests.integration.state import ENTRY_ID, NOW, changes, whole_state

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from common.records import Priority
    from common.streams import JobStreams, ResultStream


@pytest.mark.parametrize("priority", PRIORITIES)
@pytest.mark.parametrize("batch_id", [None, "b"])
async def test_a_job_is_queued_on_the_lane_of_its_priority(
    queue: JobQueue, redis: Redis, priority: Priority, batch_id: str | None
) -> None:
    """Accepted means: it is in the stream, and its hash says where."""
    job = spec(priority=priority, batch_id=batch_id)
    before = await whole_state(redis)

    assert await queue.submit("a", job, max_queued=10) is Submitted.QUEUED
    after = changes(before, await whole_state(redis))
    assert after == {
        "job:a.spec": job.to_json(),
        "job:a.state": "queued",
        "job:a.run": "1",
        "job:a.created_ms": NOW,
        "job:a.queued_ms": NOW,
        "job:a.entry_id": ENTRY_ID,
        "job:a.lane": f"{{sttream}}:jobs:{priority}",
        f"jobs:{priority}": [(after["job:a.entry_id"], fields("a", batch_id))],
        "events": ["id=a state=queued"],
        **counted(batch_id, queued=1),
    }


@pytest.mark.parametrize("batch_id", [None, "b"])
@pytest.mark.parametrize("way", ["due_ms", "delay_ms"])
async def test_a_job_for_later_is_scheduled(queue: JobQueue, redis: Redis, way: str, batch_id: str | None) -> None:
    """A time and a wait come to the same: the delayed set, by the server's clock."""
    now_ms = await queue.now_ms()
    later = {"due_ms": now_ms + 30_000} if way == "due_ms" else {"delay_ms": 30_000}
    before = await whole_state(redis)

    assert await queue.submit("a", spec(batch_id=batch_id), max_queued=10, **later) is Submitted.SCHEDULED
    after = changes(before, await whole_state(redis))
    assert now_ms + 30_000 <= after["delayed.a"] <= await queue.now_ms() + 30_000
    assert after == {
        "job:a.spec": spec(batch_id=batch_id).to_json(),
        "job:a.state": "scheduled",
        "job:a.run": "1",
        "job:a.created_ms": NOW,
        "delayed.a": NOW,
        "events": ["id=a state=scheduled"],
        **counted(batch_id, scheduled=1),
    }


async def test_a_job_that_is_due_already_is_queued(queue: JobQueue) -> None:
    """A time in the past means now."""
    assert await queue.submit("a", spec(), max_queued=10, due_ms=await queue.now_ms() - 1) is Submitted.QUEUED


async def test_a_job_submitted_as_a_later_run_has_its_number(queue: JobQueue) -> None:
    """An ended job whose hash has expired is tried again from the database's record."""
    await queue.submit("a", spec(), max_queued=10, run=3)

    job = await queue.job("a")
    assert job is not None
    assert job.run == 3


@pytest.mark.parametrize("state", ["scheduled", "queued", "running", "transcribed", "completed", "failed", "cancelled"])
async def test_a_known_job_is_accepted_once(
    queue: JobQueue, consumer: JobStreams, writer: ResultStream, redis: Redis, state: str
) -> None:
    """A client that repeats its request after a lost reply gets the same job, wherever it is by now."""
    match state:
        case "scheduled":
            await scheduled(queue)
        case "queued":
            await queued(queue)
        case "running":
            await running(queue, consumer)
        case "failed":
            await failed(queue, consumer)
        case "cancelled":
            await cancelled(queue)
        case _:
            await transcribed(queue, consumer)
    if state == "completed":
        await store_one(writer)
    before = await whole_state(redis)

    assert before["job:a.state"] == state
    assert await queue.submit("a", spec(), max_queued=10) is Submitted.KNOWN
    assert changes(before, await whole_state(redis)) == {}


@pytest.mark.parametrize(
    "other", [{"priority": "high"}, {"batch_id": "b"}, {"timeout_s": 5.0}, {"metadata": {"colour": "blue"}}]
)
async def test_another_job_of_the_same_id_is_refused(queue: JobQueue, redis: Redis, other: dict[str, Any]) -> None:
    """Taking it for the same job would transcribe one recording and drop the other without a word."""
    await queued(queue)
    before = await whole_state(redis)

    assert await queue.submit("a", spec(**other), max_queued=10) is Submitted.CONFLICT
    assert changes(before, await whole_state(redis)) == {}


async def test_the_limit_counts_what_waits_runs_and_is_scheduled_on_all_lanes(
    queue: JobQueue, consumer: JobStreams, redis: Redis
) -> None:
    """The limit protects the server's memory, and all of these take some."""
    await running(queue, consumer, "runs", priority="high")
    for priority in PRIORITIES:
        await queued(queue, priority, priority=priority)
    await scheduled(queue, "later")
    before = await whole_state(redis)

    assert await queue.submit("a", spec(), max_queued=5) is Submitted.FULL
    assert await queue.submit("a", spec(), max_queued=5, delay_ms=LATER_MS) is Submitted.FULL
    assert await queue.submit("runs", spec("runs", priority="high"), max_queued=5) is Submitted.KNOWN
    assert changes(before, await whole_state(redis)) == {}
    assert await queue.submit("a", spec(), max_queued=6) is Submitted.QUEUED


async def test_what_has_ended_makes_room(queue: JobQueue, consumer: JobStreams) -> None:
    """A full queue accepts again as it drains, whatever the writer does."""
    await transcribed(queue, consumer, "a")
    await failed(queue, consumer, "b")
    await cancelled(queue, "c")

    assert await queue.submit("d", spec("d"), max_queued=1) is Submitted.QUEUED


async def test_of_many_who_submit_the_same_job_one_is_told_that_it_is_new(
    queue: JobQueue, other_redis: Redis, redis: Redis
) -> None:
    """Impatient clients make one job."""
    other = JobQueue(other_redis, queue.keys)
    answers = await asyncio.gather(*(each.submit("a", spec(), max_queued=10) for each in [queue, other] * RACES))

    assert sorted(answer.value for answer in answers) == [0] * (2 * RACES - 1) + [1]
    assert await redis.xlen(queue.keys.lane("normal")) == 1


async def test_of_many_who_take_the_last_place_one_gets_it(queue: JobQueue, other_redis: Redis) -> None:
    """Counting and adding are one step: the limit is never passed."""
    callers = [queue, JobQueue(other_redis, queue.keys)] * (RACES // 2)
    answers = await asyncio.gather(
        *(caller.submit(f"job-{number}", spec(), max_queued=1) for number, caller in enumerate(callers))
    )

    assert sorted(answer.value for answer in answers) == [-2] * (RACES - 1) + [1]


async def test_a_full_server_refuses_new_work_first(queue: JobQueue, redis: Redis) -> None:
    """Back-pressure: what was accepted goes on, what was not is told so."""
    before = await whole_state(redis)

    async with full_memory(redis):
        with pytest.raises(OutOfMemoryError):
            await queue.submit("a", spec(), max_queued=10)
        assert changes(before, await whole_state(redis)) == {}
