"""start: begin one attempt of a job whose entry this consumer holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from common.group import pairs
from common.keys import TRANSCRIBERS
from common.outcomes import Delay, Release
from common.records import State
from common.scripts import call
from common.setup import set_up
from tests.integration.seeds import (
    FAILURE,
    LATER_MS,
    PARTS,
    PARTS_GONE,
    PUBLISH,
    add_by_hand,
    begun,
    cancelled,
    counted,
    failed,
    fields,
    full_memory,
    queued,
    read_one,
    rescued,
    result,
    running,
    running_with_parts,
    scheduled,
    settle,
    spec,
    store_one,
    transcribed,
)
from tests.integration.state import ENTRY_ID, NOW, changes, whole_state

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from common.entries import Entry
    from common.queue import JobQueue
    from common.streams import JobStreams, ResultStream

STRAY, CANCELLED, NO_HASH = 2, 3, 4


async def start(streams: JobStreams, entry: Entry, consumer: str = "host-1-aaa") -> Any:
    keys, job_id, batch_id = streams.keys, entry.fields["id"], entry.fields.get("batch")
    batch = [keys.batch(batch_id)] if batch_id else []
    names = [entry.stream, keys.events, keys.results, keys.job(job_id), keys.parts(job_id), *batch]
    told = [entry.entry_id, entry.deliveries, job_id, len(batch)]
    [reply] = await call(streams.client, "start", names, [TRANSCRIBERS, consumer, 1, *told])
    return reply


@pytest.mark.parametrize("batch_id", [None, "b"])
async def test_a_job_starts(queue: JobQueue, consumer: JobStreams, redis: Redis, batch_id: str | None) -> None:
    """From now on everybody can see who runs it, and since when."""
    await queued(queue, batch_id=batch_id)
    entry = await read_one(consumer)
    before = await whole_state(redis)

    flat, parts = await start(consumer, entry)
    assert parts == []
    assert pairs(flat) == await redis.hgetall(queue.keys.job("a"))
    assert changes(before, await whole_state(redis)) == {
        "job:a.state": "running",
        "job:a.attempts": "1",
        "job:a.started_ms": NOW,
        "job:a.worker": "host-1-aaa",
        "job:a.delivery": "1",
        "job:a.progress": "0",
        "events": ["id=a state=running"],
        **counted(batch_id, queued=0, running=1),
    }


@pytest.mark.parametrize("batch_id", [None, "b"])
async def test_a_job_whose_consumer_died_starts_again(
    queue: JobQueue, consumer: JobStreams, rescuer: JobStreams, redis: Redis, batch_id: str | None
) -> None:
    """It is another attempt, but still one running job of its batch."""
    await running(queue, consumer, batch_id=batch_id)
    entry = await rescued(rescuer)
    before = await whole_state(redis)

    assert (await begun(rescuer, entry)).attempts == 2
    after = changes(before, await whole_state(redis))
    after.pop("job:a.started_ms", None)  # may fall into the same millisecond
    assert after == {
        "job:a.attempts": "2",
        "job:a.worker": "host-2-bbb",
        "job:a.delivery": "2",
        "events": ["id=a state=running"],
    }


@pytest.mark.parametrize("batch_id", [None, "b"])
async def test_an_entry_added_by_hand_becomes_a_job(
    queue: JobQueue, consumer: JobStreams, redis: Redis, batch_id: str | None
) -> None:
    """`XADD` is a way to submit: what any Redis client adds is transcribed."""
    entry_id = await add_by_hand(redis, queue.keys.lane("high"), **fields("a", batch_id))
    entry = await read_one(consumer)
    before = await whole_state(redis)

    task = await begun(consumer, entry)
    assert task.job is not None
    assert (task.job.state, task.job.spec) == (State.RUNNING, spec(priority="high", batch_id=batch_id))
    assert changes(before, await whole_state(redis)) == {
        "job:a.source": "/audio/a.mp3",
        "job:a.spec": spec(priority="high", batch_id=batch_id).beside_source(),
        "job:a.run": entry_id.partition("-")[0],
        "job:a.created_ms": NOW,
        "job:a.entry_id": entry_id,
        "job:a.priority": "high",
        "job:a.state": "running",
        "job:a.attempts": "1",
        "job:a.started_ms": NOW,
        "job:a.worker": "host-1-aaa",
        "job:a.delivery": "1",
        "job:a.progress": "0",
        "events": ["id=a state=queued", "id=a state=running"],
        **counted(batch_id, queued=0, running=1),
    }


async def test_an_entry_added_by_hand_is_a_later_run_than_any_that_was_forgotten(
    queue: JobQueue, consumer: JobStreams, writer: ResultStream, redis: Redis
) -> None:
    """Records are kept by run: under a run that was there before, the second transcript would not be stored."""
    for _ in range(2):
        await transcribed(queue, consumer)
        await store_one(writer)
        await redis.delete(queue.keys.job("a"))
    await add_by_hand(redis, queue.keys.lane("normal"), **fields())
    by_hand = await begun(consumer, await read_one(consumer))
    await settle(consumer, by_hand, PUBLISH)
    [(_, published)] = await redis.xrange(queue.keys.results)
    await store_one(writer)
    await redis.delete(queue.keys.job("a"))
    await add_by_hand(redis, queue.keys.lane("normal"), **fields())
    again = await begun(consumer, await read_one(consumer))

    assert by_hand.job is not None
    assert again.job is not None
    assert 1 < by_hand.job.run < again.job.run
    assert published["run"] == str(by_hand.job.run)


async def test_a_start_whose_reply_was_lost_may_be_repeated(
    queue: JobQueue, consumer: JobStreams, redis: Redis
) -> None:
    """A cut connection is not the job's fault: it costs no attempt, and is told the same."""
    await settle(consumer, await running_with_parts(queue, consumer), Delay(FAILURE, 0))
    await consumer.keep_house(LATER_MS)
    entry = await read_one(consumer)
    first = await begun(consumer, entry)
    before = await whole_state(redis)

    assert await begun(consumer, entry) == first
    assert (first.attempts, first.parts) == (2, PARTS)
    assert changes(before, await whole_state(redis)) == {}


