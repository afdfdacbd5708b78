"""How much memory a process and its children hold, sampled from /proc while something else runs.

PSS counts a page that several processes share in parts, so that a sum over processes counts it once. Anonymous memory
is what a process has made; file-backed memory are pages of files it has mapped, which the kernel takes back without a
write when it needs them, and reads again.
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

from bench.breaker.processes import children_of

EVERY_S = 0.1
MIB = 1024**2


@dataclass(frozen=True, slots=True)
class Held:
    """Memory in bytes."""

    rss: int = 0
    pss: int = 0
    anonymous: int = 0
    """Its part of `pss`; the rest is file-backed or shared."""

    def __add__(self, other: Held) -> Held:
        return Held(self.rss + other.rss, self.pss + other.pss, self.anonymous + other.anonymous)

    def at_most(self, other: Held) -> Held:
        """Return the larger of each."""
        return Held(*(max(getattr(self, one.name), getattr(other, one.name)) for one in fields(Held)))


def held_by(pid: int) -> Held:
    """Return what a process holds now, nothing when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return Held()
    kib = {name.rstrip(":"): int(value) for name, value, *_ in (line.split() for line in lines)}
    return Held(kib["Rss"] * 1024, kib["Pss"] * 1024, kib["Pss_Anon"] * 1024)


def peak_rss(pid: int) -> int:
    """Return what `/usr/bin/time` would call the maximum resident set size, in bytes."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


class Footprint:
    """Watches a process and everything that it starts, in a thread, until the block ends."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.own = Held()
        """The most that the process itself held."""
        self.children = Held()
        """The most that its children held together."""
        self.whole = Held()
        """The most of both together at one time, of each kind."""
        self.largest_child = 0
        """The most that one child ever held, in bytes of RSS."""
        self.at_peak: tuple[float, Held, Held] = (0.0, Held(), Held())
        """When the anonymous memory of all was largest, in seconds, and what process and children held then."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def now(self) -> tuple[Held, Held]:
        """Return what the process holds now, and what its children do."""
        children = [held_by(child) for child in self._descendants()]
        return held_by(self.pid), sum(children, start=Held())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        begun = time.monotonic()
        while not self._over.wait(EVERY_S):
            own, children = self.now()
            if (own + children).anonymous > self.whole.anonymous:
                self.at_peak = (time.monotonic() - begun, own, children)
            self.own, self.children = self.own.at_most(own), self.children.at_most(children)
            self.whole = self.whole.at_most(own + children)
            self.largest_child = max([self.largest_child, *map(peak_rss, self._descendants())])

    def _descendants(self) -> list[int]:
        found, unseen = [], [self.pid]
        while unseen:
            children = children_of(unseen.pop())
            found += children
            unseen += children
        return found
