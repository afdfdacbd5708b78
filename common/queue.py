"""Jobs as clients see them: submit, look, cancel, revive; counts and dead letters.

The stages' side of the same streams is `common.streams`.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import TYPE_CHECKING

import orjson

from common.connection import Client, group_is_missing
from common.keys import RELEASED, TRANSCRIBERS, Keys
from common.records import PRIORITIES, Failure, Job, JobSpec, Priority, State
from common.scripts import call
from common.streams import job_or_none

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

# Pending entries that one look at the queue follows to their job ids.
_SHOWN_PENDING = 1000


class Submitted(Enum):
    """What became of a submission."""

    QUEUED = 1
    SCHEDULED = 2
    KNOWN = 0
    """The same job was submitted before: nothing was written."""
    CONFLICT = -1
    """The id belongs to another job: nothing was written."""
    FULL = -2
    """As many jobs as allowed are under way: nothing was written."""


class Cancellation(Enum):
    """What became of a request to cancel."""

    CANCELLED = 1
    CANCELLING = 2
    """It runs: its consumer stops at the next chunk."""
    TOO_LATE = 0
    UNKNOWN = -1


class Revival(Enum):
    """What became of a request to run an ended job again."""

    QUEUED = 1
    NOT_ENDED = 0
    """Only failed and cancelled jobs can be revived."""
    UNKNOWN = -1


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


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A job, or an entry that is none, waiting for an operator."""

    dead_id: str
    job_id: str
    """"" for an entry without one."""
    reason: str
    failure: Failure
    stream: str | None
    """Where a discarded entry came from; None for a failed job."""
    fields: tuple[str, ...]
    """Its fields and values, in turn."""

    @property
    def id(self) -> str:
        """What an operator calls it: the job's id, or its own when it has none."""
        return self.job_id or self.dead_id


