"""The one loop that all services run: read entries, keep their leases, run a handler, settle what it says.

A stage is: streams in priority order, a group, a handler, a retry policy. It knows nothing of audio. This file is how
entries come in and how the stage ends; `common.runner` is one entry's way through it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from common.connection import BLOCK_MS
from common.outage import passes, persist
from common.runner import Handler, Runner
from common.settler import Settler

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from common.entries import Entry, StageStreams
    from common.lease import LeaseKeeper
    from common.metrics import StageMetrics

log = structlog.get_logger()

# An entry is abandoned when its lease has not been renewed for this share of it. Renewals come at each third, so two
# had their time; with the sweeps, what a dead consumer held runs again within one lease.
_ABANDONED_AT = 0.8
# Entries taken in one round trip at most: the server does nothing else meanwhile, for about a millisecond.
_AT_ONCE = 64
# How often in a lease a stage looks for abandoned entries.
_SWEEPS_A_LEASE = 10
# Handing work back is one call; a server that does not take it now is not waited for, the leases do it then.
_HAND_BACK_S = 3.0
# A consumer that has been silent for this many leases, and holds nothing, is forgotten.
_LEASES_UNTIL_FORGOTTEN = 30


@dataclass(frozen=True, slots=True)
class StageSettings:
    """The figures of one stage."""

    name: str
    slots: int
    """Entries at a time."""
    lease_ms: int
    drain_s: float
    """How long running work may go on once the process shall stop."""


class Stage:
    """One stage of one process. `run` returns when `stop` is set and all work is settled or handed back."""

    def __init__(
        self,
        settings: StageSettings,
        streams: StageStreams,
        handler: Handler,
        keeper: LeaseKeeper,
        metrics: StageMetrics,
        *,
        restore: Callable[[], Awaitable[None]],
    ) -> None:
        """Take ready objects.

        Args:
            settings: the stage's figures.
            streams: what it reads.
            handler: what it does.
            keeper: renews the leases; running.
            metrics: counters of this stage.
            restore: sees after trouble whether the server is the one that this process knows, and brings back what it
                lost and can be made again; raises `DataLost` when it is not, `Unavailable` when others must do it.
        """
        self.settings = settings
        self._streams = streams
        self._handler = handler
        self._keeper = keeper
        self._metrics = metrics
        self._restore = restore
        self._clock = keeper.clock
        self._settler = Settler(settings.name, streams, keeper.server)
        self._runner = Runner(streams, handler, keeper, self._settler, metrics)
        self._delivered: list[Entry] = []
        """Read, but not begun: the reply may have been lost."""
        self._taking = asyncio.Lock()
        self._outage = keeper.server.used_for(f"streams of the {settings.name} stage")
        self._sweep_every_s = settings.lease_ms / 1000 / _SWEEPS_A_LEASE

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, then drain.

        The order of the end: fetching stops, running work gets `drain_s`, what is left is handed back, and only then
        the settling loop ends; leases are renewed until their entries are settled.

        Raises:
            DataLost: the server was emptied or replaced.
        """
        async with asyncio.TaskGroup() as loops:
            settling = loops.create_task(self._settler.run())
            ending = [loops.create_task(loop) for loop in (self._fetch(), self._keep_house())]
            await stop.wait()  # a loop that dies cancels this wait
            async with self._taking:  # entries that were read begin before the loop may end
                for loop in ending:
                    loop.cancel()
            await self._drain()
            settling.cancel()

    async def _fetch(self) -> None:
        """Fill free slots: first with abandoned entries when a sweep is due, then with new ones."""
        swept_s = -math.inf
        while True:
            try:
                if self._outage.failures:
                    await self._restore()
                await self._begin()  # before anything that waits: what was delivered is not renewed yet
                welcome = await self._welcome()
                if self._clock() - swept_s >= self._sweep_every_s:
                    swept_s = self._clock()
                    welcome -= await self._take(await self._rescue(welcome), "rescued")
                if welcome > 0:
                    await self._take(await self._read(welcome), "new")
            except Exception as exc:
                if not passes(exc):
                    raise
                await asyncio.sleep(self._outage.failed(exc))

    async def _read(self, most: int) -> list[Entry]:
        entries = await self._streams.read(most, self._block_ms())
        self._reached()
        return entries

    def _reached(self) -> None:
        """Note that the server has taken a write: reading works before it does."""
        self._keeper.heard()
        self._outage.over()

    def _block_ms(self) -> int:
        return max(1, min(BLOCK_MS, round(self._sweep_every_s * 1000)))

    async def _welcome(self) -> int:
        """Return how many entries to take, once a slot is free, the handler is hungry and the next stage keeps up."""
        await self._runner.until_below(self.settings.slots)
        wanted = await self._handler.hungry()
        await self._streams.room()
        return min(wanted, self.settings.slots - self._runner.running, _AT_ONCE)

    async def _rescue(self, most: int) -> list[Entry]:
        """Take over abandoned entries, but not while live ones may look abandoned: idle time counts an outage too."""
        if not self._keeper.others_have_renewed:
            return []
        return await self._streams.rescue(most, round(_ABANDONED_AT * self.settings.lease_ms))

    async def _take(self, entries: list[Entry], kind: str) -> int:
        """Begin entries that were just read, and return how many there were."""
        self._metrics.deliveries.labels(kind).inc(len(entries))
        self._delivered += entries
        await self._begin()
        return len(entries)

    async def _begin(self) -> None:
        """Begin what was delivered and run it, each entry in a task of its own; may be repeated."""
        if not self._delivered:
            return
        async with self._taking:
            for task in await self._streams.begin(self._delivered):
                self._runner.run(task)
            self._delivered.clear()
        self._reached()

    async def _keep_house(self) -> None:
        """Queue what is due, forget consumers that are gone, see to the next stage, about once a second."""
        outage = self._keeper.server.used_for(f"housekeeping of the {self.settings.name} stage")
        gone_ms = _LEASES_UNTIL_FORGOTTEN * self.settings.lease_ms

        async def keep_house() -> None:
            if outage.failures:
                await self._restore()  # here too: while all slots are taken, nothing is fetched
            await self._streams.keep_house(gone_ms)

        while True:
            await persist(outage, keep_house)
            await asyncio.sleep(0.5 + random.random())  # noqa: S311 jitter: many consumers shall not come at once

    async def _drain(self) -> None:
        """Let running work finish within the limit, then hand the rest back."""
        if self._runner.running:
            limit_s = self.settings.drain_s
            log.info("drain_started", stage=self.settings.name, running=self._runner.running, limit_s=limit_s)
            await self._settled_within(limit_s)
        if self._runner.running:
            self._runner.hand_back_all()
            await self._settled_within(_HAND_BACK_S)
        log.info("stage_drained", stage=self.settings.name, unsettled=self._runner.running)

    async def _settled_within(self, limit_s: float) -> None:
        """Wait until all that runs is settled, or the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._runner.until_below(1)
