"""The writer with a real SQLite file and a real folder: what it stores, waits for, and rejects."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy import event
from structlog.testing import capture_logs

from common.database import Database
from common.errors import JobError, Unavailable
from common.formats import FORMATS
from common.metrics import WriterMetrics
from common.outcomes import Completed, Outcome, Reject
from common.records import Failure, Job, JobSpec, State
from common.transcript import Transcript
from common.watchdog import Watchdog
from consumer.files import write_files
from consumer.writer import UNKNOWN_SOURCE, Writer, read_result
from tests.until import until

NOW_MS = 5_000


@dataclass(frozen=True)
class Entry:
    fields: Mapping[str, str]


@dataclass(frozen=True)
class Work:
    entry: Entry
    job: Job | None


def body(job_id: str, said: str = "hello", **more: Any) -> str:
    segment = {"id": 0, "start": 0.0, "end": 1.0, "text": said, "avg_logprob": -0.1, "no_speech_prob": 0.0}
    timings = dict.fromkeys(("queued_s", "fetch_s", "prepare_s", "transcribe_s", "realtime_factor"), 0.0)
    facts = {"job_id": job_id, "source": "file:///a.wav", "language": "en", "language_probability": 1.0}
    rest = {"duration_s": 1.5, "text": said, "segments": [segment], "model": "tiny.en", "timings": timings}
    return orjson.dumps(facts | rest | more).decode()


def result(job_id: str, **more: str) -> dict[str, str]:
    return {"id": job_id, "outcome": "completed", "run": "1", "body": body(job_id)} | more


def job(job_id: str, **more: Any) -> Job:
    facts = {"state": "transcribed", "created_ms": 1_000, "started_ms": 2_000, "attempts": 1, "worker": "w-1"}
    return Job.model_validate({"id": job_id, "spec": {"source": "file:///a.wav"}} | facts | more)


def work(job_id: str, **more: str) -> Work:
    return Work(Entry(result(job_id, **more)), job(job_id))


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    async with contextlib.aclosing(Database.open(f"sqlite:///{tmp_path / 'a.db'}", busy_timeout_s=0.02)) as opened:
        await opened.migrate()
        yield opened


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.fixture
def metrics() -> WriterMetrics:
    return WriterMetrics()


@pytest.fixture
def writer(database: Database, results: Path, metrics: WriterMetrics) -> Writer:
    return Writer(database, results, metrics, Watchdog(60), now_ms=lambda: NOW_MS)


@contextlib.asynccontextmanager
async def running(writer: Writer) -> AsyncIterator[asyncio.TaskGroup]:
    """The writer's loop, and a group for what the stage does beside it."""
    async with asyncio.TaskGroup() as group:
        loop = group.create_task(writer.run())
        yield group
        loop.cancel()


@contextlib.contextmanager
def locked(tmp_path: Path) -> Iterator[None]:
    """The database as another process leaves it that writes for long."""
    other = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.close()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


async def in_trouble(writer: Writer) -> bool:
    try:
        await writer.check()
    except Unavailable:
        return True
    return False


async def test_completed_means_stored_and_readable(writer: Writer, database: Database, results: Path) -> None:
    """The entry is deleted after this answer: whatever is not on the disk by then is lost."""
    async with running(writer):
        assert await writer.handle(work("a")) == Completed()

    stored = await database.job("a")
    assert stored == job("a", state="completed", progress=1.0, audio_s=1.5, finished_ms=NOW_MS)
    transcript = await database.transcript("a")
    assert transcript is not None
    assert transcript.text == "hello"
    assert names(results) == sorted(f"a.{format_}" for format_ in FORMATS)


