"""The loop that settles entries: all verdicts that are ready go to the server in one round trip."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from common.outage import Server, persist

if TYPE_CHECKING:
    from common.entries import Settled, StageStreams, Task
    from common.outcomes import Verdict

# Entries settled in one round trip at most: the server does nothing else meanwhile, for about a millisecond.
_AT_ONCE = 64


class Settler:
    """Carries out the verdicts of one stage."""

    def __init__(self, name: str, streams: StageStreams, server: Server) -> None:
        self._streams = streams
        self._outage = server.used_for(f"settling of the {name} stage")
        self._ready: list[tuple[Task, Verdict, Callable[[Settled], None]]] = []
        self._some_ready = asyncio.Event()

    def settle(self, task: Task, verdict: Verdict, settled: Callable[[Settled], None]) -> None:
        """Carry out a verdict, for as long as the server is away; then tell `settled` what became of it."""
        self._ready.append((task, verdict, settled))
        self._some_ready.set()

    async def run(self) -> None:
        """Send verdicts until cancelled.

        Repeating a call whose reply was lost is safe: a verdict that was carried out finds its entry gone.
        """
        while True:
            await self._some_ready.wait()
            batch = self._ready[:_AT_ONCE]
            verdicts = [(task, verdict) for task, verdict, _ in batch]
            answers = await persist(self._outage, functools.partial(self._streams.settle, verdicts))
            del self._ready[: len(batch)]
            if not self._ready:
                self._some_ready.clear()
            for (_, _, settled), answer in zip(batch, answers, strict=True):
                settled(answer)
