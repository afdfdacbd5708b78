"""POST /v1/jobs with JSON: what is accepted, what is refused and how clearly, and that once is once."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from common.settings import Settings
from tests.api.conftest import Api, Maker


async def test_an_accepted_job_can_be_looked_at_where_the_answer_says(api: Api) -> None:
    """A client follows Location and finds the same job, every field of the contract in it."""
    body = {
        "source": api.source,
        "priority": "high",
        "options": {"language": "en", "word_timestamps": True},
        "metadata": {"case": "17"},
    }
    async with api.client.post("/v1/jobs", json=body) as answer:
        assert answer.status == 202
        job = await answer.json()
        location = answer.headers["Location"]

    assert location == f"/v1/jobs/{job['id']}" == job["links"]["self"]
    assert await api.call("GET", location) == (200, job)
    assert job.keys() == {
        *("id", "state", "source", "priority", "attempts", "created_at", "queued_at", "started_at"),
        *("finished_at", "progress", "audio_s", "worker", "error", "cancel_requested", "batch_id"),
        *("options", "metadata", "links"),
    }
    assert (job["state"], job["priority"], job["attempts"], job["error"]) == ("queued", "high", 0, None)
    assert job["options"]["language"] == "en"
    assert job["metadata"] == {"case": "17"}
    assert job["created_at"].endswith("Z")
    assert len(job["created_at"]) == len("2026-01-01T00:00:00.000Z")
    assert await api.parts.queue.redis.xlen(api.parts.queue.keys.lane("high")) == 1


async def test_a_lexicon_must_be_known_when_a_job_is_accepted(
    make_api: Maker, settings: Settings, tmp_path: Path
) -> None:
    """A job that would fail hours later is refused at once, and what is wrong is named."""
    (tmp_path / "legal.txt").write_text("affidavit\nestoppel\n")
    api = await make_api(settings.model_copy(update={"lexicons_dir": tmp_path}))

    job = await api.submit(options={"lexicon": "legal"})
    status, problem = await api.call("POST", "/v1/jobs", json={"source": api.source, "options": {"lexicon": "medical"}})

    assert job["options"]["lexicon"] == "legal"
    assert (status, problem["code"], problem["error"]["param"]) == (422, "lexicon_unknown", "options.lexicon")
    assert "legal" in problem["detail"]


async def test_generated_ids_sort_by_time(api: Api) -> None:
    """People list folders of results by name and expect the order of submission."""
    first, second = await api.submit(), await api.submit()
    assert first["id"][14] == second["id"][14] == "7"
    assert first["id"][:13] <= second["id"][:13]


async def test_the_same_job_twice_is_one_job(api: Api) -> None:
    """A client that lost the answer asks again and must not pay twice."""
    body = {"source": api.source, "id": "a", "options": {"beam_size": 5}}
    assert (await api.call("POST", "/v1/jobs", json=body))[0] == 202
    status, again = await api.call("POST", "/v1/jobs", json={"id": "a", "source": api.source})
    assert (status, again["state"]) == (200, "queued")
    status, problem = await api.call("POST", "/v1/jobs", json={**body, "priority": "low"})
    assert (status, problem["code"], problem["error"]["param"]) == (409, "id_conflict", "id")
    assert await api.parts.queue.redis.xlen(api.parts.queue.keys.lane("normal")) == 1


async def test_fifty_submissions_of_one_id_at_once_are_one_job(api: Api) -> None:
    """Clients retry in parallel; exactly one answer says that the job is new."""
    calls = (api.call("POST", "/v1/jobs", json={"source": api.source, "id": "one"}) for _ in range(50))
    answers = await asyncio.gather(*calls)
    assert sorted(status for status, _ in answers) == [200] * 49 + [202]
    assert await api.parts.queue.redis.xlen(api.parts.queue.keys.lane("normal")) == 1


async def test_a_job_that_redis_has_forgotten_is_still_known(api: Api) -> None:
    """Hashes expire after a day; idempotency must not."""
    await api.submit(id="old")
    await api.line.complete("old")
    await api.line.forget("old")
    status, job = await api.call("POST", "/v1/jobs", json={"source": api.source, "id": "old"})
    assert (status, job["state"]) == (200, "completed")
    status, problem = await api.call("POST", "/v1/jobs", json={"source": api.source, "id": "old", "priority": "low"})
    assert (status, problem["code"]) == (409, "id_conflict")
    assert await api.parts.queue.redis.xlen(api.parts.queue.keys.lane("normal")) == 0


@pytest.mark.parametrize(
    "when", [{"delay_s": 60}, {"run_at": "2999-01-01T00:00:00Z"}, {"run_at": "2999-01-01T02:00:00.5+02:00"}]
)
async def test_a_job_for_later_is_scheduled(api: Api, when: dict[str, Any]) -> None:
    """A delay is kept by the server's clock, as a wait or as a time with a zone."""
    job = await api.submit(**when)
    assert (job["state"], job["queued_at"]) == ("scheduled", None)
    due_ms = await api.parts.queue.redis.zscore(api.parts.queue.keys.delayed, job["id"])
    if "run_at" in when:
        assert int(due_ms) // 1000 == 32472144000
    else:
        assert 58_000 < due_ms - await api.parts.queue.now_ms() <= 60_000


