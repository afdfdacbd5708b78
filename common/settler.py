"""The loop that settles entries: all verdicts that are ready go to the server in one round trip."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING

from common.outage import Server, persist

if TYPE_CHECKING:
    from common.entries import Settled, StageStreams, Task
    from common.outcomes import Verdict

# Entries settled in one round trip at most.
_AT_ONCE = 256


class Settler:
    """Carries out the verdicts of one stage."""

    def __init__(self, name: str, streams: StageStreams, server: Server) -> None:
        self._streams = streams
        self._outage = server.used_for(f"settling of the {name} stage")
        self._ready: asyncio.Queue[tuple[Task, Verdict, asyncio.Future[Settled]]] = asyncio.Queue()

    async def settle(self, task: Task, verdict: Verdict) -> Settled:
        """Return what became of a verdict; waits for as long as the server is away."""
        settled: asyncio.Future[Settled] = asyncio.get_running_loop().create_future()
        self._ready.put_nowait((task, verdict, settled))
        return await settled

    async def run(self) -> None:
        """Send verdicts until cancelled.

        Repeating a call whose reply was lost is safe: a verdict that was carried out finds its entry gone.
        """
        while True:
            batch = [await self._ready.get()]
            while not self._ready.empty() and len(batch) < _AT_ONCE:
                batch.append(self._ready.get_nowait())
            verdicts = [(task, verdict) for task, verdict, _ in batch]
            answers = await persist(self._outage, functools.partial(self._streams.settle, verdicts))
            for (_, _, settled), answer in zip(batch, answers, strict=True):
                settled.set_result(answer)
