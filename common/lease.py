"""Leases: a thread of its own, on its own connection, keeps this process's entries from looking abandoned.

It goes on whatever the event loop or the model does, and stops for a job that is over its time limit: a worker that
hangs must lose its job. With each renewal go the job's progress and the parts of it that are done.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self

import structlog

from common.connection import blames_the_server, connect_thread
from common.outage import Server

if TYPE_CHECKING:
    from common.settings import Settings

log = structlog.get_logger()

Clock = Callable[[], float]
Command = tuple[Any, ...]
Part = tuple[str, str]
# Makes the command that asks whether a job shall be cancelled; None where nobody can ask for it.
Cancellation = Callable[[], Command | None]
# Makes the command that renews one entry, with its progress ("" when unchanged) and the parts that are new.
Renewal = Callable[[str, Sequence[Part]], Command]

# How often the thread asks whether jobs shall be cancelled: whoever cancels a job waits for it.
_LOOK_S = 0.5
# After this share of a lease without a word from the server, consumers elsewhere may be behind with their renewals too:
# their entries look abandoned. Whoever lives has renewed when as much time has passed again, and half of that.
_SILENCE = 1 / 3
_QUIET = 1 / 2
# Parts that one renewal carries at most: together they must not hold up the renewals of other jobs.
_PARTS_AT_ONCE = 100

# After a job's time limit the event loop gets this long to end it before the lease is let go: if it has not by then,
# it hangs.
TIME_LIMIT_GRACE_S = 5.0

_RENEWED, _LOST, _RETIRED, _CANCEL = 1, 0, -1, -2


def _awake_or_asleep() -> float:
    """Return seconds that go on while the machine sleeps, as idle times do; `time.monotonic` stands still on Linux."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if sys.platform == "linux" else time.monotonic()


class Ended(StrEnum):
    """Why a lease is no longer kept."""

    LOST = "lost"
    """Another consumer holds the entry, or it is retired."""
    CANCELLED = "cancelled"
    """Somebody asked for the job to be cancelled; the entry is still ours to settle."""
    EXPIRED = "expired"
    """The job is over its time limit."""
    HANDED_BACK = "handed_back"
    """This process stops; the entry is still ours to release."""


class Lease:
    """One entry that this process holds. Written by the work and by the keeper's thread."""

    def __init__(
        self,
        renewal: Renewal,
        *,
        cancellation: Cancellation = lambda: None,
        limit_s: float | None = None,
        clock: Clock,
    ) -> None:
        """Start the clock.

        Args:
            renewal: makes the renewing command.
            cancellation: makes the command that asks whether the job shall be cancelled.
            limit_s: seconds after which the lease is let go; None for no limit.
            clock: monotonic seconds.
        """
        self.cancellation = cancellation
        self.ended: Ended | None = None
        self.on_end: Callable[[], object] | None = None
        self.progress = 0.0
        self._renewal = renewal
        self._clock = clock
        self._deadline = None if limit_s is None else clock() + limit_s + TIME_LIMIT_GRACE_S
        self._parts: list[Part] = []
        self._sent = ("0.000", 0)

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

    def keep(self, name: str, body: str) -> None:
        """Keep a finished part of the work with the next renewal: another attempt finds it and need not redo it."""
        self._parts.append((name, body))

    def end(self, why: Ended) -> None:
        """End the lease once; the first reason stays."""
        if self.ended is None:
            self.ended = why
            if self.on_end is not None:
                self.on_end()

    def spent(self) -> Ended | None:
        """Return why the lease must not be renewed again, or None."""
        return Ended.EXPIRED if self._deadline is not None and self._clock() > self._deadline else None

    def next_command(self) -> tuple[Command, tuple[str, int]]:
        """Return the renewing command, and what `renewed` is to be told once it has arrived.

        It carries what has changed since the last one that arrived.
        """
        sent_progress, sent_parts = self._sent
        progress = f"{self.progress:.3f}"
        parts = self._parts[sent_parts : sent_parts + _PARTS_AT_ONCE]
        command = self._renewal("" if progress == sent_progress else progress, parts)
        return command, (progress, sent_parts + len(parts))

    def renewed(self, sent: tuple[str, int]) -> None:
        """Note what has arrived."""
        self._sent = sent


