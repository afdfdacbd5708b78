"""JobStreams and ResultStream: reading, beginning, settling and keeping house on a real server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from redis.exceptions import ResponseError
from structlog.testing import capture_logs

from common.connection import group_is_missing, library_is_missing, server_is_away
from common.dead import DeadLetters
from common.entries import Entry, Settled
from common.group import Group
from common.keys import RELEASED, TRANSCRIBERS, WRITERS
from common.outcomes import Bury, Cancel, Delay, Publish, Release, RetryPolicy
from common.overview import Overview
from common.records import Failure, State
from common.setup import set_up
from common.streams import JobStreams
from tests.integration.seeds import (
    BURY,
    FAILURE,
    FAILURE_JSON,
    LATER_MS,
    PUBLISH,
    add_by_hand,
    begun,
    counted,
    due,
    failed,
    fields,
    queued,
    read_one,
    result,
    running,
    scheduled,
    settle,
    transcribed,
)
from tests.integration.state import ENTRY_ID, NOW, changes, whole_state
from tests.until import until

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from redis.asyncio import Redis

    from common.keys import Keys
    from common.queue import JobQueue
    from common.settings import Settings
    from common.streams import ResultStream

STALE_SPEC = '{"source":"/audio/a.mp3","batch_id":"b","priority":"low","colour":"blue"}'


# -- reading ---------------------------------------------------------------------------------------------------------


async def test_lanes_are_read_in_the_order_of_priority(queue: JobQueue, consumer: JobStreams) -> None:
    """An urgent job overtakes all that waits, however long it has waited."""
    for job_id, priority in (("l", "low"), ("n", "normal"), ("h1", "high"), ("h2", "high")):
        await queued(queue, job_id, priority=priority)

    assert [entry.fields["id"] for entry in await consumer.read(10, 1)] == ["h1", "h2", "n", "l"]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6])
async def test_no_more_entries_are_read_than_asked_for(queue: JobQueue, consumer: JobStreams, count: int) -> None:
    """COUNT counts for each stream; a busy consumer must not hoard what an idle one could run."""
    for priority in ("high", "normal", "low"):
        for number in range(2):
            await queued(queue, f"{priority}-{number}", priority=priority)

    assert len(await consumer.read(count, 1)) == count
    assert (await Overview(queue).stats(10_000)).running == count


async def test_a_read_of_an_entry_that_arrives_takes_only_that_one(
    queue: JobQueue, consumer: JobStreams, redis: Redis
) -> None:
    """A consumer that waited must not take at once what many others could share."""
    reading = asyncio.create_task(consumer.read(4, 5_000))
    await until(lambda: blocked(redis), within_s=5, what="the read is blocked")
    for number in range(4):
        await queued(queue, f"job-{number}", priority="low")

    assert [entry.fields["id"] for entry in await reading] == ["job-0"]


async def blocked(redis: Redis) -> bool:
    clients = await redis.info("clients")
    return bool(clients["blocked_clients"])


async def test_a_read_of_empty_lanes_comes_back_empty(consumer: JobStreams, writer: ResultStream) -> None:
    """The loop goes round to rescue and to stop."""
    assert await consumer.read(4, 1) == []
    assert await writer.read(4, 1) == []


async def test_an_entry_read_first_is_in_its_first_delivery(
    queue: JobQueue, consumer: JobStreams, redis: Redis
) -> None:
    """The fence relies on it without asking the server."""
    await queued(queue)

    [entry] = await consumer.read(1, 1)
    [pending] = await redis.xpending_range(entry.stream, TRANSCRIBERS, "-", "+", 10)
    assert (entry.deliveries, pending["times_delivered"]) == (1, 1)
    assert entry == Entry(queue.keys.lane("normal"), pending["message_id"], 1, fields())


async def test_a_group_begins_with_the_first_entry(queue: JobQueue, consumer: JobStreams, redis: Redis) -> None:
    """Jobs submitted before any consumer has ever run, or while the group was gone, are not left out."""
    await queued(queue)
    await redis.xgroup_destroy(queue.keys.lane("normal"), TRANSCRIBERS)

    with pytest.raises(ResponseError) as caught:
        await consumer.read(1, 1)
    assert group_is_missing(caught.value)
    await set_up(redis, queue.keys)
    await set_up(redis, queue.keys)
    assert [entry.fields["id"] for entry in await consumer.read(10, 1)] == ["a"]


# -- beginning jobs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "complaint"),
    [
        ({"hello": "world"}, "field id and source missing (found hello)"),
        ({"id": "bad"}, "field source missing (found id)"),
        ({"id": "", "source": "/audio/a.mp3"}, "field id missing (found id, source)"),
        ({"id": "bad", "source": ""}, "field source missing (found id, source)"),
        ({"id": "../bad", "source": "/audio/a.mp3"}, "id '../bad'"),
        ({"id": "con", "source": "/audio/a.mp3"}, "name of a device"),
        ({"id": "x" * 129, "source": "/audio/a.mp3"}, "expected 1 to 128"),
        ({"id": "bad", "source": "x" * 4097}, "at most 4096 characters"),
        ({"id": "bad", "source": "/audio/\0"}, "NUL character"),
        ({"id": b"bad\xff", "source": "/audio/a.mp3"}, "id 'bad"),
    ],
)
async def test_an_entry_that_is_no_job_is_discarded_and_the_rest_begin(
    queue: JobQueue, consumer: JobStreams, redis: Redis, found: dict[str, Any], complaint: str
) -> None:
    """One careless client must not stop the loop for all others."""
    await queued(queue, "before")
    await redis.xadd(queue.keys.lane("normal"), found)
    await queued(queue, "after")

    tasks = await consumer.begin(await consumer.read(10, 1))
    assert [task.id for task in tasks] == ["before", "after"]
    [letter], _ = await DeadLetters(queue).page("", 10)
    assert letter.reason == "entry_malformed"
    assert complaint in letter.failure.detail
    assert "moved to dead letters without retry" in letter.failure.detail


async def test_a_source_that_is_no_utf8_begins_as_it_can_be_read(
    queue: JobQueue, consumer: JobStreams, redis: Redis
) -> None:
    """Such a file name is the handler's to refuse; reading it must not end the loop."""
    await redis.xadd(queue.keys.lane("normal"), {"id": "a", "source": b"/audio/caf\xe9.mp3", b"\xff": b"\xfe"})

    task = await begun(consumer, await read_one(consumer))
    assert task.job is not None
    assert task.job.spec.source == "/audio/caf\\xe9.mp3"


