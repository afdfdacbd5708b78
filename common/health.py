"""Health over HTTP: alive, ready (or what is not, and why), and the metrics page."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import orjson
import structlog
from aiohttp import web
from prometheus_client.exposition import choose_encoder

from common.logs import safe_text

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

log = structlog.get_logger()

Probe = Callable[[], Awaitable[object]]
OK = "ok"
STOPPING = "stopping"
PROBE_LIMIT_S = 2.0
# Load balancers of many hosts ask at once; what they ask about is looked at once.
REPORT_KEPT_S = 1.0
_LONGEST_MESSAGE = 300


class Readiness:
    """Whether this process can do its work, and what keeps it from it.

    Args:
        limit_s: how long one probe may take.
        now: seconds of a clock that never goes back.
    """

    def __init__(self, *, limit_s: float = PROBE_LIMIT_S, now: Callable[[], float] = time.monotonic) -> None:
        self.stopping = False
        """Set when the process begins to stop: it is not ready from then on."""
        self._limit_s = limit_s
        self._now = now
        self._probes: dict[str, Probe] = {}
        self._running: dict[str, asyncio.Future[object]] = {}
        self._report: dict[str, str] = {}
        self._reported_s: float | None = None
        self._reporting = asyncio.Lock()

    def add(self, name: str, probe: Probe) -> None:
        """Ask `probe` under this name from now on; it answers, or raises what is wrong."""
        self._probes[name] = probe
        self._reported_s = None

    @property
    def ready(self) -> bool:
        """Whether the last report found everything in order."""
        found = self._report.values()
        return self._reported_s is not None and not self.stopping and all(told == OK for told in found)

    async def report(self) -> dict[str, str]:
        """Return `ok` or what is wrong, by name; not older than a second."""
        async with self._reporting:
            if self._reported_s is None or self._now() - self._reported_s >= REPORT_KEPT_S:
                names = tuple(self._probes)
                told = await asyncio.gather(*(self._ask(name) for name in names))
                self._report = dict(zip(names, told, strict=True))
                if len(names) == len(self._probes):  # else one came meanwhile: nothing is known of it yet
                    self._reported_s = self._now()
        return self._report | ({"process": STOPPING} if self.stopping else {})

    async def _ask(self, name: str) -> str:
        """Ask one probe. One that hangs (a dead network disk) is never asked again before it answers."""
        asked = self._running.get(name)
        if asked is None or asked.done():
            asked = self._running[name] = asyncio.ensure_future(self._probes[name]())
            asked.add_done_callback(_take_error)
        await asyncio.wait({asked}, timeout=self._limit_s)
        if not asked.done():
            return f"no answer within {self._limit_s:g} s"
        error = asked.exception()
        return OK if error is None else _message(error)

    async def aclose(self) -> None:
        """Give up the probes that still hang."""
        for asked in self._running.values():
            asked.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)


def _take_error(asked: asyncio.Future[object]) -> None:
    """Look at the error of a probe that nobody waits for any more: asyncio would log it as forgotten."""
    if not asked.cancelled():
        asked.exception()


def _message(error: BaseException) -> str:
    """Return the first line of an error: SQL and its parameters, or a traceback, come in the lines after."""
    lines = str(error).strip().splitlines()
    return safe_text(lines[0] if lines else type(error).__name__, _LONGEST_MESSAGE)


def health_routes(
    readiness: Readiness, registry: CollectorRegistry, refresh: Callable[[], Awaitable[None]] | None = None
) -> Sequence[web.RouteDef]:
    """Return the routes `/healthz`, `/readyz` and `/metrics`.

    Args:
        readiness: what `/readyz` tells.
        registry: what `/metrics` shows.
        refresh: called before the metrics are shown; it never raises.
    """

    async def healthz(_: web.Request) -> web.Response:
        return _json(200, {"status": OK})

    async def readyz(_: web.Request) -> web.Response:
        checks = await readiness.report()
        if readiness.ready:
            return _json(200, {"status": "ready", "checks": checks})
        return _json(503, {"status": "not ready", "checks": checks})

    async def metrics(request: web.Request) -> web.Response:
        if refresh is not None:
            await refresh()
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(registry), headers={"Content-Type": content_type})

    return [web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)]


def _json(status: int, body: dict[str, object]) -> web.Response:
    headers = {"Cache-Control": "no-store"}
    return web.Response(status=status, body=orjson.dumps(body), content_type="application/json", headers=headers)


@asynccontextmanager
async def serve_health(
    port: int, readiness: Readiness, registry: CollectorRegistry, *, host: str = "127.0.0.1"
) -> AsyncIterator[int]:
    """Answer health checks while the block runs.

    Args:
        port: 0 takes a free one.
        readiness: what `/readyz` tells.
        registry: what `/metrics` shows.
        host: the address to listen on.

    Yields:
        The port.
    """
    app = web.Application()
    app.add_routes(health_routes(readiness, registry))
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        bound: int = runner.addresses[0][1]
        log.info("health_served", host=host, port=bound)
        yield bound
    finally:
        await runner.cleanup()
        await readiness.aclose()
