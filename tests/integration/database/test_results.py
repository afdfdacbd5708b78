"""The results stage on real servers: nothing is acknowledged before it is stored, nothing is stored twice."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3

import pytest

from common.database import Database
from common.lease import LeaseKeeper
from common.metrics import WriterMetrics
from common.outage import Server
from common.outcomes import Publish
from common.records import JobSpec
from common.settings import load_settings
from common.setup import set_up
from common.stage import Stage, StageSettings
from common.streams import ResultStream
from common.watchdog import Watchdog
from consumer.writer import Writer
from tests.unit.test_writer import body, in_trouble
from tests.until import until

LIMIT_S = 60.0


@pytest.fixture
async def writer(database, tmp_path, client_of, keys, server):
    """A writer at work, as the service wires it, with the rights of its user."""
    settings = load_settings({"STTREAM_REDIS_URL": server.url_of("writer")})
    redis = await client_of("writer")
    writer = Writer(database, tmp_path / "results", WriterMetrics(), Watchdog(60), now_ms=lambda: 1)
    stop, setup = asyncio.Event(), await set_up(redis, keys)
    with LeaseKeeper(settings, Server("Redis")) as keeper:
        stage = Stage(
            StageSettings("results", 64, settings.lease_ms, 5.0),
            ResultStream(redis, keys, settings, "host-4-ddd"),
            writer,
            keeper,
            WriterMetrics(),
            restore=setup.restore,
        )
        committing, running = asyncio.create_task(writer.run()), asyncio.create_task(stage.run(stop))
        yield writer
        stop.set()
        await running
        committing.cancel()


@pytest.fixture
def transcribe(queue, consumer):
    """Submit jobs and publish their transcripts, as a consumer does."""

    async def transcribe(*job_ids):
        for job_id in job_ids:
            await queue.submit(job_id, JobSpec(source="/audio/a.wav"), max_queued=1000)
        tasks = await consumer.begin(await consumer.read(len(job_ids), 1000))
        await consumer.settle([(task, Publish(body(task.id), 1.5)) for task in tasks])

    return transcribe


@pytest.fixture
def outage(url, request):
    """Take the database away while the block runs: a locked file, or a server that is stopped."""

    @contextlib.asynccontextmanager
    async def locked():
        other = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            other.close()

    @contextlib.asynccontextmanager
    async def stopped():
        server = request.getfixturevalue("postgres")
        await asyncio.to_thread(server.stop)
        try:
            yield
        finally:
            await asyncio.to_thread(server.start)

    return locked if url.startswith("sqlite") else stopped


async def completions(redis, keys):
    """Return the ids of the jobs that were told to be completed, as often as it was told."""
    return sorted(event["id"] for _, event in await redis.xrange(keys.events) if event.get("state") == "completed")


async def test_results_that_come_in_while_the_database_is_away_are_stored_once(
    writer, transcribe, outage, database: Database, redis, keys
):
    """They stay in the stream, unacknowledged, until they are in the database."""
    before, during = [f"a{index:02}" for index in range(5)], [f"b{index:02}" for index in range(20)]
    await transcribe(*before)
    await until(lambda: is_empty(redis, keys.results), within_s=LIMIT_S, what="the first five are stored")
    async with outage():
        await transcribe(*during)
        await until(lambda: in_trouble(writer), within_s=LIMIT_S, what="the writer noticing")
        assert await redis.xlen(keys.results) == len(during)
        assert await completions(redis, keys) == before

    await until(lambda: is_empty(redis, keys.results), within_s=LIMIT_S, what="the rest are stored")
    assert sorted(job.id for job in await database.jobs()) == before + during
    assert await completions(redis, keys) == before + during


async def test_a_result_that_can_never_be_stored_holds_up_nobody(writer, transcribe, database: Database, redis, keys):
    """It becomes a dead letter, with its fields for whoever revives it; the rest of its batch is stored."""
    async with redis.pipeline() as together:
        for number, poison in enumerate(
            ({"outcome": "completed", "body": "{"}, {"outcome": "cancelled", "run": 2**70})
        ):
            together.xadd(keys.results, {"id": f"bad{number}", **poison})
        await together.execute()
    await transcribe("a", "b", "c")

    await until(lambda: is_empty(redis, keys.results), within_s=LIMIT_S, what="an empty stream")
    letters = [letter for _, letter in await redis.xrange(keys.dead)]
    assert {(letter["id"], letter["reason"]) for letter in letters} == {
        ("bad0", "result_unstorable"),
        ("bad1", "result_unstorable"),
    }
    assert sorted(job.id for job in await database.jobs()) == ["a", "b", "c"]
    assert await completions(redis, keys) == ["a", "b", "c"]


async def is_empty(redis, stream):
    return await redis.xlen(stream) == 0
