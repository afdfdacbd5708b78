"""The database on SQLite and on PostgreSQL: what is stored, what is refused, what is safe to repeat."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import socket
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Connection, insert, text
from sqlalchemy.dialects import sqlite

from common.database import MIGRATIONS, Database, RecordRefused, TerminalRecord
from common.errors import SettingsError, Unavailable
from common.records import Failure, Job, JobSpec, State
from common.search import Query
from common.tables import jobs, metadata, newest_jobs, to_row, transcripts
from common.transcript import Segment, Timings, Transcript, Word
from tests.integration.database.postgres import PostgresServer
from tests.until import until

SPEC = JobSpec(source="file:///audio/a.wav", priority="high", metadata={"é": "1"}, batch_id="b-1")


def transcript(job_id: str, said: str = "hello") -> Transcript:
    word = Word(start=0.0, end=0.5, word=said, probability=0.9)
    segment = Segment(id=0, start=0, end=0.5, text=said, avg_logprob=-0.1, no_speech_prob=0.0, words=(word,))
    return Transcript(
        job_id=job_id,
        source=SPEC.source,
        language="en",
        language_probability=0.99,
        duration_s=0.5,
        text=said,
        segments=(segment,),
        model="tiny.en",
        timings=Timings(queued_s=0, fetch_s=0, prepare_s=0, transcribe_s=1, realtime_factor=0.5),
    )


def completed(job_id: str, *, said: str = "hello", **more: Any) -> TerminalRecord:
    times = {"created_ms": 1_000, "queued_ms": 1_001, "started_ms": 1_002, "finished_ms": 1_003}
    facts = times | {"attempts": 2, "progress": 1.0, "audio_s": 0.5, "worker": "host-1-ab"} | more
    job = Job.model_validate({"id": job_id, "spec": SPEC, "state": "completed", **facts})
    return TerminalRecord(job, transcript(job_id, said), stored_ms=1_004)


def failed(job_id: str, *, detail: str = "no such file", **more: Any) -> TerminalRecord:
    error = Failure(type="source_missing", detail=detail)
    facts = {"state": "failed", "error": error, "created_ms": 1, "finished_ms": 2} | more
    return TerminalRecord(Job.model_validate({"id": job_id, "spec": SPEC, **facts}), None, stored_ms=3)


def sqlite_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "_connection_worker" in thread.name]


async def ids(database: Database, **query: Any) -> list[str]:
    return [job.id for job in await database.jobs(**query)]


async def test_a_stored_job_reads_back_as_it_was(database: Database) -> None:
    """The database is the only memory of a job once its hash has expired."""
    done, lost = completed("done"), failed("lost")
    await database.store([done, lost])

    assert await database.job("done") == done.job
    assert await database.job("lost") == lost.job
    assert await database.transcript("done") == done.transcript
    assert await database.transcript("lost") is None
    assert await database.job("other") is None


async def test_storing_twice_is_storing_once(database: Database) -> None:
    """Delivery is at least once: a writer killed after its commit stores the same record again."""
    first = completed("a")
    await database.store([first, first])
    await database.store([completed("a", said="other words", finished_ms=9_999)])

    assert await database.jobs() == [first.job]
    assert await database.transcript("a") == first.transcript


async def test_a_later_run_replaces_the_record_and_its_transcript(database: Database) -> None:
    """A failed job that is revived and completed is completed; a late copy of its first end changes nothing."""
    second = completed("a", run=2)
    await database.store([failed("a")])
    await database.store([second, failed("a")])
    await database.store([failed("a")])

    assert await database.job("a") == second.job
    assert await database.transcript("a") == second.transcript


async def test_a_later_run_without_a_transcript_takes_the_old_one_away(database: Database) -> None:
    """A job must never show the words of a run that is not the one recorded."""
    await database.store([completed("a")])
    await database.store([failed("a", run=2)])

    assert (await database.jobs())[0].state is State.FAILED
    assert await database.transcript("a") is None


async def test_a_run_may_be_a_time(database: Database) -> None:
    """A job added again by hand after its hash has expired has its entry's time as run: later than any counted one."""
    by_time = completed("a", run=1_795_000_000_000)
    await database.store([failed("a", run=3)])
    await database.store([by_time])
    await database.store([failed("a", run=4), failed("b", run=2**53)])

    assert await database.job("a") == by_time.job
    assert (await database.jobs(state=State.FAILED))[0].run == 2**53


