"""What a stream with one group does, in plain Python: who holds which entry, with which delivery count."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from common.entries import Settled
from common.keys import RELEASED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from common.entries import Entry


@dataclass
class Carried:
    """An entry on a stream, and who holds it."""

    fields: Mapping[str, str]
    consumer: str | None = None
    deliveries: int = 0


@dataclass
class Stream:
    """A stream with its one group."""

    entries: dict[str, Carried] = field(default_factory=dict)
    """In the order of their ids."""
    added: int = 0
    """Entries over its life."""
    cursors: dict[str, str | None] = field(default_factory=dict)
    """Where a consumer's next rescue goes on; None at the first entry."""

    @property
    def pending(self) -> dict[str, tuple[str, int]]:
        return {key: (held.consumer, held.deliveries) for key, held in self.entries.items() if held.consumer}

    def read(self, consumer: str, count: int) -> list[tuple[str, int]]:
        fresh = [entry_id for entry_id, carried in self.entries.items() if not carried.deliveries][:count]
        return [(entry_id, self._deliver(entry_id, consumer)) for entry_id in fresh]

    def rescue(self, consumer: str, count: int, *, released_only: bool) -> list[tuple[str, int]]:
        """One XAUTOCLAIM: from the cursor on, until there are enough or the end is reached."""
        cursor = self.cursors.pop(consumer, None)
        taken: list[tuple[str, int]] = []
        for entry_id, (holder, _) in self.pending.items():
            if cursor and as_number(entry_id) < as_number(cursor):
                continue
            if len(taken) == count:
                self.cursors[consumer] = entry_id
                break
            if holder == RELEASED or not released_only:
                taken.append((entry_id, self._deliver(entry_id, consumer)))
        return taken

    def lose_group(self) -> None:
        """Forget who holds what: the group was destroyed, and made again at the first entry."""
        for carried in self.entries.values():
            carried.consumer, carried.deliveries = None, 0

    def _deliver(self, entry_id: str, consumer: str) -> int:
        carried = self.entries[entry_id]
        carried.consumer, carried.deliveries = consumer, carried.deliveries + 1
        return carried.deliveries

    def held(self, consumer: str, entry: Entry) -> Settled:
        """What the fence says of a delivery."""
        carried = self.entries.get(entry.entry_id)
        if carried is None or carried.consumer is None:
            return Settled.GONE
        ours = (carried.consumer, carried.deliveries) == (consumer, entry.deliveries)
        return Settled.DONE if ours else Settled.LOST


def as_number(entry_id: str) -> tuple[int, int]:
    ms, _, sequence = entry_id.partition("-")
    return int(ms), int(sequence)