@pytest.mark.parametrize(
    ("written", "removed"),
    [
        ({"spec": STALE_SPEC}, []),
        ({"spec": "no JSON"}, []),
        ({"error": "{}"}, []),
        ({}, ["created_ms"]),
        ({}, ["source"]),
    ],
)
async def test_a_job_that_cannot_be_read_is_buried_and_the_rest_begin(
    queue: JobQueue, consumer: JobStreams, redis: Redis, written: dict[str, str], removed: list[str]
) -> None:
    """A job of a newer version fails with a message, once; its batch and its owner learn of it."""
    entry_id = await queued(queue, "a", batch_id="b")
    await queued(queue, "after")
    for field, value in written.items():
        await redis.hset(queue.keys.job("a"), field, value)
    for field in removed:
        await redis.hdel(queue.keys.job("a"), field)

    tasks = await consumer.begin(await consumer.read(10, 1))
    assert [task.id for task in tasks] == ["after"]
    state = await whole_state(redis)
    [(_, letter)] = state["dead"]
    failure = Failure.model_validate_json(letter["error"])
    assert failure.type == "entry_malformed"
    assert f"entry {entry_id}" in failure.detail
    assert state["job:a.state"] == "failed"
    assert state["results"] == [(ENTRY_ID, result("a", "failed", letter["error"]))]
    assert state.items() >= counted("b", queued=0, running=0, failed=1).items()
    assert [job_fields["id"] for _, job_fields in state["jobs:normal"]] == ["after"]


async def test_what_a_job_asks_for_comes_before_the_settings(
    queue: JobQueue, consumer: JobStreams, settings: Settings
) -> None:
    """Zero is an answer too: no wait between attempts."""
    own = await running(queue, consumer, "a", max_attempts=7, retry_delay_s=0, timeout_s=12.5)
    default = await running(queue, consumer, "b")

    assert (own.policy, own.timeout_s) == (RetryPolicy(7, 0), 12.5)
    assert default.policy == RetryPolicy(settings.max_attempts, settings.retry_delay_s)
    assert default.timeout_s == settings.timeout_s


# -- settling --------------------------------------------------------------------------------------------------------


