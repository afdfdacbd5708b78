"""One entry's way through a stage: lease, handle, decide, settle, record."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import structlog

from common.entries import Settled
from common.errors import JobError
from common.lease import Ended, Lease
from common.outcomes import (
    Bury,
    Cancel,
    Cancelled,
    Delay,
    HandedBack,
    Outcome,
    Publish,
    Reject,
    Retry,
    Verdict,
    decide,
)
from common.records import Failure

if TYPE_CHECKING:
    from common.entries import Entry, StageStreams, Task
    from common.lease import LeaseKeeper
    from common.metrics import StageMetrics
    from common.records import Job
    from common.settler import Settler

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Work:
    """What a handler gets: the entry, its job, and the lease to report to."""

    task: Task
    lease: Lease

    @property
    def entry(self) -> Entry:
        """The stream entry."""
        return self.task.entry

    @property
    def job(self) -> Job | None:
        """The job as it stood when the entry began."""
        return self.task.job

    @property
    def parts(self) -> Mapping[str, str]:
        """What earlier attempts have kept through their leases, by name."""
        return self.task.parts


class Handler(Protocol):
    """The work of one kind of stage. It returns an outcome and never touches a stream."""

    async def hungry(self) -> None:
        """Return when more work is welcome; until then, idle consumers elsewhere take what waits."""

    async def handle(self, work: Work) -> Outcome:
        """Do the work. It is cancelled when the lease ends, the time limit is reached or the process drains."""


class Runner:
    """Runs the entries of one stage."""

    def __init__(
        self,
        streams: StageStreams,
        handler: Handler,
        keeper: LeaseKeeper,
        settler: Settler,
        metrics: StageMetrics,
    ) -> None:
        """Take ready objects.

        Args:
            streams: makes the renewing commands.
            handler: does the work.
            keeper: renews the leases; running.
            settler: carries out the verdicts; running.
            metrics: counters of this stage.
        """
        self._streams = streams
        self._handler = handler
        self._keeper = keeper
        self._settler = settler
        self._metrics = metrics
        self._clock = keeper.clock
        self._rng = random.Random()  # noqa: S311 jitter is no secret
        self._handled: set[Lease] = set()

    def hand_back_all(self) -> None:
        """End all work that still runs; what it held goes to other consumers at once."""
        for lease in list(self._handled):
            lease.end(Ended.HANDED_BACK)

    async def run(self, task: Task) -> None:
        """Carry one entry from its start to its settlement."""
        started = self._clock()
        lease = Lease(
            lambda progress, parts: self._streams.renewal(task, progress, parts),
            cancellation=self._streams.cancellation(task),
            limit_s=task.timeout_s,
            clock=self._clock,
        )
        with structlog.contextvars.bound_contextvars(**_context(task)):
            self._keeper.hold(lease)
            try:
                outcome = await self._handle(Work(task, lease))
                if outcome is None:
                    self._lost(lease)
                    return
                verdict = decide(outcome, task.attempts, task.policy, self._rng)
                settled = await self._settler.settle(task, verdict)
            finally:
                self._keeper.let_go(lease)
            self._record(verdict, settled, self._clock() - started)

    async def _handle(self, work: Work) -> Outcome | None:
        """Run the handler within the lease and the time limit.

        Returns:
            The outcome, or None when the lease is lost: whatever was done is somebody else's now.
        """
        task = work.task
        if not task.policy.allows(task.attempts):
            return Reject(_worker_lost(task))
        handling = asyncio.create_task(self._outcome(work))
        loop = asyncio.get_running_loop()
        work.lease.on_end = lambda: loop.call_soon_threadsafe(handling.cancel)
        if work.lease.over:  # it ended before there was anything to cancel
            handling.cancel()
        self._handled.add(work.lease)
        try:
            done, _ = await asyncio.wait({handling}, timeout=task.timeout_s)
            if not done:
                work.lease.end(Ended.EXPIRED)
                handling.cancel()
                await asyncio.wait({handling})
        finally:
            self._handled.discard(work.lease)
        return self._conclude(handling, work)

    def _conclude(self, handling: asyncio.Task[Outcome], work: Work) -> Outcome | None:
        if not handling.cancelled():
            return handling.result()
        match work.lease.ended:
            case Ended.CANCELLED:
                return Cancelled()
            case Ended.EXPIRED:
                return Retry(Failure(type="timed_out", detail=_timed_out(work.task)))
            case Ended.HANDED_BACK:
                return HandedBack()
            case _:
                return None

    async def _outcome(self, work: Work) -> Outcome:
        try:
            return await self._handler.handle(work)
        except JobError as error:
            failure = Failure(type=error.type, detail=error.detail)
            return Retry(failure) if error.retryable else Reject(failure)
        except Exception as error:
            # The edge of the handler: a bug in it costs an attempt of this entry, not the process.
            log.exception("handler_failed")
            return Retry(Failure(type="internal_error", detail=f"{type(error).__name__}; see the consumer's log"))

    def _lost(self, lease: Lease) -> None:
        self._metrics.leases_lost.inc()
        log.warning("lease_lost", why=lease.ended, next="this work is dropped; who holds or rescues the entry runs it")

    def _record(self, verdict: Verdict, settled: Settled, took_s: float) -> None:
        """Count and log one settlement: the one line that an entry leaves."""
        if settled is Settled.LOST:
            self._metrics.leases_lost.inc()
            log.warning("lease_lost", why=Ended.LOST, next="another consumer has the entry; nothing was written")
            return
        if settled is Settled.GONE:
            log.warning("entry_settled_before", next="nothing was written: settled here, unheard, or elsewhere")
            return
        carried_out = Cancel() if settled is Settled.CANCELLED else verdict
        self._metrics.jobs_settled.labels(carried_out.NAME).inc()
        told = {"outcome": carried_out.NAME, "took_s": round(took_s, 3)}
        match carried_out:
            case Bury(failure, reason):
                self._metrics.dead_letters.labels(reason).inc()
                log.warning("entry_settled", **told, error_type=failure.type, error=failure.detail)
            case Delay(failure, _):
                log.warning("entry_settled", **told, error_type=failure.type, error=failure.detail)
            case Publish(_, audio_s) if audio_s:
                log.info("entry_settled", **told, audio_s=round(audio_s, 3))
            case _:
                log.info("entry_settled", **told)


def _context(task: Task) -> dict[str, object]:
    entry = task.entry
    return {"job_id": task.id, "stream": entry.stream, "entry_id": entry.entry_id, "attempt": task.attempts}


def _timed_out(task: Task) -> str:
    return f"job {task.id}: attempt {task.attempts} was not done within its time limit of {task.timeout_s:g} s"


def _worker_lost(task: Task) -> Failure:
    last = task.job.error.detail if task.job and task.job.error else "no error was reported"
    return Failure(
        type="attempts_spent",
        detail=f"job {task.id}: {task.attempts - 1} attempts ended without a result, each time the consumer died or "
        f"lost its lease ({last}); it is not tried again",
    )
