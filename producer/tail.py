"""The event stream, read once a process and fanned out to every client that listens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common.connection import BLOCK_MS, server_is_away
from common.outage import Outage

if TYPE_CHECKING:
    from common.queue import JobQueue

# Entries that wait for a client that reads slower than jobs change. One that lags more is cut off and comes back
# with Last-Event-ID.
_BACKLOG = 1_000
_PAGE = 500


@dataclass(frozen=True, slots=True)
class Event:
    """One change of one job."""

    entry_id: str
    fields: Mapping[str, str]

    @property
    def job_id(self) -> str:
        """The job that changed."""
        return self.fields.get("id", "")


Listener = asyncio.Queue[Event | None]
"""None: nothing follows; the client lagged, or the process stops."""


class EventTail:
    """Reads the event stream while `run` runs."""

    def __init__(self, queue: JobQueue) -> None:
        self._redis = queue.redis
        self._key = queue.keys.events
        self._listeners: dict[str | None, set[Listener]] = {}
        self._closed = False

    async def run(self, last: str | None = None) -> None:
        """Read new events until cancelled; one blocking read serves every client.

        Args:
            last: the event after which to begin; None for the newest when the server first answers.
        """
        outage = Outage("event stream")
        while True:
            try:
                if last is None:
                    last = await self.newest()
                reply: Any = await self._redis.xread({self._key: last}, count=_PAGE, block=BLOCK_MS)
            except Exception as exc:
                if not server_is_away(exc):
                    raise
                await asyncio.sleep(outage.failed(exc))
                continue
            outage.over()
            for event in _events(reply[0][1] if reply else ()):
                last = event.entry_id
                self._tell(event)

    def _tell(self, event: Event) -> None:
        for name in (event.job_id, None):
            for listener in list(self._listeners.get(name, ())):
                if listener.full():
                    self._end(name, listener)
                else:
                    listener.put_nowait(event)

    def _end(self, name: str | None, listener: Listener) -> None:
        self._listeners[name].discard(listener)
        while listener.full():
            listener.get_nowait()
        listener.put_nowait(None)

    @contextmanager
    def listen(self, job_id: str | None) -> Iterator[Listener]:
        """Receive the events of one job, or of all, from now on."""
        listener: Listener = asyncio.Queue(_BACKLOG)
        listeners = self._listeners.setdefault(job_id, set())
        listeners.add(listener)
        if self._closed:
            self._end(job_id, listener)
        try:
            yield listener
        finally:
            listeners.discard(listener)
            if not listeners and self._listeners.get(job_id) is listeners:
                del self._listeners[job_id]

    def close(self) -> None:
        """End every client's stream, so that their connections can close."""
        self._closed = True
        for name, listeners in self._listeners.items():
            for listener in list(listeners):
                self._end(name, listener)

    async def newest(self) -> str:
        """Return the id of the newest event, "0-0" when there is none."""
        page = await self._redis.xrevrange(self._key, count=1)
        return str(page[0][0]) if page else "0-0"

    async def oldest(self) -> str | None:
        """Return the id of the oldest event that is kept."""
        page = await self._redis.xrange(self._key, count=1)
        return str(page[0][0]) if page else None

    async def after(self, entry_id: str, job_id: str | None) -> AsyncIterator[Event]:
        """Yield the events kept after an id, oldest first: of one job, or of all."""
        while True:
            page = _events(await self._redis.xrange(self._key, min=f"({entry_id}", count=_PAGE))
            for event in page:
                if job_id in {None, event.job_id}:
                    yield event
            if len(page) < _PAGE:
                return
            entry_id = page[-1].entry_id


def _events(page: Iterable[Any] | None) -> list[Event]:
    """Read a page of entries; redis-py's types allow for every protocol, and ours is pinned."""
    return [Event(entry_id, fields or {}) for entry_id, fields in page or ()]
