"""The streams as a stage sees them: read, rescue, begin, renew, settle. All parsing of stream replies is here.

`JobStreams` are the lanes that consumers work on, `ResultStream` is what the writer stores.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol, Self

import orjson
import structlog
from pydantic import BaseModel, ValidationError

from common.connection import Client
from common.keys import RELEASED, TRANSCRIBERS, WRITERS, Keys
from common.outcomes import Bury, Cancel, Delay, Publish, Release, RetryPolicy, Verdict
from common.records import PRIORITIES, Failure, Job, JobSpec, Priority, check_id
from common.scripts import call, fcall

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from common.settings import Settings

log = structlog.get_logger()

# How many due jobs one round queues.
_PROMOTED_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Entry:
    """One delivery of a stream entry to this consumer. Its delivery count tells it from every other delivery."""

    stream: str
    entry_id: str
    deliveries: int
    fields: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Task:
    """An entry that has begun: what the stage runs."""

    entry: Entry
    id: str
    job: Job | None
    """As it stands in Redis; None for a result whose job has no hash any more."""
    attempts: int
    policy: RetryPolicy
    timeout_s: float | None


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


class Settled(Enum):
    """What became of a verdict."""

    DONE = 1
    LOST = 0
    """Another consumer holds the entry: nothing was written."""
    GONE = -1
    """It was retired before, by a call whose reply was lost or by a cancellation: nothing was written."""
    CANCELLED = 2
    """A cancellation came first: the job is cancelled."""


class StageStreams(Protocol):
    """What a stage needs of its streams."""

    async def create_groups(self) -> None:
        """Create what is missing."""

    async def read(self, count: int, block_ms: int) -> list[Entry]:
        """Return new entries, most urgent first; waits up to `block_ms` for one."""

    async def rescue(self, count: int, min_idle_ms: int) -> list[Entry]:
        """Take over abandoned entries."""

    async def begin(self, entries: Sequence[Entry]) -> list[Task]:
        """Return the entries that shall be worked on; the others are settled."""

    async def settle(self, settlements: Sequence[tuple[Task, Verdict]]) -> list[Settled]:
        """Carry out verdicts, in one round trip."""

    def renewal(self, task: Task, progress: str) -> tuple[Any, ...]:
        """Return the command that renews a task's entry."""

    async def keep_house(self, gone_ms: int) -> None:
        """Queue what is due; forget consumers that are gone."""


