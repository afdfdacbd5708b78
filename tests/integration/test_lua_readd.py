"""readd: put a discarded entry back on the stream it came from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from redis.exceptions import OutOfMemoryError, ResponseError

from common.dead import DeadLetter, DeadLetters
from common.queue import JobQueue
from common.scripts import call
from tests.integration.seeds import RACES, add_by_hand, both, full_memory, read_one
from tests.integration.state import ENTRY_ID, changes, whole_state

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from common.streams import JobStreams


async def discarded(queue: JobQueue, consumer: JobStreams, job_id: str = "a") -> DeadLetter:
    """Let an entry without a source be discarded."""
    await add_by_hand(queue.redis, queue.keys.lane("low"), id=job_id, colour="blue")
    assert await consumer.begin([await read_one(consumer)]) == []
    letter = await DeadLetters(queue).find(job_id)
    assert letter is not None
    return letter


async def test_a_discarded_entry_comes_back_as_it_was(queue: JobQueue, consumer: JobStreams, redis: Redis) -> None:
    """A newer version may know what to do with it."""
    letter = await discarded(queue, consumer)
    before = await whole_state(redis)

    assert await DeadLetters(queue).revive(letter)
    assert changes(before, await whole_state(redis)) == {
        "dead": [],
        "jobs:low": [(ENTRY_ID, {"id": "a", "colour": "blue"})],
    }


async def test_a_letter_that_is_gone_adds_nothing(queue: JobQueue, consumer: JobStreams, redis: Redis) -> None:
    """An operator who was too late must not add the entry a second time."""
    letter = await discarded(queue, consumer)
    await DeadLetters(queue).drop(letter, 60)
    before = await whole_state(redis)

    assert not await DeadLetters(queue).revive(letter)
    assert changes(before, await whole_state(redis)) == {}


async def test_a_letter_that_cannot_be_added_is_kept(queue: JobQueue, consumer: JobStreams, redis: Redis) -> None:
    """Nothing rolls a function back: a letter deleted before its entry is added would be lost."""
    letter = await discarded(queue, consumer)
    before = await whole_state(redis)

    with pytest.raises(ResponseError):  # an entry needs a field
        await call(redis, "readd", [queue.keys.dead, queue.keys.lane("low")], [letter.dead_id])
    assert changes(before, await whole_state(redis)) == {}


async def test_of_two_who_revive_an_entry_one_does(
    queue: JobQueue, consumer: JobStreams, redis: Redis, other_redis: Redis
) -> None:
    """Two operators make one entry."""
    other = JobQueue(other_redis, queue.keys)
    for number in range(RACES):
        letter = await discarded(queue, consumer, f"job-{number}")

        assert await both(DeadLetters(queue).revive(letter), DeadLetters(other).revive(letter)) == {True, False}
        await redis.xtrim(queue.keys.lane("low"), maxlen=0)


async def test_a_full_server_refuses_it(queue: JobQueue, consumer: JobStreams, redis: Redis) -> None:
    """It is new work, which can wait where it is."""
    letter = await discarded(queue, consumer)
    before = await whole_state(redis)

    async with full_memory(redis):
        with pytest.raises(OutOfMemoryError):
            await DeadLetters(queue).revive(letter)
        assert changes(before, await whole_state(redis)) == {}
