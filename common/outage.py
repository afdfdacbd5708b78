"""Trouble with a server, told once: one line when it goes away, one when it is back.

A process uses a server in several loops. Each keeps its own `Outage`, which says how long to wait; those of one
`Server` share the telling, since they all meet the same trouble.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from common.connection import blames_the_server
from common.errors import Unavailable

T = TypeVar("T")

log = structlog.get_logger()

FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 5.0


class Server:
    """A server as the loops and threads of one process use it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._troubled: set[Outage] = set()
        self._lock = threading.Lock()

    def used_for(self, what: str) -> Outage:
        """Return the outage of one use of this server."""
        return Outage(what, self)

    def fails(self, outage: Outage, error: Exception) -> None:
        """Tell of the first of all uses that fails."""
        with self._lock:
            first = not self._troubled
            self._troubled.add(outage)
        if first:
            reason = str(error) or type(error).__name__
            log.warning("server_unreachable", server=self.name, met_by=outage.what, error=reason, next="retrying")

    def answers(self, outage: Outage) -> None:
        """Tell when the last of all uses that failed works again."""
        with self._lock:
            self._troubled.discard(outage)
            last = not self._troubled
        if last:
            log.info("server_reached_again", server=self.name, failures=outage.failures)


class Outage:
    """Counts the failures in a row of one use of a server, and says how long to wait."""

    def __init__(self, what: str, server: Server | None = None, rng: Callable[[], float] = random.random) -> None:
        """Begin without trouble.

        Args:
            what: the use, for the log.
            server: shared by the uses of one server; None for a use of its own.
            rng: the source of jitter, 0 to 1.
        """
        self.what = what
        self.failures = 0
        self._server = server or Server(what)
        self._rng = rng

    def failed(self, error: Exception) -> float:
        """Note a failure and return the seconds to wait: doubling to 5 s, jittered, so that clients come back apart."""
        if self.failures == 0:
            self._server.fails(self, error)
        self.failures += 1
        doubled: float = FIRST_DELAY_S * 2.0 ** min(self.failures, 10)
        return min(LONGEST_DELAY_S, doubled) * (0.5 + self._rng() / 2)

    def over(self) -> bool:
        """Note a success; return whether it ended an outage."""
        if self.failures == 0:
            return False
        self._server.answers(self)
        self.failures = 0
        return True


def passes(error: Exception) -> bool:
    """Return whether trying again may help once the server, or what it lacks, is there."""
    return isinstance(error, Unavailable) or blames_the_server(error)


async def persist(outage: Outage, operation: Callable[[], Awaitable[T]]) -> T:
    """Repeat an operation until the server is there to do it; it must be one that may be repeated.

    Raises:
        Exception: whatever is not the server being away.
    """
    while True:
        try:
            result = await operation()
        except Exception as exc:
            if not passes(exc):
                raise
            await asyncio.sleep(outage.failed(exc))
        else:
            outage.over()
            return result
