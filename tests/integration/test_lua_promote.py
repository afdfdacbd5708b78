"""promote: queue one delayed job that is due."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from common.scripts import call
from tests.integration.seeds import (
    RACES,
    both,
    counted,
    due,
    fields,
    full_memory,
    scheduled,
)
from tests.integration.state import ENTRY_ID, NOW, changes, whole_state

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from common.queue import JobQueue

QUEUED, NOT_DUE, GONE = 1, 0, -1


async def promote(queue: JobQueue, redis: Redis, job_id: str = "a", batch_id: str | None = None) -> int:
    keys = queue.keys
    batch = [keys.batch(batch_id)] if batch_id else []
    names = [keys.delayed, keys.lane("normal"), keys.job(job_id), keys.events, *batch]
    reply: int = await call(redis, "promote", names, [job_id, f"/audio/{job_id}.mp3", batch_id or ""])
    return reply


@pytest.mark.parametrize("batch_id", [None, "b"])
async def test_a_due_job_is_queued(queue: JobQueue, redis: Redis, batch_id: str | None) -> None:
    """Its entry, its hash and its place in the delayed set change together, so it is never in both or neither."""
    await due(queue, batch_id=batch_id)
    before = await whole_state(redis)

    assert await promote(queue, redis, batch_id=batch_id) == QUEUED
    after = changes(before, await whole_state(redis))
    assert after == {
        "job:a.state": "queued",
        "job:a.queued_ms": NOW,
        "job:a.entry_id": ENTRY_ID,
        "jobs:normal": [(after["job:a.entry_id"], fields("a", batch_id))],
        "delayed.a": None,
        "events": ["id=a state=queued"],
        **counted(batch_id, scheduled=0, queued=1),
    }


async def test_a_job_that_is_not_due_waits(queue: JobQueue, redis: Redis) -> None:
    """A caller whose clock runs ahead must not start it early."""
    await scheduled(queue)
    before = await whole_state(redis)

    assert await promote(queue, redis) == NOT_DUE
    assert changes(before, await whole_state(redis)) == {}


async def test_a_job_that_is_not_delayed_any_more_is_left_alone(queue: JobQueue, redis: Redis) -> None:
    """Somebody cancelled it, or another consumer queued it, after this one had looked."""
    await due(queue)
    await queue.cancel("a")
    before = await whole_state(redis)

    assert await promote(queue, redis) == NOT_DUE
    assert changes(before, await whole_state(redis)) == {}


async def test_a_delayed_job_without_a_hash_is_forgotten(queue: JobQueue, redis: Redis) -> None:
    """Somebody deleted the job by hand; it must not be looked at once a second for ever."""
    await due(queue)
    await redis.delete(queue.keys.job("a"))
    before = await whole_state(redis)

    assert await promote(queue, redis) == GONE
    assert changes(before, await whole_state(redis)) == {"delayed.a": None}


async def test_of_two_who_promote_one_does(queue: JobQueue, redis: Redis, other_redis: Redis) -> None:
    """All consumers keep house: a job queued twice would run twice."""
    for number in range(RACES):
        await due(queue, f"job-{number}")

        answers = await both(promote(queue, redis, f"job-{number}"), promote(queue, other_redis, f"job-{number}"))
        assert answers == {QUEUED, NOT_DUE}
    assert await redis.xlen(queue.keys.lane("normal")) == RACES


async def test_a_full_server_still_queues_what_is_due(queue: JobQueue, redis: Redis) -> None:
    """It was accepted before; running it is the way to free its memory."""
    await due(queue)

    async with full_memory(redis):
        assert await promote(queue, redis) == QUEUED
