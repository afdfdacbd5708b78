"""The handler of the results stage: files first, then the row, many results to a transaction.

`completed` means stored and readable: `handle` returns `Completed` when the files are whole and the record is
committed. While the disk or the database is away it waits, with the entry's lease renewed: nothing is lost, nothing
is rejected. Killed anywhere, it leaves no row without files; the entry is delivered again and stored once. A try that
fails is an outage, and may go on for days; one that neither works nor fails is a hang, which ends the process.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

import orjson
import structlog
from pydantic import ValidationError

from common.database import Database, RecordRefused, TerminalRecord
from common.errors import JobError, Unavailable
from common.outage import Outage
from common.outcomes import Completed, Outcome, Reject
from common.records import TERMINAL, Failure, Job, JobSpec, State, check_id
from common.transcript import Transcript
from consumer.files import open_results, sync_folder, write_files

if TYPE_CHECKING:
    from common.metrics import WriterMetrics
    from common.runner import Work
    from common.watchdog import Watchdog

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.get_logger()

# The source of a job of which Redis knows nothing any more, and whose result does not tell either.
UNKNOWN_SOURCE: Final = "unknown"


@dataclass(slots=True, eq=False)
class _Pending:
    """A result on its way to the disk."""

    record: TerminalRecord
    settled: asyncio.Future[Outcome]
    """Cancelled when the stage gives the entry up."""
    filed: bool
    """Whether its files are whole and synced."""

    def settle(self, outcome: Outcome) -> None:
        if not self.settled.done():
            self.settled.set_result(outcome)


class Writer:
    """Stores results in groups. `run` is its one background loop; start it before the stage, end it after."""

    def __init__(
        self,
        database: Database,
        results_dir: Path,
        metrics: WriterMetrics,
        watchdog: Watchdog,
        *,
        now_ms: Callable[[], int],
        max_batch: int = 64,
    ) -> None:
        """Take ready objects.

        Args:
            database: open and migrated.
            results_dir: made if it is missing.
            metrics: where the time from submission to storage is counted.
            watchdog: ends the process when the disk or the database hangs.
            now_ms: milliseconds since 1970.
            max_batch: most results in one transaction.
        """
        self._database = database
        self._results_dir = results_dir
        self._metrics = metrics
        self._watchdog = watchdog
        self._now_ms = now_ms
        self._max_batch = max_batch
        self._pending: list[_Pending] = []
        self._arrived = asyncio.Event()
        self._committed = asyncio.Event()
        self._folder_open = False
        self._outage = Outage("storage of results")
        self._trouble: Unavailable | None = None
        self._stuck = 0
        """Results that the last try could not store."""

    async def hungry(self) -> int:
        """Return how much of a batch is left, once any is; in trouble of one more than what is stuck.

        One result that cannot be filed must not keep all others from being stored.
        """
        while (left := self._wanted - len(self._pending)) <= 0:
            self._committed.clear()
            await self._committed.wait()
        return left

    @property
    def _wanted(self) -> int:
        return min(self._max_batch, self._stuck + 1) if self._trouble else self._max_batch

    async def handle(self, work: Work) -> Outcome:
        """Store one result; returns when it is readable, or rejects one that can never be.

        Raises:
            JobError: `result_unstorable`, the entry is not what a result should be.
        """
        record = read_result(work.entry.fields, work.job, now_ms=self._now_ms())
        settled: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._pending.append(_Pending(record, settled, filed=record.transcript is None))
        self._arrived.set()
        outcome = await settled
        if work.job is not None and isinstance(outcome, Completed):
            self._metrics.job_end_to_end_seconds.observe(max(0, self._now_ms() - record.job.created_ms) / 1000)
        return outcome

    async def check(self) -> None:
        """Say whether results can be stored.

        Raises:
            Unavailable: the disk or the database failed at the last try.
        """
        if self._trouble is not None:
            raise self._trouble

    async def run(self) -> None:
        """Commit what waits, a batch at a time, until cancelled."""
        while True:
            await self._arrived.wait()
            batch = self._next_batch()
            if batch:
                await self._try(batch)
            self._next_batch()
            self._committed.set()

    def _next_batch(self) -> list[_Pending]:
        """Forget what is settled or given up, and return the oldest of the rest."""
        self._pending = [pending for pending in self._pending if not pending.settled.done()]
        if not self._pending:
            self._arrived.clear()
        return self._pending[: self._max_batch]

    async def _try(self, batch: Sequence[_Pending]) -> None:
        try:
            await self._commit(batch)
        except Unavailable as exc:
            self._trouble = exc
            self._stuck = sum(not pending.settled.done() for pending in batch)
            self._folder_open = False
            await asyncio.sleep(self._outage.failed(exc))
        else:
            self._trouble = None
            self._outage.over()

    async def _commit(self, batch: Sequence[_Pending]) -> None:
        """Write the files, then the rows. What cannot be filed now does not keep the others from their row.

        Raises:
            Unavailable: what is not settled yet shall be tried again.
        """
        trouble = await self._write_files([pending for pending in batch if not pending.filed])
        await self._store([pending for pending in batch if pending.filed and not pending.settled.done()])
        if trouble is not None:
            raise trouble

    async def _write_files(self, batch: Sequence[_Pending]) -> Unavailable | None:
        """Write files side by side, since the disk syncs many as fast as one; return what kept some from it."""
        if not batch:
            return None
        if not self._folder_open:
            await self._on_disk(open_results, self._results_dir, now_s=time.time())
            self._folder_open = True
        troubles = await asyncio.gather(*(self._write(pending) for pending in batch))
        await self._on_disk(sync_folder, self._results_dir)
        for pending, trouble in zip(batch, troubles, strict=True):
            pending.filed = trouble is None
        return next((trouble for trouble in troubles if trouble is not None), None)

    async def _write(self, pending: _Pending) -> Unavailable | None:
        job, transcript = pending.record.job, pending.record.transcript
        if transcript is None:
            return None
        try:
            await self._on_disk(write_files, self._results_dir, job.id, transcript)
        except JobError as exc:
            pending.settle(Reject(Failure(type=exc.type, detail=exc.detail)))
        except Unavailable as exc:
            return exc
        except Exception as exc:
            # A bug in a format must cost this one result, not every writer that meets it.
            log.exception("result_unwritable", job_id=job.id)
            pending.settle(Reject(Failure(type="result_unstorable", detail=f"writing failed: {type(exc).__name__}")))
        return None

    async def _on_disk(self, do: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do a step in a thread: the kernel may keep it there for ever when a disk is dead."""

        def step() -> T:
            with self._watchdog.step(f"results folder {self._results_dir}"):
                return do(*args, **kwargs)

        return await asyncio.to_thread(step)

    async def _store(self, batch: Sequence[_Pending]) -> None:
        """Store a batch in one transaction; when it is refused, one by one to find the record at fault."""
        try:
            with self._watchdog.step("database"):
                await self._database.store([pending.record for pending in batch])
        except RecordRefused as exc:
            if len(batch) == 1:
                batch[0].settle(Reject(_refused(batch[0].record.job.id, exc)))
                return
            for pending in batch:
                await self._store([pending])
        else:
            for pending in batch:
                pending.settle(Completed())


