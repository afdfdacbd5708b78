"""GET /v1/search: what was said, found by its words."""

from __future__ import annotations

import asyncio
import base64
import json

import pytest
from click.testing import CliRunner

from cli.main import sttream
from tests.api.conftest import Api


async def _completed(api: Api, *names: str) -> None:
    """Complete jobs in each of which Ivan says no more."""
    for name in names:
        await api.submit(id=name)
        await api.line.complete(name)


async def test_a_hit_tells_where_and_when(api: Api) -> None:
    """From a hit one gets to the recording, the moment and the whole transcript."""
    await _completed(api, "a")
    status, page = await api.call("GET", "/v1/search", params={"q": '"said ivan" MORE'})

    assert status == 200
    assert page == {
        "hits": [
            {
                "job_id": "a",
                "start_s": 0.0,
                "end_s": 2.5,
                "snippet": "No ⟦more⟧, ⟦said Ivan⟧.",
                "links": {"job": "/v1/jobs/a", "transcript": "/v1/jobs/a/transcript"},
            }
        ],
        "next_cursor": None,
    }
    for link in page["hits"][0]["links"].values():
        assert (await api.call("GET", link))[0] == 200


async def test_pages_lead_to_every_hit_once(api: Api) -> None:
    """Whoever follows the cursors has seen everything, newest first."""
    await _completed(api, *"abcde")
    seen, cursor = [], {}
    for _ in range(10):
        status, page = await api.call("GET", "/v1/search", params={"q": "ivan", "limit": "2"} | cursor)
        assert status == 200
        seen += [hit["job_id"] for hit in page["hits"]]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert seen == ["e", "d", "c", "b", "a"]


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({}, "q"),
        ({"q": ""}, "q"),
        ({"q": '"" *:^ 😀 \0'}, "q"),
        ({"q": "a" * 1001}, "q"),
        ({"q": "a", "limit": "0"}, "limit"),
        ({"q": "a", "limit": "101"}, "limit"),
        ({"q": "a", "state": "failed"}, "state"),
    ],
)
async def test_a_wrong_parameter_is_named(api: Api, parameters: dict[str, str], param: str) -> None:
    """A search for nothing that found everything would be worse than an error."""
    status, problem = await api.call("GET", "/v1/search", params=parameters)
    assert (status, problem["code"], problem["error"]["param"]) == (422, "invalid_parameter", param)
    assert problem["detail"].startswith(f"{param}: ")


@pytest.mark.parametrize(
    "query", ["%ff%fe", "a%00b", "%22%22%22a", "a%20AND%20(", "a*", "x:y", "😀%20a", "%ED%A0%80%20a"]
)
async def test_odd_queries_find_nothing_and_break_nothing(api: Api, query: str) -> None:
    """What reaches the server may be anything."""
    status, page = await api.call("GET", f"/v1/search?q={query}")
    assert status in {200, 422}, page
    assert page.get("hits", []) == []


def _cursor(told: str) -> str:
    return base64.urlsafe_b64encode(told.encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "cursor",
    [
        "x",
        "ä",
        *map(_cursor, ("[]", '[1,"a"]', '["1","a",0]', '[1,"../x",0]', '[1,"a\\u0000",0]', '[1e400,"a",0]')),
        _cursor(f'[{2**63},"a",0]'),
        _cursor(f'[1,"a",{2**63}]'),
    ],
)
async def test_a_made_up_cursor_is_400(api: Api, cursor: str) -> None:
    """A cursor is opaque: what the server did not hand out it does not try to read."""
    status, problem = await api.call("GET", "/v1/search", params={"q": "a", "cursor": cursor})
    assert (status, problem["code"], problem["error"]["param"]) == (400, "invalid_cursor", "cursor")


def _last_line(printed: str) -> str:
    return printed.splitlines()[-1]  # before it, the producer in this process has logged


async def test_the_command_line_prints_hits(api: Api) -> None:
    """A hit is one line: the job, the second, what was said; for programs, the object of the API."""
    await _completed(api, "a")
    search = ["search", "ivan", '"no more"', "--url", str(api.client.make_url(""))]
    told = await asyncio.to_thread(CliRunner().invoke, sttream, search)
    assert (told.exit_code, _last_line(told.stdout)) == (0, "a  0.0 s  ⟦No more⟧, said ⟦Ivan⟧.")

    told = await asyncio.to_thread(CliRunner().invoke, sttream, [*search, "--json"])
    assert json.loads(_last_line(told.stdout))["job_id"] == "a"