async def test_many_verdicts_are_carried_out_in_one_call(
    queue: JobQueue, consumer: JobStreams, rescuer: JobStreams, redis: Redis
) -> None:
    """Each is answered for itself: one lost lease must not hold up the others."""
    tasks = {name: await running(queue, consumer, name) for name in ("lost", "done", "late", "dead", "left", "gone")}
    [stolen] = await rescuer.rescue(1, 0)
    assert stolen.fields["id"] == "lost"
    await settle(consumer, tasks["gone"], PUBLISH)
    await queue.cancel("late")

    verdicts = [
        (tasks["lost"], PUBLISH),
        (tasks["done"], PUBLISH),
        (tasks["late"], Delay(FAILURE, 0)),
        (tasks["dead"], BURY),
        (tasks["left"], Release()),
        (tasks["gone"], Cancel()),
    ]
    assert await consumer.settle(verdicts) == [
        Settled.LOST,
        Settled.DONE,
        Settled.CANCELLED,
        Settled.DONE,
        Settled.DONE,
        Settled.GONE,
    ]
    jobs = await queue.jobs(list(tasks))
    assert [job.state for job in jobs if job] == [
        State.RUNNING,
        State.TRANSCRIBED,
        State.CANCELLED,
        State.FAILED,
        State.QUEUED,
        State.TRANSCRIBED,
    ]
    pending = await redis.xpending_range(queue.keys.lane("normal"), TRANSCRIBERS, "-", "+", 10)
    assert [entry["consumer"] for entry in pending] == ["host-2-bbb", RELEASED]


@pytest.mark.parametrize("verdict", [PUBLISH, BURY, Delay(FAILURE, LATER_MS), Cancel(), Release()])
async def test_a_delivery_that_is_settled_twice_at_once_gets_two_answers(
    queue: JobQueue, consumer: JobStreams, verdict
) -> None:
    """A group that was made anew delivers again what this consumer runs: two runs may end in the same moment."""
    task = await running(queue, consumer, "a")
    again = task._replace(entry=Entry(*task.entry))

    first, second = await consumer.settle([(task, verdict), (again, verdict)])

    assert first is Settled.DONE
    # A hand-back leaves the entry, as another consumer's; all else retires it.
    assert second is (Settled.LOST if verdict == Release() else Settled.GONE)


async def test_an_error_in_one_round_trip_says_what_the_server_said(
    queue: JobQueue, consumer: JobStreams, redis: Redis
) -> None:
    """The pipeline would wrap the text, and nobody would see that the server is only away."""
    task = await running(queue, consumer)
    await redis.config_set("min-replicas-to-write", 1)
    try:
        with pytest.raises(ResponseError) as caught:
            await settle(consumer, task, PUBLISH)
    finally:
        await redis.config_set("min-replicas-to-write", 0)

    assert server_is_away(caught.value)
    assert await settle(consumer, task, PUBLISH) is Settled.DONE


async def test_a_missing_library_is_told_from_other_errors(queue: JobQueue, consumer: JobStreams, redis: Redis) -> None:
    """A restarted or flushed server can be given the library again."""
    await queued(queue)
    entry = await read_one(consumer)
    await redis.function_flush()

    with pytest.raises(ResponseError) as caught:
        await consumer.begin([entry])
    assert library_is_missing(caught.value)


# -- keeping house ---------------------------------------------------------------------------------------------------


async def test_what_is_due_is_queued_on_its_own_lane(queue: JobQueue, consumer: JobStreams, redis: Redis) -> None:
    """A retry keeps its priority; what is not due waits."""
    await due(queue, "urgent", priority="high")
    await due(queue, "any", priority="low")
    await scheduled(queue, "later")

    await consumer.keep_house(LATER_MS)
    assert [entry.fields["id"] for entry in await consumer.read(10, 1)] == ["urgent", "any"]
    assert await redis.zrange(queue.keys.delayed, 0, -1) == ["later"]


async def test_what_is_due_is_queued_in_the_order_in_which_it_was_due(
    queue: JobQueue, consumer: JobStreams, redis: Redis
) -> None:
    """After an outage many are due at once; the one that has waited longest goes first."""
    for number in range(120):
        await scheduled(queue, f"job-{number}")
        await redis.zadd(queue.keys.delayed, {f"job-{number}": 1_000 - number})
    for _ in range(2):
        await consumer.keep_house(LATER_MS)

    found = [entry.fields["id"] for entry in await consumer.read(200, 1)]
    assert found == [f"job-{number}" for number in reversed(range(120))]


