"""house: forget consumers that are gone; say what is due, and how much the writer has not stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.keys import TRANSCRIBERS
from common.outcomes import Release
from common.scripts import call
from tests.integration.seeds import (
    LATER_MS,
    PUBLISH,
    both,
    due,
    full_memory,
    running,
    scheduled,
    settle,
    transcribed,
)
from tests.integration.state import changes, whole_state
from tests.until import until

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from common.queue import JobQueue
    from common.streams import JobStreams


async def forget(queue: JobQueue, redis: Redis, gone_ms: int) -> int:
    removed, found, unstored = await call(redis, "house", [queue.keys.lane("normal")], [TRANSCRIBERS, gone_ms, 1, 0])
    assert (found, unstored) == ([], 0)
    return int(removed)


async def look(queue: JobQueue, most: int = 10) -> tuple[list[str], int]:
    keys = queue.keys
    streams = [*keys.lanes, keys.delayed, keys.results]
    removed, found, unstored = await call(queue.redis, "house", streams, [TRANSCRIBERS, LATER_MS, 3, most])
    assert removed == 0
    return found, unstored


async def consumers(queue: JobQueue) -> set[str]:
    found = await queue.redis.xinfo_consumers(queue.keys.lane("normal"), TRANSCRIBERS)
    return {consumer["name"] for consumer in found}


async def silent(queue: JobQueue) -> bool:
    """Wait until the consumers' idle time is above 0 ms."""
    found = await queue.redis.xinfo_consumers(queue.keys.lane("normal"), TRANSCRIBERS)
    return all(consumer["idle"] > 0 for consumer in found)


async def test_a_silent_consumer_that_holds_nothing_is_forgotten(
    queue: JobQueue, consumer: JobStreams, redis: Redis
) -> None:
    """Each start of a process has a name of its own: the names of dead ones would pile up for ever."""
    await settle(consumer, await running(queue, consumer), PUBLISH)
    await until(lambda: silent(queue), within_s=5, what="the consumer is idle")
    before = await whole_state(redis)

    assert await forget(queue, redis, 0) == 1
    assert await consumers(queue) == set()
    assert changes(before, await whole_state(redis)) == {}


async def test_a_consumer_that_holds_an_entry_is_kept(queue: JobQueue, consumer: JobStreams, redis: Redis) -> None:
    """Deleting it would drop its pending entries: their jobs would never be delivered again."""
    await running(queue, consumer)
    await until(lambda: silent(queue), within_s=5, what="the consumer is idle")
    before = await whole_state(redis)

    assert await forget(queue, redis, 0) == 0
    assert await consumers(queue) == {"host-1-aaa"}
    assert changes(before, await whole_state(redis)) == {}


async def test_released_entries_are_kept(queue: JobQueue, consumer: JobStreams, redis: Redis) -> None:
    """The consumer that nobody is holds jobs that somebody wants."""
    await settle(consumer, await running(queue, consumer), Release())
    await until(lambda: silent(queue), within_s=5, what="the consumers are idle")

    assert await forget(queue, redis, 0) == 1
    assert await consumers(queue) == {"released"}


async def test_a_consumer_that_spoke_lately_is_kept(queue: JobQueue, consumer: JobStreams, redis: Redis) -> None:
    """An idle consumer is not a dead one."""
    await settle(consumer, await running(queue, consumer), PUBLISH)

    assert await forget(queue, redis, LATER_MS) == 0
    assert await consumers(queue) == {"host-1-aaa"}


async def test_of_two_who_forget_one_does(
    queue: JobQueue, consumer: JobStreams, redis: Redis, other_redis: Redis
) -> None:
    """Every process keeps house; all of them may do it at once."""
    await settle(consumer, await running(queue, consumer), PUBLISH)
    await until(lambda: silent(queue), within_s=5, what="the consumer is idle")

    assert await both(forget(queue, redis, 0), forget(queue, other_redis, 0)) == {1, 0}


async def test_a_full_server_still_forgets(queue: JobQueue, consumer: JobStreams, redis: Redis) -> None:
    """Keeping house must not fail for want of memory: it runs in the consumers' own loop."""
    await settle(consumer, await running(queue, consumer), PUBLISH)
    await until(lambda: silent(queue), within_s=5, what="the consumer is idle")

    async with full_memory(redis):
        assert await forget(queue, redis, 0) == 1


async def test_what_is_due_is_told_longest_first(queue: JobQueue, redis: Redis) -> None:
    """What has waited longest goes first, a page at a time; what is not due is nobody's business."""
    await scheduled(queue, "later")
    for job_id, score in (("second", 2), ("first", 1), ("third", 3)):
        await due(queue, job_id)
        await redis.zadd(queue.keys.delayed, {job_id: score})
    before = await whole_state(redis)

    assert await look(queue) == (["first", "second", "third"], 0)
    assert await look(queue, most=2) == (["first", "second"], 0)
    assert changes(before, await whole_state(redis)) == {}


async def test_what_the_writer_has_not_stored_is_counted(queue: JobQueue, consumer: JobStreams) -> None:
    """Consumers stop when too much waits for it."""
    for job_id in "ab":
        await transcribed(queue, consumer, job_id)

    assert await look(queue) == ([], 2)