async def test_failed_and_cancelled_jobs_get_a_row_and_no_files(
    writer: Writer, database: Database, results: Path
) -> None:
    """An accepted job ends in exactly one record, however it ends."""
    failure = Failure(type="audio_unreadable", detail="no audio stream")
    async with running(writer):
        failed = work("a", outcome="failed", body=failure.model_dump_json())
        cancelled = Work(Entry(result("b", outcome="cancelled", body="")), job("b", finished_ms=4_000))
        assert await asyncio.gather(writer.handle(failed), writer.handle(cancelled)) == [Completed(), Completed()]

    stored = {stored.id: stored for stored in await database.jobs()}
    assert stored["a"] == job("a", state="failed", error=failure, finished_ms=NOW_MS)
    assert stored["b"] == job("b", state="cancelled", finished_ms=4_000)
    assert names(results) == []


async def test_the_time_from_submission_to_storage_is_counted(writer: Writer, metrics: WriterMetrics) -> None:
    """It is what a user waits for; a job of which nothing is known any more would count as no time at all."""
    async with running(writer):
        await writer.handle(work("a"))
        await writer.handle(Work(Entry(result("b")), None))
    sample = metrics.registry.get_sample_value
    assert sample("sttream_job_end_to_end_seconds_count") == 1
    assert sample("sttream_job_end_to_end_seconds_sum") == (NOW_MS - 1_000) / 1000


async def test_what_arrives_together_is_stored_in_one_transaction(writer: Writer, database: Database) -> None:
    """A commit waits for the disk: one for each result would be the bottleneck of the whole line."""
    commits: list[object] = []
    event.listen(database._engine.sync_engine, "commit", commits.append)
    async with asyncio.TaskGroup() as group:
        handled = [group.create_task(writer.handle(work(f"j{n}"))) for n in range(100)]
        await until(lambda: len(writer._pending) == 100, within_s=5, what="100 results waiting")
        loop = group.create_task(writer.run())
        outcomes = await asyncio.gather(*handled)
        loop.cancel()

    assert outcomes == [Completed()] * 100
    assert len(commits) == 2
    assert len(await database.jobs(limit=200)) == 100


async def test_the_same_result_twice_is_stored_once(writer: Writer, database: Database) -> None:
    """Delivery is at least once, and two deliveries may even be handled side by side."""
    async with running(writer):
        await asyncio.gather(*(writer.handle(work("a")) for _ in range(3)))
        await writer.handle(work("a"))
    assert [stored.id for stored in await database.jobs()] == ["a"]


async def test_a_database_that_is_away_costs_no_result(writer: Writer, database: Database, tmp_path: Path) -> None:
    """The result waits, its files written, and is stored when the database is back; two log lines tell of it."""
    with capture_logs() as logs:
        async with running(writer) as group:
            with locked(tmp_path):
                handled = [group.create_task(writer.handle(work(name))) for name in ("a", "b")]
                await until(lambda: in_trouble(writer), within_s=5, what="the writer noticing")
                await until(lambda: writer._outage.failures > 2, within_s=10, what="several tries")
                assert not any(task.done() for task in handled)
                assert await database.jobs() == []
            assert await asyncio.gather(*handled) == [Completed()] * 2
            assert not await in_trouble(writer)

    assert [line["log_level"] for line in logs] == ["warning", "info"]
    assert len(await database.jobs()) == 2


async def test_while_storage_is_away_one_more_is_fetched_at_a_try(writer: Writer, tmp_path: Path) -> None:
    """Results that this writer cannot store shall stay with the stream; one more tells whether only some are stuck."""
    async with running(writer) as group:
        await asyncio.wait_for(writer.hungry(), 1)
        with locked(tmp_path):
            stuck = group.create_task(writer.handle(work("a")))
            await until(lambda: in_trouble(writer), within_s=5, what="the writer noticing")
            await asyncio.wait_for(writer.hungry(), 10)
            probe = group.create_task(writer.handle(work("b")))
            hungry = group.create_task(writer.hungry())
            await asyncio.sleep(0)
            assert not hungry.done()
        assert await asyncio.gather(stuck, probe) == [Completed()] * 2
        await asyncio.wait_for(hungry, 10)