async def test_the_first_of_several_epochs_is_remembered(url: str, database: Database) -> None:
    """Services that start together on a new database must agree on what it belongs to."""
    assert await database.epoch("calls") is None
    async with contextlib.aclosing(Database.open(url, busy_timeout_s=10)) as other:
        told = await asyncio.gather(
            *(one.remember_epoch("calls", f"{n}") for n in range(5) for one in (database, other)),
        )

    assert set(told) == {await database.epoch("calls")}
    assert await database.epoch("meetings") is None


async def test_an_epoch_is_replaced_only_on_purpose(database: Database) -> None:
    """Only an operator decides that another server's data are the right ones."""
    await database.remember_epoch("calls", "before")

    assert await database.remember_epoch("calls", "after") == "before"
    assert await database.remember_epoch("calls", "after", replace=True) == "after"
    assert await database.epoch("calls") == "after"


async def test_jobs_are_counted(database: Database) -> None:
    """What an operator is told who has to decide about lost data."""
    await database.store([completed("a"), failed("b")])
    assert await database.count() == 2


@pytest.mark.parametrize("wrong", [{"run": 2**70}, {"created_ms": None}])
async def test_one_refused_record_stores_nothing_of_its_batch(database: Database, wrong: dict[str, Any]) -> None:
    """The writer looks for the record at fault one by one, so the batch must be as if it had never been sent."""
    good, bad = completed("good"), completed("bad")
    bad = TerminalRecord(bad.job.model_copy(update=wrong), bad.transcript, bad.stored_ms)
    with pytest.raises(RecordRefused) as refused:
        await database.store([good, bad])

    assert await database.jobs() == []
    assert "hello" not in str(refused.value)


async def test_postgresql_refuses_a_nul_character_for_what_it_is(postgres: PostgresServer) -> None:
    """Taken for trouble with the server it would be tried for ever, and hold up everything behind it."""
    database = Database.open(postgres.new_database())
    await database.migrate()
    with pytest.raises(RecordRefused, match="22021") as refused:
        await database.store([failed("a", worker="secret\0words")])
    assert "secret" not in str(refused.value)
    await database.store([])
    await database.aclose()


async def test_pages_follow_each_other_without_gap_or_repeat(database: Database) -> None:
    """Many jobs end in the same millisecond; a cursor by time alone would skip some."""
    for name in ("d", "a", "e", "B", "c"):  # no order in which rows may come back by chance
        await database.store([failed(name, finished_ms=8 if name == "a" else 7)])

    pages, before = [], None
    while page := await database.jobs(before=before, limit=2):
        pages.append([job.id for job in page])
        before = (page[-1].finished_ms or 0, page[-1].id)

    assert pages == [["a", "e"], ["d", "c"], ["B"]]


async def test_lists_can_be_narrowed_to_a_state_and_a_batch(database: Database) -> None:
    """The queue page and a batch's results ask for these."""
    other = SPEC.model_copy(update={"batch_id": None})
    await database.store([completed("a"), failed("b"), completed("c", spec=other)])

    assert await ids(database, state=State.COMPLETED) == ["c", "a"]
    assert await ids(database, batch_id="b-1") == ["a", "b"]
    assert await ids(database, batch_id="b-1", state=State.FAILED) == ["b"]
    assert await ids(database, state=State.CANCELLED) == []


