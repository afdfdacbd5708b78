"""The wiring of this package's two services: settings → Redis → stores → watchdog → engine → stage.

Each enters what it needs on one `AsyncExitStack`, which closes in reverse: the stage drains first, then leases stop
being renewed, then the engine and the decoders go, the connections last.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import structlog

from common.connection import Client, connect
from common.database import Database
from common.group import consumer_name
from common.health import Readiness, serve_health
from common.keys import Keys
from common.lease import LeaseKeeper
from common.metrics import ConsumerMetrics, StageMetrics, WriterMetrics
from common.outage import Server
from common.process import available_cores, calm_collector, keep_buffers, one_thread_a_library, unless
from common.setup import set_up
from common.stage import Stage, StageSettings
from common.streams import JobStreams, ResultStream
from common.watchdog import Watchdog

if TYPE_CHECKING:
    from common.settings import Settings
    from consumer.engine import Model

# Results that a writer holds at a time: enough for one transaction to be worth its fsync.
RESULTS_AT_A_TIME = 64
# Decoding and speech detection take a second of a core for five minutes of sound. A CPU spends far more on reading it;
# a GPU that reads an hour in a few seconds wants more decoders than one.
MOST_DECODERS = {"cpu": 4, "cuda": 12}
# Jobs that a consumer holds for each chunk that its engine reads at a time: while some are read, the next are decoded.
JOBS_A_CHUNK = 2


async def serve_consumer(
    settings: Settings, stop: asyncio.Event, load: Callable[[Settings], Model] | None = None
) -> None:
    """Run a consumer until `stop` is set, then drain.

    Args:
        load: makes the model, in a thread; `Whisper.load` by default.
    """
    one_thread_a_library()
    keep_buffers()
    # Here, not above: a writer shall not carry the model's libraries.
    from consumer.engine import Engine
    from consumer.prepare import PreparePool
    from consumer.transcriber import Transcriber
    from consumer.whisper import Whisper

    async with AsyncExitStack() as stack:
        metrics, loaded = ConsumerMetrics(), asyncio.Event()
        redis, readiness = await _begin(stack, settings, metrics)
        readiness.add("engine", lambda: _loaded(loaded))
        keys = Keys(settings.queue)
        setup = await unless(stop, set_up(redis, keys))
        watchdog = stack.enter_context(Watchdog(settings.stall_s))
        loaded_by: Callable[[Settings], Model] = load or Whisper.load
        model = await unless(stop, asyncio.to_thread(loaded_by, settings))
        engine = await unless(stop, asyncio.to_thread(Engine.start, model, settings.batch_size, watchdog, metrics))
        stack.callback(engine.close)
        processes = settings.prepare_processes or max(1, min(MOST_DECODERS[model.device], available_cores() // 2))
        pool = PreparePool(processes=processes, max_audio_s=settings.max_audio_s, scratch_dir=settings.scratch_dir)
        await stack.enter_async_context(pool)
        loaded.set()
        stage = Stage(
            StageSettings(
                "jobs", settings.slots or JOBS_A_CHUNK * engine.at_a_time, settings.lease_ms, settings.drain_s
            ),
            JobStreams(redis, keys, settings, _named_consumer()),
            Transcriber(settings, pool, engine, metrics),
            stack.enter_context(LeaseKeeper(settings, Server("Redis"))),
            metrics,
            restore=setup.restore,
        )
        await _run(stage, stop, watchdog)


async def serve_writer(settings: Settings, stop: asyncio.Event) -> None:
    """Run a writer until `stop` is set, then drain."""
    from consumer.writer import Writer

    async with AsyncExitStack() as stack:
        metrics = WriterMetrics()
        redis, readiness = await _begin(stack, settings, metrics)
        database = Database.open(settings.database_url.get_secret_value())
        stack.push_async_callback(database.aclose)
        readiness.add("database", database.ping)
        keys = Keys(settings.queue)
        setup = await unless(stop, set_up(redis, keys, database))
        watchdog = stack.enter_context(Watchdog(settings.stall_s))
        writer = Writer(database, settings.results_dir, metrics, watchdog, now_ms=lambda: time.time_ns() // 1_000_000)
        readiness.add("storage", writer.check)
        stage = Stage(
            StageSettings("results", RESULTS_AT_A_TIME, settings.lease_ms, settings.drain_s),
            ResultStream(redis, keys, settings, _named_consumer()),
            writer,
            stack.enter_context(LeaseKeeper(settings, Server("Redis"))),
            metrics,
            restore=setup.restore,
        )
        async with asyncio.TaskGroup() as group:
            committing = group.create_task(writer.run())
            await _run(stage, stop, watchdog)
            committing.cancel()


async def _run(stage: Stage, stop: asyncio.Event, watchdog: Watchdog) -> None:
    """Run a stage to its end, on an event loop that is watched."""
    calm_collector()  # all is loaded
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(watchdog.watch_event_loop())
        await stage.run(stop)
        watching.cancel()


def _named_consumer() -> str:
    """Return this process's consumer name, bound to its log lines: the name that XPENDING shows."""
    name = consumer_name()
    structlog.contextvars.bind_contextvars(consumer=name)
    return name


async def _begin(stack: AsyncExitStack, settings: Settings, metrics: StageMetrics) -> tuple[Client, Readiness]:
    """Connect, and answer health checks from the start: loading a model takes a while."""
    redis = connect(settings)
    stack.push_async_callback(redis.aclose)
    readiness = Readiness()
    readiness.add("redis", redis.ping)
    await stack.enter_async_context(
        serve_health(settings.metrics_port, readiness, metrics.registry, host=settings.http_host)
    )
    return redis, readiness


async def _loaded(loaded: asyncio.Event) -> None:
    if not loaded.is_set():
        raise RuntimeError("the model is being loaded")
