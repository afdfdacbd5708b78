"""The database: one terminal record a job, and each queue's epoch, kept for ever. SQLite by default, PostgreSQL by URL.

Every method is one short transaction and may be called again after `Unavailable`.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Select, delete, event, func, insert, make_url, select, tuple_
from sqlalchemy.engine import URL
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    NoSuchModuleError,
    SQLAlchemyError,
)
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from common.errors import SettingsError, SttreamError, Unavailable
from common.records import Job, State
from common.search import Hit, Query, to_hit, to_rows
from common.tables import (
    TerminalRecord,
    epochs,
    insert_epoch,
    insert_newer,
    jobs,
    newest_jobs,
    oldest_jobs,
    segments,
    to_job,
    to_row,
    transcripts,
)
from common.transcript import Transcript

if TYPE_CHECKING:
    import aiosqlite

__all__ = ["Database", "RecordRefused", "TerminalRecord"]

MIGRATIONS: Final = Path(__file__).parent / "migrations"

# Any number will do as long as nobody else locks it: "sttream" in ASCII.
_MIGRATION_LOCK: Final = 0x73747472_65616D

_DRIVERS: Final = {
    "sqlite": "sqlite+aiosqlite",
    "postgresql": "postgresql+asyncpg",
    "postgres": "postgresql+asyncpg",
}

# The SQLSTATE classes that blame the row: data exception, integrity constraint, program limit. All others blame
# the server, its set-up or the line: the row waits, since refusing it would lose a transcript.
_ROW_IS_WRONG: Final = frozenset({"22", "23", "54"})


class RecordRefused(SttreamError):
    """The database refuses a record for its content, and always will; nothing of the call was stored."""


class Database:
    """The jobs that have ended, and their transcripts. One a process: open, migrate, use, close."""

    def __init__(self, engine: AsyncEngine, *, timeout_s: float) -> None:
        self._engine = engine
        # In SQLite a reader that turns writer in mid-transaction is refused at once: writers say so at BEGIN.
        self._writing = engine.execution_options(sqlite_begin="BEGIN IMMEDIATE")
        self._where = _describe(engine.url)
        self._timeout_s = timeout_s
        self._dialect = engine.dialect.name
        self._insert = insert_newer(self._dialect)

    @classmethod
    def open(cls, url: str, *, timeout_s: float = 30.0, busy_timeout_s: float = 5.0) -> Self:
        """Make ready to connect; the first use connects.

        Args:
            url: `sqlite:///FILE` or `postgresql://…`, with or without the driver's name.
            timeout_s: limit of one call, `migrate` excepted.
            busy_timeout_s: how long SQLite waits for another process to finish writing.

        Raises:
            SettingsError: the URL is wrong or its driver is not installed.
        """
        parsed = _parse(url)
        try:
            # Parameters would put what was said into error messages.
            engine = create_async_engine(
                parsed, hide_parameters=True, pool_pre_ping=parsed.get_backend_name() == "postgresql"
            )
        except ModuleNotFoundError as exc:
            raise SettingsError(f"DATABASE_URL needs {exc.name}: install sttream[postgres]") from exc
        if engine.dialect.name == "sqlite":
            _prepare_sqlite(engine, busy_timeout_s)
        return cls(engine, timeout_s=timeout_s)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._engine.dispose()

    async def migrate(self) -> None:
        """Bring the tables up to date, in one transaction; does nothing when they are.

        Processes that start together take turns: by an advisory lock on PostgreSQL, by the write lock on SQLite.

        Raises:
            SettingsError: a newer sttream has migrated this database.
        """
        async with self._transaction(self._writing, None) as connection:
            if self._dialect == "postgresql":
                await connection.execute(select(func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            try:
                await connection.run_sync(_upgrade)
            except CommandError as exc:
                raise SettingsError(
                    f"{self._where}: {exc}. Was it migrated by a newer sttream? Update this one."
                ) from exc

    async def ping(self) -> None:
        """Read from the tables.

        Raises:
            Unavailable: they cannot be read now.
        """
        async with self._transaction(self._engine, self._timeout_s) as connection:
            await connection.execute(select(jobs.c.id).limit(1))

    async def store(self, records: Sequence[TerminalRecord]) -> None:
        """Store records and their transcripts in one transaction: all or none.

        A record replaces that of an earlier run of its job and yields to one of the same or a later run, so that
        storing twice is storing once.

        Raises:
            RecordRefused: one of them is refused for its content; store them one by one to find it.
        """
        # By id: writers that store the same jobs in another order would deadlock. One row an id: PostgreSQL
        # cannot update a row twice in one statement.
        latest = {record.job.id: record for record in sorted(records, key=lambda record: record.job.run)}
        if not latest:
            return
        async with self._transaction(self._writing, self._timeout_s) as connection:
            result = await connection.execute(self._insert, [to_row(latest[job_id]) for job_id in sorted(latest)])
            stored = sorted(result.scalars())
            said = {job_id: transcript for job_id in stored if (transcript := latest[job_id].transcript)}
            await connection.execute(delete(transcripts).where(transcripts.c.job_id.in_(stored)))
            if said:
                bodies = [{"job_id": job_id, "body": said[job_id].to_json().decode()} for job_id in said]
                await connection.execute(insert(transcripts), bodies)
            if rows := [row for job_id in said for row in to_rows(job_id, said[job_id], self._dialect)]:
                await connection.execute(insert(segments), rows)

    async def job(self, job_id: str) -> Job | None:
        """Return a job that has ended, None when no such job is stored."""
        rows = await self._read(select(jobs).where(jobs.c.id == job_id))
        return to_job(rows[0]) if rows else None

    async def transcript(self, job_id: str) -> Transcript | None:
        """Return what was said, None when no completed job of this id is stored."""
        rows = await self._read(select(transcripts.c.body).where(transcripts.c.job_id == job_id))
        return Transcript.model_validate_json(rows[0]["body"]) if rows else None

    async def jobs(
        self,
        *,
        state: State | None = None,
        batch_id: str | None = None,
        before: tuple[int, str] | None = None,
        limit: int = 50,
    ) -> list[Job]:
        """Return jobs that have ended, newest first by (finished_ms, id).

        Args:
            state: only those that ended so.
            batch_id: only those of this batch.
            before: the (finished_ms, id) of the last job of the page before.
            limit: the most to return.
        """
        query = newest_jobs(state=state, batch_id=batch_id, before=before, limit=limit)
        return [to_job(row) for row in await self._read(query)]

    async def oldest(
        self,
        before_ms: int,
        *,
        state: State | None = None,
        batch_id: str | None = None,
        after: tuple[int, str] | None = None,
        limit: int = 50,
    ) -> list[Job]:
        """Return jobs that ended before a time, oldest first by (finished_ms, id).

        Args:
            before_ms: in ms since 1970.
            state: only those that ended so.
            batch_id: only those of this batch.
            after: the (finished_ms, id) of the last job of the page before.
            limit: the most to return.
        """
        query = oldest_jobs(before_ms, state=state, batch_id=batch_id, after=after, limit=limit)
        return [to_job(row) for row in await self._read(query)]

    async def forget(self, ended: Sequence[Job]) -> None:
        """Delete jobs and their transcripts, in one transaction; one that has been run again meanwhile stays."""
        async with self._transaction(self._writing, self._timeout_s) as connection:
            same = tuple_(jobs.c.id, jobs.c.run).in_([(job.id, job.run) for job in ended])
            await connection.execute(delete(jobs).where(same))

    async def search(self, query: Query, *, after: tuple[int, str, int] | None = None, limit: int = 50) -> list[Hit]:
        """Return the segments in which all of it occurs, newest job first by (finished_ms, id), then by number.

        Args:
            query: what to look for.
            after: the (finished_ms, job_id, number) of the last hit of the page before.
            limit: the most to return.
        """
        rows = await self._read(query.matching(self._dialect, after=after, limit=limit))
        return [to_hit(row, query) for row in rows]

    async def count(self) -> int:
        """Return how many jobs have ended."""
        [row] = await self._read(select(func.count().label("count")).select_from(jobs))
        return int(row["count"])

    async def epoch(self, queue: str) -> str | None:
        """Return the epoch remembered for a queue; see `common.epoch`."""
        rows = await self._read(select(epochs.c.epoch).where(epochs.c.queue == queue))
        return str(rows[0]["epoch"]) if rows else None

    async def remember_epoch(self, queue: str, epoch: str, *, replace: bool = False) -> str:
        """Remember a queue's epoch; return the one that is remembered now.

        Args:
            queue: whose.
            epoch: the server's.
            replace: whether it takes the place of one that is there; else the first of several callers wins.
        """
        async with self._transaction(self._writing, self._timeout_s) as connection:
            store = insert_epoch(self._dialect, replace=replace)
            await connection.execute(store, {"queue": queue, "epoch": epoch})
            return str(await connection.scalar(select(epochs.c.epoch).where(epochs.c.queue == queue)))

    async def _read(self, query: Select[Any]) -> Sequence[Mapping[str, Any]]:
        async with self._transaction(self._engine, self._timeout_s) as connection:
            return [dict(row) for row in (await connection.execute(query)).mappings()]

    @asynccontextmanager
    async def _transaction(self, engine: AsyncEngine, timeout_s: float | None) -> AsyncGenerator[AsyncConnection]:
        """Run a block in a transaction, and say of each foreign exception whether trying again helps."""
        try:
            async with asyncio.timeout(timeout_s), engine.begin() as connection:
                yield connection
        except (SQLAlchemyError, OSError, ValueError, OverflowError) as exc:
            if _is_refusal(exc):
                raise RecordRefused(
                    f"{self._where} refuses a record for its content ({_kind(exc)}); nothing was stored"
                ) from exc
            raise Unavailable(f"{self._where} cannot be used now: {_reason(exc)}; try again later") from exc


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
        parsed = parsed.set(drivername=_DRIVERS.get(parsed.drivername, parsed.drivername))
        backend = parsed.get_backend_name()
    except (ArgumentError, NoSuchModuleError, ValueError):
        # Not `from exc`: the message may quote the URL, and with it a password.
        raise SettingsError("DATABASE_URL is no database URL: expected sqlite:///FILE or postgresql://…") from None
    if parsed.drivername not in _DRIVERS.values():
        raise SettingsError(f"DATABASE_URL: expected sqlite:///FILE or postgresql://…, found {parsed.drivername}")
    if backend == "sqlite" and parsed.database in {None, "", ":memory:"}:
        raise SettingsError("DATABASE_URL names no file: records kept in memory would be lost with the process")
    return parsed


def _describe(url: URL) -> str:
    if url.get_backend_name() == "sqlite":
        return f"SQLite file {url.database}"
    host = f"{url.host}:{url.port or 5432}" if url.host else "the local socket"
    return f"PostgreSQL database {url.database} at {host}"


def _prepare_sqlite(engine: AsyncEngine, busy_timeout_s: float) -> None:
    """Take transactions into our own hands and set each new connection up for safety."""

    @event.listens_for(engine.sync_engine, "connect")
    def _connected(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # or Python's sqlite3 chooses when transactions begin
        try:
            connection.run_async(lambda driver: _set_pragmas(driver, busy_timeout_s))
        except sqlite3.Error:
            connection.close()  # SQLAlchemy forgets a connection that fails here
            raise

    @event.listens_for(engine.sync_engine, "begin")
    def _begun(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("sqlite_begin", "BEGIN"))


async def _set_pragmas(connection: aiosqlite.Connection, busy_timeout_s: float) -> None:
    """Make a commit survive power loss, since the queue's entry is deleted after it."""
    for pragma in (
        f"busy_timeout = {round(busy_timeout_s * 1000)}",
        "foreign_keys = ON",
        "synchronous = FULL",  # NORMAL, in WAL mode, may lose the last commits
        "fullfsync = ON",  # macOS: its fsync alone does not reach the disk
    ):
        await connection.execute_fetchall(f"PRAGMA {pragma}")
    await _enter_wal(connection, busy_timeout_s)