async def test_a_second_entry_added_by_hand_is_a_stray(queue: JobQueue, consumer: JobStreams, redis: Redis) -> None:
    """A client that repeats its XADD must not have the recording transcribed twice at a time."""
    for _ in range(2):
        await add_by_hand(redis, queue.keys.lane("normal"), **fields())
    first = await begun(consumer, await read_one(consumer))
    stray = await read_one(consumer)
    before = await whole_state(redis)

    assert await start(consumer, stray) == STRAY
    assert changes(before, await whole_state(redis)) == {
        "jobs:normal": [(first.entry.entry_id, fields())],
        "jobs:normal pending": [(first.entry.entry_id, "host-1-aaa", 1)],
    }


@pytest.mark.parametrize("state", ["scheduled", "transcribed", "completed", "failed", "cancelled"])
async def test_a_stray_entry_of_a_job_that_does_not_wait_is_retired_without_running(
    queue: JobQueue, consumer: JobStreams, writer: ResultStream, redis: Redis, state: str
) -> None:
    """A job runs once for each time it is queued; a finished one has its outcome."""
    match state:
        case "scheduled":
            await scheduled(queue)
        case "failed":
            await failed(queue, consumer)
        case "cancelled":
            await cancelled(queue)
        case _:
            await transcribed(queue, consumer)
    if state == "completed":
        await store_one(writer)
    before = await whole_state(redis)
    await add_by_hand(redis, queue.keys.lane("high"), **fields("a", "another batch"))

    assert before["job:a.state"] == state
    assert await start(consumer, await read_one(consumer)) == STRAY
    assert changes(before, await whole_state(redis)) == {}


