"""Pages over all jobs: those under way in Redis, then those that have ended in the database."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from pydantic import TypeAdapter

from common.records import TERMINAL, Job, State, check_id
from producer import cursors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from producer.parts import Parts

UNDER_WAY = (State.SCHEDULED, State.QUEUED, State.RUNNING, State.TRANSCRIBED)
ENDED = "ended"
# Looks at Redis for one page: where few of many entries match, a page comes back short rather than late.
_MOST_LOOKS = 20
# What `JobQueue.under_way` hands out: a position in the delayed set, or a stream and an entry of it.
_PLACE = re.compile(r"|[0-9]{1,12}|[0-2]/([0-9]{1,19}-[0-9]{1,19})?")

_CURSOR: TypeAdapter[tuple[str, str, tuple[int, str] | None]] = TypeAdapter(tuple[str, str, tuple[int, str] | None])


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page begins: a state under way and what `JobQueue.under_way` said, or a job that has ended."""

    state: str
    after: str = ""
    before: tuple[int, str] | None = None

    def to_cursor(self) -> str:
        """Return the place as an opaque text."""
        return cursors.pack([self.state, self.after, self.before])

    @classmethod
    def from_cursor(cls, cursor: str, states: Sequence[str]) -> Self:
        """Read a cursor that is for one of these states.

        Raises:
            Problem: 400, it was not handed out by this route, or for another filter.
        """
        place = None
        with contextlib.suppress(ValueError):
            if told := cursors.unpack(cursor, _CURSOR):
                state, after, before = told
                place = cls(state, after, before and (before[0], check_id(before[1])))
        if place is None or place.state not in states or not _fits(place):
            raise cursors.invalid()
        return place


def _fits(place: Place) -> bool:
    if place.state == ENDED:
        return place.after == "" and (place.before is None or abs(place.before[0]) < 2**62)
    if place.before is not None or not _PLACE.fullmatch(place.after):
        return False
    if place.state == State.SCHEDULED:
        return "/" not in place.after
    most_streams = 1 if place.state == State.TRANSCRIBED else 3
    return place.after == "" or ("/" in place.after and int(place.after[0]) < most_streams)


async def list_jobs(
    parts: Parts, state: State | None, batch_id: str | None, cursor: str | None, limit: int
) -> tuple[list[Job], str | None]:
    """Return a page of jobs, and the cursor of the next one or None after the last.

    A page may be shorter than the limit, even empty, before the last; a job that moves on meanwhile may be
    missed or seen twice.
    """
    sections = _sections(state)
    place: Place | None = Place.from_cursor(cursor, sections) if cursor else Place(sections[0])
    found: dict[str, Job] = {}
    for _ in range(_MOST_LOOKS):
        if place is None or len(found) >= limit:
            break
        page, place = await _look(parts, place, sections, (state, batch_id), limit - len(found))
        found |= {job.id: job for job in page}
    return list(found.values()), place.to_cursor() if place else None


def _sections(state: State | None) -> tuple[str, ...]:
    """Return where jobs of a state are found, in the order of the list; None for any state."""
    if state is None:
        return (*UNDER_WAY, ENDED)
    return (ENDED,) if state in TERMINAL else (state,)


async def _look(
    parts: Parts,
    place: Place,
    sections: Sequence[str],
    wanted: tuple[State | None, str | None],
    limit: int,
) -> tuple[list[Job], Place | None]:
    """Return up to `limit` jobs from a place on, and the place after them."""
    state, batch_id = wanted
    if place.state == ENDED:
        jobs = await parts.database.jobs(state=state, batch_id=batch_id, before=place.before, limit=limit)
        last = jobs[-1] if len(jobs) == limit else None
        return jobs, Place(ENDED, before=(last.finished_ms or 0, last.id)) if last else None
    jobs, after = await parts.queue.under_way(State(place.state), place.after, limit)
    if batch_id is not None:
        jobs = [job for job in jobs if job.spec.batch_id == batch_id]
    if after:
        return jobs, Place(place.state, after)
    following = sections[sections.index(place.state) + 1 :]
    return jobs, Place(following[0]) if following else None