async def test_a_time_that_has_passed_means_now(api: Api) -> None:
    """A client whose clock is behind loses nothing."""
    assert (await api.submit(run_at="2001-01-01T00:00:00Z"))["state"] == "queued"


async def test_a_full_queue_refuses_with_429(make_api: Maker, settings: Settings) -> None:
    """Backpressure: the client learns at once, and when to come back."""
    api = await make_api(settings.model_copy(update={"max_queued": 2}))
    await api.submit(id="a")
    await api.submit(delay_s=60)
    async with api.client.post("/v1/jobs", json={"source": api.source}) as answer:
        assert (answer.status, answer.headers["Retry-After"]) == (429, "5")
        problem = await answer.json()
    assert (problem["code"], problem["error"]["type"]) == ("queue_full", "rate_limit_error")
    assert (await api.call("POST", "/v1/jobs", json={"source": api.source, "id": "a"}))[0] == 200


BROKEN = {
    "half an object": b'{"source": ',
    "nothing": b"",
    "not UTF-8": b'{"source": "\xff"}',
    "a name given twice": b'{"source": "/a", "source": "/b"}',
    "NaN": b'{"source": "/a", "timeout_s": NaN}',
    "a number of 5000 digits": b'{"source": "/a", "timeout_s": ' + b"9" * 5000 + b"}",
    "nesting without end": b"[" * 60_000,
    "a NUL": b'{"source": "/a\\u0000"}',
    "half a surrogate pair": b'{"source": "/a\\ud800"}',
}


@pytest.mark.parametrize("raw", BROKEN.values(), ids=BROKEN.keys())
async def test_json_that_cannot_be_read_is_400(api: Api, raw: bytes) -> None:
    """Whatever two parsers could read differently is refused before anything looks at it."""
    status, problem = await api.call("POST", "/v1/jobs", data=raw, headers={"Content-Type": "application/json"})
    assert (status, problem["code"], problem["title"]) == (400, "invalid_json", "Bad Request")


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"sauce": "/a"}, "sauce"),
    ({"webhook": {"url": "https://example.org"}}, "webhook"),
    ({"batch_id": "b"}, "batch_id"),
    ({"batch_id": None}, "batch_id"),
    ({"source": 7}, "source"),
    ({"source": ""}, "source"),
    ({"id": "../etc"}, "id"),
    ({"id": "con"}, "id"),
    ({"id": "a" * 129}, "id"),
    ({"id": 5}, "id"),
    ({"priority": "urgent"}, "priority"),
    ({"options": {"language": "xx"}}, "options.language"),
    ({"options": {"lexicon": {}}}, "options.lexicon"),
    ({"options": {"beam_size": "5"}}, "options.beam_size"),
    ({"options": {"beam_size": True}}, "options.beam_size"),
    ({"options": {"vad": 1}}, "options.vad"),
    ({"options": []}, "options"),
    ({"timeout_s": 0}, "timeout_s"),
    ({"timeout_s": 1e300}, "timeout_s"),
    ({"max_attempts": 1.5}, "max_attempts"),
    ({"retry_delay_s": -1}, "retry_delay_s"),
    ({"metadata": {"a": 1}}, "metadata.a"),
    ({"metadata": {str(n): "" for n in range(33)}}, "metadata"),
    ({"delay_s": -1}, "delay_s"),
    ({"delay_s": 1, "run_at": "2999-01-01T00:00:00Z"}, "run_at"),
    ({"run_at": "2999-01-01T00:00:00"}, "run_at"),
    ({"run_at": "2999-02-30T00:00:00Z"}, "run_at"),
    ({"run_at": 5}, "run_at"),
]


