"""The wiring of the producer: settings → Redis → database → uploads → event tail → HTTP."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from aiohttp import web

from common.connection import connect, server_is_away
from common.database import Database
from common.durability import Durability
from common.errors import SettingsError, Unavailable
from common.health import Readiness, health_routes
from common.keys import Keys
from common.lexicons import Lexicons
from common.metrics import ProducerMetrics
from common.outage import Outage, persist
from common.queue import JobQueue
from common.setup import SetUp, set_up
from producer.access import REQUESTS, Requests, add_headers, log_access
from producer.bodies import MAX_JSON_BYTES
from producer.parts import PARTS, Parts
from producer.problems import answer_with_problems
from producer.routes import events, jobs, queue, search
from producer.tail import EventTail
from producer.uploads import UploadFolder

if TYPE_CHECKING:
    from common.settings import Settings

log = structlog.get_logger()

# Prometheus asks every few seconds; several of them, and people, must not add load.
_GAUGES_KEPT_S = 1.0
_GAUGES_LIMIT_S = 2.0
# For requests that outlast the drain: long enough to tidy up, too short to notice.
_CUT_OFF_S = 1.0
EPOCH_CHECKED_S = 5.0
# Less than this, and the database or the next upload soon has no room.
_LEAST_FREE_BYTES = 64 * 1024**2


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Accept jobs over HTTP until `stop` is set, then answer what is under way and end.

    Order of the end: the listening socket closes and the readiness check fails, event streams end, requests under
    way get `drain_s`, background loops are cancelled, connections close.
    """
    async with AsyncExitStack() as stack:
        redis = connect(settings)
        stack.push_async_callback(redis.aclose)
        keys = Keys(settings.queue)
        database = Database.open(settings.database_url.get_secret_value())
        stack.push_async_callback(database.aclose)
        uploads = UploadFolder(settings.upload_dir, settings.max_file_bytes)
        await asyncio.to_thread(uploads.prepare)
        job_queue = JobQueue(redis, keys, replicated=settings.durable_submit == "replica")
        readiness = make_readiness(
            _not_set_up, Durability(redis, settings.durable_submit), database, settings.upload_dir
        )
        stack.push_async_callback(readiness.aclose)
        tail = EventTail(job_queue)
        parts = Parts(
            settings, job_queue, database, readiness, ProducerMetrics(), uploads, tail, Lexicons(settings.lexicons_dir)
        )
        async with asyncio.TaskGroup() as loops:
            tasks = [loops.create_task(tail.run()), loops.create_task(_set_up_and_watch(parts))]
            await _listen(parts, stop)
            for task in tasks:
                task.cancel()


async def _listen(parts: Parts, stop: asyncio.Event) -> None:
    """Answer requests until `stop` is set."""
    settings = parts.settings
    runner = web.AppRunner(make_app(parts), access_log=None, shutdown_timeout=_CUT_OFF_S)
    await runner.setup()
    try:
        site = web.TCPSite(runner, settings.http_host, settings.http_port)
        await _start(site, settings)
        log.info("producer_listening", host=settings.http_host, port=runner.addresses[0][1])
        await stop.wait()
        parts.readiness.stopping = True
        await site.stop()
        parts.tail.close()
        left = await runner.app[REQUESTS].ended(settings.drain_s)
        if left:
            log.warning("requests_cut_off", count=left, after_s=settings.drain_s)
    finally:
        await runner.cleanup()


async def _start(site: web.TCPSite, settings: Settings) -> None:
    """Listen.

    Raises:
        SettingsError: the address or the port cannot be had.
    """
    try:
        await site.start()
    except OSError as exc:
        raise SettingsError(
            f"cannot listen on {settings.http_host} port {settings.http_port}: {exc.strerror}; choose another "
            "(STTREAM_HTTP_HOST, STTREAM_HTTP_PORT)"
        ) from exc


def make_app(parts: Parts) -> web.Application:
    """Return the application that answers with these parts."""
    app = web.Application(middlewares=[log_access, answer_with_problems], client_max_size=MAX_JSON_BYTES)
    app[PARTS] = parts
    app[REQUESTS] = Requests()
    app.add_routes([*jobs.routes(), *search.routes(), *queue.routes(), *events.routes()])
    app.add_routes(health_routes(parts.readiness, parts.metrics.registry, _gauge_refresher(parts)))
    app.on_response_prepare.append(add_headers)
    return app


def make_readiness(
    redis_probe: Callable[[], Awaitable[object]], durability: Durability, database: Database, upload_dir: Path
) -> Readiness:
    """Return the check of what a submission needs: Redis, set up to keep it, the database, the disk."""
    readiness = Readiness()
    readiness.add("redis", redis_probe)
    readiness.add("durability", durability.check)
    readiness.add("database", database.ping)
    readiness.add("disk", lambda: asyncio.to_thread(check_disk, upload_dir))
    return readiness


def check_disk(folder: Path) -> None:
    """See whether the upload folder takes files.

    Raises:
        Unavailable: it is not there, may not be written, or is nearly full.
    """
    try:
        status = os.statvfs(folder)
    except OSError as exc:
        raise Unavailable(f"the upload folder cannot be used: {exc.strerror}") from exc
    if not os.access(folder, os.W_OK | os.X_OK):
        raise Unavailable("the upload folder may not be written by this service's user")
    free_bytes = status.f_bavail * status.f_frsize
    if free_bytes < _LEAST_FREE_BYTES:
        raise Unavailable(f"the upload folder has only {free_bytes // 1024**2} MiB left")


def _gauge_refresher(parts: Parts) -> Callable[[], Awaitable[None]]:
    """Return a function that brings the queue's gauges up to date, at most once a second."""
    refreshed_s = -_GAUGES_KEPT_S
    refreshing = asyncio.Lock()

    async def refresh() -> None:
        nonlocal refreshed_s
        async with refreshing:
            if time.monotonic() - refreshed_s < _GAUGES_KEPT_S:
                return
            try:
                async with asyncio.timeout(_GAUGES_LIMIT_S):
                    parts.metrics.show_queue(await parts.overview.stats(parts.settings.lease_ms))
            except Exception as exc:
                if not server_is_away(exc):
                    log.exception("queue_uncounted")
                parts.metrics.hide_queue()
            refreshed_s = time.monotonic()

    return refresh


async def _set_up_and_watch(parts: Parts) -> None:
    """Set up behind the open port: `/readyz` says meanwhile what is away, and submissions are refused."""
    setup = await set_up(parts.queue.redis, parts.queue.keys, parts.database)
    await parts.readiness.report()  # the log has at once how the server falls short, before anybody asks
    parts.readiness.add("redis", setup.check)
    log.info("producer_ready")
    await _watch(setup)


async def _not_set_up() -> None:
    raise Unavailable("it is not set up yet: no answer so far, or its functions and groups are being made")


async def _watch(setup: SetUp) -> None:
    """Look at times whether the server still holds the data that this process started with, and all else it needs.

    Raises:
        DataLost: it does not; this ends the process.
    """
    outage = Outage("server, to watch over its data")
    while True:
        await asyncio.sleep(EPOCH_CHECKED_S)
        await persist(outage, setup.restore)  # a failover may have lost the library