@pytest.mark.parametrize(
    ("narrowed", "index"),
    [
        ({}, "ix_jobs_finished"),
        ({"state": State.FAILED}, "ix_jobs_state_finished"),
        ({"batch_id": "b"}, "ix_jobs_batch_finished"),
    ],
)
async def test_each_list_is_read_from_an_index_in_order(tmp_path: Path, narrowed: Any, index: str) -> None:
    """With millions of jobs a sort for each page would stop the producer."""
    database = Database.open(f"sqlite:///{tmp_path / 'a.db'}")
    await database.migrate()
    await database.aclose()
    asked = {"state": None, "batch_id": None, "before": (5, "x"), "limit": 10} | narrowed
    statement = newest_jobs(**asked).compile(dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True})
    connection = sqlite3.connect(tmp_path / "a.db")
    plan = " ".join(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}"))
    connection.close()

    assert f"USING INDEX {index} (" in plan
    assert "TEMP B-TREE" not in plan


async def test_the_migrated_tables_are_those_of_the_code(database: Database) -> None:
    """A column added to the code without a migration works in tests and fails at the first upgrade."""

    def ours(_: object, name: str, *__: object) -> bool:
        return not name.startswith("segment_words")  # the one index that each database makes in its own way

    def differences(connection: Connection) -> Sequence[Any]:
        options = {"compare_type": True, "include_object": ours}
        return compare_metadata(MigrationContext.configure(connection, opts=options), metadata)

    async with database._engine.connect() as connection:
        assert await connection.run_sync(differences) == []


async def test_a_database_of_the_first_version_keeps_its_jobs(url: str) -> None:
    """An update brings the tables up to date under records that nobody can make again."""

    def first_version(connection: Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")

    async with contextlib.aclosing(Database.open(url)) as database:
        async with database._writing.begin() as connection:
            await connection.run_sync(first_version)
            record = completed("a", said="hello again")
            await connection.execute(insert(jobs), to_row(record))
            body = transcript("a", "hello again").to_json().decode()
            await connection.execute(insert(transcripts), {"job_id": "a", "body": body})
        await database.migrate()

        assert await ids(database) == ["a"]
        assert [hit.snippet for hit in await database.search(Query.parse("again"))] == ["hello ⟦again⟧"]
        assert await database.remember_epoch("calls", "first") == "first"


def migrate_at_once(url: str, barrier: Any) -> None:
    """What a service does when it starts; run in a process of its own."""

    async def migrate() -> None:
        database = Database.open(url, busy_timeout_s=30)
        barrier.wait(timeout=60)
        await database.migrate()
        await database.store([failed(multiprocessing.current_process().name)])
        await database.aclose()

    asyncio.run(migrate())


async def test_processes_that_start_together_migrate_once(url: str) -> None:
    """`sttream up` starts four services at the same moment, a cluster hundreds."""
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(6)
    processes = [spawn.Process(target=migrate_at_once, args=(url, barrier), name=f"p{n}") for n in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        await asyncio.to_thread(process.join, 90)

    assert [process.exitcode for process in processes] == [0] * 6
    database = Database.open(url)
    assert len(await database.jobs()) == 6
    await database.aclose()


async def test_an_older_process_leaves_a_newer_database_alone(database: Database, url: str) -> None:
    """During an upgrade a process of the old version may start again; it must say so instead of writing."""
    async with database._engine.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))

    with pytest.raises(SettingsError, match="newer sttream"):
        await database.migrate()


async def test_a_commit_in_sqlite_survives_power_loss(tmp_path: Path) -> None:
    """The queue's entry is deleted after the commit: a commit that is only in memory would be a lost job."""
    database = Database.open(f"sqlite:///{tmp_path / 'a.db'}")
    async with database._engine.connect() as connection:
        found = {
            name: (await connection.execute(text(f"PRAGMA {name}"))).scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "fullfsync")
        }
    await database.aclose()
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "fullfsync": 1}


async def test_a_locked_sqlite_file_is_trouble_that_passes(tmp_path: Path) -> None:
    """Another process that writes for long must not cost a record."""
    database = Database.open(f"sqlite:///{tmp_path / 'a.db'}", busy_timeout_s=0.05)
    await database.migrate()
    other = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="locked"):
        await database.store([completed("a")])
    await database.ping()  # reading goes on

    other.rollback()
    await database.store([completed("a")])
    assert await ids(database) == ["a"]
    other.close()
    await database.aclose()