async def test_a_delayed_job_that_cannot_be_read_is_queued_and_buried(
    queue: JobQueue, consumer: JobStreams, redis: Redis
) -> None:
    """All consumers keep house once a second: one job of a newer version must not end every one of them."""
    await due(queue, "a", batch_id="b")
    await due(queue, "after")
    await redis.hset(queue.keys.job("a"), "spec", STALE_SPEC)
    before = await whole_state(redis)

    await consumer.keep_house(LATER_MS)
    after = changes(before, await whole_state(redis))
    assert after["jobs:low"] == [(ENTRY_ID, fields("a", "b"))]
    assert after.items() >= counted("b", scheduled=0, queued=1).items()
    assert [task.id for task in await consumer.begin(await consumer.read(10, 1))] == ["after"]
    assert (await whole_state(redis)).items() >= counted("b", queued=0, running=0, failed=1).items()


@pytest.mark.parametrize("spec_text", ["null", "no JSON", "[]", '{"source":1,"priority":"none"}'])
async def test_a_delayed_job_whose_spec_says_nothing_is_queued_and_buried(
    queue: JobQueue, consumer: JobStreams, redis: Redis, spec_text: str
) -> None:
    """Whatever the hash holds, the job ends, and with a message."""
    await due(queue)
    await redis.hset(queue.keys.job("a"), "spec", spec_text)

    await consumer.keep_house(LATER_MS)
    assert await consumer.begin(await consumer.read(10, 1)) == []
    [letter], _ = await DeadLetters(queue).page("", 10)
    assert (letter.job_id, letter.reason) == ("a", "entry_malformed")


async def test_a_delayed_job_that_was_deleted_is_forgotten(queue: JobQueue, consumer: JobStreams, redis: Redis) -> None:
    """The rest is queued all the same."""
    await due(queue, "a")
    await due(queue, "after")
    await redis.delete(queue.keys.job("a"))

    await consumer.keep_house(LATER_MS)
    assert [entry.fields["id"] for entry in await consumer.read(10, 1)] == ["after"]
    assert await redis.zcard(queue.keys.delayed) == 0


async def test_only_silent_consumers_that_hold_nothing_are_forgotten(
    queue: JobQueue, consumer: JobStreams, rescuer: JobStreams, redis: Redis
) -> None:
    """A name is forgotten on every lane where it holds nothing, and nowhere else."""
    await settle(consumer, await running(queue, consumer, "a"), PUBLISH)
    await running(queue, rescuer, "b", priority="low")

    async def names() -> dict[str, set[str]]:
        lanes = {lane: await redis.xinfo_consumers(lane, TRANSCRIBERS) for lane in queue.keys.lanes}
        return {lane: {info["name"] for info in found} for lane, found in lanes.items()}

    before = await names()
    await consumer.keep_house(LATER_MS)
    assert await names() == before

    async def forgotten() -> bool:
        await consumer.keep_house(0)
        return not any("host-1-aaa" in found for found in (await names()).values())

    await until(forgotten, within_s=5, what="the consumer that holds nothing is forgotten")
    assert "host-2-bbb" in (await names())[queue.keys.lane("low")]


async def test_a_slow_writer_does_not_stop_and_start_the_consumers_at_every_look(
    redis: Redis, keys: Keys, settings: Settings
) -> None:
    """One line tells that no job is taken, and one that jobs are taken again."""
    consumer = JobStreams(redis, keys, settings.model_copy(update={"max_unstored": 20}), "host-1-aaa")
    told = []
    with capture_logs() as logs:
        for unstored in (19, 20, 19, 20, 19, 18, 19, 20):
            await redis.xtrim(keys.results, maxlen=unstored - 1, approximate=False)
            while await redis.xlen(keys.results) < unstored:
                await redis.xadd(keys.results, result("a", "cancelled"))
            await consumer.keep_house(LATER_MS)
            told.append(([entry["event"] for entry in logs], await at_once(consumer.room())))
            logs.clear()

    assert told == [
        ([], True),
        (["results_not_stored"], False),
        ([], False),
        ([], False),
        ([], False),
        (["results_stored_again"], True),
        ([], True),
        (["results_not_stored"], False),
    ]


async def at_once(waiting: Coroutine[Any, Any, None]) -> bool:
    """Return whether something need not be waited for."""
    task = asyncio.create_task(waiting)
    await asyncio.sleep(0)
    ready = task.done()
    task.cancel()
    return ready


# -- results ---------------------------------------------------------------------------------------------------------