async def test_a_result_that_the_stage_gave_up_is_not_stored(writer: Writer, database: Database) -> None:
    """Its lease is lost: another writer has it, and may have found it replaced by a later run."""
    given_up = asyncio.create_task(writer.handle(work("a")))
    await until(lambda: writer._pending, within_s=5, what="the result waiting")
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    async with running(writer):
        await writer.handle(work("b"))
    assert [stored.id for stored in await database.jobs()] == ["b"]


async def test_a_results_folder_that_is_away_costs_no_result(writer: Writer, database: Database, results: Path) -> None:
    """No row before its files: `completed` must not be said of a transcript that nobody can open."""
    await asyncio.to_thread(results.touch)  # not a folder: nothing can be written in it
    async with running(writer) as group:
        handled = group.create_task(writer.handle(work("a")))
        await until(lambda: in_trouble(writer), within_s=5, what="the writer noticing")
        assert await database.jobs() == []
        await asyncio.to_thread(results.unlink)
        assert await handled == Completed()
    assert names(results) == sorted(f"a.{format_}" for format_ in FORMATS)


async def test_a_results_folder_that_was_removed_is_made_again(writer: Writer, results: Path) -> None:
    """Somebody tidies up; the writer need not be restarted."""
    async with running(writer):
        await writer.handle(work("a"))
        await asyncio.to_thread(shutil.rmtree, results)
        await writer.handle(work("b"))
    assert names(results) == sorted(f"b.{format_}" for format_ in FORMATS)


