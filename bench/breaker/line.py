"""The production line of a run: a server, a producer, consumers and writers, and all that faults can be done to."""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
import signal
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from bench.breaker.clock import Clock, build_library
from bench.breaker.disk import make_disk
from bench.breaker.processes import Member, free_port, make_server, make_service
from bench.breaker.proxy import Proxy
from bench.breaker.standin import POISONED
from common.connection import connect
from common.keys import Keys
from common.settings import Settings, load_settings, variable_of
from deploy.ready import service_is_ready, until_ready
from deploy.supervisor import stop_in_order

if TYPE_CHECKING:
    from pathlib import Path

ROLES = ("producer", "consumer", "consumer", "consumer", "writer", "writer")
_READY_WITHIN_S = 120.0
# Good jobs must end as completed however often they were in the way of a fault; those that cannot say so themselves.
_MAX_ATTEMPTS = 50


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a run keeps its things."""

    folder: Path

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.folder / "sttream.db"

    @property
    def disk(self) -> Path:
        """The disk that can be filled up."""
        return self.folder / "disk"

    @property
    def results(self) -> Path:
        """Where the writers leave files."""
        return self.disk / "results"

    @property
    def scratch(self) -> Path:
        """Where consumers decode to."""
        return self.folder / "scratch"

    @property
    def logs(self) -> Path:
        """One log a process."""
        return self.folder / "logs"

    @property
    def audio(self) -> Path:
        """The recordings."""
        return self.folder / "audio"


class Line:
    """Everything that runs. An async context: ready when entered, stopped when left."""

    def __init__(self, layout: Layout, *, kind: str, seed: int, lease_ms: int, disk_mib: int, may_mount: bool) -> None:
        """Decide everything; nothing is started yet.

        Args:
            layout: where things lie; its folder is there and empty.
            kind: of the server, `valkey` or `redis`.
            seed: of the stand-in's stumbles.
            lease_ms: short, so that many rescues fit into a run.
            disk_mib: size of the results disk.
            may_mount: whether the results may have a file system of their own.
        """
        self.layout, self.kind, self.seed, self.lease_ms = layout, kind, seed, lease_ms
        for folder in (layout.scratch, layout.logs):
            folder.mkdir()
        self.disk = make_disk(layout.disk, disk_mib, may_mount=may_mount)
        self.server_port, self.http_port = free_port(), free_port()
        self.server = make_server(layout.folder / "server", kind, self.server_port, layout.logs / "server.log")
        self.server_url = f"redis://127.0.0.1:{self.server_port}/0"
        self.members: list[Member] = []
        self.submitting = Proxy(self.server_port)
        """The line on which this run itself submits; faults happen to it too."""
        self._clocks = build_library(layout.folder)
        self._stack = AsyncExitStack()
        self._stopped = False

    @property
    def url(self) -> str:
        """Where the producer is."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def settings(self) -> Settings:
        """The settings of whoever watches: straight to the server."""
        return load_settings({variable_of("redis_url"): self.server_url})

    @property
    def keys(self) -> Keys:
        """The keys of the queue."""
        return Keys(self.settings.queue)

    @property
    def lease_s(self) -> float:
        """The lease in seconds."""
        return self.lease_ms / 1000

    @property
    def proxies(self) -> list[Proxy]:
        """Every line to the server that faults happen to."""
        return [*(member.proxy for member in self.members), self.submitting]

    def of(self, role: str) -> list[Member]:
        """Return the services of a role."""
        return [member for member in self.members if member.role == role]

    async def __aenter__(self) -> Self:
        self._keeping = [self.server.start()]
        self.redis: Any = await self._stack.enter_async_context(connect(self.settings))
        await self._stack.enter_async_context(self.submitting)
        await self._until_server_answers()
        for number, role in enumerate(ROLES):
            self.members.append(await self._make(f"{role}-{number}", role))
        for member in self.members:
            self._keeping.append(member.process.start())
        for member in self.members:
            ask = functools.partial(service_is_ready, member.health_url)
            await until_ready(member.process, ask, _READY_WITHIN_S)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop_services()
        await self._stack.aclose()
        await self.server.stop()

    async def stop_services(self) -> None:
        """Stop producer, consumers and writers, in this order."""
        if not self._stopped:
            self._stopped = True
            await stop_in_order([[member.process for member in self.of(role)] for role in dict.fromkeys(ROLES)])

    def calm(self) -> None:
        """Undo every fault that lasts."""
        for proxy in self.proxies:
            proxy.restore()
        self.disk.free([member.process.pid for member in self.of("writer") if member.process.pid])
        for member in self.members:
            if member.clock:
                member.clock.step(0)
        for process in (self.server, *(member.process for member in self.members)):
            process.signal(signal.SIGCONT)

    def complaints(self) -> list[str]:
        """Return what a process did that nothing of this run had made it do; after the end."""
        told = [f"{task.get_name()} gave up: {task.exception()}" for task in self._keeping if _failed(task)]
        for process in (self.server, *(member.process for member in self.members)):
            told += [f"{process.service.name} ended by itself, {end}" for end in process.unexpected]
            told += [f"{process.service.name} did not stop when told to"] if process.killed else []
        return told

    def restart_writers(self) -> None:
        """Stop the writers as an operator would; they are started again."""
        for member in self.of("writer"):
            member.process.signal(signal.SIGTERM)

    async def _make(self, name: str, role: str) -> Member:
        proxy = await self._stack.enter_async_context(Proxy(self.server_port))
        file = self.layout.folder / f"{name}.clock"
        clock = Clock(file, self._clocks) if self._clocks else None
        log = self.layout.logs / f"{name}.log"
        member = make_service(name, role, self.seed, self._environ(), proxy, clock, log)
        member.process.expected |= {"writer": self.disk.ends, "consumer": {f"exit {POISONED}"}}.get(role, set())
        return member

    def _environ(self) -> dict[str, str]:
        layout = self.layout
        settings: dict[str, object] = {
            "database_url": f"sqlite+aiosqlite:///{layout.database}",
            "results_dir": layout.results,
            "upload_dir": layout.folder / "uploads",
            "scratch_dir": layout.scratch,
            "audio_roots": layout.audio,
            "http_port": self.http_port,
            "lease_ms": self.lease_ms,
            "renew_ms": int(self.lease_ms * 0.3),
            "max_attempts": _MAX_ATTEMPTS,
            "retry_delay_s": 0.3,
            "timeout_s": 60,
            "drain_s": 3,
            "stall_s": 30,
            "prepare_processes": 1,
            "log_format": "json",
        }
        path = {"PATH": os.environ.get("PATH", os.defpath)}
        return path | {variable_of(field): str(value) for field, value in settings.items()}

    async def _until_server_answers(self) -> None:
        async with asyncio.timeout(_READY_WITHIN_S):
            while True:
                try:
                    await self.redis.ping()
                except Exception:  # noqa: BLE001 - whatever it is, the time limit ends it
                    await asyncio.sleep(0.1)
                else:
                    return


def _failed(task: asyncio.Task[None]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is not None


def keep(layout: Layout) -> None:
    """Save what lies on a disk that ends with this process."""
    shutil.copytree(layout.results, layout.folder / "results-kept", dirs_exist_ok=True)