class LeaseKeeper:
    """The thread that renews all leases of a process together, every `renew_ms`."""

    def __init__(self, settings: Settings, server: Server, *, clock: Clock = time.monotonic) -> None:
        self.server = server
        self.clock = clock
        self.idle_clock: Clock = _awake_or_asleep
        """Seconds as the server counts them that an entry is idle."""
        self._rescue_from_s = math.inf
        self._heard_s = -math.inf
        self._renew_s = settings.renew_ms / 1000
        self._lease_s = settings.lease_ms / 1000
        self._redis = connect_thread(settings)
        self._outage = server.used_for("lease renewal")
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

    @property
    def others_have_renewed(self) -> bool:
        """Whether all who live had time to renew since the last silence, so that what looks abandoned is."""
        now = self.idle_clock()
        return not self._silent(now) and now >= self._rescue_from_s

    def heard(self) -> None:
        """Note that the server has done as it was told: whoever speaks to it, and asks to rescue, says so here."""
        now = self.idle_clock()
        if self._silent(now):
            self._rescue_from_s = now + _QUIET * self._lease_s
        self._heard_s = now

    def _silent(self, now: float) -> bool:
        return now - self._heard_s > _SILENCE * self._lease_s

    def hold(self, lease: Lease) -> None:
        """Begin to renew a lease."""
        with self._lock:
            self._leases.add(lease)

    def let_go(self, lease: Lease) -> None:
        """Stop renewing a lease."""
        with self._lock:
            self._leases.discard(lease)

    def _run(self) -> None:
        wait_s, due_s = 0.0, self.clock() + self._renew_s
        while not self._stopping.wait(wait_s):
            try:
                if self.clock() < due_s:
                    self.look_for_cancellations()
                else:
                    due_s = self.clock() + self._renew_s
                    self.renew_all()
            except Exception as exc:
                if not blames_the_server(exc):
                    # Unknown trouble must not end the thread: leases would lapse while the work goes on.
                    log.exception("leases_not_renewed", next="retrying")
                wait_s = min(self._outage.failed(exc), self._renew_s / 3)
                due_s = -math.inf  # what was missed is made up for first
            else:
                self._outage.over()
                wait_s = min(_LOOK_S, max(0.0, due_s - self.clock()))

    def renew_all(self) -> None:
        """Renew every lease in one round trip, and end those that are spent, lost or cancelled."""
        for lease in self._held():
            why = lease.spent()
            if why is not None:
                self._end(lease, why)
        self._renew(self._held())

    def look_for_cancellations(self) -> None:
        """Ask for every job in one round trip whether it shall be cancelled."""
        open_leases = [lease for lease in self._held() if not lease.over]
        asked = [(lease, command) for lease in open_leases if (command := lease.cancellation()) is not None]
        for (lease, _), wanted in zip(asked, self._send([command for _, command in asked]), strict=True):
            if wanted == 1:
                lease.end(Ended.CANCELLED)

    def _held(self) -> list[Lease]:
        with self._lock:
            return list(self._leases)

    def _renew(self, leases: Iterable[Lease]) -> None:
        renewals = [(lease, *lease.next_command()) for lease in leases]
        replies = self._send([command for _, command, _ in renewals])
        for (lease, _, sent), reply in zip(renewals, replies, strict=True):
            if reply in (_LOST, _RETIRED):
                self._end(lease, Ended.LOST)
            elif reply == _CANCEL:
                lease.renewed(sent)
                lease.end(Ended.CANCELLED)  # still held, and renewed until it is settled
            elif reply == _RENEWED:
                lease.renewed(sent)
            elif isinstance(reply, Exception) and not blames_the_server(reply):
                # A key of the wrong type, say: it fails each time, and when its time is over somebody takes it.
                log.error("lease_not_renewed", error=str(reply), next="its work is dropped, and done again elsewhere")
                self._end(lease, Ended.LOST)
        for reply in replies:
            if isinstance(reply, Exception) and blames_the_server(reply):
                raise reply

    def _send(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands in one round trip; an error is the reply of the command that it blames."""
        if not commands:
            return []
        pipeline: Any = self._redis.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        replies: list[Any] = pipeline.execute(raise_on_error=False)
        # One that loads its data, or has lost its disk or its replicas, answers at once and renews nothing.
        if not any(isinstance(reply, Exception) and blames_the_server(reply) for reply in replies):
            self.heard()
        return replies

    def _end(self, lease: Lease, why: Ended) -> None:
        self.let_go(lease)
        lease.end(why)
