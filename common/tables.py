"""The tables: one terminal record a job, the transcripts of the completed ones, and the epoch of each queue.

Times are milliseconds of the server's clock, as everywhere else in sttream: no time zone, no rounding, and the
same number in Redis, in both databases and in a cursor. A change here needs a migration; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Index,
    Insert,
    Integer,
    MetaData,
    Select,
    Table,
    Text,
    select,
    tuple_,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.dml import ReturningInsert

from common.records import Failure, Job, JobSpec, State
from common.transcript import Transcript

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
    }
)

# Pages are cut by (finished_ms, id); byte order makes PostgreSQL agree with SQLite and Python on what comes next.
IdText = Text().with_variant(Text(collation="C"), "postgresql")

jobs = Table(
    "jobs",
    metadata,
    Column("id", IdText, primary_key=True),
    Column("run", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("priority", Text, nullable=False),
    Column("batch_id", Text),
    Column("spec", Text, nullable=False),  # JobSpec.to_json(): canonical, so that equal text is the same job
    Column("attempts", BigInteger, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("queued_ms", BigInteger),
    Column("started_ms", BigInteger),
    Column("finished_ms", BigInteger, nullable=False),
    Column("stored_ms", BigInteger, nullable=False),
    Column("worker", Text),
    Column("audio_s", Float),
    Column("language", Text),
    Column("error_type", Text),
    Column("error_detail", Text),
    # Each serves one way of listing, newest first, without a sort.
    Index("ix_jobs_finished", "finished_ms", "id"),
    Index("ix_jobs_state_finished", "state", "finished_ms", "id"),
    Index("ix_jobs_batch_finished", "batch_id", "finished_ms", "id"),
)

transcripts = Table(
    "transcripts",
    metadata,
    Column("job_id", IdText, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("body", Text, nullable=False),
)

# What is found by its words: see `common.search`. Rows are never changed, only deleted with their transcript. The index
# of the words is `segment_words`, on SQLite a table of its own kept in step by triggers; only the migration knows how
# each database makes it.
segments = Table(
    "segments",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("job_id", IdText, ForeignKey("transcripts.job_id", ondelete="CASCADE"), nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("start_s", Float, nullable=False),
    Column("end_s", Float, nullable=False),
    Column("text", Text, nullable=False),
    Column("words", Text().with_variant(postgresql.TSVECTOR, "postgresql"), nullable=False),
    Index("ix_segments_job", "job_id"),
)

# Which data in Redis the jobs above belong to; see `common.epoch`.
epochs = Table(
    "epochs",
    metadata,
    Column("queue", Text, primary_key=True),
    Column("epoch", Text, nullable=False),
)


@dataclass(frozen=True, slots=True)
class TerminalRecord:
    """What is kept of a job for ever: how it ended, and what was said if it was completed."""

    job: Job
    transcript: Transcript | None
    stored_ms: int

    def __post_init__(self) -> None:
        if not self.job.terminal or self.job.finished_ms is None:
            raise ValueError(f"job {self.job.id}: a terminal record needs an end, found state {self.job.state}")
        if (self.transcript is not None) != (self.job.state is State.COMPLETED):
            raise ValueError(f"job {self.job.id}: only completed jobs have a transcript, found {self.job.state}")


def to_row(record: TerminalRecord) -> dict[str, Any]:
    """Return the values of a record's row in `jobs`."""
    job, transcript = record.job, record.transcript
    return {
        "id": job.id,
        "run": job.run,
        "state": job.state.value,
        "source": job.spec.source,
        "priority": job.spec.priority,
        "batch_id": job.spec.batch_id,
        "spec": job.spec.to_json(),
        "attempts": job.attempts,
        "created_ms": job.created_ms,
        "queued_ms": job.queued_ms,
        "started_ms": job.started_ms,
        "finished_ms": job.finished_ms,
        "stored_ms": record.stored_ms,
        "worker": job.worker,
        "audio_s": job.audio_s,
        "language": transcript.language if transcript else None,
        "error_type": job.error.type if job.error else None,
        "error_detail": job.error.detail if job.error else None,
    }


def to_job(row: Mapping[str, Any]) -> Job:
    """Return the job of a row in `jobs`."""
    state = State(row["state"])
    times = ("created_ms", "queued_ms", "started_ms", "finished_ms")
    return Job(
        id=row["id"],
        spec=JobSpec.model_validate_json(row["spec"]),
        state=state,
        run=row["run"],
        attempts=row["attempts"],
        progress=1.0 if state is State.COMPLETED else 0.0,
        audio_s=row["audio_s"],
        worker=row["worker"],
        error=Failure(type=row["error_type"], detail=row["error_detail"]) if row["error_type"] else None,
        **{name: row[name] for name in times},
    )


def insert_newer(dialect: str) -> ReturningInsert[Any]:
    """Return the statement that stores jobs, save those of which this or a later run is there; gives their ids."""
    new = postgresql.insert(jobs) if dialect == "postgresql" else sqlite.insert(jobs)
    values = {column.name: new.excluded[column.name] for column in jobs.c if not column.primary_key}
    return new.on_conflict_do_update(
        index_elements=[jobs.c.id], set_=values, where=jobs.c.run < new.excluded.run
    ).returning(jobs.c.id)


def insert_epoch(dialect: str, *, replace: bool) -> Insert:
    """Return the statement that stores a queue's epoch; unless it shall replace, the one that is there stays."""
    new = postgresql.insert(epochs) if dialect == "postgresql" else sqlite.insert(epochs)
    if replace:
        return new.on_conflict_do_update(index_elements=[epochs.c.queue], set_={"epoch": new.excluded.epoch})
    return new.on_conflict_do_nothing(index_elements=[epochs.c.queue])


def oldest_jobs(
    before_ms: int, *, state: State | None, batch_id: str | None, after: tuple[int, str] | None, limit: int
) -> Select[Any]:
    """Return the query of one page of the jobs that ended before a time, oldest first; an index gives the order."""
    query = _jobs_with(state, batch_id).order_by(jobs.c.finished_ms, jobs.c.id).limit(limit)
    query = query.where(jobs.c.finished_ms < before_ms)
    if after is not None:
        query = query.where(tuple_(jobs.c.finished_ms, jobs.c.id) > after)
    return query


def newest_jobs(
    *, state: State | None, batch_id: str | None, before: tuple[int, str] | None, limit: int
) -> Select[Any]:
    """Return the query of one page of jobs, newest first by (finished_ms, id); an index gives the order."""
    query = _jobs_with(state, batch_id).order_by(jobs.c.finished_ms.desc(), jobs.c.id.desc()).limit(limit)
    if before is not None:
        query = query.where(tuple_(jobs.c.finished_ms, jobs.c.id) < before)
    return query


def _jobs_with(state: State | None, batch_id: str | None) -> Select[Any]:
    query = select(jobs)
    if state is not None:
        query = query.where(jobs.c.state == state.value)
    if batch_id is not None:
        query = query.where(jobs.c.batch_id == batch_id)
    return query
