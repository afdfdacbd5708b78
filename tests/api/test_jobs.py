"""Looking at jobs, cancelling them, running them again, reading what was said."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.api.conftest import Api
from tests.api.line import transcript_of

UNKNOWN = ["nobody", "a" * 200, "a..", "%2e%2e%2fetc", "a%00b"]


@pytest.mark.parametrize("name", UNKNOWN)
@pytest.mark.parametrize(
    ("method", "rest"),
    [("GET", ""), ("DELETE", ""), ("POST", "/retry"), ("GET", "/transcript"), ("GET", "/events")],
)
async def test_an_unknown_job_is_404_on_every_route(api: Api, method: str, rest: str, name: str) -> None:
    """Also for names that no job can have."""
    status, problem = await api.call(method, f"/v1/jobs/{name}{rest}")
    assert (status, problem["code"]) == (404, "job_unknown")


async def test_a_job_tells_its_story(api: Api) -> None:
    """Each state shows what is known by then: times, worker, progress, length."""
    await api.submit(id="a")
    await api.line.start("a")
    await api.line.renew("a", 0.4)
    _, running = await api.call("GET", "/v1/jobs/a")
    assert (running["state"], running["attempts"], running["progress"]) == ("running", 1, 0.4)
    assert running["worker"] == "host-1-abcd"
    assert running["started_at"] >= running["queued_at"] >= running["created_at"]

    await api.submit(id="b")
    await api.line.complete("b")
    _, completed = await api.call("GET", "/v1/jobs/b")
    assert (completed["state"], completed["progress"], completed["audio_s"]) == ("completed", 1.0, 2.5)
    assert completed["finished_at"] is not None

    await api.line.forget("b")
    status, stored = await api.call("GET", "/v1/jobs/b")
    assert (status, stored["state"], stored["links"]) == (200, "completed", completed["links"])


async def test_a_failed_job_says_why(api: Api) -> None:
    """The reason travels from the consumer to whoever asks."""
    await api.submit(id="a")
    await api.line.fail("a")
    _, job = await api.call("GET", "/v1/jobs/a")
    assert job["state"] == "failed"
    assert job["error"] == {"type": "audio_unreadable", "detail": "no audio stream was found"}


async def test_cancelling_before_the_start_is_final(api: Api) -> None:
    """A queued or scheduled job ends at once."""
    for when in ({}, {"delay_s": 60}):
        job = await api.submit(**when)
        status, cancelled = await api.call("DELETE", f"/v1/jobs/{job['id']}")
        assert (status, cancelled["state"], cancelled["cancel_requested"]) == (200, "cancelled", False)


async def test_cancelling_a_running_job_asks_its_consumer(api: Api) -> None:
    """It is still running when the answer comes; the answer says that it will stop."""
    await api.submit(id="a")
    await api.line.start("a")
    status, job = await api.call("DELETE", "/v1/jobs/a")
    assert (status, job["state"], job["cancel_requested"]) == (200, "running", True)
    assert await api.line.renew("a", 0.1) == -2


@pytest.mark.parametrize("forgotten", [False, True])
async def test_cancelling_an_ended_job_is_409(api: Api, forgotten: bool) -> None:
    """There is nothing to cancel, in Redis or in the database."""
    await api.submit(id="a")
    await api.line.complete("a")
    if forgotten:
        await api.line.forget("a")
    status, problem = await api.call("DELETE", "/v1/jobs/a")
    assert (status, problem["code"]) == (409, "not_cancellable")
    assert "completed" in problem["detail"]


@pytest.mark.parametrize("forgotten", [False, True])
@pytest.mark.parametrize("ending", ["fail", "cancel"])
async def test_a_failed_or_cancelled_job_runs_again(api: Api, ending: str, forgotten: bool) -> None:
    """After the cause is mended nobody should have to submit again, a week later either."""
    await api.submit(id="a", priority="low", metadata={"case": "7"})
    if ending == "fail":
        await api.line.fail("a")
    else:
        await api.call("DELETE", "/v1/jobs/a")
    await api.line.store_all()
    if forgotten:
        await api.line.forget("a")

    status, job = await api.call("POST", "/v1/jobs/a/retry")
    assert (status, job["state"], job["attempts"], job["error"]) == (202, "queued", 0, None)
    assert (job["priority"], job["metadata"]) == ("low", {"case": "7"})
    assert (await api.line.job("a")).run == 2
    await api.line.complete("a")
    assert (await api.call("GET", "/v1/jobs/a"))[1]["state"] == "completed"
    stored = await api.parts.database.job("a")
    assert stored is not None
    assert (stored.state, stored.run) == ("completed", 2)


@pytest.mark.parametrize("state", ["queued", "running", "completed", "forgotten"])
async def test_other_jobs_cannot_run_again(api: Api, state: str) -> None:
    """A second run of a job that is under way, or done, would be a second transcript."""
    await api.submit(id="a")
    if state == "running":
        await api.line.start("a")
    if state in {"completed", "forgotten"}:
        await api.line.complete("a")
    if state == "forgotten":
        await api.line.forget("a")
    status, problem = await api.call("POST", "/v1/jobs/a/retry")
    assert (status, problem["code"]) == (409, "not_retryable")


@pytest.mark.parametrize(
    ("format_", "media_type", "begins"),
    [
        ("json", "application/json", b'{"job_id":"a"'),
        ("txt", "text/plain", b"No more, said Ivan."),
        ("srt", "application/x-subrip", b"1\n00:00:00,000 --> 00:00:02,500\n"),
        ("vtt", "text/vtt", b"WEBVTT\n"),
        ("tsv", "text/tab-separated-values", b"start\tend\ttext\n"),
    ],
)
async def test_a_transcript_comes_in_every_format(api: Api, format_: str, media_type: str, begins: bytes) -> None:
    """Each with its type and a safe name, never guessed at by a browser."""
    await api.submit(id="a")
    await api.line.complete("a")
    async with api.client.get(f"/v1/jobs/a/transcript?format={format_}") as answer:
        assert (answer.status, answer.content_type) == (200, media_type)
        assert answer.headers["Content-Disposition"] == f'inline; filename="a.{format_}"'
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert (await answer.read()).startswith(begins)


async def test_json_is_the_default_format_and_whole(api: Api) -> None:
    """The JSON is the transcript as the consumer made it, to the last field."""
    await api.submit(id="a")
    await api.line.complete("a")
    expected = json.loads(transcript_of(await api.line.job("a")).to_json())
    assert await api.call("GET", "/v1/jobs/a/transcript") == (200, expected)


@pytest.mark.parametrize("state", ["queued", "running", "transcribed", "failed", "cancelled"])
async def test_a_transcript_before_completion_is_409_with_the_state(api: Api, state: str) -> None:
    """`completed` means stored and readable; before that the answer says how far the job is."""
    await api.submit(id="a")
    steps: dict[str, Any] = {
        "running": api.line.start,
        "transcribed": api.line.transcribe,
        "failed": api.line.fail,
    }
    if state in steps:
        await steps[state]("a")
    elif state == "cancelled":
        await api.call("DELETE", "/v1/jobs/a")
    status, problem = await api.call("GET", "/v1/jobs/a/transcript")
    assert (status, problem["code"]) == (409, "not_completed")
    assert state in problem["detail"]


@pytest.mark.parametrize("query", ["format=docx", "format=", "format=txt&format=srt", "fmt=txt"])
async def test_an_unknown_format_is_422(api: Api, query: str) -> None:
    """A mistyped parameter must not quietly give JSON."""
    await api.submit(id="a")
    await api.line.complete("a")
    status, problem = await api.call("GET", f"/v1/jobs/a/transcript?{query}")
    assert (status, problem["code"]) == (422, "invalid_parameter")
