"""GET /v1/jobs: every job once, whatever its state and wherever it is kept."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest

from tests.api.conftest import Api

STATES = ("scheduled", "queued", "running", "transcribed", "completed", "failed", "cancelled")


async def _all(api: Api, query: str = "") -> list[dict[str, Any]]:
    """Follow the cursors to the end."""
    jobs: list[dict[str, Any]] = []
    cursor = ""
    for _ in range(100):
        status, page = await api.call("GET", f"/v1/jobs?{query}{cursor}")
        assert status == 200, page
        jobs += page["jobs"]
        if page["next_cursor"] is None:
            return jobs
        cursor = f"&cursor={page['next_cursor']}"
    raise AssertionError("the pages never end")


async def _fill(api: Api, each: int) -> None:
    """Bring `each` jobs into every state, over all lanes."""
    steps: dict[str, Any] = {
        "running": api.line.start,
        "transcribed": api.line.transcribe,
        "completed": api.line.transcribe,
        "failed": api.line.fail,
        "cancelled": api.parts.queue.cancel,
    }
    # What waits for the writer comes last: being the writer stores everything that waits.
    for state in ("completed", "failed", "cancelled", "scheduled", "queued", "running", "transcribed"):
        names = [f"{state}-{number:02}" for number in range(each)]
        when = {"delay_s": 60} if state == "scheduled" else {}
        priorities = ("high", "normal", "low")
        await asyncio.gather(*(api.submit(id=name, priority=priorities[n % 3], **when) for n, name in enumerate(names)))
        if state in steps:
            for name in names:
                await steps[state](name)
        if state == "cancelled":
            await api.line.store_all()


async def test_three_hundred_jobs_over_all_states_are_each_listed_once(api: Api) -> None:
    """Whoever pages through the list sees every job, none twice, and the filter gives exactly its state."""
    await _fill(api, 43)
    jobs = await _all(api, "limit=17")
    assert sorted(job["id"] for job in jobs) == sorted(f"{state}-{n:02}" for state in STATES for n in range(43))
    for state in STATES:
        found = await _all(api, f"state={state}&limit=20")
        assert {job["state"] for job in found} == {state}
        assert sorted(job["id"] for job in found) == [f"{state}-{n:02}" for n in range(43)]
    ended = [job["finished_at"] for job in jobs if job["state"] in {"completed", "failed", "cancelled"}]
    assert ended == sorted(ended, reverse=True)


async def test_the_default_page_has_fifty(api: Api) -> None:
    """A client that asks for nothing special gets a bounded answer."""
    await asyncio.gather(*(api.submit() for _ in range(51)))
    _, page = await api.call("GET", "/v1/jobs")
    assert len(page["jobs"]) == 50
    assert page["next_cursor"]


async def test_an_unknown_batch_has_no_jobs(api: Api) -> None:
    """The filter by batch leaves out jobs of no batch, in Redis and in the database."""
    await api.submit(id="a")
    await api.line.complete("a")
    await api.submit(id="b")
    assert await _all(api, "batch_id=other") == []


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("limit=x", "limit"),
        ("limit=%C2%B2", "limit"),
        ("limit=-1", "limit"),
        ("limit=", "limit"),
        ("state=done", "state"),
        ("state=", "state"),
        ("batch_id=../x", "batch_id"),
        ("status=failed", "status"),
        ("state=failed&state=queued", "state"),
    ],
)
async def test_a_wrong_parameter_is_named(api: Api, query: str, param: str) -> None:
    """A mistyped filter that listed everything would be worse than an error."""
    status, problem = await api.call("GET", f"/v1/jobs?{query}")
    assert (status, problem["code"], problem["error"]["param"]) == (422, "invalid_parameter", param)


def _cursor(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "cursor",
    [
        "x",
        "%C3%A4",
        _cursor("[]"),
        _cursor("{}"),
        _cursor('["queued","x",null]'),
        _cursor('["queued","3/",null]'),
        _cursor('["queued","-1/",null]'),
        _cursor('["queued","0/1-99999999999999999999",null]'),
        _cursor('["transcribed","1/",null]'),
        _cursor('["scheduled","0/",null]'),
        _cursor('["ended","",[1e400,"a"]]'),
        _cursor('["ended","",["x","a"]]'),
        _cursor('["ended","",[1,"a\\u0000"]]'),
        _cursor('["nowhere","",null]'),
        _cursor('[["queued"],"",null]'),
        _cursor('["queued",5,null]'),
    ],
)
async def test_a_made_up_cursor_is_400(api: Api, cursor: str) -> None:
    """A cursor is opaque: what the server did not hand out it does not try to read."""
    status, problem = await api.call("GET", f"/v1/jobs?cursor={cursor}")
    assert (status, problem["code"], problem["error"]["param"]) == (400, "invalid_cursor", "cursor")


async def test_a_cursor_of_another_filter_is_400(api: Api) -> None:
    """It names a place in another list."""
    await asyncio.gather(*(api.submit() for _ in range(3)))
    _, page = await api.call("GET", "/v1/jobs?state=queued&limit=2")
    status, _ = await api.call("GET", f"/v1/jobs?state=running&cursor={page['next_cursor']}")
    assert status == 400
