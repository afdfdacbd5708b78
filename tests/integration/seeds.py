"""States to start from, reached through the real functions: `await running(queue, consumer, "a")`."""

from __future__ import annotations

import asyncio
import contextlib
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from common.entries import Settled
from common.outcomes import Bury, Publish
from common.queue import Cancellation, Submitted
from common.records import Failure, JobSpec
from common.setup import set_up

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Mapping

    from redis.asyncio import Redis

    from common.entries import Entry, Task
    from common.keys import Keys
    from common.outcomes import Verdict
    from common.queue import JobQueue
    from common.streams import JobStreams, ResultStream

FAILURE = Failure(type="engine_failed", detail="the engine failed")
FAILURE_JSON = FAILURE.model_dump_json()
BURY = Bury(FAILURE, "engine_failed")
PUBLISH = Publish('{"text":"said"}', 61.3)
# Finished parts of a job, and what a comparison shows when they are deleted.
PARTS = {"chunk-0": '{"text":"said"}', "chunk-1": '{"text":"and done"}'}
PARTS_GONE = {"parts:a.chunk-0": None, "parts:a.chunk-1": None, "parts:a expires": None}
# Far beyond any test's end.
LATER_MS = 3_600_000
# How often two callers meet in one test of a race.
RACES = 20


async def new_server(redis: Redis, keys: Keys) -> None:
    """Prepare a server that is empty, without a database, which would make the epoch."""
    await redis.set(keys.epoch, "of-this-test")
    await set_up(redis, keys)


def spec(job_id: str = "a", **fields: Any) -> JobSpec:
    return JobSpec(source=f"/audio/{job_id}.mp3", **fields)


def fields(job_id: str = "a", batch_id: str | None = None) -> dict[str, str]:
    """The fields of a job's entry on its lane."""
    entry = {"id": job_id, "source": f"/audio/{job_id}.mp3"}
    return entry | {"batch": batch_id} if batch_id else entry


def result(job_id: str, outcome: str, body: str = "", run: int = 1) -> dict[str, str]:
    """The fields of an entry on the results stream."""
    return {"id": job_id, "outcome": outcome, "run": str(run), "body": body}


async def submit(queue: JobQueue, job_id: str = "a", *, delay_ms: int = 0, **in_spec: Any) -> Submitted:
    return await queue.submit(job_id, spec(job_id, **in_spec), max_queued=1000, delay_ms=delay_ms)


async def queued(queue: JobQueue, job_id: str = "a", **in_spec: Any) -> str:
    """Submit a job; return the id of its entry."""
    assert await submit(queue, job_id, **in_spec) is Submitted.QUEUED
    return await entry_id_of(queue, job_id)


async def entry_id_of(queue: JobQueue, job_id: str) -> str:
    job = await queue.job(job_id)
    assert job is not None
    assert job.entry_id is not None
    return job.entry_id


async def scheduled(queue: JobQueue, job_id: str = "a", **in_spec: Any) -> None:
    assert await submit(queue, job_id, delay_ms=LATER_MS, **in_spec) is Submitted.SCHEDULED


async def due(queue: JobQueue, job_id: str = "a", **in_spec: Any) -> None:
    """Submit a job for later, and let later be now."""
    await scheduled(queue, job_id, **in_spec)
    await queue.redis.zadd(queue.keys.delayed, {job_id: 1})


async def read_one(streams: JobStreams | ResultStream) -> Entry:
    [entry] = await streams.read(1, 1)
    return entry


async def begun(streams: JobStreams | ResultStream, entry: Entry) -> Task:
    [task] = await streams.begin([entry])
    return task


async def running(queue: JobQueue, consumer: JobStreams, job_id: str = "a", **in_spec: Any) -> Task:
    """Submit a job and start it; the lanes must be empty or lower ones, or another job would be read first."""
    await queued(queue, job_id, **in_spec)
    task = await begun(consumer, await read_one(consumer))
    assert task.id == job_id
    return task


async def running_with_parts(queue: JobQueue, consumer: JobStreams, job_id: str = "a", **in_spec: Any) -> Task:
    """Start a job, and finish parts of it."""
    task = await running(queue, consumer, job_id, **in_spec)
    assert await renew(consumer.client, consumer, task, parts=PARTS) == 1
    return task


async def cancelling(queue: JobQueue, consumer: JobStreams, job_id: str = "a", **in_spec: Any) -> Task:
    """Start a job, and ask for it to be cancelled."""
    task = await running(queue, consumer, job_id, **in_spec)
    assert await queue.cancel(job_id) is Cancellation.CANCELLING
    return task


async def transcribed(queue: JobQueue, consumer: JobStreams, job_id: str = "a", **in_spec: Any) -> None:
    assert await settle(consumer, await running(queue, consumer, job_id, **in_spec), PUBLISH) is Settled.DONE


async def failed(queue: JobQueue, consumer: JobStreams, job_id: str = "a", **in_spec: Any) -> None:
    assert await settle(consumer, await running(queue, consumer, job_id, **in_spec), BURY) is Settled.DONE


async def cancelled(queue: JobQueue, job_id: str = "a", **in_spec: Any) -> None:
    await queued(queue, job_id, **in_spec)
    assert await queue.cancel(job_id) is Cancellation.CANCELLED


async def settle(streams: JobStreams | ResultStream, task: Task, verdict: Verdict) -> Settled:
    [settled] = await streams.settle([(task, verdict)])
    return settled


async def renew(
    redis: Redis,
    streams: JobStreams | ResultStream,
    task: Task,
    progress: str = "",
    parts: Mapping[str, str] = MappingProxyType({}),
) -> int:
    reply: int = await redis.execute_command(*streams.renewal(task, progress, list(parts.items())))
    return reply


async def store_one(writer: ResultStream) -> Settled:
    """Do for one result what the writer does when it is stored."""
    return await settle(writer, await begun(writer, await read_one(writer)), Publish("", 0.0))


async def rescued(rescuer: JobStreams | ResultStream) -> Entry:
    """Take over the one entry that somebody holds, as if its lease were over."""
    [entry] = await rescuer.rescue(1, 0)
    return entry


async def make_idle(redis: Redis, group: str, consumer: str, entry: Entry) -> None:
    """Let an entry look as if nobody had renewed it for an hour."""
    await redis.xclaim(entry.stream, group, consumer, 0, [entry.entry_id], idle=LATER_MS, justid=True)


async def add_by_hand(redis: Redis, lane: str, **entry_fields: str) -> str:
    """Submit as a client that only speaks Redis does."""
    entry_id: str = await redis.xadd(lane, entry_fields)
    return entry_id


async def both(first: Awaitable[Any], second: Awaitable[Any]) -> set[Any]:
    """Return what two callers got who asked at once."""
    return set(await asyncio.gather(first, second))


@contextlib.asynccontextmanager
async def full_memory(redis: Redis) -> AsyncIterator[None]:
    """Let the server be at `maxmemory`."""
    await redis.config_set("maxmemory", 1)
    try:
        yield
    finally:
        await redis.config_set("maxmemory", 0)


def counted(batch_id: str | None, **counters: int) -> dict[str, str]:
    """The counters of a batch by state; nothing for a job without one."""
    return {f"batch:{batch_id}.{state}": str(count) for state, count in counters.items()} if batch_id else {}