def consumer_name() -> str:
    """Return a name that no other process, and no other start of this one, has."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


class Group:
    """One consumer group over some streams, read by one consumer."""

    def __init__(self, redis: Client, streams: Sequence[str], group: str, consumer: str) -> None:
        self.redis = redis
        self.streams = streams
        self.group = group
        self.consumer = consumer
        self._cursors = dict.fromkeys(streams, "0-0")

    async def create(self) -> None:
        """Create the group at the first entry of each stream, so that none added before is left out."""
        for stream in self.streams:
            try:
                await self.redis.xgroup_create(stream, self.group, id="0", mkstream=True)
            except Exception as exc:
                if "BUSYGROUP" not in str(exc):
                    raise

    async def read(self, count: int, block_ms: int) -> list[Entry]:
        """Return new entries: from the streams in order, and if all are empty from the first that gets one.

        Args:
            count: most entries; the blocking read may return up to as many from each stream.
            block_ms: how long to wait.

        Source: XREADGROUP command page: COUNT counts for each stream, so streams in order need a call each.
        """
        entries: list[Entry] = []
        for stream in self.streams:
            entries += await self._read({stream: ">"}, count - len(entries), None)
            if len(entries) >= count:
                return entries
        return entries or await self._read(dict.fromkeys(self.streams, ">"), 1, block_ms)

    async def _read(self, streams: dict[str, str], count: int, block_ms: int | None) -> list[Entry]:
        reply = await self.redis.xreadgroup(self.group, self.consumer, streams, count=count, block=block_ms)
        return [Entry(stream, entry_id, 1, fields) for stream, page in reply for entry_id, fields in page]

    async def rescue(self, count: int, min_idle_ms: int) -> list[Entry]:
        """Take over entries idle for `min_idle_ms`, a page of each stream, going on where the last call stopped.

        Source: XAUTOCLAIM command page; t_stream.c, xautoclaimCommand (7.0): it looks at 10 x COUNT entries and
        stops, so starting over each time would see the same live entries for ever.
        """
        entries: list[Entry] = []
        for stream in self.streams:
            if len(entries) >= count:
                break
            most = count - len(entries)
            args: list[str | int] = [self.group, self.consumer, min_idle_ms, self._cursors[stream], most]
            self._cursors[stream], page, deleted = await call(self.redis, "rescue", [stream], args)
            entries += [Entry(stream, entry_id, deliveries, _pairs(fields)) for entry_id, deliveries, fields in page]
            if deleted:
                log.error(
                    "entries_deleted_while_pending",
                    stream=stream,
                    entry_ids=deleted,
                    next="their jobs run for ever: cancel them, then retry them",
                )
        return entries

    async def forget(self, gone_ms: int) -> None:
        """Remove consumers that have been silent for `gone_ms` and hold nothing."""
        for stream in self.streams:
            await call(self.redis, "forget", [stream], [self.group, gone_ms])

    def fence(self, entry: Entry) -> list[str | int | float]:
        """Return the arguments with which a function checks that the entry is still ours."""
        return [self.group, self.consumer, entry.entry_id, entry.deliveries]

    async def call_all(self, commands: Iterable[tuple[Any, ...]]) -> list[Any]:
        """Send many commands in one round trip, each atomic by itself; the first error is raised after all ran."""
        pipeline = self.redis.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        # Raised here, not by the pipeline: it would wrap the text, and `server_is_away` reads its first word.
        replies: list[Any] = await pipeline.execute(raise_on_error=False)
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies


class JobStreams:
    """The lanes: jobs waiting and running, by priority."""

    def __init__(self, redis: Client, keys: Keys, settings: Settings, consumer: str) -> None:
        self.keys = keys
        self._settings = settings
        self._group = Group(redis, keys.lanes, TRANSCRIBERS, consumer)
        self._priority: dict[str, Priority] = {keys.lane(priority): priority for priority in PRIORITIES}
        self.create_groups = self._group.create
        self.read = self._group.read
        self.rescue = self._group.rescue

    async def begin(self, entries: Sequence[Entry]) -> list[Task]:
        """Start one attempt of each job; entries that are no jobs become dead letters."""
        calls: list[tuple[Entry, JobSpec]] = []
        for entry in entries:
            try:
                calls.append((entry, self._spec_of(entry)))
            except ValueError as exc:
                await self._discard(entry, _complaint(entry, exc))
        replies = await self._group.call_all(self._start(entry, spec) for entry, spec in calls)
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
        keys = [*self._job_keys(entry.stream, entry.fields["id"]), self.keys.results, *self._batch_key(entry)]
        return fcall("start", keys, [*self._group.fence(entry), entry.fields["id"], spec.to_json()])

    async def _task(self, entry: Entry, reply: list[Any]) -> Task | None:
        if reply[0] != 1:
            return None
        job_id = entry.fields["id"]
        try:
            job = _job(job_id, _pairs(reply[2:]))
        except ValueError as exc:
            await self._bury_unreadable(entry, exc)
            return None
        spec, settings = job.spec, self._settings
        policy = RetryPolicy(
            max_attempts=spec.max_attempts or settings.max_attempts,
            delay_s=settings.retry_delay_s if spec.retry_delay_s is None else spec.retry_delay_s,
        )
        return Task(entry, job_id, job, job.attempts, policy, spec.timeout_s or settings.timeout_s)

    async def settle(self, settlements: Sequence[tuple[Task, Verdict]]) -> list[Settled]:
        """Carry out verdicts; each is one function that writes nothing unless the entry is still ours."""
        replies = await self._group.call_all(self._settlement(task, verdict) for task, verdict in settlements)
        return [Settled(reply) for reply in replies]

    def _settlement(self, task: Task, verdict: Verdict) -> tuple[Any, ...]:
        """Return the one command that carries out a verdict."""
        keys, batch = self._job_keys(task.entry.stream, task.id), self._batch_key(task.entry)
        results, fence = self.keys.results, [*self._group.fence(task.entry), task.id]
        match verdict:
            case Publish(body, audio_s):
                return fcall("complete", [*keys, results, *batch], [*fence, body, audio_s])
            case Delay(failure, delay_ms):
                delayed = [*keys, results, self.keys.delayed, *batch]
                return fcall("delay", delayed, [*fence, failure.model_dump_json(), delay_ms])
            case Bury(failure, reason):
                dead = [*keys, results, self.keys.dead, *batch]
                return fcall("bury", dead, [*fence, failure.model_dump_json(), reason])
            case Cancel():
                return fcall("cancelled", [*keys, results, *batch], fence)
            case Release():
                return fcall("release", [*keys, *batch], [*fence, RELEASED])

    def renewal(self, task: Task, progress: str) -> tuple[Any, ...]:
        """Return the command that renews a job's entry and carries its progress."""
        args = [*self._group.fence(task.entry), task.id, progress]
        return fcall("renew", self._job_keys(task.entry.stream, task.id), args)

    async def keep_house(self, gone_ms: int) -> None:
        """Queue delayed jobs that are due; forget consumers that are gone."""
        await self._promote()
        await self._group.forget(gone_ms)

    async def _promote(self) -> None:
        redis, keys = self._group.redis, self.keys
        seconds, microseconds = await redis.time()
        now_ms = int(seconds) * 1000 + int(microseconds) // 1000
        due = await redis.zrange(keys.delayed, "-inf", now_ms, byscore=True, offset=0, num=_PROMOTED_AT_ONCE)
        specs = await self._group.call_all(("HGET", keys.job(job_id), "spec") for job_id in due)
        commands = []
        for job_id, text in zip(due, specs, strict=True):
            where = _Destination.of(text)
            batch = [keys.batch(where.batch_id)] if where.batch_id else []
            promoted = [keys.delayed, keys.lane(where.priority), keys.job(job_id), keys.events, *batch]
            commands.append(fcall("promote", promoted, [job_id, where.source, where.batch_id or ""]))
        await self._group.call_all(commands)

    async def _discard(self, entry: Entry, failure: Failure) -> None:
        await self._group.call_all([discard(self._group, self.keys, entry, failure)])

    async def _bury_unreadable(self, entry: Entry, error: ValueError) -> None:
        """End a job whose hash another version, or a hand, has written so that it cannot be read."""
        failure = _complaint(entry, error)
        keys = [*self._job_keys(entry.stream, entry.fields["id"]), self.keys.results, self.keys.dead]
        args = [*self._group.fence(entry), entry.fields["id"], failure.model_dump_json(), failure.type]
        await self._group.call_all([fcall("bury", [*keys, *self._batch_key(entry)], args)])

    def _job_keys(self, lane: str, job_id: str) -> list[str]:
        return [lane, self.keys.job(job_id), self.keys.events]

    def _batch_key(self, entry: Entry) -> list[str]:
        batch_id = entry.fields.get("batch")
        return [self.keys.batch(batch_id)] if batch_id else []


