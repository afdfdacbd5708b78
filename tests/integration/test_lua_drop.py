"""drop: forget a dead letter; the job's hash goes when its time to live is over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.dead import DeadLetter, DeadLetters
from common.queue import JobQueue
from tests.integration.seeds import RACES, add_by_hand, both, failed, full_memory, queued, read_one, store_one
from tests.integration.state import changes, whole_state

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from common.streams import JobStreams, ResultStream

TTL_S = 3600


async def letter_of(queue: JobQueue, name: str = "a") -> DeadLetter:
    letter = await DeadLetters(queue).find(name)
    assert letter is not None
    return letter


async def test_a_dropped_job_stays_failed_until_its_time_to_live_is_over(
    queue: JobQueue, consumer: JobStreams, writer: ResultStream, redis: Redis
) -> None:
    """The dead letter kept the hash for a revival; without it nothing would ever remove the hash."""
    await failed(queue, consumer)
    await store_one(writer)
    letter = await letter_of(queue)
    before = await whole_state(redis)

    assert await DeadLetters(queue).drop(letter, TTL_S)
    assert changes(before, await whole_state(redis)) == {"dead": [], "job:a.dead_id": None, "job:a expires": True}
    assert TTL_S - 60 <= await redis.ttl(queue.keys.job("a")) <= TTL_S


async def test_a_letter_that_is_gone_is_not_dropped_twice(queue: JobQueue, consumer: JobStreams, redis: Redis) -> None:
    """An operator is told when another one was faster."""
    await failed(queue, consumer)
    letter = await letter_of(queue)
    await DeadLetters(queue).drop(letter, TTL_S)
    before = await whole_state(redis)

    assert not await DeadLetters(queue).drop(letter, TTL_S)
    assert changes(before, await whole_state(redis)) == {}


async def test_a_letter_that_was_revived_is_not_dropped(queue: JobQueue, consumer: JobStreams, redis: Redis) -> None:
    """A job that runs again must keep its hash."""
    await failed(queue, consumer)
    letter = await letter_of(queue)
    await DeadLetters(queue).revive(letter)
    before = await whole_state(redis)

    assert not await DeadLetters(queue).drop(letter, TTL_S)
    assert changes(before, await whole_state(redis)) == {}


async def test_a_discarded_entry_is_dropped_without_touching_the_job_it_names(
    queue: JobQueue, consumer: JobStreams, redis: Redis
) -> None:
    """An entry added by hand may name a job that is alive."""
    await queued(queue, priority="low")
    await add_by_hand(redis, queue.keys.lane("high"), id="a")
    await consumer.begin([await read_one(consumer)])
    before = await whole_state(redis)

    assert await DeadLetters(queue).drop(await letter_of(queue), TTL_S)
    assert changes(before, await whole_state(redis)) == {"dead": []}


async def test_of_two_who_drop_one_is_told_so(queue: JobQueue, consumer: JobStreams, other_redis: Redis) -> None:
    """The answer says who did it."""
    other = JobQueue(other_redis, queue.keys)
    for number in range(RACES):
        await failed(queue, consumer, f"job-{number}")
        letter = await letter_of(queue, f"job-{number}")

        assert await both(DeadLetters(queue).drop(letter, TTL_S), DeadLetters(other).drop(letter, TTL_S)) == {
            True,
            False,
        }


async def test_a_full_server_can_be_relieved_by_dropping(queue: JobQueue, consumer: JobStreams, redis: Redis) -> None:
    """Dead letters are what may have filled it."""
    await failed(queue, consumer)
    letter = await letter_of(queue)

    async with full_memory(redis):
        assert await DeadLetters(queue).drop(letter, TTL_S)
    assert await redis.xlen(queue.keys.dead) == 0
