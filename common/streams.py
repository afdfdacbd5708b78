"""The two streams that stages work on: `JobStreams` for consumers, `ResultStream` for the writer.

Each begins entries, renews them, and turns a verdict into the one function call that carries it out.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import structlog
from pydantic import BaseModel, ValidationError

from common.connection import Client, server_now_ms
from common.entries import Entry, Settled, Task
from common.group import Group, pairs
from common.keys import RELEASED, TRANSCRIBERS, WRITERS, Keys
from common.outcomes import Bury, Cancel, Delay, Publish, Release, RetryPolicy, Verdict
from common.records import PRIORITIES, Failure, Job, JobSpec, Priority, check_id, job_or_none, what_is_wrong
from common.scripts import fcall

if TYPE_CHECKING:
    from common.settings import Settings

log = structlog.get_logger()

# How many due jobs one round queues.
_PROMOTED_AT_ONCE = 100
# Consumers that `max_unstored` has stopped go on at this share of it: at the limit itself a writer that is only slow
# would stop and start them, and say so in the log, at every look.
_ROOM_AGAIN_AT = 0.9


class _Destination(BaseModel):
    """Where a delayed job goes: the part of a spec that can be read whichever version wrote it."""

    source: str = "?"
    priority: Priority = "normal"
    batch_id: str | None = None

    @classmethod
    def of(cls, spec: str | None) -> Self:
        """Read it leniently: a job that is no job is buried when it starts, not by those who look at the clock."""
        try:
            return cls.model_validate_json(spec or "{}")
        except ValidationError:
            return cls()


class JobStreams:
    """The lanes: jobs waiting and running, by priority."""

    def __init__(self, redis: Client, keys: Keys, settings: Settings, consumer: str) -> None:
        self.client = redis
        self.keys = keys
        self._settings = settings
        self._group = Group(redis, keys.lanes, TRANSCRIBERS, consumer)
        self._priority: dict[str, Priority] = {keys.lane(priority): priority for priority in PRIORITIES}
        self._room = asyncio.Event()
        self._room.set()
        self.read = self._group.read
        self.rescue = self._group.rescue

    async def room(self) -> None:
        """Return when fewer results than `max_unstored` wait for a writer."""
        await self._room.wait()

    async def begin(self, entries: Sequence[Entry]) -> list[Task]:
        """Start one attempt of each job; entries that are no jobs become dead letters."""
        calls: list[tuple[Entry, JobSpec]] = []
        for entry in entries:
            try:
                calls.append((entry, self._spec_of(entry)))
            except ValueError as exc:
                await self._discard(entry, _complaint(entry, exc))
        replies = await self._group.call_each(self._start(entry, spec) for entry, spec in calls)
        tasks = [await self._task(entry, reply) for (entry, _), reply in zip(calls, replies, strict=True)]
        return [task for task in tasks if task is not None]

    def _spec_of(self, entry: Entry) -> JobSpec:
        """Return the job that an entry alone describes: what a client that only speaks Redis has added."""
        missing = [name for name in ("id", "source") if not entry.fields.get(name)]
        if missing:
            raise ValueError(f"field {' and '.join(missing)} missing (found {', '.join(entry.fields) or 'no fields'})")
        check_id(entry.fields["id"])
        return JobSpec(
            source=entry.fields["source"],
            priority=self._priority[entry.stream],
            batch_id=entry.fields.get("batch"),
        )

    def _start(self, entry: Entry, spec: JobSpec) -> tuple[Any, ...]:
        keys = [*self._settling_keys(entry.stream, entry.fields["id"]), *self._batch_key(entry)]
        return fcall("start", keys, [*self._group.fence(entry), entry.fields["id"], spec.to_json()])

    async def _task(self, entry: Entry, reply: list[Any] | Exception) -> Task | None:
        if isinstance(reply, Exception):
            await self._discard(entry, _complaint(entry, ValueError(f"its job cannot be started: {reply}")))
            return None
        if reply[0] != 1:
            return None
        job_id = entry.fields["id"]
        try:
            job = Job.from_hash(job_id, pairs(reply[1]))
        except ValueError as exc:
            await self._bury_unreadable(entry, exc)
            return None
        spec, settings = job.spec, self._settings
        policy = RetryPolicy(
            max_attempts=spec.max_attempts or settings.max_attempts,
            delay_s=settings.retry_delay_s if spec.retry_delay_s is None else spec.retry_delay_s,
        )
        return Task(entry, job_id, job, job.attempts, policy, spec.timeout_s or settings.timeout_s, pairs(reply[2]))

    async def settle(self, settlements: Sequence[tuple[Task, Verdict]]) -> list[Settled]:
        """Carry out verdicts; each is one function that writes nothing unless the entry is still ours."""
        replies = await self._group.call_all(self._settlement(task, verdict) for task, verdict in settlements)
        return [Settled(reply) for reply in replies]

    def _settlement(self, task: Task, verdict: Verdict) -> tuple[Any, ...]:
        """Return the one command that carries out a verdict."""
        keys, batch = self._settling_keys(task.entry.stream, task.id), self._batch_key(task.entry)
        fence = [*self._group.fence(task.entry), task.id]
        match verdict:
            case Publish(body, audio_s):
                return fcall("complete", [*keys, *batch], [*fence, body, audio_s])
            case Delay(failure, delay_ms):
                delayed = [*keys, self.keys.delayed, *batch]
                return fcall("delay", delayed, [*fence, failure.model_dump_json(), delay_ms])
            case Bury(failure, reason):
                dead = [*keys, self.keys.dead, *batch]
                return fcall("bury", dead, [*fence, failure.model_dump_json(), reason])
            case Cancel():
                return fcall("cancelled", [*keys, *batch], fence)
            case Release():
                return fcall("release", [*self._job_keys(task.entry.stream, task.id), *batch], [*fence, RELEASED])

    def renewal(self, task: Task, progress: str, parts: Sequence[tuple[str, str]] = ()) -> tuple[Any, ...]:
        """Return the command that renews a job's entry, carries its progress and keeps finished parts."""
        keys = [*self._job_keys(task.entry.stream, task.id), self.keys.parts(task.id)]
        told: list[str | int | float] = [task.id, progress, self._settings.job_ttl_s, *itertools.chain(*parts)]
        return fcall("renew", keys, [*self._group.fence(task.entry), *told])

    def cancellation(self, task: Task) -> tuple[Any, ...]:
        """Return the command that asks whether a job shall be cancelled; renewing asks too, but seldom."""
        return ("HEXISTS", self.keys.job(task.id), "cancel_requested")

    async def keep_house(self, gone_ms: int) -> None:
        """Queue delayed jobs that are due; forget consumers that are gone; see whether the writer keeps up."""
        while await self._promote() == _PROMOTED_AT_ONCE:
            pass
        await self._group.forget(gone_ms)
        self._look_for_room(await self.client.xlen(self.keys.results))

    def _look_for_room(self, unstored: int) -> None:
        most = self._settings.max_unstored
        if self._room.is_set() and unstored >= most:
            self._room.clear()
            log.warning(
                "results_not_stored", unstored=unstored, most=most, next="no job is taken until writers have caught up"
            )
        elif not self._room.is_set() and unstored <= _ROOM_AGAIN_AT * most:
            self._room.set()
            log.info("results_stored_again", unstored=unstored)

    async def _promote(self) -> int:
        """Queue a page of delayed jobs that are due, and return how many were."""
        redis, keys = self.client, self.keys
        now_ms = await server_now_ms(redis)
        due = await redis.zrange(keys.delayed, "-inf", now_ms, byscore=True, offset=0, num=_PROMOTED_AT_ONCE)
        specs = await self._group.call_all(("HGET", keys.job(job_id), "spec") for job_id in due)
        commands = []
        for job_id, text in zip(due, specs, strict=True):
            where = _Destination.of(text)
            batch = [keys.batch(where.batch_id)] if where.batch_id else []
            promoted = [keys.delayed, keys.lane(where.priority), keys.job(job_id), keys.events, *batch]
            commands.append(fcall("promote", promoted, [job_id, where.source, where.batch_id or ""]))
        await self._group.call_all(commands)
        return len(due)

    async def _discard(self, entry: Entry, failure: Failure) -> None:
        await self._group.call_all([self._group.discard(self.keys.dead, entry, failure)])

    async def _bury_unreadable(self, entry: Entry, error: ValueError) -> None:
        """End a job whose hash another version, or a hand, has written so that it cannot be read."""
        failure = _complaint(entry, error)
        keys = [*self._settling_keys(entry.stream, entry.fields["id"]), self.keys.dead]
        args = [*self._group.fence(entry), entry.fields["id"], failure.model_dump_json(), failure.type]
        await self._group.call_all([fcall("bury", [*keys, *self._batch_key(entry)], args)])

    def _job_keys(self, lane: str, job_id: str) -> list[str]:
        return [lane, self.keys.job(job_id), self.keys.events]

    def _settling_keys(self, lane: str, job_id: str) -> list[str]:
        """Return the keys that all functions share which may end a job."""
        return [*self._job_keys(lane, job_id), self.keys.results, self.keys.parts(job_id)]

    def _batch_key(self, entry: Entry) -> list[str]:
        batch_id = entry.fields.get("batch")
        return [self.keys.batch(batch_id)] if batch_id else []


