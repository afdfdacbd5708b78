"""renew: keep one entry ours, and say how far its work is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from common.keys import TRANSCRIBERS, WRITERS
from tests.integration.seeds import (
    LATER_MS,
    begun,
    cancelling,
    full_memory,
    read_one,
    renew,
    rescued,
    running,
    transcribed,
)
from tests.integration.state import changes, whole_state

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from common.entries import Entry
    from common.queue import JobQueue
    from common.streams import JobStreams, ResultStream

RENEWED, LOST, RETIRED, CANCEL = 1, 0, -1, -2


async def make_idle(redis: Redis, group: str, consumer: str, entry: Entry) -> None:
    """Let an entry look as if nobody had renewed it for an hour."""
    await redis.xclaim(entry.stream, group, consumer, 0, [entry.entry_id], idle=LATER_MS, justid=True)


async def test_a_renewed_entry_is_not_rescued(
    queue: JobQueue, consumer: JobStreams, rescuer: JobStreams, redis: Redis
) -> None:
    """The idle time is the lease: who renews keeps the job, and its delivery count."""
    task = await running(queue, consumer)
    before = await whole_state(redis)
    await make_idle(redis, TRANSCRIBERS, "host-1-aaa", task.entry)

    assert await renew(redis, consumer, task) == RENEWED
    assert changes(before, await whole_state(redis)) == {}
    assert await rescuer.rescue(16, LATER_MS) == []


async def test_progress_is_noted_and_told(queue: JobQueue, consumer: JobStreams, redis: Redis) -> None:
    """Who watches a job sees it move without asking for it."""
    task = await running(queue, consumer)
    before = await whole_state(redis)

    assert await renew(redis, consumer, task, "0.250") == RENEWED
    assert changes(before, await whole_state(redis)) == {
        "job:a.progress": "0.250",
        "events": ["id=a progress=0.250"],
    }


@pytest.mark.parametrize("progress", ["", "0.5"])
async def test_a_job_that_shall_be_cancelled_is_renewed_and_told_so(
    queue: JobQueue, consumer: JobStreams, rescuer: JobStreams, redis: Redis, progress: str
) -> None:
    """The consumer must keep the entry until it has settled the cancellation."""
    task = await cancelling(queue, consumer)
    await make_idle(redis, TRANSCRIBERS, "host-1-aaa", task.entry)

    assert await renew(redis, consumer, task, progress) == CANCEL
    assert await rescuer.rescue(16, LATER_MS) == []


async def test_a_renewal_never_takes_an_entry_back(
    queue: JobQueue, consumer: JobStreams, rescuer: JobStreams, redis: Redis
) -> None:
    """Plain XCLAIM would steal the job from the consumer that rescued it."""
    late = await running(queue, consumer)
    await begun(rescuer, await rescued(rescuer))
    before = await whole_state(redis)

    assert await renew(redis, consumer, late, "0.9") == LOST
    assert changes(before, await whole_state(redis)) == {}


async def test_a_renewal_learns_that_the_entry_was_deleted(queue: JobQueue, consumer: JobStreams, redis: Redis) -> None:
    """XCLAIM drops a pending entry whose payload is gone, so the next renewal ends the work."""
    task = await running(queue, consumer)
    await redis.xdel(task.entry.stream, task.entry.entry_id)

    await renew(redis, consumer, task)
    assert await renew(redis, consumer, task) == RETIRED


async def test_a_result_is_renewed_without_its_job(
    queue: JobQueue, consumer: JobStreams, writer: ResultStream, redis: Redis
) -> None:
    """The writer keeps what it is storing, and has no progress to tell."""
    await transcribed(queue, consumer)
    task = await begun(writer, await read_one(writer))
    before = await whole_state(redis)
    await make_idle(redis, WRITERS, "host-3-ccc", task.entry)

    assert await renew(redis, writer, task) == RENEWED
    assert changes(before, await whole_state(redis)) == {}
    assert await writer.rescue(16, LATER_MS) == []


async def test_a_full_server_still_renews(queue: JobQueue, consumer: JobStreams, redis: Redis) -> None:
    """A lease that ended for want of memory would run the job twice."""
    task = await running(queue, consumer)

    async with full_memory(redis):
        assert await renew(redis, consumer, task, "0.5") == RENEWED
