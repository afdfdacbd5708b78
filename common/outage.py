"""Trouble with a server, told once: one line when it goes away, one when it is back."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from common.connection import server_is_away
from common.errors import Unavailable

T = TypeVar("T")

log = structlog.get_logger()

FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 5.0


class Outage:
    """Counts the failures in a row of one user of a server, logs the ends of the row, and says how long to wait."""

    def __init__(self, what: str, rng: Callable[[], float] = random.random) -> None:
        self.what = what
        self.failures = 0
        self._rng = rng

    def failed(self, error: Exception) -> float:
        """Note a failure and return the seconds to wait: doubling to 5 s, jittered, so that clients come back apart."""
        if self.failures == 0:
            log.warning("server_unreachable", what=self.what, error=str(error) or type(error).__name__, next="retrying")
        self.failures += 1
        doubled: float = FIRST_DELAY_S * 2.0 ** min(self.failures, 10)
        return min(LONGEST_DELAY_S, doubled) * (0.5 + self._rng() / 2)

    def over(self) -> bool:
        """Note a success; return whether it ended an outage."""
        if self.failures == 0:
            return False
        log.info("server_reached_again", what=self.what, failures=self.failures)
        self.failures = 0
        return True


async def persist(outage: Outage, operation: Callable[[], Awaitable[T]]) -> T:
    """Repeat an operation until the server is there to do it; it must be one that may be repeated.

    Raises:
        Exception: whatever is not the server being away.
    """
    while True:
        try:
            result = await operation()
        except Exception as exc:
            if not (isinstance(exc, Unavailable) or server_is_away(exc)):
                raise
            await asyncio.sleep(outage.failed(exc))
        else:
            outage.over()
            return result