async def test_a_rescued_job_goes_on_from_its_parts(queue: JobQueue, consumer: JobStreams, rescuer: JobStreams) -> None:
    """What a consumer had finished when it died is not done again."""
    await running_with_parts(queue, consumer)

    assert (await begun(rescuer, await rescued(rescuer))).parts == PARTS


@pytest.mark.parametrize("again", ["retried", "revived"])
async def test_a_new_entry_of_a_job_is_a_new_delivery(
    queue: JobQueue, consumer: JobStreams, redis: Redis, again: str
) -> None:
    """It begins with the delivery count of the entry before, and is another attempt all the same."""
    if again == "retried":
        await settle(consumer, await running(queue, consumer), Delay(FAILURE, 0))
        await redis.zadd(queue.keys.delayed, {"a": 1})
        await consumer.keep_house(LATER_MS)
    else:
        await failed(queue, consumer)
        await queue.revive("a")
    entry = await read_one(consumer)

    task = await begun(consumer, entry)
    assert entry.deliveries == 1
    assert task.job is not None
    assert (task.attempts, task.job.state) == ({"retried": 2, "revived": 1}[again], State.RUNNING)


@pytest.mark.parametrize("handed_back", [False, True])
async def test_an_entry_of_a_group_that_was_made_anew_is_a_new_delivery(
    queue: JobQueue, consumer: JobStreams, rescuer: JobStreams, redis: Redis, handed_back: bool
) -> None:
    """Delivery counts begin anew with the group: without its consumer this delivery looks like the one before."""
    task = await running(queue, consumer)
    if handed_back:
        await settle(consumer, task, Release())
    await redis.xgroup_destroy(task.entry.stream, TRANSCRIBERS)
    await set_up(redis, queue.keys)

    again = await begun(rescuer, await read_one(rescuer))
    assert again.job is not None
    assert (again.job.state, again.job.worker) == (State.RUNNING, "host-2-bbb")
    assert again.attempts == (1 if handed_back else 2)


async def test_a_job_that_was_handed_back_starts_even_if_its_delivery_looks_like_the_one_before(
    queue: JobQueue, consumer: JobStreams, redis: Redis
) -> None:
    """Delivery counts begin anew with the group: the same consumer gets its first delivery once more."""
    task = await running(queue, consumer)
    await settle(consumer, task, Release())
    await redis.xgroup_destroy(task.entry.stream, TRANSCRIBERS)
    await set_up(redis, queue.keys)

    again = await begun(consumer, await read_one(consumer))
    assert again.job is not None
    assert (again.job.state, again.attempts) == (State.RUNNING, 1)


@pytest.mark.parametrize("batch_id", [None, "b"])
async def test_a_rescued_job_that_shall_be_cancelled_ends_without_running(
    queue: JobQueue, consumer: JobStreams, rescuer: JobStreams, redis: Redis, batch_id: str | None
) -> None:
    """The consumer that was asked to stop it is dead; the request is not."""
    await running_with_parts(queue, consumer, batch_id=batch_id)
    await queue.cancel("a")
    entry = await rescued(rescuer)
    before = await whole_state(redis)

    assert await start(consumer, entry, "host-2-bbb") == CANCELLED
    assert changes(before, await whole_state(redis)) == {
        "job:a.state": "cancelled",
        "job:a.finished_ms": NOW,
        "job:a.cancel_requested": None,
        "jobs:normal": [],
        "jobs:normal pending": [],
        "results": [(ENTRY_ID, result("a", "cancelled"))],
        "events": ["id=a state=cancelled"],
        **PARTS_GONE,
        **counted(batch_id, running=0, cancelled=1),
    }


async def test_an_attempt_that_was_handed_back_does_not_count(
    queue: JobQueue, consumer: JobStreams, rescuer: JobStreams
) -> None:
    """Ten deployments in a row must not fail a job with three attempts."""
    task = await running(queue, consumer)
    for _ in range(10):
        assert task.attempts == 1
        holder = consumer if task.entry.deliveries % 2 else rescuer
        other = rescuer if holder is consumer else consumer
        await settle(holder, task, Release())
        task = await begun(other, await rescued(other))