@pytest.mark.parametrize(("wrong", "param"), WRONG, ids=[f"{param}-{n}" for n, (_, param) in enumerate(WRONG)])
async def test_a_wrong_field_is_named(api: Api, wrong: dict[str, Any], param: str) -> None:
    """The first thing that somebody who made a mistake needs is where."""
    status, problem = await api.call("POST", "/v1/jobs", json={"source": api.source, **wrong})
    assert (status, problem["code"], problem["error"]["param"]) == (422, "invalid_field", param)
    assert problem["detail"].startswith(f"{param}: ")
    assert problem["error"]["message"] == problem["detail"]
    assert await api.call("GET", "/v1/jobs") == (200, {"jobs": [], "next_cursor": None})


@pytest.mark.parametrize("raw", ["[]", '"text"', "5", "null"])
async def test_json_that_is_no_object_is_422(api: Api, raw: str) -> None:
    """Valid JSON of another kind is a wrong submission, not broken JSON."""
    headers = {"Content-Type": "application/json"}
    assert (await api.call("POST", "/v1/jobs", data=raw, headers=headers))[0] == 422


async def test_a_missing_source_is_named(api: Api) -> None:
    """The one field without which there is no job."""
    status, problem = await api.call("POST", "/v1/jobs", json={})
    assert (status, problem["error"]["param"], problem["detail"]) == (422, "source", "source: missing")


async def test_other_content_types_are_415(api: Api) -> None:
    """curl -d without a header sends a form: the answer says what to send."""
    status, problem = await api.call("POST", "/v1/jobs", data={"source": "/a"})
    assert (status, problem["code"]) == (415, "unsupported_media_type")
    assert "application/json" in problem["detail"]


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_large_body_is_413_before_it_is_parsed(api: Api, chunked: bool) -> None:
    """A megabyte of JSON costs the server 64 kB, told its length or not."""
    raw = b'{"source": "' + b"a" * 1_000_000 + b'"}'

    async def pieces() -> Any:
        for start in range(0, len(raw), 10_000):
            yield raw[start : start + 10_000]

    status, problem = await api.call(
        "POST", "/v1/jobs", data=pieces() if chunked else raw, headers={"Content-Type": "application/json"}
    )
    assert (status, problem["code"]) == (413, "body_too_large")


def _directory(folder: Path) -> Path:
    (folder / "d").mkdir()
    return folder / "d"


def _fifo(folder: Path) -> Path:
    os.mkfifo(folder / "fifo")
    return folder / "fifo"


def _socket(folder: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(folder / "s"))
    return folder / "s"


def _broken_link(folder: Path) -> Path:
    (folder / "broken").symlink_to(folder / "nowhere")
    return folder / "broken"


def _link_out(folder: Path) -> Path:
    (folder / "out").symlink_to("/etc/hostname")
    return folder / "out"


def _large(folder: Path) -> Path:
    (folder / "large.wav").write_bytes(b"x" * 100_001)
    return folder / "large.wav"


BAD_SOURCES = {
    "missing": (lambda folder: folder / "missing.wav", "source_missing"),
    "outside": (lambda _: Path("/etc/hostname"), "source_outside_roots"),
    "climbs out": (lambda folder: f"{folder}/../../etc/hostname", "source_outside_roots"),
    "device": (lambda _: Path("/dev/null"), "source_outside_roots"),
    "https": (lambda _: "https://example.org/a.mp3", "source_unsupported"),
    "directory": (_directory, "source_not_a_file"),
    "fifo": (_fifo, "source_not_a_file"),
    "socket": (_socket, "source_not_a_file"),
    "broken link": (_broken_link, "source_missing"),
    "link out": (_link_out, "source_outside_roots"),
    "too large": (_large, "file_too_large"),
}


@pytest.mark.parametrize(("make", "code"), BAD_SOURCES.values(), ids=BAD_SOURCES.keys())
async def test_a_source_that_cannot_work_is_422_at_once(api: Api, make: Any, code: str) -> None:
    """A typo in a path is told to who made it, not found in the dead letters an hour later."""
    source = str(make(api.parts.settings.audio_roots[0]))
    status, problem = await api.call("POST", "/v1/jobs", json={"source": source})
    assert (status, problem["code"], problem["error"]["param"]) == (422, code, "source")
    assert await api.call("GET", "/v1/jobs") == (200, {"jobs": [], "next_cursor": None})