async def _enter_wal(connection: aiosqlite.Connection, busy_timeout_s: float) -> None:
    """Switch a new file to the write-ahead log; SQLite does not wait for locks here, so we do."""
    deadline_s = asyncio.get_running_loop().time() + busy_timeout_s
    while True:
        try:
            await connection.execute_fetchall("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode != sqlite3.SQLITE_BUSY or asyncio.get_running_loop().time() > deadline_s:
                raise
            await asyncio.sleep(0.01)
        else:
            return


def _is_refusal(exc: Exception) -> bool:
    """Whether the row itself is at fault, so that trying again cannot help."""
    if isinstance(exc, IntegrityError | DataError):
        return True
    if isinstance(exc, DBAPIError):
        sqlstate = getattr(exc.orig, "sqlstate", None)
        if sqlstate:
            return sqlstate[:2] in _ROW_IS_WRONG
        # asyncpg checks parameters before it sends them; SQLAlchemy shows that as an InterfaceError.
        return isinstance(getattr(exc.orig, "__cause__", None), ValueError)
    return isinstance(exc, ValueError | OverflowError)


def _origin(exc: Exception) -> BaseException:
    """Return the driver's exception inside SQLAlchemy's wrapping."""
    if not isinstance(exc, DBAPIError) or exc.orig is None:
        return exc
    return exc.orig.__cause__ or exc.orig


def _kind(exc: Exception) -> str:
    """Return what kind of refusal it is, without the message: drivers quote the row in it."""
    origin = _origin(exc)
    sqlstate = getattr(origin, "sqlstate", None)
    return type(origin).__name__ + (f", SQLSTATE {sqlstate}" if sqlstate else "")


def _reason(exc: Exception) -> str:
    """Return the kind of trouble and the first line of the driver's message."""
    first_line = str(_origin(exc)).partition("\n")[0]
    return f"{_kind(exc)}: {first_line or 'no answer in time'}"