class ResultStream:
    """Outcomes on their way to the database."""

    def __init__(self, redis: Client, keys: Keys, settings: Settings, consumer: str) -> None:
        self.keys = keys
        self._settings = settings
        self._group = Group(redis, [keys.results], WRITERS, consumer)
        self.create_groups = self._group.create
        self.read = self._group.read
        self.rescue = self._group.rescue

    async def begin(self, entries: Sequence[Entry]) -> list[Task]:
        """Fetch the job of each result; one whose job has no hash any more is stored all the same."""
        ids = [entry.fields.get("id", "") for entry in entries]
        hashes = await self._group.call_all(("HGETALL", self.keys.job(job_id)) for job_id in ids)
        # As often as it takes: a limit would turn an outage of the database into lost transcripts.
        policy = RetryPolicy(max_attempts=None, delay_s=0)
        return [
            Task(entry, job_id, job_or_none(job_id, fields), entry.deliveries, policy, None)
            for entry, job_id, fields in zip(entries, ids, hashes, strict=True)
        ]

    async def settle(self, settlements: Sequence[tuple[Task, Verdict]]) -> list[Settled]:
        """Retire stored results; move what can never be stored to the dead letters; leave the rest."""
        replies = await self._group.call_all(self._settlement(task, verdict) for task, verdict in settlements)
        return [Settled(reply) for reply in replies]

    def _settlement(self, task: Task, verdict: Verdict) -> tuple[Any, ...]:
        entry, fields = task.entry, task.entry.fields
        match verdict:
            case Publish():
                batch = [self.keys.batch(task.job.spec.batch_id)] if task.job and task.job.spec.batch_id else []
                keys = [self.keys.results, self.keys.job(task.id), self.keys.events, *batch]
                told = [task.id, fields.get("run", "1"), fields.get("outcome", "")]
                return fcall("store", keys, [*self._group.fence(entry), *told, self._settings.job_ttl_s])
            case Bury(failure, _):
                return discard(self._group, self.keys, entry, failure)
            case Delay():
                return self.renewal(task, "")  # tried again when the lease, now renewed for the last time, is over
            case Release() | Cancel():
                return fcall("release", [self.keys.results], [*self._group.fence(entry), task.id, RELEASED])

    def renewal(self, task: Task, progress: str) -> tuple[Any, ...]:
        """Return the command that renews a result's entry."""
        return fcall("renew", [self.keys.results], [*self._group.fence(task.entry), task.id, ""])

    async def keep_house(self, gone_ms: int) -> None:
        """Forget writers that are gone."""
        await self._group.forget(gone_ms)


