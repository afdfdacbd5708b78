"""The data folder of an embedded stack: what lies where, and the lock that keeps a second stack out."""

from __future__ import annotations

import contextlib
import fcntl
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from deploy.errors import StackRefused

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# A log file that has grown beyond this is put aside, once, when its service starts.
LOG_BYTES = 32 * 1024**2


@dataclass(frozen=True, slots=True)
class DataDir:
    """The folders of one stack, below one folder that only its owner may read."""

    path: Path

    @property
    def redis(self) -> Path:
        """Folder of the server's append-only file."""
        return self.path / "redis"

    @property
    def results(self) -> Path:
        """Folder of the transcripts."""
        return self.path / "results"

    @property
    def uploads(self) -> Path:
        """Folder of recordings sent by HTTP."""
        return self.path / "uploads"

    @property
    def scratch(self) -> Path:
        """Folder of decoded audio while a job runs."""
        return self.path / "scratch"

    @property
    def logs(self) -> Path:
        """Folder of the services' logs."""
        return self.path / "logs"

    @property
    def database_url(self) -> str:
        """URL of the SQLite database."""
        return f"sqlite+aiosqlite:///{quote(str(self.path / 'sttream.db'))}"

    def log_of(self, service: str) -> Path:
        """Return the log file of a service."""
        return self.logs / f"{service}.log"

    def make(self) -> None:
        """Make the folders that are missing.

        Raises:
            StackRefused: a folder cannot be made.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in (self.redis, self.results, self.uploads, self.scratch, self.logs):
                folder.mkdir(exist_ok=True)
        except OSError as exc:
            raise StackRefused(f"data folder {self.path} cannot be made: {exc}; choose another (--data-dir)") from exc

    def require_free(self) -> None:
        """Look whether a stack runs on this folder.

        Raises:
            StackRefused: one does.
        """
        if (self.path / "lock").exists():
            with hold(self):
                pass

    def put_log_aside(self, service: str) -> None:
        """Rename a log that has grown large to `<service>.log.1`, over the one put aside before."""
        log = self.log_of(service)
        if log.exists() and log.stat().st_size > LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))


@contextlib.contextmanager
def hold(data: DataDir) -> Iterator[None]:
    """Hold the folder's lock; the system lets go of it however this process ends.

    Raises:
        StackRefused: another process holds it.
    """
    with (data.path / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            lock.seek(0)
            raise StackRefused(
                f"{data.path} is in use by the stack of process {lock.read().strip() or 'unknown'}; "
                "stop that one first, or give this one a folder of its own (--data-dir)"
            ) from exc
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
