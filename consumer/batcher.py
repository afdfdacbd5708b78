"""Who comes next: what waits for the model, in batches that one call can do.

A batch is of one kind, and of as many jobs as have something of it: a long recording cannot starve short ones, and
short ones fill the batches of long ones.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Hashable, Iterator
from typing import Generic, Protocol, TypeVar


class Item(Protocol):
    """Something that waits."""

    @property
    def job(self) -> Hashable:
        """Whose it is: jobs take turns."""

    @property
    def kind(self) -> Hashable:
        """What may be done together: items of one kind."""


T = TypeVar("T", bound=Item)


class Batcher(Generic[T]):
    """The items that wait. Threads put and take."""

    def __init__(self, takers: int) -> None:
        """Begin empty.

        Args:
            takers: threads that take: what waits is shared between them.
        """
        self._takers = takers
        self._waiting: dict[Hashable, deque[T]] = {}
        """By job; the job whose turn it is comes first, and a job is in it while it has something."""
        self._changed = threading.Condition()
        self._closed = False

    def put(self, item: T) -> None:
        """Let an item wait behind those of its job."""
        with self._changed:
            self._waiting.setdefault(item.job, deque()).append(item)
            self._changed.notify()

    def take(self, most: int) -> list[T]:
        """Return the next batch, waiting for the first item only; empty when closed.

        The first item of the job whose turn it is decides the kind: none waits for company that may not come, and a
        kind that is rare comes as soon as any. While little waits, each taker gets its share of it.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return []
            first = next(iter(self._waiting.values()))[0]
            of_this_kind = sum(item.kind == first.kind for items in self._waiting.values() for item in items)
            most = min(most, -(-of_this_kind // self._takers))
            batch: list[T] = []
            while len(batch) < most and (taken := list(self._one_of_each(first.kind, most - len(batch)))):
                batch += taken
            return batch

    def _one_of_each(self, kind: Hashable, most: int) -> Iterator[T]:
        """Take one item of this kind of each job that has one; who gave goes to the end of the line."""
        for job in list(self._waiting):
            if most == 0:
                return
            items = self._waiting[job]
            item = next((item for item in items if item.kind == kind), None)
            if item is None:
                continue
            items.remove(item)
            del self._waiting[job]
            if items:
                self._waiting[job] = items
            most -= 1
            yield item

    def close(self) -> None:
        """Wake all who wait; nothing is taken any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
