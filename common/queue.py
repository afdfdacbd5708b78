"""Jobs as clients see them: submit, look, cancel, revive.

The stages' side of the same streams is `common.streams`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from common.connection import Client, group_is_missing, server_now_ms
from common.durability import CONFIRM_MS, call_and_wait
from common.errors import Unconfirmed
from common.group import first_error_raised
from common.keys import TRANSCRIBERS, Keys
from common.records import PRIORITIES, Job, JobSpec, State, job_or_none
from common.scripts import call

if TYPE_CHECKING:
    from collections.abc import Sequence


# Jobs submitted in one call at most: the server does nothing else meanwhile, for about a millisecond.
_SUBMITTED_AT_ONCE = 128


class Submitted(Enum):
    """What became of a submission."""

    QUEUED = 1
    SCHEDULED = 2
    KNOWN = 0
    """The same job was submitted before: nothing was changed."""
    CONFLICT = -1
    """The id belongs to another job: nothing was written."""
    FULL = -2
    """As many jobs as allowed are under way: nothing was written."""

    @property
    def accepted(self) -> bool:
        """Whether the job is in the queue's hands, by this submission or one before."""
        return self in {Submitted.QUEUED, Submitted.SCHEDULED, Submitted.KNOWN}


class NewJob(NamedTuple):
    """A job to accept."""

    id: str
    """The idempotency key; see `common.records.check_id`."""
    spec: JobSpec
    run: int = 1
    """1, or one more than the run of an ended job that is submitted again."""
    due_ms: int = 0
    """Server ms before which it shall not start; 0 for at once."""
    delay_ms: int = 0
    """The same, as a wait from now."""


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


@dataclass(frozen=True, slots=True)
class Pending:
    """An entry that a consumer holds."""

    entry_id: str
    consumer: str
    job_id: str
    """"" when the entry names none, or was deleted."""


class JobQueue:
    """One queue, as a client sees it. Raises redis-py's errors when the server is away.

    Args:
        replicated: a submission is accepted only when a replica has it.
    """

    def __init__(self, redis: Client, keys: Keys, *, replicated: bool = False) -> None:
        self.redis = redis
        self.keys = keys
        self._replicated = replicated

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
        """Accept a job once; atomic. For the arguments see `NewJob` and `submit_many`.

        Raises:
            Unconfirmed: it was accepted, or had been, but no replica said in time that it has it.
        """
        [answer] = await self.submit_many([NewJob(job_id, spec, run, due_ms, delay_ms)], max_queued=max_queued)
        if isinstance(answer, Unconfirmed):
            raise answer
        return answer

    async def submit_many(self, jobs: Sequence[NewJob], *, max_queued: int) -> list[Submitted | Unconfirmed]:
        """Accept jobs, each once and by itself, in their order; many go in one call.

        When the server is lost in between, some are accepted: submit all again, those will be known.

        Args:
            jobs: of those with one id, the first counts.
            max_queued: jobs waiting, scheduled or running from which on new ones are refused.

        Returns:
            The answer to each; `Unconfirmed` for one that was accepted, or had been, but no replica said in time that
            it has it.
        """
        answers: list[Submitted | Unconfirmed] = []
        for first in range(0, len(jobs), _SUBMITTED_AT_ONCE):
            page = jobs[first : first + _SUBMITTED_AT_ONCE]
            told = await self._submit(page, max_queued, JobSpec.beside_source)
            conflicts = [job for job, answer in zip(page, told, strict=True) if answer is Submitted.CONFLICT]
            if conflicts:
                # A version before this one wrote the whole spec: a job that it queued is known by that.
                again = iter(await self._submit(conflicts, max_queued, JobSpec.to_json))
                told = [next(again) if answer is Submitted.CONFLICT else answer for answer in told]
            answers += told
        return answers

    async def _submit(
        self, jobs: Sequence[NewJob], max_queued: int, text_of: Callable[[JobSpec], str]
    ) -> list[Submitted | Unconfirmed]:
        """Call the function.

        Args:
            jobs: as many as fit into one call.
            max_queued: see `submit_many`.
            text_of: what a job's hash holds of it beside the source.
        """
        keys = self.keys
        batches: dict[str, int] = {}
        told: list[str | int] = []
        for job in jobs:
            spec = job.spec
            batch = batches.setdefault(spec.batch_id, len(batches) + 1) if spec.batch_id else 0
            lane = PRIORITIES.index(spec.priority) + 1
            told += (job.id, spec.source, text_of(spec), job.run, job.due_ms, job.delay_ms, lane, batch)
        names = [keys.events, keys.delayed, *keys.lanes, *(keys.job(job.id) for job in jobs), *map(keys.batch, batches)]
        replies, confirmed = await self._call(names, [max_queued, len(jobs), *told, *batches])
        answers = [Submitted(reply) for reply in first_error_raised(replies)]
        if confirmed:
            return list(answers)
        pairs = zip(jobs, answers, strict=True)
        return [Unconfirmed(job.id, CONFIRM_MS) if answer.accepted else answer for job, answer in pairs]

    async def _call(self, keys: Sequence[str], args: Sequence[str | int]) -> tuple[list[Any], bool]:
        """Call the function; return also whether all have confirmed it that must."""
        if not self._replicated:
            return await call(self.redis, "submit", keys, args), True
        return await call_and_wait(self.redis, "submit", keys, args)

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

    async def known(self, job_ids: Sequence[str]) -> set[str]:
        """Return those that the server still knows, in whatever state."""
        async with self.redis.pipeline(transaction=False) as pipeline:
            for job_id in job_ids:
                pipeline.exists(self.keys.job(job_id))
            found = await pipeline.execute()
        return {job_id for job_id, exists in zip(job_ids, found, strict=True) if exists}

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
                keys.parts(job_id),
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
        elif state is State.RUNNING:
            ids, following = await self._pending_page(after, limit)
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

    async def _pending_page(self, after: str, limit: int) -> tuple[list[str], str | None]:
        """Return job ids of the pending entries after `<lane index>/<entry id>`, over one lane after another."""
        index, _, last = after.partition("/")
        number = int(index or 0)
        page = await self.pending(self.keys.lanes[number], f"({last}" if last else "-", limit)
        ids = [pending.job_id for pending in page]
        if len(page) == limit:
            return ids, f"{number}/{page[-1].entry_id}"
        return ids, f"{number + 1}/" if number + 1 < len(self.keys.lanes) else None

    async def pending(self, lane: str, first: str, limit: int) -> list[Pending]:
        """Return the entries of a lane that consumers hold, lowest id first, from `first` on: `-`, or `(ID`."""
        try:
            page = await self.redis.xpending_range(lane, TRANSCRIBERS, first, "+", limit)
        except Exception as exc:
            if group_is_missing(exc):
                return []
            raise
        pipeline = self.redis.pipeline(transaction=False)
        for entry in page:
            pipeline.xrange(lane, entry["message_id"], entry["message_id"])
        entries = await pipeline.execute()
        return [
            Pending(entry["message_id"], entry["consumer"], found[0][1].get("id", "") if found else "")
            for entry, found in zip(page, entries, strict=True)
        ]

    async def now_ms(self) -> int:
        """Return the server's clock in ms since 1970."""
        return await server_now_ms(self.redis)

    def _batch(self, job: Job) -> list[str]:
        return [self.keys.batch(job.spec.batch_id)] if job.spec.batch_id else []
