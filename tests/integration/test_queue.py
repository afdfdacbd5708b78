"""JobQueue: what clients see of a queue, read back from real streams."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from common.dead import DeadLetters
from common.keys import TRANSCRIBERS
from common.outcomes import Cancel, Delay, Release
from common.overview import ConsumerInfo, ConsumerState, Overview, QueueStats
from common.queue import Cancellation
from common.records import PRIORITIES, State
from tests.integration.seeds import (
    BURY,
    FAILURE,
    LATER_MS,
    PUBLISH,
    add_by_hand,
    begun,
    cancelling,
    failed,
    fields,
    queued,
    read_one,
    rescued,
    running,
    scheduled,
    settle,
    store_one,
    submit,
    transcribed,
)
from tests.integration.state import changes, whole_state
from tests.until import until

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from common.dead import DeadLetter
    from common.queue import JobQueue
    from common.streams import JobStreams, ResultStream

LEASE_MS = 10_000


async def make_unreadable(queue: JobQueue, job_id: str) -> None:
    """Let the hash look as if another version had written it."""
    await queue.redis.hset(queue.keys.job(job_id), "spec", '{"source":"/audio/a.mp3","colour":"blue"}')


# -- jobs ------------------------------------------------------------------------------------------------------------


async def test_jobs_come_back_in_the_order_of_their_ids(queue: JobQueue) -> None:
    """Callers match them by position."""
    await queued(queue, "a")
    await queued(queue, "b")

    jobs = await queue.jobs(["b", "nobody", "a"])
    assert [job and job.id for job in jobs] == ["b", None, "a"]
    assert await queue.jobs([]) == []


async def test_a_job_that_cannot_be_read_hides_no_other(queue: JobQueue) -> None:
    """One hash of another version must not break every list and every count."""
    await queued(queue, "a")
    await queued(queue, "b")
    await make_unreadable(queue, "a")

    with capture_logs() as logs:
        found, _ = await queue.under_way(State.QUEUED, "1/", 10)
        stats = await Overview(queue).stats(LEASE_MS)
    assert [job.id for job in found] == ["b"]
    assert stats.queued["normal"] == 2
    assert {(line["event"], line["job_id"]) for line in logs} == {("job_unreadable", "a")}


# -- stats -----------------------------------------------------------------------------------------------------------


async def test_an_empty_queue_is_shown_as_empty(queue: JobQueue) -> None:
    """The first look of every new user."""
    assert await Overview(queue).stats(LEASE_MS) == QueueStats(
        queue="sttream",
        queued={"high": 0, "normal": 0, "low": 0},
        scheduled=0,
        running=0,
        dead=0,
        unstored=0,
        oldest_queued_s=None,
        consumers=(),
    )


async def test_an_emptied_server_is_shown_as_empty(queue: JobQueue, redis: Redis) -> None:
    """Metrics must not fail because streams and groups are gone: they are how an operator learns of it."""
    await redis.flushall()

    stats = await Overview(queue).stats(LEASE_MS)
    assert (stats.queued, stats.running, stats.consumers) == ({"high": 0, "normal": 0, "low": 0}, 0, ())


async def test_jobs_are_counted_where_they_are(queue: JobQueue, consumer: JobStreams) -> None:
    """Depth by priority is what autoscaling follows."""
    await failed(queue, consumer, "dead")
    await transcribed(queue, consumer, "done")
    await running(queue, consumer, "runs")
    await queued(queue, "h", priority="high")
    for number in range(3):
        await queued(queue, f"l{number}", priority="low")
    await scheduled(queue, "later")

    stats = await Overview(queue).stats(LEASE_MS)
    assert stats.queued == {"high": 1, "normal": 0, "low": 3}
    assert (stats.scheduled, stats.running, stats.dead, stats.unstored) == (1, 1, 1, 2)


async def test_released_jobs_wait_and_are_counted_as_waiting(queue: JobQueue, consumer: JobStreams) -> None:
    """Counted as neither waiting nor running, they would be invisible to autoscaling just when consumers left."""
    for job_id in ("a", "b"):
        await settle(consumer, await running(queue, consumer, job_id), Release())
    await running(queue, consumer, "c")

    stats = await Overview(queue).stats(LEASE_MS)
    assert (stats.queued["normal"], stats.running) == (2, 1)
    assert [info.name for info in stats.consumers] == ["host-1-aaa"]


async def test_consumers_are_shown_with_their_jobs(queue: JobQueue, consumer: JobStreams, rescuer: JobStreams) -> None:
    """Who runs what: the first question when a job is slow."""
    await running(queue, consumer, "a", priority="high")
    await running(queue, consumer, "b", priority="low")
    await rescuer.read(1, 1)
    await queued(queue, "c")
    await settle(rescuer, await begun(rescuer, await read_one(rescuer)), PUBLISH)

    busy, idle = (await Overview(queue).stats(LEASE_MS)).consumers
    assert busy == ConsumerInfo("host-1-aaa", "host", ConsumerState.RUNNING, ("a", "b"), busy.idle_s)
    assert idle == ConsumerInfo("host-2-bbb", "host", ConsumerState.IDLE, (), idle.idle_s)
    assert 0 <= busy.idle_s < LEASE_MS / 1000


async def test_a_consumer_silent_for_longer_than_the_lease_is_lost(queue: JobQueue, consumer: JobStreams) -> None:
    """It may hold jobs that nobody runs any more."""
    await running(queue, consumer)

    async def lost() -> bool:
        [info] = (await Overview(queue).stats(0)).consumers
        return info.state is ConsumerState.LOST and info.running == ("a",)

    await until(lost, within_s=5, what="the consumer is lost")
    assert [info.state for info in (await Overview(queue).stats(LEASE_MS)).consumers] == [ConsumerState.RUNNING]


@pytest.mark.parametrize("where", ["waiting", "released"])
async def test_the_oldest_waiting_job_is_found_on_any_lane(
    queue: JobQueue, consumer: JobStreams, redis: Redis, where: str
) -> None:
    """Depth alone does not show a job that starves."""
    await running(queue, consumer, "runs", priority="high")
    if where == "released":
        await settle(consumer, await running(queue, consumer, "old", priority="low"), Release())
    else:
        await queued(queue, "old", priority="low")
    await queued(queue, "new", priority="high")
    for job_id, waited_ms in (("runs", 90_000), ("old", 60_000)):
        await redis.hset(queue.keys.job(job_id), "queued_ms", await queue.now_ms() - waited_ms)

    oldest_s = (await Overview(queue).stats(LEASE_MS)).oldest_queued_s
    assert oldest_s is not None
    assert 60 <= oldest_s < 80


async def test_an_entry_added_by_hand_waits_too(queue: JobQueue, redis: Redis) -> None:
    """It has no hash before it starts, so its age is not known."""
    await add_by_hand(redis, queue.keys.lane("low"), **fields())
    await add_by_hand(redis, queue.keys.lane("high"), hello="world")

    stats = await Overview(queue).stats(LEASE_MS)
    assert stats.queued == {"high": 1, "normal": 0, "low": 1}
    assert stats.oldest_queued_s is None


# -- lists -----------------------------------------------------------------------------------------------------------


async def listed(queue: JobQueue, state: State, limit: int) -> list[str]:
    """Turn all pages, and return the ids in their order."""
    ids: list[str] = []
    after: str | None = ""
    while after is not None:
        page, after = await queue.under_way(state, after, limit)
        assert len(page) <= limit
        ids += [job.id for job in page]
    return ids


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
async def test_pages_go_through_all_lanes(queue: JobQueue, consumer: JobStreams, limit: int) -> None:
    """Each job under way is listed once, in the order in which it will run, whatever the size of a page."""
    await running(queue, consumer, "runs", priority="low")
    for priority in reversed(PRIORITIES):
        for number in range(3):
            await queued(queue, f"{priority}-{number}", priority=priority)

    waiting = [f"{priority}-{number}" for priority in PRIORITIES for number in range(3)]
    assert await listed(queue, State.QUEUED, limit) == waiting
    assert await listed(queue, State.RUNNING, limit) == ["runs"]


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
async def test_scheduled_jobs_are_listed_as_they_come_due(queue: JobQueue, limit: int) -> None:
    """The next one first."""
    for number in (3, 1, 2, 4):
        await submit(queue, f"in-{number}", delay_ms=number * LATER_MS)

    assert await listed(queue, State.SCHEDULED, limit) == ["in-1", "in-2", "in-3", "in-4"]


@pytest.mark.parametrize("limit", [1, 2, 100])
async def test_transcribed_jobs_are_listed_without_other_outcomes(
    queue: JobQueue, consumer: JobStreams, limit: int
) -> None:
    """The results stream also carries the outcomes of jobs that have ended."""
    await transcribed(queue, consumer, "a")
    await failed(queue, consumer, "b")
    await transcribed(queue, consumer, "c")

    assert await listed(queue, State.TRANSCRIBED, limit) == ["a", "c"]


async def test_a_stray_entry_lists_no_job_twice_on_a_page(queue: JobQueue, redis: Redis) -> None:
    """A client may have repeated its XADD, or added what is no job."""
    await queued(queue)
    await add_by_hand(redis, queue.keys.lane("normal"), **fields())
    await add_by_hand(redis, queue.keys.lane("normal"), hello="world")

    assert await listed(queue, State.QUEUED, 100) == ["a"]


# -- dead letters ----------------------------------------------------------------------------------------------------


async def discarded(queue: JobQueue, consumer: JobStreams, **found: str) -> None:
    """Let an entry that is no job be discarded."""
    await add_by_hand(queue.redis, queue.keys.lane("normal"), **found)
    assert await consumer.begin([await read_one(consumer)]) == []


async def all_letters(queue: JobQueue, limit: int) -> list[DeadLetter]:
    letters: list[DeadLetter] = []
    after: str | None = ""
    while after is not None:
        page, after = await DeadLetters(queue).page(after, limit)
        assert len(page) <= limit
        letters += page
    return letters


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
async def test_dead_letters_are_listed_newest_first(queue: JobQueue, consumer: JobStreams, limit: int) -> None:
    """What has just gone wrong is what an operator looks for."""
    await failed(queue, consumer, "a")
    await discarded(queue, consumer, path="/audio/b.mp3")
    await failed(queue, consumer, "c")

    letters = await all_letters(queue, limit)
    assert [(letter.job_id, letter.reason, letter.stream) for letter in letters] == [
        ("c", "engine_failed", None),
        ("", "entry_malformed", queue.keys.lane("normal")),
        ("a", "engine_failed", None),
    ]
    assert letters[0].failure == FAILURE
    assert letters[1].fields == ("path", "/audio/b.mp3")


async def test_a_dead_letter_is_found_by_the_id_of_its_job(queue: JobQueue, consumer: JobStreams) -> None:
    """It is the only name that the job's owner knows."""
    await failed(queue, consumer, "a")
    await failed(queue, consumer, "b")

    letter = await DeadLetters(queue).find("a")
    assert letter is not None
    assert (letter.id, letter.job_id) == ("a", "a")