async def test_a_full_server_still_starts_jobs(queue: JobQueue, consumer: JobStreams, redis: Redis) -> None:
    """Running what waits is what frees its memory."""
    await add_by_hand(redis, queue.keys.lane("normal"), **fields())
    entry = await read_one(consumer)

    async with full_memory(redis):
        assert await settle(consumer, await begun(consumer, entry), PUBLISH)


async def test_the_same_entry_id_on_another_lane_is_a_stray(
    queue: JobQueue, consumer: JobStreams, redis: Redis
) -> None:
    """Entry ids tell entries of one stream apart; two streams give the same id in the same millisecond."""
    entry_id = await queued(queue)
    await redis.xadd(queue.keys.lane("high"), fields(), id=entry_id)
    [on_high] = await consumer.read(1, 1)
    [on_normal] = await consumer.read(1, 1)

    assert await start(consumer, on_high) == STRAY
    assert isinstance(await start(consumer, on_normal), list)


@pytest.mark.parametrize("lane", [None, "{sttream}:jobs:high"])
async def test_a_job_that_an_older_version_queued_starts(
    queue: JobQueue, consumer: JobStreams, redis: Redis, lane: str | None
) -> None:
    """An update must not lose what waits: the source was within the spec, and the lane not always noted."""
    job = spec(priority="high", metadata={"colour": "blue"})
    entry_id = await redis.xadd(queue.keys.lane("high"), fields())
    noted = {"spec": job.to_json(), "run": 1, "created_ms": 1, "queued_ms": 2, "entry_id": entry_id, "state": "queued"}
    await redis.hset(queue.keys.job("a"), mapping=noted | ({"lane": lane} if lane else {}))

    task = await begun(consumer, await read_one(consumer))
    assert task.job is not None
    assert (task.job.spec, task.job.created_ms, task.job.queued_ms) == (job, 1, 2)


async def test_many_jobs_start_in_one_call_each_by_itself(
    queue: JobQueue, consumer: JobStreams, rescuer: JobStreams, redis: Redis
) -> None:
    """One entry that is another's, a stray, or broken must not hold up the others, of whatever batch."""
    for job_id, batch_id in (("a", "b1"), ("taken", None), ("broken", None), ("c", "b2"), ("d", "b1"), ("e", None)):
        await queued(queue, job_id, batch_id=batch_id)
    entries = await consumer.read(10, 1)
    stray = await add_by_hand(redis, queue.keys.lane("normal"), **fields("e"))
    [by_hand] = await consumer.read(1, 1)
    await redis.xclaim(entries[1].stream, TRANSCRIBERS, "host-2-bbb", 0, [entries[1].entry_id])
    await redis.delete(queue.keys.job("broken"))
    await redis.set(queue.keys.job("broken"), "no hash")
    before = await whole_state(redis)

    tasks = await consumer.begin([*entries, by_hand])
    after = changes(before, await whole_state(redis))
    assert [task.id for task in tasks] == ["a", "c", "d", "e"]
    assert after.items() >= (counted("b1", queued=0, running=2) | counted("b2", queued=0, running=1)).items()
    assert stray not in [entry_id for entry_id, _ in after["jobs:normal"]]
    assert [letter["id"] for _, letter in after["dead"]] == ["broken"]
    assert after["events"] == [f"id={job_id} state=running" for job_id in "acde"]
    await redis.delete(queue.keys.job("broken"))


async def test_an_entry_without_a_hash_is_left_as_it_is(queue: JobQueue, consumer: JobStreams, redis: Redis) -> None:
    """What it describes is looked at first: `adopt` makes a job of it, or it becomes a dead letter."""
    await add_by_hand(redis, queue.keys.lane("normal"), **fields())
    entry = await read_one(consumer)
    before = await whole_state(redis)

    assert await start(consumer, entry) == NO_HASH
    assert changes(before, await whole_state(redis)) == {}
