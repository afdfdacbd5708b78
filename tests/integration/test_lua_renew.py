"""renew: keep one entry ours, say how far its work is, and keep the parts of it that are done."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from common.keys import TRANSCRIBERS, WRITERS
from tests.integration.seeds import (
    LATER_MS,
    PARTS,
    PARTS_GONE,
    begun,
    cancelling,
    full_memory,
    make_idle,
    read_one,
    renew,
    rescued,
    running,
    running_with_parts,
    transcribed,
)
from tests.integration.state import changes, whole_state

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from common.queue import JobQueue
    from common.settings import Settings
    from common.streams import JobStreams, ResultStream

RENEWED, LOST, RETIRED, CANCEL = 1, 0, -1, -2


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


async def test_finished_parts_are_kept_for_the_next_attempt(
    queue: JobQueue, consumer: JobStreams, redis: Redis, settings: Settings
) -> None:
    """Where a consumer dies the next one goes on; what nobody comes back for expires."""
    task = await running(queue, consumer)
    before = await whole_state(redis)

    assert await renew(redis, consumer, task, parts=PARTS) == RENEWED
    kept = {"parts:a.chunk-0": PARTS["chunk-0"], "parts:a.chunk-1": PARTS["chunk-1"], "parts:a expires": True}
    assert changes(before, await whole_state(redis)) == kept
    assert 0 < await redis.ttl(queue.keys.parts("a")) <= settings.job_ttl_s


async def test_later_parts_join_the_earlier_ones(queue: JobQueue, consumer: JobStreams, redis: Redis) -> None:
    """Each renewal carries what is new; a part that is sent again is the same part."""
    task = await running_with_parts(queue, consumer)
    await redis.expire(queue.keys.parts("a"), 1)

    assert await renew(redis, consumer, task, parts={"chunk-1": "{}", "chunk-2": "{}"}) == RENEWED
    assert await redis.hgetall(queue.keys.parts("a")) == PARTS | {"chunk-1": "{}", "chunk-2": "{}"}
    assert await redis.ttl(queue.keys.parts("a")) > 1


@pytest.mark.parametrize("progress", ["", "0.5"])
async def test_a_job_that_shall_be_cancelled_is_renewed_and_told_so(
    queue: JobQueue, consumer: JobStreams, rescuer: JobStreams, redis: Redis, progress: str
) -> None:
    """The consumer must keep the entry until it has settled the cancellation."""
    task = await cancelling(queue, consumer)
    before = await whole_state(redis)
    await make_idle(redis, TRANSCRIBERS, "host-1-aaa", task.entry)

    assert await renew(redis, consumer, task, progress, PARTS) == CANCEL
    assert changes(before, await whole_state(redis)).keys() >= PARTS_GONE.keys()  # kept: it may yet be handed back
    assert await rescuer.rescue(16, LATER_MS) == []


async def test_a_renewal_never_takes_an_entry_back(
    queue: JobQueue, consumer: JobStreams, rescuer: JobStreams, redis: Redis
) -> None:
    """Plain XCLAIM would steal the job from the consumer that rescued it."""
    late = await running(queue, consumer)
    await begun(rescuer, await rescued(rescuer))
    before = await whole_state(redis)

    assert await renew(redis, consumer, late, "0.9", PARTS) == LOST
    assert changes(before, await whole_state(redis)) == {}


async def test_a_renewal_learns_that_the_entry_was_deleted(queue: JobQueue, consumer: JobStreams, redis: Redis) -> None:
    """XCLAIM drops a pending entry whose payload is gone, so the next renewal ends the work."""
    task = await running(queue, consumer)
    await redis.xdel(task.entry.stream, task.entry.entry_id)

    await renew(redis, consumer, task)
    before = await whole_state(redis)
    assert await renew(redis, consumer, task, "0.9", PARTS) == RETIRED
    assert changes(before, await whole_state(redis)) == {}


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
        assert await renew(redis, consumer, task, "0.5", PARTS) == RENEWED
    assert await redis.hgetall(queue.keys.parts("a")) == PARTS


async def test_a_job_whose_hash_was_deleted_is_still_run_by_who_rescues_it(
    queue: JobQueue, consumer: JobStreams, rescuer: JobStreams, redis: Redis
) -> None:
    """Left of the hash, a progress alone would make the entry a stray: accepted, and never heard of again."""
    task = await running(queue, consumer)
    await redis.delete(queue.keys.job("a"))

    assert await renew(redis, consumer, task, "0.250") == RENEWED
    assert (await begun(rescuer, await rescued(rescuer))).id == "a"
