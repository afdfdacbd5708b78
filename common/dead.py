"""Dead letters: jobs that failed, and entries that are none, kept until an operator revives or drops them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import orjson

from common.queue import JobQueue, Revival
from common.records import Failure
from common.scripts import call

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A job, or an entry that is none, waiting for an operator."""

    dead_id: str
    job_id: str
    """"" for an entry without one."""
    reason: str
    failure: Failure
    stream: str | None
    """Where a discarded entry came from; None for a failed job."""
    fields: tuple[str, ...]
    """Its fields and values, in turn."""

    @property
    def id(self) -> str:
        """What an operator calls it: the job's id, or its own when it has none."""
        return self.job_id or self.dead_id


class DeadLetters:
    """The dead letters of one queue."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
        self._redis = queue.redis
        self._keys = queue.keys

    async def page(self, after: str, limit: int) -> tuple[list[DeadLetter], str | None]:
        """Return a page of dead letters, newest first, and the cursor of the next page or None."""
        newest = f"({after}" if after else "+"
        page = await self._redis.xrevrange(self._keys.dead, max=newest, count=limit)
        letters = [_dead_letter(dead_id, fields) for dead_id, fields in page]
        return letters, page[-1][0] if len(page) == limit else None

    async def find(self, name: str) -> DeadLetter | None:
        """Return the dead letter of a job id, or of an entry that has none by the letter's own id."""
        job = await self._queue.job(name)
        dead_id = job.dead_id if job else None
        if dead_id is None and not _is_entry_id(name):
            return await self._search(name)
        page = await self._redis.xrange(self._keys.dead, dead_id or name, dead_id or name)
        return _dead_letter(*page[0]) if page else None

    async def _search(self, job_id: str) -> DeadLetter | None:
        """Look through all dead letters for a discarded entry that names a job id."""
        after: str | None = ""
        while after is not None:
            letters, after = await self.page(after, 500)
            for letter in letters:
                if letter.job_id == job_id:
                    return letter
        return None

    async def revive(self, letter: DeadLetter) -> bool:
        """Run a dead letter again: its job as a new run, or a discarded entry back on its stream; atomic.

        Returns:
            False when it was revived or dropped meanwhile.
        """
        if letter.stream is None:
            return await self._queue.revive(letter.job_id) is Revival.QUEUED
        keys = [self._keys.dead, letter.stream, *self._job_key(letter)]
        return bool(await call(self._redis, "readd", keys, [letter.dead_id, *letter.fields]))

    async def drop(self, letter: DeadLetter, job_ttl_s: int) -> bool:
        """Forget a dead letter; False when it was revived or dropped meanwhile. The database keeps its record."""
        keys = [self._keys.dead, *self._job_key(letter)]
        return bool(await call(self._redis, "drop", keys, [letter.dead_id, job_ttl_s]))

    def _job_key(self, letter: DeadLetter) -> list[str]:
        return [self._keys.job(letter.job_id)] if letter.job_id else []


def _dead_letter(dead_id: str, fields: Mapping[str, str]) -> DeadLetter:
    return DeadLetter(
        dead_id=dead_id,
        job_id=fields.get("id", ""),
        reason=fields.get("reason", ""),
        failure=Failure.model_validate_json(fields["error"]),
        stream=fields.get("stream"),
        fields=tuple(orjson.loads(fields.get("fields", "[]"))),
    )


def _is_entry_id(text: str) -> bool:
    # Below 2^64 for certain: the server refuses larger numbers with an error.
    return re.fullmatch(r"[0-9]{1,19}-[0-9]{1,19}", text) is not None
