"""Server-sent events: every change once, in order, also after a break."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from common.settings import Settings
from producer.tail import EventTail
from tests.api.conftest import Api, Maker
from tests.until import until


@asynccontextmanager
async def _follow(api: Api, path: str, last: str | None = None) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    """Yield the messages of a stream: id, event, data; comments as {"comment": text}."""
    headers = {"Last-Event-ID": last} if last else {}
    async with api.client.get(path, headers=headers) as answer:
        assert (answer.status, answer.content_type) == (200, "text/event-stream")
        yield _messages(answer.content)


async def _messages(content: Any) -> AsyncIterator[dict[str, Any]]:
    message: dict[str, Any] = {}
    async for line in content:
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if line == b"\n":
            yield message
            message = {}
        else:
            message[name or "comment"] = json.loads(value) if name == "data" else value


async def _states(messages: AsyncIterator[dict[str, Any]]) -> list[str]:
    return [message["data"].get("state") or message["data"]["progress"] async for message in messages]


async def test_a_job_can_be_followed_to_its_end(api: Api) -> None:
    """First how it stands, then each change, then the stream ends by itself."""
    await api.submit(id="a")
    await api.submit(id="other")
    async with _follow(api, "/v1/jobs/a/events") as messages:
        first = await anext(messages)
        assert (first["event"], first["data"]["state"], first["data"]["id"]) == ("state", "queued", "a")
        await api.line.start("a")
        await api.line.start("other")
        await api.line.renew("a", 0.5)
        progress = [await anext(messages), await anext(messages)][1]
        assert (progress["event"], progress["data"]["progress"]) == ("progress", 0.5)
        assert progress["data"]["at"].endswith("Z")
        await api.line.finish("a")
        await api.line.store_all()
        assert await _states(messages) == ["transcribed", "completed"]


@pytest.mark.parametrize("forgotten", [False, True])
async def test_the_stream_of_an_ended_job_ends_at_once(api: Api, forgotten: bool) -> None:
    """Whoever comes late gets the outcome and no waiting."""
    await api.submit(id="a")
    await api.line.complete("a")
    if forgotten:
        await api.line.forget("a")
    async with _follow(api, "/v1/jobs/a/events") as messages:
        assert await _states(messages) == ["completed"]


async def test_a_client_that_comes_back_misses_nothing(api: Api) -> None:
    """With Last-Event-ID the stream goes on after that event; nothing is lost or repeated."""
    await api.submit(id="a")
    async with _follow(api, "/v1/jobs/a/events") as messages:
        last = (await anext(messages))["id"]
    await api.line.start("a")
    await api.line.renew("a", 0.25)
    await api.submit(id="other")
    async with _follow(api, "/v1/jobs/a/events", last) as messages:
        assert (await anext(messages))["data"]["state"] == "running"
        last = (await anext(messages))["id"]
        await api.line.finish("a")
        await api.line.store_all()
        assert await _states(messages) == ["transcribed", "completed"]
    async with _follow(api, "/v1/jobs/a/events", last) as messages:
        rest = [message async for message in messages]
    assert [message["data"]["state"] for message in rest] == ["transcribed", "completed"]


async def test_a_browser_that_has_seen_the_end_is_told_not_to_come_back(api: Api) -> None:
    """EventSource reconnects after every end; only 204 stops it."""
    await api.submit(id="a")
    await api.line.complete("a")
    async with _follow(api, "/v1/jobs/a/events") as messages:
        last = [message async for message in messages][-1]["id"]
    async with api.client.get("/v1/jobs/a/events", headers={"Last-Event-ID": last}) as answer:
        assert answer.status == 204


async def test_all_jobs_can_be_followed(api: Api) -> None:
    """From now on, or from an event on that was seen before."""
    await api.submit(id="before")
    async with _follow(api, "/v1/events") as messages:
        assert "comment" in await anext(messages)
        await api.submit(id="a")
        await api.submit(id="b")
        first, second = await anext(messages), await anext(messages)
    assert [first["data"]["id"], second["data"]["id"]] == ["a", "b"]
    async with _follow(api, "/v1/events", first["id"]) as messages:
        await anext(messages)
        assert (await anext(messages))["data"]["id"] == "b"


async def test_a_client_that_was_away_too_long_is_told(api: Api) -> None:
    """Old events are dropped: for all jobs comes `reset`, for one job how it stands now."""
    await api.submit(id="a")
    await api.line.start("a")
    await api.parts.queue.redis.xtrim(api.parts.queue.keys.events, maxlen=1, approximate=False)
    async with _follow(api, "/v1/events", "1-0") as messages:
        assert (await anext(messages))["event"] == "reset"
    async with _follow(api, "/v1/jobs/a/events", "1-0") as messages:
        assert (await anext(messages))["data"]["state"] == "running"


async def test_quiet_streams_are_kept_open(make_api: Maker, settings: Settings) -> None:
    """Proxies cut connections on which nothing moves."""
    api = await make_api(settings, keep_alive_s=0.05)
    await api.submit(id="a")
    async with _follow(api, "/v1/jobs/a/events") as messages:
        await anext(messages)
        assert await anext(messages) == {"comment": "keep-alive"}


async def test_many_clients_share_one_read(api: Api) -> None:
    """A blocking connection a client would let a hundred browsers use up the pool."""
    await api.submit(id="a")
    followers = [asyncio.create_task(_to_the_end(api)) for _ in range(60)]
    await until(lambda: len(api.parts.tail._listeners.get("a", ())) == 60, within_s=10, what="all follow")
    clients = await api.parts.queue.redis.client_list()
    assert sum(client["cmd"] == "xread" for client in clients) == 1
    await api.line.complete("a")
    seen = await asyncio.gather(*followers)
    assert {states[-1] for states in seen} == {"completed"}


async def _to_the_end(api: Api) -> list[str]:
    async with _follow(api, "/v1/jobs/a/events") as messages:
        return await _states(messages)


@pytest.mark.parametrize("last", ["x", "-1", "1-", "%", "²-1", "1-99999999999999999999"])
async def test_a_made_up_last_event_id_is_400(api: Api, last: str) -> None:
    """It must not reach Redis, nor start at some other place in silence."""
    await api.submit(id="a")
    for path in ("/v1/events", "/v1/jobs/a/events"):
        status, problem = await api.call("GET", path, headers={"Last-Event-ID": last})
        assert (status, problem["code"]) == (400, "invalid_last_event_id")


async def test_a_listener_that_lags_is_cut_off_and_can_come_back(api: Api) -> None:
    """One slow browser must not hold the events of a busy day in memory."""
    tail = EventTail(api.parts.queue)
    tailing = asyncio.create_task(tail.run())
    with tail.listen(None) as listener:
        redis, key = api.parts.queue.redis, api.parts.queue.keys.events
        await until(lambda: _reads(api, 2), within_s=5, what="the tail reads")
        for _ in range(1001):
            await redis.xadd(key, {"id": "a", "progress": "0"})
        await until(lambda: not tail._listeners.get(None), within_s=10, what="it is cut off")
        kept = [listener.get_nowait() for _ in range(listener.qsize())]
    tailing.cancel()
    await asyncio.gather(tailing, return_exceptions=True)
    assert kept[-1] is None
    assert len(kept) <= 1000


async def _reads(api: Api, count: int) -> bool:
    clients = await api.parts.queue.redis.client_list()
    return sum(client["cmd"] == "xread" for client in clients) == count


async def test_streams_end_when_the_producer_stops(api: Api) -> None:
    """An open stream must not hold up a shutdown until it is killed."""
    await api.submit(id="a")
    async with _follow(api, "/v1/jobs/a/events") as messages:
        await anext(messages)
        api.parts.tail.close()
        assert [message async for message in messages] == []
    async with _follow(api, "/v1/jobs/a/events") as messages:
        assert len([message async for message in messages]) == 1