class ResultStream:
    """Outcomes on their way to the database."""

    def __init__(self, redis: Client, keys: Keys, settings: Settings, consumer: str) -> None:
        self.keys = keys
        self._settings = settings
        self._group = Group(redis, [keys.results], WRITERS, consumer)
        self.read = self._group.read
        self.rescue = self._group.rescue

    async def room(self) -> None:
        """Return at once: nothing comes after the writer."""

    async def begin(self, entries: Sequence[Entry]) -> list[Task]:
        """Fetch the job of each result; one whose job has no hash any more is stored all the same."""
        ids = [entry.fields.get("id", "") for entry in entries]
        hashes = await self._group.call_each(("HGETALL", self.keys.job(job_id)) for job_id in ids)
        # As often as it takes: a limit would turn an outage of the database into lost transcripts.
        policy = RetryPolicy(max_attempts=None, delay_s=0)
        jobs = [
            None if isinstance(fields, Exception) else job_or_none(job_id, fields)
            for job_id, fields in zip(ids, hashes, strict=True)
        ]
        return [
            Task(entry, job_id, job, entry.deliveries, policy, None)
            for entry, job_id, job in zip(entries, ids, jobs, strict=True)
        ]

    async def settle(self, settlements: Sequence[tuple[Task, Verdict]]) -> list[Settled]:
        """Retire stored results; move what can never be stored to the dead letters; leave the rest."""
        replies = await self._group.call_all(self._settlement(task, verdict) for task, verdict in settlements)
        return [Settled(reply) for reply in replies]

    def _settlement(self, task: Task, verdict: Verdict) -> tuple[Any, ...]:
        entry, fields = task.entry, task.entry.fields
        batch = [self.keys.batch(task.job.spec.batch_id)] if task.job and task.job.spec.batch_id else []
        job_keys = [self.keys.job(task.id), self.keys.events, *batch]
        match verdict:
            case Publish():
                keys = [self.keys.results, *job_keys]
                told = [task.id, fields.get("run", "1"), fields.get("outcome", "")]
                return fcall("store", keys, [*self._group.fence(entry), *told, self._settings.job_ttl_s])
            case Bury(failure, _):
                return self._group.discard(self.keys.dead, entry, failure, *job_keys)
            case Delay():
                return self.renewal(task, "")  # tried again when the lease, now renewed for the last time, is over
            case Release() | Cancel():
                return fcall("release", [self.keys.results], [*self._group.fence(entry), task.id, RELEASED])

    def renewal(self, task: Task, progress: str, parts: Sequence[tuple[str, str]] = ()) -> tuple[Any, ...]:
        """Return the command that renews a result's entry."""
        return fcall("renew", [self.keys.results], [*self._group.fence(task.entry), task.id, ""])

    def cancellation(self, task: Task) -> None:
        """Return nothing: what has an outcome cannot be cancelled."""

    async def keep_house(self, gone_ms: int) -> None:
        """Forget writers that are gone."""
        await self._group.forget(gone_ms)


def _complaint(entry: Entry, error: ValueError) -> Failure:
    return Failure(
        type="entry_malformed",
        detail=f"{entry.stream} entry {entry.entry_id}: {what_is_wrong(error)}; moved to dead letters without retry. "
        "Was it added by hand, or by a producer of another version?",
    )
