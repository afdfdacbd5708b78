"""submit: accept a job once, or say why not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from redis.exceptions import OutOfMemoryError, ResponseError

from common.queue import JobQueue, NewJob, Submitted
from common.records import PRIORITIES, JobSpec
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
        "job:a.source": job.source,
        "job:a.state": "queued",
        "job:a.created_ms": NOW,
        "job:a.entry_id": ENTRY_ID,
        **({"job:a.spec": job.beside_source()} if job.beside_source() else {}),
        **({"job:a.priority": priority} if priority != "normal" else {}),
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
        "job:a.source": spec().source,
        "job:a.state": "scheduled",
        "job:a.created_ms": NOW,
        "job:a.queued_ms": "0",
        **({"job:a.spec": '{"batch_id":"b"}'} if batch_id else {}),
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


# -- many in one call ------------------------------------------------------------------------------------------------


async def test_of_many_jobs_each_gets_its_own_answer(queue: JobQueue, consumer: JobStreams, redis: Redis) -> None:
    """One that is refused must not hold up the others, of whatever lane and batch."""
    await queued(queue, "known", batch_id="b1")
    await queued(queue, "other")
    before = await whole_state(redis)

    answers = await queue.submit_many(
        [
            NewJob("a", spec("a", batch_id="b1", priority="high")),
            NewJob("known", spec("known", batch_id="b1")),
            NewJob("other", spec("other", timeout_s=5.0)),
            NewJob("later", spec("later", batch_id="b2"), delay_ms=LATER_MS),
            NewJob("at", spec("at"), due_ms=await queue.now_ms() + LATER_MS),
            NewJob("again", spec("again"), run=3),
            NewJob("a", spec("a", batch_id="b1", priority="high")),
            NewJob("full", spec("full")),
        ],
        max_queued=6,
    )
    assert answers == [
        Submitted.QUEUED,
        Submitted.KNOWN,
        Submitted.CONFLICT,
        Submitted.SCHEDULED,
        Submitted.SCHEDULED,
        Submitted.QUEUED,
        Submitted.KNOWN,
        Submitted.FULL,
    ]
    after = changes(before, await whole_state(redis))
    assert [entry for _, entry in after["jobs:high"]] == [fields("a", "b1")]
    assert [entry for _, entry in after["jobs:normal"]] == [fields("known", "b1"), fields("other"), fields("again")]
    assert after["job:again.run"] == "3"
    assert after.items() >= (counted("b1", queued=2) | counted("b2", scheduled=1)).items()
    assert after["events"] == [
        "id=a state=queued",
        "id=later state=scheduled",
        "id=at state=scheduled",
        "id=again state=queued",
    ]


async def test_many_jobs_take_several_calls_in_their_order(queue: JobQueue, redis: Redis) -> None:
    """A call is short, so that the server answers others in between; the stream has the order of the list."""
    jobs = [NewJob(f"job-{number}", spec()) for number in range(300)]

    assert await queue.submit_many(jobs, max_queued=1000) == [Submitted.QUEUED] * 300
    assert [entry["id"] for _, entry in await redis.xrange(queue.keys.lane("normal"))] == [job.id for job in jobs]
    assert await queue.submit_many(jobs, max_queued=1000) == [Submitted.KNOWN] * 300
    assert await queue.submit_many([], max_queued=1000) == []


async def test_a_job_that_cannot_be_accepted_costs_itself_only(queue: JobQueue, redis: Redis) -> None:
    """A key of the wrong type, made by hand: the others are accepted, and known to whoever submits all again."""
    await redis.set(queue.keys.job("broken"), "no hash")
    jobs = [NewJob(job_id, spec(job_id)) for job_id in ("a", "broken", "c")]

    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await queue.submit_many(jobs, max_queued=10)
    await redis.delete(queue.keys.job("broken"))
    assert await queue.submit_many(jobs, max_queued=10) == [Submitted.KNOWN, Submitted.QUEUED, Submitted.KNOWN]


@pytest.mark.parametrize("other", [{}, {"timeout_s": 5.0}])
async def test_a_job_that_an_older_version_accepted_is_known(
    queue: JobQueue, redis: Redis, other: dict[str, Any]
) -> None:
    """A client that repeats its request after an update must not be told that its id is another job's."""
    noted = {"spec": spec(priority="high").to_json(), "run": 1, "created_ms": 1, "queued_ms": 1, "state": "queued"}
    await redis.hset(queue.keys.job("a"), mapping=noted)
    before = await whole_state(redis)

    answer = await queue.submit("a", spec(priority="high", **other), max_queued=10)
    assert answer is (Submitted.CONFLICT if other else Submitted.KNOWN)
    assert changes(before, await whole_state(redis)) == {}


async def test_a_job_that_waits_takes_little_memory(queue: JobQueue, redis: Redis) -> None:
    """A million of them wait in the server's memory: the hash must stay in its compact form."""
    source = "file:///srv/audio/2026/11/22/call-000001.wav"
    await queue.submit("0199c5d2-7b6e-7c31-9f5e-0123456789ab", JobSpec(source=source), max_queued=10)

    key = queue.keys.job("0199c5d2-7b6e-7c31-9f5e-0123456789ab")
    assert await redis.object("encoding", key) == "listpack"
    assert await redis.memory_usage(key) <= 240
