"""GET /v1/queue and the dead letters."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from common.keys import TRANSCRIBERS
from common.scripts import call
from tests.api.conftest import Api
from tests.api.line import CONSUMER, UNREADABLE


async def test_the_queue_shows_where_jobs_are(api: Api) -> None:
    """One look answers: how much waits, what runs where, what needs somebody."""
    await api.submit(priority="high")
    await api.submit(id="runs")
    await api.line.start("runs")
    await api.submit(delay_s=60)
    await api.submit(id="dies", priority="low")
    await api.line.fail("dies")
    status, queue = await api.call("GET", "/v1/queue")
    assert status == 200
    assert queue["queued"] == {"high": 1, "normal": 0, "low": 0}
    assert (queue["queue"], queue["running"], queue["scheduled"], queue["dead"]) == ("sttream", 1, 1, 1)
    assert 0 <= queue["oldest_queued_s"] < 60
    [consumer] = queue["consumers"]
    assert (consumer["name"], consumer["host"], consumer["running"]) == (CONSUMER, "host", ["runs"])
    assert consumer["state"] == "running"


async def test_an_empty_queue_is_all_zero(api: Api) -> None:
    """Before the first job and the first consumer the figures are there too."""
    _, queue = await api.call("GET", "/v1/queue")
    assert queue["queued"] == {"high": 0, "normal": 0, "low": 0}
    assert (queue["running"], queue["oldest_queued_s"], queue["consumers"]) == (0, None, [])


async def _discard_by_hand(api: Api, fields: dict[str, str]) -> str:
    """Add an entry as somebody with redis-cli might, and let a consumer find that it is none."""
    keys, redis = api.parts.queue.keys, api.parts.queue.redis
    lane = keys.lane("normal")
    entry_id = await redis.xadd(lane, fields)
    await redis.xreadgroup(TRANSCRIBERS, CONSUMER, {lane: ">"})
    argv = [TRANSCRIBERS, CONSUMER, entry_id, 1, fields.get("id", ""), UNREADABLE.model_dump_json()]
    pairs = [part for pair in fields.items() for part in pair]
    assert await call(redis, "discard", [lane, keys.dead], [*argv, "entry_malformed", json.dumps(pairs)]) == 1
    return lane


async def test_dead_letters_are_listed_newest_first_over_pages(api: Api) -> None:
    """An operator works from the latest trouble backwards."""
    for number in range(5):
        await api.submit(id=f"job-{number}")
        await api.line.fail(f"job-{number}")
    seen: list[str] = []
    cursor = ""
    while cursor is not None:
        status, page = await api.call("GET", f"/v1/dead?limit=2{cursor and '&cursor=' + cursor}")
        assert status == 200
        seen += [letter["id"] for letter in page["dead"]]
        cursor = page["next_cursor"]
    assert seen == [f"job-{number}" for number in (4, 3, 2, 1, 0)]


async def test_a_dead_letter_says_what_died_and_why(api: Api) -> None:
    """Both kinds: a job that failed, and an entry that never was a job."""
    await api.submit(id="a")
    await api.line.fail("a")
    _, letter = await api.call("GET", "/v1/dead/a")
    assert (letter["id"], letter["job_id"], letter["reason"]) == ("a", "a", "audio_unreadable")
    assert letter["error"] == UNREADABLE.model_dump()
    assert letter["died_at"].endswith("Z")

    lane = await _discard_by_hand(api, {"sauce": "x", "n": "1"})
    _, page = await api.call("GET", "/v1/dead?limit=1")
    [letter] = page["dead"]
    assert (letter["job_id"], letter["stream"], letter["fields"]) == (None, lane, {"sauce": "x", "n": "1"})
    assert await api.call("GET", f"/v1/dead/{letter['id']}") == (200, letter)


async def test_a_revived_dead_letter_is_queued_again(api: Api) -> None:
    """The letter is gone and its job runs once more; an entry goes back on its stream as it was."""
    await api.submit(id="a")
    await api.line.fail("a")
    assert await api.call("POST", "/v1/dead/a/revive") == (202, {"revived": 1, "ids": ["a"]})
    assert (await api.call("GET", "/v1/jobs/a"))[1]["state"] == "queued"

    lane = await _discard_by_hand(api, {"id": "by/hand", "sauce": "x"})
    assert (await api.call("POST", "/v1/dead/by%2Fhand/revive"))[0] == 202
    newest: Any = await api.parts.queue.redis.xrevrange(lane, count=1)
    assert newest[0][1] == {"id": "by/hand", "sauce": "x"}
    assert (await api.call("GET", "/v1/dead"))[1] == {"dead": [], "next_cursor": None}


async def test_all_dead_letters_can_be_revived_at_once(api: Api) -> None:
    """After an outage of the decoder nobody wants to click three hundred times."""
    names = sorted(f"job-{number:03}" for number in range(220))
    await asyncio.gather(*(api.submit(id=name) for name in names))
    for name in names:
        await api.line.fail(name)
    status, revived = await api.call("POST", "/v1/dead/revive")
    assert (status, revived["revived"], sorted(revived["ids"])) == (202, 220, names)
    _, queue = await api.call("GET", "/v1/queue")
    assert (queue["dead"], queue["queued"]["normal"]) == (0, 220)


async def test_a_dropped_dead_letter_leaves_the_job_failed(api: Api) -> None:
    """Dropping says: seen, nothing to do; the history stays."""
    await api.submit(id="a")
    await api.line.fail("a")
    assert await api.call("DELETE", "/v1/dead/a") == (200, {"dropped": 1, "ids": ["a"]})
    assert (await api.call("GET", "/v1/jobs/a"))[1]["state"] == "failed"
    assert (await api.call("DELETE", "/v1/dead/a"))[0] == 404


@pytest.mark.parametrize("name", ["nobody", "1-1", "1-99999999999999999999", "%C2%B2-%C2%B2", "a" * 300])
@pytest.mark.parametrize(("method", "rest"), [("GET", ""), ("DELETE", ""), ("POST", "/revive")])
async def test_an_unknown_dead_letter_is_404(api: Api, method: str, rest: str, name: str) -> None:
    """Whatever the name looks like."""
    status, problem = await api.call(method, f"/v1/dead/{name}{rest}")
    assert (status, problem["code"]) == (404, "dead_letter_unknown")


@pytest.mark.parametrize("query", ["cursor=x", "cursor=1-99999999999999999999", "cursor=%C2%B2-1"])
async def test_a_made_up_cursor_is_400(api: Api, query: str) -> None:
    """As in the list of jobs."""
    status, problem = await api.call("GET", f"/v1/dead?{query}")
    assert (status, problem["code"]) == (400, "invalid_cursor")