def read_result(fields: Mapping[str, str], job: Job | None, *, now_ms: int) -> TerminalRecord:
    """Make the terminal record of a result.

    Args:
        fields: of the entry: `id`, `outcome`, `run`, `body`.
        job: as it stands in Redis. What belongs to one run (times, attempts, worker) is taken from it only when it
            is still in the entry's run; with no job at all, the creation is dated now.
        now_ms: the end of a job whose end is not known, milliseconds since 1970.

    Raises:
        JobError: `result_unstorable`, naming what is wrong; never quoting the body.
    """
    job_id = fields.get("id", "")
    try:
        check_id(job_id)
        state, run = _state(fields.get("outcome", "")), int(fields.get("run", "1"))
        transcript = _transcript(job_id, fields.get("body", "")) if state is State.COMPLETED else None
        error = Failure.model_validate_json(fields.get("body", "")) if state is State.FAILED else None
        ended = _job_of_run(job_id, run, job, transcript, now_ms)
    except ValueError as exc:
        raise JobError("result_unstorable", _complaint(job_id, exc)) from exc
    told: dict[str, object] = {"state": state, "error": error, "finished_ms": ended.finished_ms or now_ms}
    if transcript is not None:
        told |= {"progress": 1.0, "audio_s": ended.audio_s or transcript.duration_s}
    return TerminalRecord(ended.model_copy(update=told), transcript, now_ms)


def _state(outcome: str) -> State:
    if outcome not in TERMINAL:
        raise ValueError(f"outcome {outcome[:40]!r}: expected one of {', '.join(sorted(TERMINAL))}")
    return State(outcome)


def _transcript(job_id: str, body: str) -> Transcript:
    # orjson refuses NaN and lone surrogates, which could be stored but never be read again.
    transcript = Transcript.model_validate(orjson.loads(body))
    if transcript.job_id != job_id:
        raise ValueError("the body is the transcript of another job")
    return transcript


def _job_of_run(job_id: str, run: int, job: Job | None, transcript: Transcript | None, now_ms: int) -> Job:
    """Return what is known of the job in this run."""
    if job is not None and job.run == run:
        return job
    if job is not None:
        return Job(id=job_id, run=run, spec=job.spec, created_ms=job.created_ms, state=job.state)
    source = transcript.source if transcript is not None else UNKNOWN_SOURCE
    return Job(id=job_id, run=run, spec=JobSpec(source=source), created_ms=now_ms, state=State.TRANSCRIBED)


def _complaint(job_id: str, exc: ValueError) -> str:
    if isinstance(exc, ValidationError):
        # Never the input, which is what was said.
        lines = exc.errors(include_input=False, include_url=False, include_context=False)
        wrong = "; ".join(f"{'.'.join(map(str, line['loc']))}: {line['msg']}" for line in lines[:3])
    elif isinstance(exc, orjson.JSONDecodeError):
        wrong = f"body: {exc.msg} at character {exc.pos}"
    else:
        wrong = str(exc)
    return f"result of job {job_id[:128]!r}: {wrong}; moved to the dead letters without retry"


def _refused(job_id: str, exc: RecordRefused) -> Failure:
    detail = f"result of job {job_id}: {exc}; moved to the dead letters, its files, if any, are left"
    return Failure(type="result_unstorable", detail=detail)
