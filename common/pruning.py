"""Forgetting jobs that ended long ago: their transcripts, their uploads and their records.

Nothing is forgotten of a job that the queue still knows: one that runs again, or whose dead letter waits for somebody.
Files go first and the record last, so that a run that was killed is finished by the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import Unavailable
from common.formats import FORMATS
from common.sources import is_upload_of

if TYPE_CHECKING:
    from common.database import Database
    from common.queue import JobQueue
    from common.records import Job, State

_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was forgotten, or would be."""

    jobs: int = 0
    files: int = 0
    """Transcript files and uploads."""
    size_bytes: int = 0
    """Of the files."""
    kept: int = 0
    """Jobs that are old enough but that the queue still knows."""

    def __add__(self, other: Pruned) -> Pruned:
        return Pruned(
            self.jobs + other.jobs,
            self.files + other.files,
            self.size_bytes + other.size_bytes,
            self.kept + other.kept,
        )


@dataclass(frozen=True, slots=True)
class Pruner:
    """Forgets jobs of one queue."""

    database: Database
    queue: JobQueue
    results_dir: Path
    upload_dir: Path

    async def prune(
        self, before_ms: int, *, state: State | None = None, batch_id: str | None = None, dry_run: bool
    ) -> AsyncIterator[Pruned]:
        """Forget jobs, oldest first; yield how much so far, a few hundred jobs at a time.

        Args:
            before_ms: jobs that ended before this, in ms since 1970.
            state: only those that ended so.
            batch_id: only those of this batch.
            dry_run: only count.

        Raises:
            Unavailable: Redis, the database or a folder cannot be used now; what was forgotten so far is.
        """
        pruned, after = Pruned(), None
        while jobs := await self.database.oldest(
            before_ms, state=state, batch_id=batch_id, after=after, limit=_AT_ONCE
        ):
            pruned += await self._forget(jobs, dry_run)
            after = (jobs[-1].finished_ms or 0, jobs[-1].id)
            yield pruned

    async def _forget(self, jobs: list[Job], dry_run: bool) -> Pruned:
        known = await self.queue.known([job.id for job in jobs])
        gone = [job for job in jobs if job.id not in known]
        files = [path for job in gone for path in self._files_of(job)]
        count, size_bytes = await asyncio.to_thread(_removed, files, dry_run)
        if gone and not dry_run:
            await self.database.forget(gone)
        return Pruned(len(gone), count, size_bytes, len(jobs) - len(gone))

    def _files_of(self, job: Job) -> list[Path]:
        results = [self.results_dir / f"{job.id}.{format_}" for format_ in FORMATS]
        folder, _, name = job.spec.source.rpartition("/")
        is_own = folder == self.upload_dir.as_uri() and is_upload_of(job.id, name)
        return [*results, self.upload_dir / name] if is_own else results


def _removed(paths: Iterable[Path], dry_run: bool) -> tuple[int, int]:
    """Remove files, and return how many there were and their bytes."""
    count = size_bytes = 0
    for path in paths:
        try:
            found = path.lstat()
            if not dry_run:
                path.unlink()
        except FileNotFoundError:
            continue
        except OSError as exc:
            raise Unavailable(f"{path} cannot be removed: {exc.strerror}; its job is kept, prune again") from exc
        count, size_bytes = count + 1, size_bytes + found.st_size
    return count, size_bytes
