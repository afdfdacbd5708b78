"""The queue at a glance: what waits, runs and is dead, and what each consumer does."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from common.connection import group_is_missing
from common.keys import RELEASED, TRANSCRIBERS
from common.records import PRIORITIES, Priority

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from common.queue import JobQueue

# Pending entries that one look at the queue follows to their job ids.
_SHOWN_PENDING = 1000


class ConsumerState(StrEnum):
    """What a consumer of the transcribers' group is doing."""

    RUNNING = "running"
    IDLE = "idle"
    LOST = "lost"
    """It has not spoken to the server for longer than the lease."""


@dataclass(frozen=True, slots=True)
class ConsumerInfo:
    """One consumer of the transcribers' group."""

    name: str
    host: str
    state: ConsumerState
    running: tuple[str, ...]
    """Ids of its jobs."""
    idle_s: float


@dataclass(frozen=True, slots=True)
class QueueStats:
    """The queue at one moment; the counts are read one after another and may be off by what moves meanwhile."""

    queue: str
    queued: dict[Priority, int]
    scheduled: int
    running: int
    dead: int
    unstored: int
    """Results that the writer has not stored yet."""
    oldest_queued_s: float | None
    consumers: tuple[ConsumerInfo, ...]


class Overview:
    """Looks at one queue; changes nothing."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
        self._redis = queue.redis

    async def stats(self, lease_ms: int) -> QueueStats:
        """Count what waits, runs and is dead, and look at each consumer.

        Args:
            lease_ms: idle time from which a consumer counts as lost.
        """
        keys = self._queue.keys
        pipeline = self._redis.pipeline(transaction=False)
        for lane in keys.lanes:
            pipeline.xlen(lane)
        pipeline.zcard(keys.delayed)
        pipeline.xlen(keys.dead)
        pipeline.xlen(keys.results)
        *lengths, scheduled, dead, unstored = await pipeline.execute()
        groups = await asyncio.gather(*(self._group(lane) for lane in keys.lanes))
        waiting = {
            priority: max(0, length - group.pending + group.released)
            for priority, length, group in zip(PRIORITIES, lengths, groups, strict=True)
        }
        holders = await asyncio.gather(*(self._holders(lane) for lane in keys.lanes))
        released = [lane[RELEASED][0] for lane in holders if RELEASED in lane]
        held = _merge(holders)
        return QueueStats(
            queue=keys.queue,
            queued=waiting,
            scheduled=scheduled,
            running=sum(group.pending - group.released for group in groups),
            dead=dead,
            unstored=unstored,
            oldest_queued_s=await self._oldest_queued_s(groups, released),
            consumers=tuple(_consumers(groups, held, lease_ms)),
        )

    async def _group(self, lane: str) -> _Group:
        try:
            groups = await self._redis.xinfo_groups(lane)
            consumers = await self._redis.xinfo_consumers(lane, TRANSCRIBERS)
        except Exception as exc:
            if group_is_missing(exc):
                return _Group(lane, 0, "0-0", {})
            raise
        mine = next((group for group in groups if group["name"] == TRANSCRIBERS), None)
        if mine is None:
            return _Group(lane, 0, "0-0", {})
        idle = {consumer["name"]: consumer["idle"] / 1000 for consumer in consumers}
        released = next((consumer["pending"] for consumer in consumers if consumer["name"] == RELEASED), 0)
        return _Group(lane, mine["pending"], mine["last-delivered-id"], idle, released)

    async def _holders(self, lane: str) -> dict[str, list[str]]:
        """Return the ids of the jobs pending on a lane, by consumer."""
        held: dict[str, list[str]] = {}
        for pending in await self._queue.pending(lane, "-", _SHOWN_PENDING):
            held.setdefault(pending.consumer, []).append(pending.job_id or pending.entry_id)
        return held

    async def _oldest_queued_s(self, groups: Iterable[_Group], released: Sequence[str]) -> float | None:
        """Return how long the job has waited that has waited longest; entry ids are no clock, job hashes are.

        Args:
            groups: the lanes; of each the first entry not yet delivered is looked at.
            released: ids of jobs that were handed back.
        """
        firsts = [await self._redis.xrange(group.lane, min=f"({group.last_delivered}", count=1) for group in groups]
        waiting = [page[0][1]["id"] for page in firsts if page and "id" in page[0][1]]
        jobs = await self._queue.jobs([*waiting, *released])
        queued_ms = [job.queued_ms for job in jobs if job and job.queued_ms]
        if not queued_ms:
            return None
        return max(0.0, (await self._queue.now_ms() - min(queued_ms)) / 1000)


@dataclass(frozen=True, slots=True)
class _Group:
    lane: str
    pending: int
    last_delivered: str
    idle_s: Mapping[str, float]
    released: int = 0
    """Pending for nobody: handed back, and waiting again."""


def _merge(holders: Iterable[Mapping[str, list[str]]]) -> dict[str, list[str]]:
    merged: dict[str, list[str]] = {}
    for held in holders:
        for consumer, ids in held.items():
            merged.setdefault(consumer, []).extend(ids)
    return merged


def _consumers(groups: Iterable[_Group], held: Mapping[str, list[str]], lease_ms: int) -> Iterable[ConsumerInfo]:
    """Yield each consumer once; it is as idle as on the lane where it spoke last."""
    idle: dict[str, float] = {}
    for group in groups:
        for name, idle_s in group.idle_s.items():
            idle[name] = min(idle_s, idle.get(name, idle_s))
    for name in sorted(idle.keys() - {RELEASED}):
        jobs = tuple(held.get(name, ()))
        lost = idle[name] * 1000 > lease_ms
        state = ConsumerState.LOST if lost else ConsumerState.RUNNING if jobs else ConsumerState.IDLE
        yield ConsumerInfo(name, name.rsplit("-", 2)[0], state, jobs, idle[name])
