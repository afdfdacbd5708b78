"""The last resort: a thread that ends the process when a step of its work hangs.

A thread that is stuck in a model or in a dead disk cannot be ended, but its process can: the leases of all that it
holds lapse, and other processes go on with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Self

import structlog

log = structlog.get_logger()

# Looks in the time that a step may take: a hanging step is seen at most a tenth of it late.
_LOOKS_A_LIMIT = 10
# As often does the event loop give a sign of life.
_LOOP_SIGNS_A_LIMIT = 20
# Whoever reads the log may be what hangs: the end does not wait for it any longer.
_LAST_WORDS_S = 5.0
_FAILED = 1


class Watchdog:
    """Watches the steps of one process."""

    def __init__(
        self,
        limit_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        end: Callable[[int], object] = os._exit,
    ) -> None:
        """Set the limit.

        Args:
            limit_s: seconds that a step may be without a sign of life.
            clock: monotonic seconds.
            end: ends the process with an exit code, whatever its threads are doing.
        """
        self._limit_s = limit_s
        self._look_every_s = limit_s / _LOOKS_A_LIMIT
        self._clock = clock
        self._end = end
        self._steps: dict[object, tuple[str, float]] = {}
        self._looked_s = math.inf
        self._awake_since_s = -math.inf
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        self._thread.join()

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[Callable[[], None]]:
        """Do a step that may hang, in any thread; call what is yielded as a sign of life."""
        key = object()

        def alive() -> None:
            self._steps[key] = what, self._clock()

        alive()
        try:
            yield alive
        finally:
            del self._steps[key]

    async def watch_event_loop(self) -> None:
        """Watch the event loop that runs this, until cancelled."""
        with self.step("event loop") as alive:
            while True:
                await asyncio.sleep(self._limit_s / _LOOP_SIGNS_A_LIMIT)
                alive()

    def look(self) -> None:
        """End the process if a step hangs."""
        now_s = self._clock()
        if now_s - self._looked_s > 2 * self._look_every_s:
            # The whole process stood still (SIGSTOP, a frozen machine): that is no fault of its steps.
            self._awake_since_s = now_s
        self._looked_s = now_s
        for what, last_sign_s in self._steps.copy().values():  # one step: threads come and go
            silent_s = now_s - max(last_sign_s, self._awake_since_s)
            if silent_s > self._limit_s:
                expected = f"expected one in {self._limit_s:g} s (STTREAM_STALL_S)"
                self.give_up(f"{what}: no sign of life for {silent_s:.1f} s, {expected}")

    def give_up(self, why: str) -> None:
        """End the process at once: it is in doubt, and what it holds is safer elsewhere."""
        end = threading.Timer(_LAST_WORDS_S, self._end, (_FAILED,))
        end.daemon = True
        with contextlib.suppress(RuntimeError):  # no more threads can be had: that may be what is wrong
            end.start()
        log.error("process_given_up", why=why, next="the process ends; its work is taken over when its leases lapse")
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        end.cancel()
        self._end(_FAILED)

    def _run(self) -> None:
        while not self._stopping.wait(self._look_every_s):
            self.look()
