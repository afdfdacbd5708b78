"""The one loop that all services run: read entries, keep their leases, run a handler, settle what it says.

A stage is: streams in priority order, a group, a handler, a retry policy. It knows nothing of audio. This file is how
entries come in and how the stage ends; `common.runner` is one entry's way through it.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from common.connection import BLOCK_MS, group_is_missing, server_is_away
from common.outage import Outage
from common.runner import Handler, Runner
from common.settler import Settler

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from common.entries import Entry, StageStreams
    from common.lease import LeaseKeeper
    from common.metrics import StageMetrics

log = structlog.get_logger()

# How often in a lease a stage looks for abandoned entries: a job of a dead consumer waits for a lease and one sweep.
_SWEEPS_A_LEASE = 5
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
    stall_s: float | None = None
    """Without progress for so long, a lease is let go; None for no limit."""


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
        check_data: Callable[[], Awaitable[None]],
    ) -> None:
        """Take ready objects.

        Args:
            settings: the stage's figures.
            streams: what it reads.
            handler: what it does.
            keeper: renews the leases; running.
            metrics: counters of this stage.
            check_data: raises `DataLost` when the server is not the one this process knows.
        """
        self.settings = settings
        self._streams = streams
        self._handler = handler
        self._keeper = keeper
        self._metrics = metrics
        self._check_data = check_data
        self._clock = keeper.clock
        self._settler = Settler(settings.name, streams)
        self._runner = Runner(streams, handler, keeper, self._settler, metrics, settings.stall_s)
        self._running: set[asyncio.Task[None]] = set()
        self._slot_freed = asyncio.Event()
        self._taking = asyncio.Lock()
        self._outage = Outage(f"streams of the {settings.name} stage")
        self._sweep_every_s = settings.lease_ms / 1000 / _SWEEPS_A_LEASE
        # Services restart together after an outage: whoever lives renews within a third of the lease.
        self._rescue_from_s = self._clock() + settings.lease_ms / 3000

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
        swept_s = float("-inf")
        while True:
            free = await self._free_slots()
            try:
                if self._clock() - swept_s >= self._sweep_every_s:
                    swept_s = self._clock()
                    await self._take(await self._rescue(free), "rescued")
                    free = self.settings.slots - len(self._running)
                if free > 0:
                    await self._take(await self._streams.read(free, self._block_ms()), "new")
                if self._outage.over():
                    await self._after_outage()
            except Exception as exc:  # noqa: BLE001 `_survive` raises what does not pass by itself
                await self._survive(exc)

    def _block_ms(self) -> int:
        return max(1, min(BLOCK_MS, round(self._sweep_every_s * 1000)))

    async def _free_slots(self) -> int:
        """Wait until a slot is free and the handler is hungry; return how many slots are free."""
        while len(self._running) >= self.settings.slots:
            self._slot_freed.clear()
            await self._slot_freed.wait()
        await self._handler.hungry()
        return self.settings.slots - len(self._running)

    async def _rescue(self, free: int) -> list[Entry]:
        if self._clock() < max(self._rescue_from_s, self._keeper.rescue_from_s):
            return []
        return await self._streams.rescue(free, self.settings.lease_ms)

    async def _take(self, entries: list[Entry], kind: str) -> None:
        """Begin entries and run them, each in a task of its own."""
        if not entries:
            return
        self._metrics.deliveries.labels(kind).inc(len(entries))
        async with self._taking:
            for task in await self._streams.begin(entries):
                running = asyncio.create_task(self._runner.run(task), name=f"{self.settings.name}:{task.id}")
                self._running.add(running)
                running.add_done_callback(self._ran)

    def _ran(self, running: asyncio.Task[None]) -> None:
        self._running.discard(running)
        self._slot_freed.set()

    async def _survive(self, error: Exception) -> None:
        """Wait out what passes by itself; raise what does not."""
        if group_is_missing(error):
            await self._check_data()
            await self._streams.create_groups()
        elif server_is_away(error):
            self._rescue_from_s = math.inf
            await asyncio.sleep(self._outage.failed(error))
        else:
            raise error

    async def _after_outage(self) -> None:
        """Let the others renew before rescuing: idle time counts the outage too, so live entries look abandoned."""
        self._rescue_from_s = self._clock() + self.settings.lease_ms / 1000
        await self._check_data()

    async def _keep_house(self) -> None:
        """Queue what is due and forget consumers that are gone, about once a second."""
        outage = Outage(f"housekeeping of the {self.settings.name} stage")
        while True:
            try:
                await self._streams.keep_house(_LEASES_UNTIL_FORGOTTEN * self.settings.lease_ms)
            except Exception as exc:
                if not (server_is_away(exc) or group_is_missing(exc)):
                    raise
                await asyncio.sleep(outage.failed(exc))
            else:
                outage.over()
                await asyncio.sleep(0.5 + random.random())  # noqa: S311 jitter: many consumers shall not come at once

    async def _drain(self) -> None:
        """Let running work finish within the limit, then hand the rest back."""
        if self._running:
            limit_s = self.settings.drain_s
            log.info("drain_started", stage=self.settings.name, running=len(self._running), limit_s=limit_s)
            await asyncio.wait(self._running, timeout=limit_s)
        if self._running:
            self._runner.hand_back_all()
            await asyncio.wait(self._running, timeout=self.settings.lease_ms / 1000)
        log.info("stage_drained", stage=self.settings.name, unsettled=len(self._running))
