"""What holds on every route: problems, request ids, methods, health, metrics."""

from __future__ import annotations

import json
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from common.errors import JobError, Unavailable
from producer.problems import problem_of
from tests.api.conftest import Api


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/v1/jobs/", 404, "not_found"),
        ("PUT", "/v1/jobs", 405, "method_not_allowed"),
        ("PATCH", "/v1/jobs/a", 405, "method_not_allowed"),
        ("POST", "/v1/queue", 405, "method_not_allowed"),
    ],
)
async def test_what_does_not_exist_is_a_problem_too(api: Api, method: str, path: str, status: int, code: str) -> None:
    """Clients parse one kind of error, also for their own mistakes in the address."""
    async with api.client.request(method, path) as answer:
        problem = await answer.json(content_type="application/problem+json")
        assert (answer.status, problem["code"], problem["instance"]) == (status, code, path)
        if status == 405:
            assert answer.headers["Allow"]
    assert problem.keys() == {"type", "title", "status", "detail", "instance", "code", "error"}
    assert problem["error"].keys() == {"message", "type", "param", "code"}
    assert problem["type"] == f"urn:sttream:problem:{code}"


async def test_head_answers_as_get_without_a_body(api: Api) -> None:
    """Monitors ask with HEAD; a stream would never end for them."""
    await api.submit(id="a")
    for path, status in {"/v1/jobs/a": 200, "/v1/jobs/b": 404, "/v1/queue": 200, "/v1/events": 405}.items():
        async with api.client.head(path) as answer:
            assert (answer.status, await answer.read()) == (status, b"")


@pytest.mark.parametrize("given", ["a", "8f14e45f-ceea-467f", "trace:1.2_3"])
async def test_a_clients_request_id_comes_back(api: Api, given: str) -> None:
    """It ties the client's log to ours, on good answers and bad ones."""
    for path in ("/v1/queue", "/nowhere", "/v1/jobs/a", "/healthz"):
        async with api.client.get(path, headers={"X-Request-Id": given}) as answer:
            assert answer.headers["X-Request-Id"] == given


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "ä", "{}", '"'])
async def test_a_malformed_request_id_is_replaced(api: Api, given: str) -> None:
    """It ends up in logs: only plain ones may."""
    async with api.client.get("/v1/queue", headers={"X-Request-Id": given}) as answer:
        made = answer.headers["X-Request-Id"]
    assert made != given
    assert len(made) == 16


async def test_a_fault_of_ours_is_500_and_tells_no_internals(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client learns where to look in the log, not how the server is built."""

    async def broken(_: str) -> Any:
        raise KeyError("secret detail")

    monkeypatch.setattr(api.parts.database, "job", broken)
    async with api.client.get("/v1/jobs/a", headers={"X-Request-Id": "ref-1"}) as answer:
        text = await answer.text()
        assert answer.status == 500
    assert "secret" not in text
    assert "KeyError" not in text
    assert json.loads(text)["error"]["type"] == "server_error"
    assert "ref-1" in json.loads(text)["detail"]


async def test_a_job_error_that_may_pass_is_503(api: Api) -> None:
    """A disk that is not mounted now is no fault of the request."""
    error = problem_of(JobError("source_unreadable", "x: its root is not there", retryable=True))
    assert error is not None
    assert (error.status, error.headers["Retry-After"]) == (503, "5")


async def test_a_problem_shows_no_credentials() -> None:
    """Messages of libraries hold URLs; answers must not."""
    problem = problem_of(Unavailable("postgresql://me:hunter2@db/x cannot be reached\x1b[31m"))
    assert problem is not None
    assert "hunter2" not in problem.detail
    assert "\x1b" not in problem.detail


async def test_health_tells_alive_from_ready(api: Api) -> None:
    """A restart cures what is not alive; only waiting cures what is not ready."""
    assert await api.call("GET", "/healthz") == (200, {"status": "ok"})
    status, ready = await api.call("GET", "/readyz")
    assert (status, ready) == (
        200,
        {"status": "ready", "checks": {"redis": "ok", "durability": "ok", "database": "ok", "disk": "ok"}},
    )
    api.parts.readiness.stopping = True
    async with api.client.get("/readyz") as answer:
        assert answer.status == 503
        assert (await answer.json())["checks"]["process"] == "stopping"


async def test_metrics_count_what_came_in_and_what_waits(api: Api) -> None:
    """Dashboards and autoscaling read these."""
    await api.submit(priority="high")
    await api.submit(id="a")
    await api.submit(id="a")
    await api.call("POST", "/v1/jobs", json={"source": 5})
    await api.call("POST", "/v1/jobs", json={"source": "/etc/passwd"})
    async with api.client.get("/metrics") as answer:
        assert answer.content_type == "text/plain"
        text = await answer.text()
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found["sttream_jobs_submitted_total", "high"] == 1
    assert found["sttream_jobs_submitted_total", "normal"] == 1
    assert found["sttream_jobs_submitted_total", "low"] == 0
    assert found["sttream_jobs_refused_total", "invalid_field"] == 1
    assert found["sttream_jobs_refused_total", "source_outside_roots"] == 1
    assert found["sttream_queue_depth", "high"] == 1
    assert found["sttream_queue_running",] == 0
    assert found["sttream_build_info", "0.1.0"] == 1
