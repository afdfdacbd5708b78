"""Readiness: what is wrong, said soon, without asking too often."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from common.health import Readiness, serve_health
from common.metrics import WriterMetrics


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Probe:
    """Counts how often it is asked, and says what the test wants."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked = 0
        self.error = error

    async def __call__(self) -> None:
        self.asked += 1
        if self.error:
            raise self.error


async def test_each_probe_is_named_with_what_is_wrong() -> None:
    """An operator sees at once which part is away."""
    readiness = Readiness()
    readiness.add("redis", Probe())
    readiness.add("database", Probe(OSError("connection refused")))
    assert await readiness.report() == {"redis": "ok", "database": "connection refused"}
    assert not readiness.ready


async def test_nothing_is_ready_before_it_was_looked_at() -> None:
    """A process that has just started has promised nothing."""
    readiness = Readiness()
    assert not readiness.ready
    await readiness.report()
    assert readiness.ready


async def test_many_that_ask_at_once_cost_one_look_a_second() -> None:
    """Submissions, load balancers and dashboards all ask."""
    clock, probe = Clock(), Probe()
    readiness = Readiness(now=clock)
    readiness.add("redis", probe)
    await asyncio.gather(*(readiness.report() for _ in range(20)))
    clock.now_s += 0.9
    await readiness.report()
    assert probe.asked == 1
    clock.now_s += 0.2
    probe.error = OSError("gone")
    assert await readiness.report() == {"redis": "gone"}
    assert probe.asked == 2


async def test_a_probe_that_hangs_is_named_and_not_asked_again() -> None:
    """A dead network disk holds one thread, not one a second, and the others are reported meanwhile."""
    clock, hanging, asked = Clock(), asyncio.Event(), 0

    async def disk() -> None:
        nonlocal asked
        asked += 1
        await hanging.wait()

    readiness = Readiness(limit_s=0.01, now=clock)
    readiness.add("disk", disk)
    readiness.add("redis", Probe())
    for _ in range(3):
        assert await readiness.report() == {"disk": "no answer within 0.01 s", "redis": "ok"}
        clock.now_s += 2
    assert asked == 1
    hanging.set()
    await asyncio.wait({readiness._running["disk"]})
    assert await readiness.report() == {"disk": "ok", "redis": "ok"}
    assert asked == 2


async def test_probes_are_asked_together() -> None:
    """Three slow parts take as long as one."""
    met = asyncio.Barrier(3)
    readiness = Readiness()
    for name in ("redis", "database", "disk"):
        readiness.add(name, met.wait)
    assert set((await readiness.report()).values()) == {"ok"}


async def test_a_probe_that_comes_while_others_are_asked_is_waited_for() -> None:
    """A service that starts is asked from the first moment: it must not be ready before its last part is."""
    readiness, looking, answering = Readiness(), asyncio.Event(), asyncio.Event()

    async def redis() -> None:
        looking.set()
        await answering.wait()

    readiness.add("redis", redis)
    early = asyncio.create_task(readiness.report())
    await looking.wait()
    readiness.add("database", Probe(OSError("not migrated")))
    answering.set()

    assert await early == {"redis": "ok"}
    assert not readiness.ready
    assert await readiness.report() == {"redis": "ok", "database": "not migrated"}


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError("redis://me:hunter2@h:6379 refused"), "redis://***@h:6379 refused"),
        (OSError("refused\n[SQL: SELECT secret]"), "refused"),
        (OSError(), "OSError"),
        (OSError("\x1b[2J"), "\\x1b[2J"),
    ],
)
async def test_messages_are_short_and_tell_no_secret(error: Exception, message: str) -> None:
    """/readyz is open to whoever reaches the port."""
    readiness = Readiness()
    readiness.add("redis", Probe(error))
    assert await readiness.report() == {"redis": message}


async def test_a_process_that_stops_is_not_ready() -> None:
    """Load balancers send work elsewhere while it drains."""
    readiness = Readiness()
    await readiness.report()
    readiness.stopping = True
    assert not readiness.ready
    assert await readiness.report() == {"process": "stopping"}


async def test_the_health_server_answers_on_a_port_of_its_own() -> None:
    """Consumer and writer have no other HTTP server."""
    readiness, metrics = Readiness(), WriterMetrics()
    probe = Probe()
    readiness.add("redis", probe)
    async with serve_health(0, readiness, metrics.registry) as port, aiohttp.ClientSession() as session:
        assert await _get(session, port, "/healthz") == (200, {"status": "ok"})
        assert await _get(session, port, "/readyz") == (200, {"status": "ready", "checks": {"redis": "ok"}})
        async with session.get(f"http://127.0.0.1:{port}/metrics") as answer:
            assert answer.content_type == "text/plain"
            assert 'sttream_build_info{version="0.1.0"} 1.0' in await answer.text()
        headers = {"Accept": "application/openmetrics-text; version=1.0.0"}
        async with session.get(f"http://127.0.0.1:{port}/metrics", headers=headers) as answer:
            assert answer.content_type == "application/openmetrics-text"
    with pytest.raises(OSError, match=r"refused|Connect"):
        await asyncio.open_connection("127.0.0.1", port)


async def _get(session: aiohttp.ClientSession, port: int, path: str) -> tuple[int, Any]:
    async with session.get(f"http://127.0.0.1:{port}{path}") as answer:
        return answer.status, await answer.json()