async def test_a_discarded_entry_is_found_by_the_id_it_names(queue: JobQueue, consumer: JobStreams) -> None:
    """It may even be the id of a job that is alive."""
    await queued(queue, "a", priority="low")
    await discarded(queue, consumer, id="a")

    letter = await DeadLetters(queue).find("a")
    assert letter is not None
    assert (letter.id, letter.fields) == ("a", ("id", "a"))


async def test_an_entry_without_an_id_is_found_by_its_own(queue: JobQueue, consumer: JobStreams) -> None:
    """Every dead letter in the list can be shown, revived and dropped by the name that the list gives."""
    await discarded(queue, consumer, path="/audio/b.mp3")

    [letter] = await all_letters(queue, 10)
    assert letter.id == letter.dead_id
    assert await DeadLetters(queue).find(letter.id) == letter


@pytest.mark.parametrize("name", ["nobody", "alive", "0-1", "", "no job's id"])
async def test_there_is_no_dead_letter_of_what_is_not_dead(queue: JobQueue, consumer: JobStreams, name: str) -> None:
    """The answer is None, never somebody else's letter."""
    await failed(queue, consumer, "dead")
    await queued(queue, "alive")

    assert await DeadLetters(queue).find(name) is None


async def test_a_job_that_cannot_be_read_can_be_found_and_dropped(
    queue: JobQueue, consumer: JobStreams, redis: Redis
) -> None:
    """What another version has written ends as a dead letter, and an operator must be able to handle it."""
    await queued(queue)
    await make_unreadable(queue, "a")
    assert await consumer.begin([await read_one(consumer)]) == []

    letter = await DeadLetters(queue).find("a")
    assert letter is not None
    assert letter.reason == "entry_malformed"
    assert not await DeadLetters(queue).revive(letter)
    assert await DeadLetters(queue).drop(letter, 60)
    assert await all_letters(queue, 10) == []
    assert 0 < await redis.ttl(queue.keys.job("a")) <= 60


