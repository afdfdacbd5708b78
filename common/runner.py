"""One entry's way through a stage: lease, handle, decide, settle, record."""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import structlog

from common.entries import Settled
from common.errors import JobError
from common.lease import Ended, Lease
from common.logs import about
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


class Work(NamedTuple):
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

    async def hungry(self) -> int:
        """Return how many entries are welcome, once any is; what is not taken, idle consumers elsewhere take."""

    async def handle(self, work: Work) -> Outcome:
        """Do the work. It is cancelled when the lease ends, the time limit is reached or the process drains."""


@dataclass(slots=True, eq=False)
class _Held:
    """An entry from its start to its settlement."""

    task: Task
    lease: Lease
    began_s: float
    ends: asyncio.TimerHandle | None = None
    """Ends the work at its time limit."""


class Runner:
    """Runs the entries of one stage: lease, handle, decide, settle, record."""

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
        # Bound here: the module's logger looks up how it is configured for each line, also for one that is not logged.
        self._log = structlog.get_logger().bind()
        self._held: set[_Held] = set()
        self._let_go = asyncio.Event()

    @property
    def running(self) -> int:
        """Entries that have begun and are not settled."""
        return len(self._held)

    async def until_below(self, running: int) -> None:
        """Return when fewer entries than that are running."""
        while len(self._held) >= running:
            self._let_go.clear()
            await self._let_go.wait()

    def hand_back_all(self) -> None:
        """End all work that still runs; what it held goes to other consumers at once."""
        for held in list(self._held):
            held.lease.end(Ended.HANDED_BACK)

    def run(self, task: Task) -> None:
        """Carry one entry from its start to its settlement, in an asyncio task of its own.

        What ends its lease, wherever that is noticed, cancels the task; a handler that is done is not cancelled.
        """
        held = _Held(task, self._lease(task), self._clock())
        self._held.add(held)
        if not task.policy.allows(task.attempts):
            self._keeper.hold(held.lease)
            self._settle(held, Reject(_worker_lost(task)))
            return
        loop = asyncio.get_running_loop()
        handling = loop.create_task(self._handle(Work(task, held.lease)))
        held.lease.on_end = functools.partial(loop.call_soon_threadsafe, handling.cancel)
        if task.timeout_s is not None:
            held.ends = loop.call_later(task.timeout_s, held.lease.end, Ended.EXPIRED)
        handling.add_done_callback(functools.partial(self._handled, held))
        self._keeper.hold(held.lease)

    def _lease(self, task: Task) -> Lease:
        return Lease(
            functools.partial(self._streams.renewal, task),
            cancellation=functools.partial(self._streams.cancellation, task),
            limit_s=task.timeout_s,
            clock=self._clock,
        )

    async def _handle(self, work: Work) -> Outcome:
        about.set(functools.partial(_context, work.task))  # for this asyncio task alone
        try:
            return await self._handler.handle(work)
        except JobError as error:
            failure = Failure(type=error.type, detail=error.detail)
            return Retry(failure) if error.retryable else Reject(failure)
        except Exception as error:
            # The edge of the handler: a bug in it costs an attempt of this entry, not the process.
            log.exception("handler_failed")
            return Retry(Failure(type="internal_error", detail=f"{type(error).__name__}; see the consumer's log"))

    def _handled(self, held: _Held, handling: asyncio.Task[Outcome]) -> None:
        """Settle what the handler made of an entry, unless the lease is lost: whatever was done is another's then."""
        if held.ends is not None:
            held.ends.cancel()
        outcome = _cut_short(held) if handling.cancelled() else handling.result()
        if outcome is None:
            self._drop(held)
            self._lost(held, held.lease.ended, next="this work is dropped; who holds or rescues the entry runs it")
        else:
            self._settle(held, outcome)

    def _settle(self, held: _Held, outcome: Outcome) -> None:
        verdict = decide(outcome, held.task.attempts, held.task.policy, self._rng)
        self._settler.settle(held.task, verdict, functools.partial(self._settled, held, verdict))

    def _settled(self, held: _Held, verdict: Verdict, settled: Settled) -> None:
        self._drop(held)
        self._record(held, verdict, settled)

    def _drop(self, held: _Held) -> None:
        """Stop renewing an entry, and free its slot."""
        self._keeper.let_go(held.lease)
        self._held.discard(held)
        self._let_go.set()

    def _lost(self, held: _Held, why: Ended | None, *, next: str) -> None:
        self._metrics.leases_lost.inc()
        self._log.warning("lease_lost", **_context(held.task), why=why, next=next)

    def _record(self, held: _Held, verdict: Verdict, settled: Settled) -> None:
        """Count and log one settlement: the one line that an entry leaves."""
        if settled is Settled.LOST:
            self._lost(held, Ended.LOST, next="another consumer has the entry; nothing was written")
            return
        context = _context(held.task)
        if settled is Settled.GONE:
            next_ = "nothing was written: settled here, unheard, or elsewhere"
            self._log.warning("entry_settled_before", **context, next=next_)
            return
        carried_out = Cancel() if settled is Settled.CANCELLED else verdict
        self._metrics.jobs_settled.labels(carried_out.NAME).inc()
        told = {**context, "outcome": carried_out.NAME, "took_s": round(self._clock() - held.began_s, 3)}
        match carried_out:
            case Bury(failure, reason):
                self._metrics.dead_letters.labels(reason).inc()
                self._log.warning("entry_settled", **told, error_type=failure.type, error=failure.detail)
            case Delay(failure, _):
                self._log.warning("entry_settled", **told, error_type=failure.type, error=failure.detail)
            case Publish(_, audio_s) if audio_s:
                self._log.info("entry_settled", **told, audio_s=round(audio_s, 3))
            case _:
                self._log.info("entry_settled", **told)


def _cut_short(held: _Held) -> Outcome | None:
    """Return the outcome of work that was cancelled, or None when its lease is lost."""
    match held.lease.ended:
        case Ended.CANCELLED:
            return Cancelled()
        case Ended.EXPIRED:
            return Retry(Failure(type="timed_out", detail=_timed_out(held.task)))
        case Ended.HANDED_BACK:
            return HandedBack()
        case _:
            return None


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