async def test_a_full_disk_is_trouble_that_passes(tmp_path: Path) -> None:
    """SQLite has no code of its own for it in Python; taken for bad content it would cost the record."""
    database = Database.open(f"sqlite:///{tmp_path / 'a.db'}")
    await database.migrate()
    async with database._engine.connect() as connection:
        await connection.execute(text("PRAGMA max_page_count = 20"))
        await connection.rollback()
    with pytest.raises(Unavailable, match="full"):
        await database.store([completed("a", said="long " * 50_000)])
    await database.aclose()


async def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    """The operator has to see which path is wrong."""
    database = Database.open(f"sqlite:///{tmp_path / 'missing' / 'a.db'}")
    with pytest.raises(Unavailable, match=r"missing/a\.db"):
        await database.ping()
    # After a connection that failed, aiosqlite's thread speaks to the loop once more: it must still be open.
    await until(lambda: not sqlite_threads(), within_s=5, what="the end of the connection's thread")


async def test_a_new_file_that_another_process_writes_is_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Processes that start together all want the write-ahead log; SQLite fails all but one of them at once."""
    other = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    caplog.set_level("DEBUG", "aiosqlite")
    async with contextlib.aclosing(Database.open(f"sqlite:///{tmp_path / 'a.db'}", busy_timeout_s=30)) as database:
        migrated = asyncio.create_task(database.migrate())
        await until(lambda: "is locked" in caplog.text, within_s=10, what="a refusal seen by the driver")
        other.close()
        await migrated


async def test_a_new_file_that_stays_locked_is_trouble_that_passes(tmp_path: Path) -> None:
    """Switching to the write-ahead log needs the file for itself, and SQLite does not wait for it."""
    other = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    async with contextlib.aclosing(Database.open(f"sqlite:///{tmp_path / 'a.db'}", busy_timeout_s=0.05)) as database:
        with pytest.raises(Unavailable, match="locked"):
            await database.migrate()
        other.close()
        await database.migrate()
        await database.ping()


async def test_a_postgresql_server_that_stops_is_found_again(postgres: PostgresServer) -> None:
    """A restart of the database must not need a restart of the writers."""
    database = Database.open(postgres.new_database())
    await database.migrate()
    await database.store([completed("a")])
    await asyncio.to_thread(postgres.stop)
    try:
        for call in (database.ping(), database.store([completed("b")]), database.job("a")):
            with pytest.raises(Unavailable):
                await call
    finally:
        await asyncio.to_thread(postgres.start)
    await database.store([completed("b")])
    assert await ids(database) == ["b", "a"]
    await database.aclose()


async def test_a_server_that_does_not_answer_is_given_up() -> None:
    """A half-open connection would otherwise hold the writer for ever."""
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connects, and says nothing
        port = silent.getsockname()[1]
        url = f"postgresql://u:pass%20word@127.0.0.1:{port}/x?password=pass%20word"
        async with contextlib.aclosing(Database.open(url, timeout_s=0.2)) as database:
            with pytest.raises(Unavailable, match=f"127.0.0.1:{port}.*TimeoutError") as away:
                await database.ping()
    assert "pass" not in str(away.value)


@pytest.mark.parametrize(
    "wrong",
    ["mysql://u:secret@h/x", "secret", "sqlite://", "postgresql://u:secret@h:port/x", "postgresql+psycopg2://h/x"],
)
def test_a_wrong_url_is_refused_without_its_password(wrong: str) -> None:
    """The message lands in logs; records kept in memory would be lost in silence."""
    with pytest.raises(SettingsError, match="DATABASE_URL") as refused:
        Database.open(wrong)
    assert "secret" not in str(refused.value)


def test_a_record_without_an_end_is_refused() -> None:
    """The tables hold what is final; a job that is under way there would never change again."""
    job = completed("a").job
    with pytest.raises(ValueError, match="needs an end"):
        TerminalRecord(job.model_copy(update={"state": State.RUNNING}), None, 1)
    with pytest.raises(ValueError, match="transcript"):
        TerminalRecord(job, None, 1)
