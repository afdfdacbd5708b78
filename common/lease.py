"""Leases: a thread of its own, on its own connection, keeps this process's entries from looking abandoned.

It goes on whatever the event loop or the model does, and stops for a job that is over its time limit or shows no
progress: a worker that hangs must lose its job.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self

import structlog

from common.connection import connect_thread, server_is_away
from common.outage import Outage

if TYPE_CHECKING:
    from common.settings import Settings

log = structlog.get_logger()

Clock = Callable[[], float]
# The command that renews one entry and carries its progress ("" when unchanged).
Renewal = Callable[[str], tuple[Any, ...]]

# After a job's time limit the event loop gets this long to end it before the lease is let go: if it has not by then,
# it hangs.
TIME_LIMIT_GRACE_S = 5.0

_RENEWED, _LOST, _RETIRED, _CANCEL = 1, 0, -1, -2


class Ended(StrEnum):
    """Why a lease is no longer kept."""

    LOST = "lost"
    """Another consumer holds the entry, or it is retired."""
    CANCELLED = "cancelled"
    """Somebody asked for the job to be cancelled; the entry is still ours to settle."""
    EXPIRED = "expired"
    """The job is over its time limit."""
    STALLED = "stalled"
    """The work showed no progress for too long."""
    HANDED_BACK = "handed_back"
    """This process stops; the entry is still ours to release."""


class Lease:
    """One entry that this process holds. Written by the work and by the keeper's thread."""

    def __init__(
        self, renewal: Renewal, *, limit_s: float | None = None, stall_s: float | None = None, clock: Clock
    ) -> None:
        """Start the clocks.

        Args:
            renewal: makes the renewing command.
            limit_s: seconds after which the lease is let go; None for no limit.
            stall_s: seconds without a sign of life in a step after which it is let go; None for no limit.
            clock: monotonic seconds.
        """
        self.renewal = renewal
        self.ended: Ended | None = None
        self.on_end: Callable[[], object] | None = None
        self._clock = clock
        self._deadline = None if limit_s is None else clock() + limit_s + TIME_LIMIT_GRACE_S
        self._stall_s = stall_s
        self._steps: dict[object, float] = {}
        self.progress = 0.0
        self._sent = "0.000"

    @property
    def over(self) -> bool:
        """Whether the work should stop; cheap enough to ask between any two steps."""
        return self.ended is not None

    def report(self, progress: float) -> None:
        """Say how far the work is, from 0 to 1."""
        self.progress = min(max(progress, 0.0), 1.0)

    def add(self, share: float) -> None:
        """Say that a share of the work, from 0 to 1, has been done since the last report."""
        self.report(self.progress + share)

    def end(self, why: Ended) -> None:
        """End the lease once; the first reason stays."""
        if self.ended is None:
            self.ended = why
            if self.on_end is not None:
                self.on_end()

    def spent(self) -> Ended | None:
        """Return why the lease must not be renewed again, or None."""
        now = self._clock()
        if self._deadline is not None and now > self._deadline:
            return Ended.EXPIRED
        oldest_sign_s = min(self._steps.copy().values(), default=now)
        if self._stall_s is not None and now - oldest_sign_s > self._stall_s:
            return Ended.STALLED
        return None

    @contextmanager
    def step(self) -> Iterator[Callable[[], None]]:
        """Do a step that may hang, in any thread; call what is yielded as a sign of life.

        Time between steps does not count: waiting for a decoder or an engine that others use is no stall.
        """
        key = object()

        def alive() -> None:
            self._steps[key] = self._clock()

        alive()
        try:
            yield alive
        finally:
            del self._steps[key]

    def next_command(self) -> tuple[Any, ...]:
        """Return the renewing command, with the progress if it changed since the last one that arrived."""
        progress = f"{self.progress:.3f}"
        return self.renewal("" if progress == self._sent else progress)

    def renewed(self, command: tuple[Any, ...]) -> None:
        """Note that a command arrived."""
        self._sent = command[-1] or self._sent


class LeaseKeeper:
    """The thread that renews all leases of a process together, every `renew_ms`."""

    def __init__(self, settings: Settings, *, clock: Clock = time.monotonic) -> None:
        self.clock = clock
        self.rescue_from_s = -math.inf
        """Until then other consumers may not have renewed since the last outage: their entries only look abandoned."""
        self._renew_s = settings.renew_ms / 1000
        self._lease_s = settings.lease_ms / 1000
        self._redis = connect_thread(settings)
        self._outage = Outage("lease renewal")
        self._leases: set[Lease] = set()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease-keeper", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._redis.close()

    def hold(self, lease: Lease) -> None:
        """Begin to renew a lease."""
        with self._lock:
            self._leases.add(lease)

    def let_go(self, lease: Lease) -> None:
        """Stop renewing a lease."""
        with self._lock:
            self._leases.discard(lease)

    def _run(self) -> None:
        wait_s = self._renew_s
        while not self._stopping.wait(wait_s):
            started = self.clock()
            try:
                self.renew_all()
            except Exception as exc:
                if not server_is_away(exc):
                    # Unknown trouble must not end the thread: leases would lapse while the work goes on.
                    log.exception("leases_not_renewed", next="retrying")
                wait_s = min(self._outage.failed(exc), self._renew_s / 3)
                self.rescue_from_s = math.inf
            else:
                if self._outage.over():
                    self.rescue_from_s = self.clock() + self._lease_s
                wait_s = max(0.0, self._renew_s - (self.clock() - started))

    def renew_all(self) -> None:
        """Renew every lease in one round trip, and end those that are spent, lost or cancelled."""
        for lease in self._held():
            why = lease.spent()
            if why is not None:
                self._end(lease, why)
        self._renew(self._held())

    def _held(self) -> list[Lease]:
        with self._lock:
            return list(self._leases)

    def _renew(self, leases: Iterable[Lease]) -> None:
        commands = [(lease, lease.next_command()) for lease in leases]
        if not commands:
            return
        pipeline: Any = self._redis.pipeline(transaction=False)
        for _, command in commands:
            pipeline.execute_command(*command)
        replies = pipeline.execute(raise_on_error=False)
        errors = [reply for reply in replies if isinstance(reply, Exception)]
        for (lease, command), reply in zip(commands, replies, strict=True):
            if reply in (_LOST, _RETIRED):
                self._end(lease, Ended.LOST)
            elif reply == _CANCEL:
                lease.renewed(command)
                lease.end(Ended.CANCELLED)  # still held, and renewed until it is settled
            elif reply == _RENEWED:
                lease.renewed(command)
        if errors:
            raise errors[0]

    def _end(self, lease: Lease, why: Ended) -> None:
        self.let_go(lease)
        lease.end(why)