async def test_reviving_and_failing_again_leaves_one_letter(queue: JobQueue, consumer: JobStreams) -> None:
    """A job that keeps failing must not fill the dead letters."""
    await failed(queue, consumer)
    for _ in range(3):
        letter = await DeadLetters(queue).find("a")
        assert letter is not None
        assert await DeadLetters(queue).revive(letter)
        assert await DeadLetters(queue).find("a") is None
        await settle(consumer, await begun(consumer, await read_one(consumer)), BURY)

    assert len(await all_letters(queue, 10)) == 1


async def test_a_letter_from_an_old_list_revives_nothing_twice(
    queue: JobQueue, consumer: JobStreams, redis: Redis
) -> None:
    """Between the list and the click somebody else may have revived it."""
    await failed(queue, consumer)
    [letter] = await all_letters(queue, 10)
    await queue.revive("a")
    before = await whole_state(redis)

    assert not await DeadLetters(queue).revive(letter)
    assert changes(before, await whole_state(redis)) == {}


# -- events ----------------------------------------------------------------------------------------------------------


async def states_told(queue: JobQueue) -> list[str]:
    return [told["state"] for _, told in await queue.redis.xrange(queue.keys.events) if "state" in told]


async def test_each_change_of_state_is_an_event(
    queue: JobQueue, consumer: JobStreams, rescuer: JobStreams, writer: ResultStream
) -> None:
    """Who follows a job's events sees its whole life, in order."""
    await scheduled(queue)
    await queue.redis.zadd(queue.keys.delayed, {"a": 1})
    await consumer.keep_house(LATER_MS)
    await settle(consumer, await begun(consumer, await read_one(consumer)), Delay(FAILURE, 0))
    await consumer.keep_house(LATER_MS)
    await settle(consumer, await begun(consumer, await read_one(consumer)), Release())
    await settle(rescuer, await begun(rescuer, await rescued(rescuer)), BURY)
    await store_one(writer)
    await queue.revive("a")
    await settle(consumer, await begun(consumer, await read_one(consumer)), PUBLISH)
    await store_one(writer)

    assert await states_told(queue) == [
        *("scheduled", "queued", "running"),
        *("scheduled", "queued", "running"),
        *("queued", "running", "failed"),
        *("queued", "running", "transcribed", "completed"),
    ]