def discard(group: Group, keys: Keys, entry: Entry, failure: Failure) -> tuple[Any, ...]:
    """Return the command that moves an entry to the dead letters as it was found."""
    fields = [part for pair in entry.fields.items() for part in pair]
    args = [entry.fields.get("id", ""), failure.model_dump_json(), failure.type, orjson.dumps(fields).decode()]
    return fcall("discard", [entry.stream, keys.dead], [*group.fence(entry), *args])


def _complaint(entry: Entry, error: ValueError) -> Failure:
    return Failure(
        type="entry_malformed",
        detail=f"{entry.stream} entry {entry.entry_id}: {_what_is_wrong(error)}; moved to dead letters without retry. "
        "Was it added by hand, or by a producer of another version?",
    )


def _what_is_wrong(error: ValueError) -> str:
    """Return the message without the values found: a source may be a URL with credentials."""
    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(map(str, line['loc']))}: {line['msg']}" for line in error.errors())
    return str(error)


def job_or_none(job_id: str, fields: Mapping[str, str]) -> Job | None:
    """Return the job of a hash, or None for an empty one and for one that cannot be read."""
    if not fields:
        return None
    try:
        return _job(job_id, fields)
    except ValueError as exc:
        log.warning(
            "job_unreadable", job_id=job_id, error=_what_is_wrong(exc), next="when it runs it becomes a dead letter"
        )
        return None


def _job(job_id: str, fields: Mapping[str, str]) -> Job:
    if "spec" not in fields:
        raise ValueError(f"job {job_id}: field 'spec' missing in its hash (found {', '.join(fields)})")
    return Job.from_hash(job_id, fields)


def _pairs(flat: Sequence[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
