"""The two streams that stages work on: `JobStreams` for consumers, `ResultStream` for the writer.

Each begins entries, renews them, and turns a verdict into the one function call that carries it out.
"""

from __future__ import annotations

import asyncio
import itertools
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import structlog
from pydantic import BaseModel, ValidationError

from common.connection import Client
from common.entries import Entry, Settled, Task
from common.group import Group, first_error_raised, pairs
from common.keys import RELEASED, TRANSCRIBERS, WRITERS, Keys
from common.outcomes import Bury, Cancel, Delay, Publish, Release, RetryPolicy, Verdict
from common.records import PRIORITIES, Failure, Job, JobSpec, Priority, check_id, job_or_none, what_is_wrong
from common.scripts import fcall

if TYPE_CHECKING:
    from common.settings import Settings

log = structlog.get_logger()

# What `start` says of an entry whose job has no hash.
_NO_HASH = 4
# How many due jobs one round queues.
_PROMOTED_AT_ONCE = 100
# Consumers that `max_unstored` has stopped go on at this share of it: at the limit itself a writer that is only slow
# would stop and start them, and say so in the log, at every look.
_ROOM_AGAIN_AT = 0.9


class _Destination(BaseModel):
    """Where a delayed job goes: the part of a spec that can be read whichever version wrote it."""

    source: str = "?"
    """Only where a version before this one wrote it: it is beside the spec now."""
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
        begun = await self._start(await self._legible(entries))
        adopted = await self._adopt([entry for entry, told in begun if told == _NO_HASH])
        if adopted:
            begun += await self._start(adopted)
        tasks = []
        for entry, told in begun:
            if isinstance(told, Exception):
                await self._discard(entry, _complaint(entry, ValueError(f"its job cannot be started: {told}")))
            elif isinstance(told, list):  # it has begun; else it is not ours, or retired
                try:
                    tasks.append(self._task(entry, told))
                except ValueError as exc:
                    await self._bury_unreadable(entry, exc)
        return tasks

    async def _legible(self, entries: Sequence[Entry]) -> list[Entry]:
        """Return the entries that name a job; discard the others."""
        named = [entry for entry in entries if entry.fields.get("id") and entry.fields.get("source")]
        if len(named) < len(entries):
            for entry in entries:
                if missing := [name for name in ("id", "source") if not entry.fields.get(name)]:
                    found = ", ".join(entry.fields) or "no fields"
                    error = ValueError(f"field {' and '.join(missing)} missing (found {found})")
                    await self._discard(entry, _complaint(entry, error))
        return named

    async def _start(self, entries: Sequence[Entry]) -> list[tuple[Entry, Any]]:
        """Return with each entry what `start` says of it, or the error that blames it."""
        by_lane = itertools.groupby(entries, key=operator.attrgetter("stream"))
        commands = (self._for_each("start", lane, [(entry, ()) for entry in page]) for lane, page in by_lane)
        return list(zip(entries, await self._group.call_for_each(commands), strict=True))

    def _for_each(
        self, name: str, lane: str, entries: Sequence[tuple[Entry, tuple[str | int | float, ...]]]
    ) -> tuple[Any, ...]:
        """Return the command that does one thing for each of many entries of a lane.

        Args:
            name: a function that takes its keys and arguments as `each_entry` does in the Lua library.
            lane: where they are.
            entries: each with what else the function must know of it.
        """
        job_key, parts_key = self.keys.job, self.keys.parts
        batches: dict[str, int] = {}
        keys = [lane, self.keys.events, self.keys.results]
        args: list[str | int | float] = [*self._group.member, len(entries)]
        for entry, told in entries:
            job_id, batch_id = entry.fields["id"], entry.fields.get("batch")
            keys += (job_key(job_id), parts_key(job_id))
            number = batches.setdefault(batch_id, len(batches) + 1) if batch_id else 0
            args += (entry.entry_id, entry.deliveries, job_id, number, *told)
        keys += map(self.keys.batch, batches)
        return fcall(name, keys, args)

    async def _adopt(self, entries: Sequence[Entry]) -> list[Entry]:
        """Make jobs of entries that clients which only speak Redis have added; return those that are."""
        commands, adopted = [], []
        for entry in entries:
            try:
                spec = self._spec_of(entry)
            except ValueError as exc:
                await self._discard(entry, _complaint(entry, exc))
                continue
            keys = [*self._job_keys(entry.stream, entry.fields["id"]), *self._batch_key(entry)]
            told = [entry.fields["id"], spec.source, spec.beside_source()]
            commands.append(fcall("adopt", keys, [*self._group.fence(entry), *told]))
            adopted.append(entry)
        if commands:
            await self._group.call_all(commands)
        return adopted

    def _spec_of(self, entry: Entry) -> JobSpec:
        """Return the job that an entry alone describes."""
        check_id(entry.fields["id"])
        return JobSpec(
            source=entry.fields["source"],
            priority=self._priority[entry.stream],
            batch_id=entry.fields.get("batch"),
        )

    def _task(self, entry: Entry, told: list[Any]) -> Task:
        """Return what the stage runs.

        Raises:
            ValueError: the job's hash cannot be read.
        """
        job_id = entry.fields["id"]
        job = Job.from_hash(job_id, pairs(told[0]))
        spec, settings = job.spec, self._settings
        policy = RetryPolicy(
            max_attempts=spec.max_attempts or settings.max_attempts,
            delay_s=settings.retry_delay_s if spec.retry_delay_s is None else spec.retry_delay_s,
        )
        return Task(entry, job_id, job, job.attempts, policy, spec.timeout_s or settings.timeout_s, pairs(told[1]))

    async def settle(self, settlements: Sequence[tuple[Task, Verdict]]) -> list[Settled]:
        """Carry out verdicts, in one round trip; each writes nothing unless the entry is still ours."""
        together = itertools.groupby(settlements, key=_settled_with)
        replies = await self._group.call_for_each(self._settlement(list(page)) for _, page in together)
        return [Settled(reply) for reply in first_error_raised(replies)]

    def _settlement(self, settlements: Sequence[tuple[Task, Verdict]]) -> tuple[Any, ...]:
        """Return the one command that carries out a verdict; transcripts of a lane are published together."""
        task, verdict = settlements[0]
        lane = task.entry.stream
        keys, batch = self._settling_keys(lane, task.id), self._batch_key(task.entry)
        fence = [*self._group.fence(task.entry), task.id]
        match verdict:
            case Publish():
                return self._for_each("complete", lane, [_published(*settlement) for settlement in settlements])
            case Delay(failure, delay_ms):
                delayed = [*keys, self.keys.delayed, *batch]
                return fcall("delay", delayed, [*fence, failure.model_dump_json(), delay_ms])
            case Bury(failure, reason):
                dead = [*keys, self.keys.dead, *batch]
                return fcall("bury", dead, [*fence, failure.model_dump_json(), reason])
            case Cancel():
                return fcall("cancelled", [*keys, *batch], fence)
            case Release():
                return fcall("release", [*self._job_keys(lane, task.id), *batch], [*fence, RELEASED])

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
        while True:
            more = (self.keys.delayed, self.keys.results)
            due, unstored = await self._group.look_around(gone_ms, *more, most_due=_PROMOTED_AT_ONCE)
            await self._promote(due)
            if len(due) < _PROMOTED_AT_ONCE:
                break
        self._look_for_room(unstored)

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

    async def _promote(self, due: Sequence[str]) -> None:
        """Queue delayed jobs that are due."""
        if not due:
            return
        keys = self.keys
        specs = await self._group.call_all(("HMGET", keys.job(job_id), "source", "spec") for job_id in due)
        commands = []
        for job_id, (source, text) in zip(due, specs, strict=True):
            where = _Destination.of(text)
            batch = [keys.batch(where.batch_id)] if where.batch_id else []
            promoted = [keys.delayed, keys.lane(where.priority), keys.job(job_id), keys.events, *batch]
            commands.append(fcall("promote", promoted, [job_id, source or where.source, where.batch_id or ""]))
        await self._group.call_all(commands)

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
        await self._group.look_around(gone_ms)


def _settled_with(settlement: tuple[Task, Verdict]) -> object:
    """Return what verdicts share that one call carries out: those that publish the lane, others nothing.

    Nor with their own like: two of them may be of the same delivery, and each is answered.
    """
    task, verdict = settlement
    return task.entry.stream if isinstance(verdict, Publish) else object()


def _published(task: Task, verdict: Verdict) -> tuple[Entry, tuple[str | int | float, ...]]:
    """Return what `complete` must know of an entry."""
    if not isinstance(verdict, Publish):
        raise TypeError(f"{verdict.NAME} is not published")
    return task.entry, (verdict.body, verdict.audio_s)


def _complaint(entry: Entry, error: ValueError) -> Failure:
    return Failure(
        type="entry_malformed",
        detail=f"{entry.stream} entry {entry.entry_id}: {what_is_wrong(error)}; moved to dead letters without retry. "
        "Was it added by hand, or by a producer of another version?",
    )
