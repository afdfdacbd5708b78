"""Entries on their way through a stage, and what a stage needs of its streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from common.outcomes import RetryPolicy, Verdict
    from common.records import Job


# Named tuples, not dataclasses: frozen ones take four times as long to make, and there is one of each for every entry.


class Entry(NamedTuple):
    """One delivery of a stream entry to this consumer. Its delivery count tells it from every other delivery."""

    stream: str
    entry_id: str
    deliveries: int
    fields: Mapping[str, str]


class Task(NamedTuple):
    """An entry that has begun: what the stage runs."""

    entry: Entry
    id: str
    job: Job | None
    """As it stands in Redis; None for a result whose job has no hash any more."""
    attempts: int
    policy: RetryPolicy
    timeout_s: float | None
    parts: Mapping[str, str] = MappingProxyType({})
    """What earlier attempts have finished, by name."""


class Settled(Enum):
    """What became of a verdict."""

    DONE = 1
    LOST = 0
    """Another consumer holds the entry: nothing was written."""
    GONE = -1
    """It was retired before: by a call whose reply was lost, a cancellation, another consumer. Nothing was written."""
    CANCELLED = 2
    """A cancellation came first: the job is cancelled."""


class StageStreams(Protocol):
    """What a stage needs of its streams."""

    async def read(self, count: int, block_ms: int) -> list[Entry]:
        """Return new entries, most urgent first; waits up to `block_ms` for one."""

    async def rescue(self, count: int, min_idle_ms: int) -> list[Entry]:
        """Take over abandoned entries."""

    async def begin(self, entries: Sequence[Entry]) -> list[Task]:
        """Return the entries that shall be worked on; the others are settled."""

    async def settle(self, settlements: Sequence[tuple[Task, Verdict]]) -> list[Settled]:
        """Carry out verdicts, in one round trip."""

    def renewal(self, task: Task, progress: str, parts: Sequence[tuple[str, str]] = ()) -> tuple[Any, ...]:
        """Return the command that renews a task's entry, and keeps finished parts of it."""

    def cancellation(self, task: Task) -> tuple[Any, ...] | None:
        """Return the command that asks whether a task's job shall be cancelled; None where nobody can ask for it."""

    async def room(self) -> None:
        """Return when the next stage keeps up; until then, more work would only pile up in the server's memory."""

    async def keep_house(self, gone_ms: int) -> None:
        """Queue what is due; forget consumers that are gone; see whether the next stage keeps up."""
