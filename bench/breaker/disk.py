"""A results disk that can be filled up.

Where this process may mount (as root, or in a user namespace) the results lie on a small file system of their own,
visible to this run only and gone with it. Elsewhere the writers' limit on the size of a file (RLIMIT_FSIZE) is set to
nothing for a while: each write fails then, also of the database and of the log.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

_CLONE_NEWNS, _CLONE_NEWUSER = 0x0002_0000, 0x1000_0000
_BLOCK = b"\0" * 65_536


class Disk(Protocol):
    """Where the results lie."""

    how: str
    ends: frozenset[str]
    """Ends of a writer that it brings about."""

    def fill(self, writers: Iterable[int]) -> None:
        """Leave no room for another file; `writers` are process ids."""

    def free(self, writers: Iterable[int]) -> None:
        """Make room again."""

    def close(self) -> None:
        """Be gone, with all that lies there."""


class SmallFileSystem:
    """A tmpfs, filled with a ballast file."""

    def __init__(self, folder: Path, size_mib: int) -> None:
        self.how, self.ends = "a full tmpfs", frozenset[str]()
        self._ballast = folder / "ballast"
        folder.mkdir()
        options = f"size={size_mib}m"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "sttream-chaos", str(folder)], check=True)

    def fill(self, writers: Iterable[int]) -> None:
        """Write ballast until nothing more fits."""
        del writers
        with contextlib.suppress(OSError), self._ballast.open("wb", buffering=0) as ballast:
            while True:
                ballast.write(_BLOCK)

    def free(self, writers: Iterable[int]) -> None:
        """Remove the ballast."""
        del writers
        self._ballast.unlink(missing_ok=True)

    def close(self) -> None:
        """Unmount it."""
        subprocess.run(["umount", str(self._ballast.parent)], check=True)


class FileLimit:
    """Writers that may write no byte to any file."""

    def __init__(self, folder: Path) -> None:
        # A writer that cannot even log that it cannot write gives up; the interpreter calls that 120.
        self.how, self.ends = "RLIMIT_FSIZE of the writers", frozenset({"exit 1", "exit 120"})
        folder.mkdir()

    def fill(self, writers: Iterable[int]) -> None:
        """Take the writers' room away."""
        self._limit(writers, 0)

    def free(self, writers: Iterable[int]) -> None:
        """Give it back; a writer that was started meanwhile has it already."""
        self._limit(writers, resource.RLIM_INFINITY)

    def close(self) -> None:
        """Do nothing: it is a plain folder."""

    def _limit(self, writers: Iterable[int], size_bytes: int) -> None:
        for pid in writers:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))


def enter_mount_namespace() -> bool:
    """Make mounts of this process its own; call before any thread is started. False where that is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(_CLONE_NEWNS) != 0:
        if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS) != 0:
            return False
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    private = subprocess.run(["mount", "--make-rprivate", "/"], check=False, stderr=subprocess.DEVNULL)
    return private.returncode == 0


def make_disk(folder: Path, size_mib: int, *, may_mount: bool) -> Disk:
    """Make the folder's file system, or the next best."""
    if may_mount:
        with contextlib.suppress(subprocess.CalledProcessError):
            return SmallFileSystem(folder, size_mib)
        folder.rmdir()
    return FileLimit(folder)