class JobQueue:
    """One queue, as a client sees it. Raises redis-py's errors when the server is away."""

    def __init__(self, redis: Client, keys: Keys) -> None:
        self.redis = redis
        self.keys = keys

    async def submit(
        self,
        job_id: str,
        spec: JobSpec,
        *,
        max_queued: int,
        run: int = 1,
        due_ms: int = 0,
        delay_ms: int = 0,
    ) -> Submitted:
        """Accept a job once; atomic.

        Args:
            job_id: the idempotency key; see `common.records.check_id`.
            spec: the job.
            max_queued: jobs waiting, scheduled or running from which on new ones are refused.
            run: 1, or one more than the run of an ended job that is submitted again.
            due_ms: server ms before which it shall not start; 0 for at once.
            delay_ms: the same, as a wait from now.
        """
        keys = self.keys
        batch = [keys.batch(spec.batch_id)] if spec.batch_id else []
        reply = await call(
            self.redis,
            "submit",
            [keys.job(job_id), keys.events, keys.delayed, keys.lane(spec.priority), *keys.lanes, *batch],
            [job_id, spec.source, spec.to_json(), run, due_ms, delay_ms, max_queued, spec.batch_id or ""],
        )
        return Submitted(reply)

    async def job(self, job_id: str) -> Job | None:
        """Return the job, or None when Redis does not hold it (any more)."""
        return (await self.jobs([job_id]))[0]

    async def jobs(self, job_ids: Sequence[str]) -> list[Job | None]:
        """Return the jobs in the order of their ids, None for each that Redis does not hold, or not legibly."""
        if not job_ids:
            return []
        pipeline = self.redis.pipeline(transaction=False)
        for job_id in job_ids:
            pipeline.hgetall(self.keys.job(job_id))
        hashes = await pipeline.execute()
        return [job_or_none(job_id, fields) for job_id, fields in zip(job_ids, hashes, strict=True)]

    async def cancel(self, job_id: str) -> Cancellation:
        """Take a job out of the queue, or ask its consumer to stop; atomic."""
        job = await self.job(job_id)
        if job is None:
            return Cancellation.UNKNOWN
        keys = self.keys
        reply = await call(
            self.redis,
            "cancel",
            [
                keys.job(job_id),
                keys.events,
                keys.results,
                keys.delayed,
                keys.lane(job.spec.priority),
                *self._batch(job),
            ],
            [job_id, TRANSCRIBERS],
        )
        return Cancellation(reply)

    async def revive(self, job_id: str) -> Revival:
        """Queue a failed or cancelled job again and take back its dead letter; atomic."""
        job = await self.job(job_id)
        if job is None:
            return Revival.UNKNOWN
        keys = self.keys
        reply = await call(
            self.redis,
            "revive",
            [keys.job(job_id), keys.events, keys.lane(job.spec.priority), keys.dead, *self._batch(job)],
            [job_id, job.spec.source, job.spec.batch_id or ""],
        )
        return Revival(reply)

    async def under_way(self, state: State, after: str, limit: int) -> tuple[list[Job], str | None]:
        """Return a page of the jobs that have not ended, oldest first within each stream.

        The streams are the index: a job that moves on between two pages may be missed or seen twice.

        Args:
            state: scheduled, queued, running or transcribed.
            after: the cursor that the page before returned; "" for the first.
            limit: entries looked at; the page may be shorter, as a lane holds queued and running jobs alike.

        Returns:
            The jobs, and the cursor of the next page or None after the last.
        """
        if state is State.SCHEDULED:
            start = int(after or 0)
            ids = await self.redis.zrange(self.keys.delayed, start, start + limit - 1)
            following = str(start + limit) if len(ids) == limit else None
        else:
            streams = [self.keys.results] if state is State.TRANSCRIBED else list(self.keys.lanes)
            ids, following = await self._stream_page(streams, after, limit)
        found = await self.jobs(list(dict.fromkeys(ids)))
        return [job for job in found if job and job.state is state], following

    async def _stream_page(self, streams: Sequence[str], after: str, limit: int) -> tuple[list[str], str | None]:
        """Return job ids of the entries after `<stream index>/<entry id>`, over one stream after another."""
        index, _, last = after.partition("/")
        number = int(index or 0)
        page = await self.redis.xrange(streams[number], min=f"({last}" if last else "-", count=limit)
        ids = [fields["id"] for _, fields in page if fields and "id" in fields]
        if len(page) == limit:
            return ids, f"{number}/{page[-1][0]}"
        return ids, f"{number + 1}/" if number + 1 < len(streams) else None

    async def stats(self, lease_ms: int) -> QueueStats:
        """Count what waits, runs and is dead, and look at each consumer.

        Args:
            lease_ms: idle time from which a consumer counts as lost.
        """
        keys = self.keys
        pipeline = self.redis.pipeline(transaction=False)
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
            groups = await self.redis.xinfo_groups(lane)
            consumers = await self.redis.xinfo_consumers(lane, TRANSCRIBERS)
        except Exception as exc:
            if group_is_missing(exc) or "no such key" in str(exc):
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
        try:
            pending = await self.redis.xpending_range(lane, TRANSCRIBERS, "-", "+", _SHOWN_PENDING)
        except Exception as exc:
            if group_is_missing(exc):
                return {}
            raise
        pipeline = self.redis.pipeline(transaction=False)
        for entry in pending:
            pipeline.xrange(lane, entry["message_id"], entry["message_id"])
        held: dict[str, list[str]] = {}
        for entry, found in zip(pending, await pipeline.execute(), strict=True):
            if found:
                held.setdefault(entry["consumer"], []).append(found[0][1].get("id", entry["message_id"]))
        return held

    async def _oldest_queued_s(self, groups: Iterable[_Group], released: Sequence[str]) -> float | None:
        """Return how long the job has waited that has waited longest; entry ids are no clock, job hashes are.

        Args:
            groups: the lanes; of each the first entry not yet delivered is looked at.
            released: ids of jobs that were handed back.
        """
        firsts = [await self.redis.xrange(group.lane, min=f"({group.last_delivered}", count=1) for group in groups]
        waiting = [page[0][1]["id"] for page in firsts if page and "id" in page[0][1]]
        jobs = await self.jobs([*waiting, *released])
        queued_ms = [job.queued_ms for job in jobs if job and job.queued_ms]
        if not queued_ms:
            return None
        return max(0.0, (await self.now_ms() - min(queued_ms)) / 1000)

    async def now_ms(self) -> int:
        """Return the server's clock in ms since 1970."""
        seconds, microseconds = await self.redis.time()
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def dead_letters(self, after: str, limit: int) -> tuple[list[DeadLetter], str | None]:
        """Return a page of dead letters, newest first, and the cursor of the next page or None."""
        newest = f"({after}" if after else "+"
        page = await self.redis.xrevrange(self.keys.dead, max=newest, count=limit)
        letters = [_dead_letter(dead_id, fields) for dead_id, fields in page]
        return letters, page[-1][0] if len(page) == limit else None

    async def dead_letter(self, name: str) -> DeadLetter | None:
        """Return the dead letter of a job id, or of an entry that has none by the letter's own id."""
        job = await self.job(name)
        dead_id = job.dead_id if job else None
        if dead_id is None and not _is_entry_id(name):
            return await self._search_dead(name)
        page = await self.redis.xrange(self.keys.dead, dead_id or name, dead_id or name)
        return _dead_letter(*page[0]) if page else None

    async def _search_dead(self, job_id: str) -> DeadLetter | None:
        """Look through all dead letters for a discarded entry that names a job id."""
        after: str | None = ""
        while after is not None:
            letters, after = await self.dead_letters(after, 500)
            for letter in letters:
                if letter.job_id == job_id:
                    return letter
        return None

    async def revive_dead(self, letter: DeadLetter) -> bool:
        """Run a dead letter again: its job as a new run, or a discarded entry back on its stream; atomic.

        Returns:
            False when it was revived or dropped meanwhile.
        """
        if letter.stream is None:
            return await self.revive(letter.job_id) is Revival.QUEUED
        keys = [self.keys.dead, letter.stream]
        return bool(await call(self.redis, "readd", keys, [letter.dead_id, *letter.fields]))

    async def drop_dead(self, letter: DeadLetter, job_ttl_s: int) -> bool:
        """Forget a dead letter; False when it was revived or dropped meanwhile. The database keeps its record."""
        keys = [self.keys.dead] + ([self.keys.job(letter.job_id)] if letter.job_id else [])
        return bool(await call(self.redis, "drop", keys, [letter.dead_id, job_ttl_s]))

    def _batch(self, job: Job) -> list[str]:
        return [self.keys.batch(job.spec.batch_id)] if job.spec.batch_id else []


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


def _dead_letter(dead_id: str, fields: Mapping[str, str]) -> DeadLetter:
    return DeadLetter(
        dead_id=dead_id,
        job_id=fields.get("id", ""),
        reason=fields.get("reason", ""),
        failure=Failure.model_validate_json(fields["error"]),
        stream=fields.get("stream"),
        fields=tuple(orjson.loads(fields.get("fields", "[]"))),
    )


def _is_entry_id(text: str) -> bool:
    # Below 2^64 for certain: the server refuses larger numbers with an error.
    return re.fullmatch(r"[0-9]{1,19}-[0-9]{1,19}", text) is not None