async def test_results_are_read_in_their_order_with_their_jobs(
    queue: JobQueue, consumer: JobStreams, writer: ResultStream, redis: Redis
) -> None:
    """The writer needs the job as it stands; a result whose job is gone or cannot be read is stored all the same."""
    for job_id in ("a", "gone", "unreadable"):
        await transcribed(queue, consumer, job_id)
    await redis.delete(queue.keys.job("gone"))
    await redis.hset(queue.keys.job("unreadable"), "spec", '{"colour":"blue"}')
    await redis.xadd(queue.keys.results, {"outcome": "completed"})

    tasks = await writer.begin(await writer.read(10, 1))
    assert [task.id for task in tasks] == ["a", "gone", "unreadable", ""]
    assert [task.job and task.job.state for task in tasks] == [State.TRANSCRIBED, None, None, None]
    assert [task.entry.fields.get("outcome") for task in tasks] == ["completed"] * 4
    assert [task.attempts for task in tasks] == [1] * 4


async def test_results_are_settled_together(
    queue: JobQueue, consumer: JobStreams, writer: ResultStream, redis: Redis
) -> None:
    """One transaction of the writer is one round trip: stored, unstorable, tried again later, handed back."""
    for job_id in ("stored", "unstorable", "later", "back"):
        await transcribed(queue, consumer, job_id)
    tasks = await writer.begin(await writer.read(10, 1))
    before = await whole_state(redis)

    unstorable = Failure(type="result_unstorable", detail="the body is no transcript")
    verdicts = [Publish("", 0.0), Bury(unstorable, "result_unstorable"), Delay(FAILURE, 1000), Release()]
    assert await writer.settle(list(zip(tasks, verdicts, strict=True))) == [Settled.DONE] * 4
    after = changes(before, await whole_state(redis))
    assert [found["id"] for _, found in after["results"]] == ["later", "back"]
    assert [(holder, count) for _, holder, count in after["results pending"]] == [("host-3-ccc", 1), (RELEASED, 1)]
    assert [(letter["id"], letter["stream"]) for _, letter in after["dead"]] == [("unstorable", queue.keys.results)]
    assert after["events"] == ["id=stored state=completed", "id=unstorable state=failed"]


async def test_an_unstorable_result_can_be_revived(
    queue: JobQueue, consumer: JobStreams, writer: ResultStream, redis: Redis
) -> None:
    """After the disk or the version was mended the transcript is stored, not made again."""
    await transcribed(queue, consumer)
    [task] = await writer.begin(await writer.read(10, 1))
    await settle(writer, task, Bury(FAILURE, "result_unstorable"))
    letter = await DeadLetters(queue).find("a")
    assert letter is not None

    assert await DeadLetters(queue).revive(letter)
    [again] = await writer.begin(await writer.read(10, 1))
    assert again.entry.fields == task.entry.fields
    assert await settle(writer, again, Publish("", 0.0)) is Settled.DONE
    assert await redis.hget(queue.keys.job("a"), "state") == "completed"


async def test_silent_writers_are_forgotten(queue: JobQueue, writer: ResultStream, redis: Redis) -> None:
    """They are restarted as often as consumers are."""
    await Group(redis, [queue.keys.results], WRITERS, "host-9-zzz").read(1, 1)
    await redis.xadd(queue.keys.results, result("a", "cancelled"))
    await writer.read(1, 1)

    async def forgotten() -> bool:
        await writer.keep_house(0)
        found = await redis.xinfo_consumers(queue.keys.results, WRITERS)
        return [info["name"] for info in found] == ["host-3-ccc"]

    await until(forgotten, within_s=5, what="the writer that holds nothing is forgotten")


async def test_a_discarded_entry_keeps_its_fields_in_order(queue: JobQueue, consumer: JobStreams, redis: Redis) -> None:
    """An operator must see what arrived, bytes that are no text included."""
    await redis.xadd(queue.keys.lane("low"), {"z": "ü", "a": b"\xff"})
    await consumer.begin([await read_one(consumer)])

    [(_, letter)] = await redis.xrange(queue.keys.dead)
    assert orjson.loads(letter["fields"]) == ["z", "ü", "a", "\\xff"]
    assert (await add_by_hand(redis, queue.keys.lane("low"), **fields("next"))) == ENTRY_ID
    assert (await begun(consumer, await read_one(consumer))).id == "next"


async def test_a_failed_job_and_its_outcome_tell_the_same(
    queue: JobQueue, consumer: JobStreams, writer: ResultStream
) -> None:
    """The dead letter, the job and the record are read by different people."""
    await failed(queue, consumer)
    job, letter = await queue.job("a"), await DeadLetters(queue).find("a")
    [task] = await writer.begin(await writer.read(1, 1))

    assert job is not None
    assert letter is not None
    assert job.error == letter.failure == FAILURE
    assert task.entry.fields == result("a", "failed", FAILURE_JSON)
    assert task.job == job
    assert job.finished_ms == NOW