async def test_files_that_cannot_be_written_now_do_not_hold_up_the_others(
    writer: Writer, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A nearly full disk takes short transcripts still; the long one waits, and has no row before its files."""
    room = asyncio.Event()

    def write(folder: Path, job_id: str, transcript: Transcript) -> list[Path]:
        # What limits a real file would limit the database beside it too.
        if job_id == "long" and not room.is_set():
            raise Unavailable("no room")
        return write_files(folder, job_id, transcript)

    monkeypatch.setattr("consumer.writer.write_files", write)
    long, short = (asyncio.create_task(writer.handle(work(name))) for name in ("long", "short"))
    await until(lambda: len(writer._pending) == 2, within_s=5, what="two results waiting")
    async with running(writer):
        assert await short == Completed()
        await until(lambda: in_trouble(writer), within_s=5, what="the writer noticing")
        assert [stored.id for stored in await database.jobs()] == ["short"]
        room.set()
        assert await long == Completed()


async def test_a_record_the_database_refuses_is_the_only_one_rejected(writer: Writer, database: Database) -> None:
    """One poison record in a batch must not take the others along, nor be tried for ever."""
    poison = Work(Entry(result("bad", run=str(2**70))), None)
    async with asyncio.TaskGroup() as group:
        handled = [group.create_task(writer.handle(each)) for each in (work("a"), poison, work("b"))]
        await until(lambda: len(writer._pending) == 3, within_s=5, what="three results waiting")
        loop = group.create_task(writer.run())
        outcomes: list[Outcome] = await asyncio.gather(*handled)
        loop.cancel()

    assert [type(outcome) for outcome in outcomes] == [Completed, Reject, Completed]
    rejected = outcomes[1]
    assert isinstance(rejected, Reject)
    assert rejected.failure.type == "result_unstorable"
    assert "hello" not in rejected.failure.detail
    assert sorted(stored.id for stored in await database.jobs()) == ["a", "b"]


async def test_a_file_that_can_never_be_written_fails_its_job_only(
    writer: Writer, database: Database, results: Path
) -> None:
    """A folder in the place of one file must not hold up every other result."""
    (results / "bad.srt").mkdir(parents=True)
    async with running(writer):
        bad, good = await asyncio.gather(writer.handle(work("bad")), writer.handle(work("good")))
    assert isinstance(bad, Reject)
    assert good == Completed()
    assert [stored.id for stored in await database.jobs()] == ["good"]


async def test_an_outage_goes_on_for_as_long_as_it_takes(
    database: Database, results: Path, metrics: WriterMetrics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each try fails by itself, so nothing hangs: a writer that ended would only be started again, to fail again."""
    now_s, ended = 0.0, []
    watchdog = Watchdog(300, clock=lambda: now_s, end=ended.append)
    writer = Writer(database, results, metrics, watchdog, now_ms=lambda: NOW_MS)

    def an_hour_passes(_: Exception) -> float:
        nonlocal now_s
        for _ in range(120):
            now_s += 30
            watchdog.look()
        writer._outage.failures += 1
        return 0.0

    monkeypatch.setattr(writer._outage, "failed", an_hour_passes)
    async with running(writer) as group:
        with locked(tmp_path):
            handled = group.create_task(writer.handle(work("a")))
            await until(lambda: writer._outage.failures >= 24, within_s=30, what="a day of failures")
        assert await handled == Completed()
    assert ended == []


def hang_in_the_folder(monkeypatch: pytest.MonkeyPatch, dead: threading.Event) -> None:
    monkeypatch.setattr("consumer.writer.write_files", lambda *_: dead.wait(60))


async def hang_in_the_database(database: Database, dead: threading.Event) -> None:
    """Make SQLite's thread hang in a commit, as it does on a dead disk: not even the call's time limit ends it."""
    await database.aclose()
    event.listen(
        database._engine.sync_engine,
        "connect",
        lambda connection, _: connection.run_async(
            lambda driver: driver.create_function("hang", 0, lambda: dead.wait(60))
        ),
    )
    async with database._engine.begin() as connection:
        await connection.exec_driver_sql("CREATE TRIGGER dead_disk AFTER INSERT ON jobs BEGIN SELECT hang(); END")


@pytest.mark.parametrize("where", ["results folder", "database"])
async def test_a_disk_that_hangs_ends_the_process(
    where: str, database: Database, results: Path, metrics: WriterMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a writer would say that it is ready and keep its leases for ever; its next start goes on."""
    dead, ended = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    if where == "database":
        await hang_in_the_database(database, dead)
    else:
        hang_in_the_folder(monkeypatch, dead)
    with capture_logs() as logs, Watchdog(0.5, end=lambda _: loop.call_soon_threadsafe(ended.set)) as watchdog:
        writer = Writer(database, results, metrics, watchdog, now_ms=lambda: NOW_MS)
        async with running(writer) as group:
            stuck = group.create_task(writer.handle(work("a")))
            await asyncio.wait_for(ended.wait(), 30)
            stuck.cancel()
            dead.set()
    assert any(line["event"] == "process_given_up" and line["why"].startswith(where) for line in logs)


READ_ONLY = """
import asyncio, pathlib, sys
sys.path.insert(0, ".")
from common.database import Database
from common.metrics import WriterMetrics
from common.watchdog import Watchdog
from consumer.writer import Writer
from tests.unit.test_writer import in_trouble, work
from tests.until import until

async def main(folder):
    database = Database.open(f"sqlite:///{folder / 'a.db'}")
    writer = Writer(database, folder / "results", WriterMetrics(), Watchdog(60), now_ms=lambda: 1)
    writing, handled = asyncio.create_task(writer.run()), asyncio.create_task(writer.handle(work("a")))
    await until(lambda: in_trouble(writer), within_s=60, what="the writer noticing")
    assert not handled.done() and await database.jobs() == []
    (folder / "results").chmod(0o755)
    print(await handled, [job.id for job in await database.jobs()])
    writing.cancel()
    await database.aclose()

asyncio.run(main(pathlib.Path(sys.argv[1])))
"""


async def test_a_read_only_results_folder_costs_no_result(database: Database, results: Path, tmp_path: Path) -> None:
    """Somebody's deployment took a right away; the result waits until it is given back."""
    await asyncio.to_thread(results.mkdir, mode=0o555)
    # Root may write everywhere: it has to lose that right first.
    as_a_user = ["setpriv", "--inh-caps=-all", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []
    process = await asyncio.create_subprocess_exec(
        *as_a_user, sys.executable, "-c", READ_ONLY, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    told, _ = await process.communicate()
    assert (process.returncode, told.decode().splitlines()[-1]) == (0, "Completed(body='', audio_s=0.0) ['a']")
    assert names(results) == sorted(f"a.{format_}" for format_ in FORMATS)


KILLED = """
import asyncio, pathlib, sys
sys.path.insert(0, ".")
from common.database import Database
from common.metrics import WriterMetrics
from common.watchdog import Watchdog
from consumer.writer import Writer
from tests.unit.test_writer import work

async def main(folder):
    database = Database.open(f"sqlite:///{folder / 'a.db'}", busy_timeout_s=60)
    writer = Writer(database, folder / "results", WriterMetrics(), Watchdog(60), now_ms=lambda: 1)
    await asyncio.gather(writer.run(), writer.handle(work("a")))

asyncio.run(main(pathlib.Path(sys.argv[1])))
"""


async def test_a_kill_between_files_and_commit_leaves_no_row_without_files(
    writer: Writer, database: Database, results: Path, tmp_path: Path
) -> None:
    """Files without a row are harmless, the entry comes again; a row without files would be a broken promise."""
    with locked(tmp_path):
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED, str(tmp_path))
        await until((results / "a.json").exists, within_s=30, what="the files of the other process")
        process.send_signal(signal.SIGKILL)
        assert await process.wait() == -signal.SIGKILL
    assert await database.jobs() == []

    async with running(writer):
        assert await writer.handle(work("a")) == Completed()
    assert [stored.id for stored in await database.jobs()] == ["a"]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (result("../a"), "id '../a'"),
        ({}, "id ''"),
        (result("a", outcome="done"), "outcome 'done'"),
        (result("a", outcome="running"), "outcome 'running'"),
        (result("a", run="one"), "one"),
        (result("a", body=""), "body"),
        (result("a", body='{"text": "secret"'), "body"),
        (result("a", body='{"text": "secret"}'), "job_id: Field required"),
        (result("a", body=body("other", "secret")), "another job"),
        (result("a", body=body("a", "secret").replace("1.5", "NaN")), "body"),
        (result("a", body=body("a", "secret", source=7)), "source"),
        (result("a", outcome="failed", body='{"type": ["secret"], "detail": "x"}'), "type"),
        (result("a", outcome="failed", body="secret"), "JSON"),
    ],
)
def test_an_entry_that_is_no_result_is_rejected_with_the_reason(fields: dict[str, str], told: str) -> None:
    """An operator finds it among the dead letters and must see what is wrong, but never what was said."""
    with pytest.raises(JobError) as refused:
        read_result(fields, None, now_ms=NOW_MS)
    assert refused.value.type == "result_unstorable"
    assert told in refused.value.detail
    assert "secret" not in refused.value.detail


def test_a_job_that_was_revived_meanwhile_keeps_the_run_of_its_result() -> None:
    """The hash tells of the new run: its times and attempts are not those of the end that is stored here."""
    revived = job("a", run=2, attempts=1, finished_ms=9_000, worker="w-2")
    record = read_result(result("a", outcome="cancelled", body=""), revived, now_ms=NOW_MS)
    expected = Job(id="a", spec=revived.spec, state=State.CANCELLED, run=1, created_ms=1_000, finished_ms=NOW_MS)
    assert record.job == expected


def test_a_result_whose_job_is_gone_is_stored_with_what_it_tells() -> None:
    """The hash may expire or be dropped; what was said is still worth keeping."""
    done = read_result(result("a"), None, now_ms=NOW_MS).job
    assert done.spec == JobSpec(source="file:///a.wav")
    assert (done.state, done.created_ms, done.finished_ms) == (State.COMPLETED, NOW_MS, NOW_MS)

    cancelled = read_result(result("a", outcome="cancelled", body=""), None, now_ms=NOW_MS).job
    assert cancelled.spec.source == UNKNOWN_SOURCE