async def test_a_cancellation_is_told_when_it_is_done(queue: JobQueue, consumer: JobStreams) -> None:
    """The request changes no state."""
    task = await cancelling(queue, consumer)
    assert await states_told(queue) == ["queued", "running"]
    await settle(consumer, task, Cancel())

    assert await states_told(queue) == ["queued", "running", "cancelled"]


async def test_the_last_event_agrees_with_the_job(queue: JobQueue, consumer: JobStreams) -> None:
    """A view that shows events and one that asks for the job must not differ for long."""
    await failed(queue, consumer, "a")
    await queued(queue, "b")
    assert await queue.cancel("b") is Cancellation.CANCELLED
    told = {event["id"]: event["state"] for _, event in await queue.redis.xrange(queue.keys.events)}

    assert told == {job.id: job.state for job in await queue.jobs(["a", "b"]) if job}


async def test_events_do_not_grow_for_ever(queue: JobQueue, redis: Redis) -> None:
    """Nobody reads them when nobody watches."""
    pipeline = redis.pipeline(transaction=False)
    for _ in range(11_000):
        pipeline.xadd(queue.keys.events, {"id": "a", "state": "queued"})
    await pipeline.execute()
    await queued(queue)

    assert await redis.xlen(queue.keys.events) < 10_500


async def test_consumers_of_another_group_are_not_ours(queue: JobQueue, redis: Redis) -> None:
    """Somebody may follow the lanes with a group of their own."""
    await redis.xgroup_create(queue.keys.lane("normal"), "spies", id="0")
    await queued(queue)
    await redis.xreadgroup("spies", "spy", {queue.keys.lane("normal"): ">"})

    stats = await Overview(queue).stats(LEASE_MS)
    assert (stats.queued["normal"], stats.running, stats.consumers) == (1, 0, ())
    assert await redis.xgroup_destroy(queue.keys.lane("normal"), TRANSCRIBERS) == 1
    assert (await Overview(queue).stats(LEASE_MS)).queued["normal"] == 1
