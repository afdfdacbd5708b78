"""The processes of a run: one server, and services that are started again whenever they end."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import secrets
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bench.breaker.clock import Clock
from bench.breaker.proxy import Proxy
from common.settings import variable_of
from deploy.embedded import server_command
from deploy.supervisor import Service, Supervised

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).resolve().parents[2]
AGAIN_AFTER_S = 0.3
STOP_S = 20.0
# Ends that this run brings about: signals (a second SIGTERM while draining is exit code 143), and poison.
_EXPECTED = frozenset({"exit 0", "exit 143", "SIGKILL", "SIGTERM"})
_COMMANDS = {
    "producer": ("-m", "cli.main", "producer"),
    "writer": ("-m", "cli.main", "writer"),
    "consumer": ("-m", "bench.breaker.consumer"),
}
_PR_SET_CHILD_SUBREAPER = 36


class Kept(Supervised):
    """A process that is started again at once, whose ends are written down."""

    def __init__(self, service: Service) -> None:
        super().__init__(service, sleep=self._pause)
        self.unexpected: list[str] = []
        """How it ended when nothing of this run had ended it."""
        self.killed = False
        """Whether it did not stop when told to."""
        self.expected = set(_EXPECTED)
        """How it may end by what this run does."""

    async def _pause(self, _: float) -> None:
        """Note the end, and start again soon: a run has no minutes to wait for a service that dies often."""
        if self.last_exit not in self.expected:
            self.unexpected.append(f"{self.last_exit}: {self.last_words()[-600:]}")
        await asyncio.sleep(AGAIN_AFTER_S)

    def kill(self) -> None:
        """Kill it; also called by `stop` when it does not end by itself."""
        self.killed = True
        super().kill()

    async def running(self) -> int:
        """Return the process id, once it runs."""
        while self.pid is None:  # noqa: ASYNC110 - it is started again by itself, which nothing announces
            await asyncio.sleep(0.05)
        return self.pid

    def signal(self, signal_: signal.Signals) -> None:
        """Send a signal, if it runs."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal_)


class Member:
    """One service: its process, its line to the server, its clock."""

    def __init__(self, name: str, role: str, process: Kept, proxy: Proxy, clock: Clock | None) -> None:
        self.name, self.role = name, role
        self.process, self.proxy, self.clock = process, proxy, clock

    @property
    def health_url(self) -> str:
        """Where it says whether it can work."""
        environ = self.process.service.environ
        port = environ[variable_of("http_port" if self.role == "producer" else "metrics_port")]
        return f"http://127.0.0.1:{port}/readyz"

    async def send(self, signal_: signal.Signals) -> int:
        """Send a signal once it runs, and return the process id."""
        pid = await self.process.running()
        self.process.signal(signal_)
        return pid


def make_server(folder: Path, kind: str, port: int, log: Path) -> Kept:
    """Return a server that keeps its data in the folder; both kinds get the configuration that `sttream up` writes."""
    folder.mkdir()
    binary, config = server_command(folder, port)
    command = (binary if kind == "valkey" else "/usr/bin/redis-server", config)
    return Kept(Service("server", command, {}, log, STOP_S, folder))


def make_service(
    name: str, role: str, seed: int, environ: Mapping[str, str], proxy: Proxy, clock: Clock | None, log: Path
) -> Member:
    """Return a service that reaches the server through its proxy."""
    # -P: a folder named `common` in the current one must not be taken for ours.
    command = (sys.executable, "-P", *_COMMANDS[role], *([str(seed)] if role == "consumer" else []))
    own = {
        "PYTHONPATH": str(ROOT),
        variable_of("redis_url"): proxy.url,
        variable_of("metrics_port"): str(free_port()),
        **(clock.environ if clock else {}),
    }
    service = Service(name, command, {**environ, **own}, log, STOP_S)
    return Member(name, role, Kept(service), proxy, clock)


def free_port() -> int:
    """Return a port below those that connections get: it must still be free when its service comes again."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def adopt_orphans() -> None:
    """Become the parent of whatever a killed service leaves: nothing that was started here gets out of sight."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def left_behind() -> dict[int, str]:
    """Return the processes that still run under this one, with their command lines; reaps the orphans that ended."""
    return {pid: _command(pid) for pid in children_of(os.getpid()) if not _reaped(pid)}


def children_of(parent: int) -> list[int]:
    """Return the process ids of a process's children, those that have ended and are not reaped among them."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # After the name, which may hold anything, come state and parent.
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(folder.name))
    return found


def _reaped(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    return True


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:120]
    return "just ended"
