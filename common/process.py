"""How a service process starts and ends: event loop, logs, signals, exit code."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar

import structlog

from common.errors import SettingsError, SttreamError, Unavailable
from common.logs import configure_logs
from common.settings import Settings

log = structlog.get_logger()
T = TypeVar("T")

_EXIT_CODES: dict[type[BaseException], int] = {SettingsError: 2, Unavailable: 3}


class Stopped(Exception):
    """The process was asked to stop before it had begun its work."""


def run_service(name: str, serve: Callable[[Settings, asyncio.Event], Awaitable[None]], settings: Settings) -> int:
    """Run one service until SIGTERM or SIGINT, and return its exit code.

    Args:
        name: bound to each log line as `service`.
        serve: runs until the event it is given is set, then drains.
        settings: handed to `serve`.

    Returns:
        0 stopped as asked, 1 it failed, 2 wrong settings, 3 something it needs cannot be reached.
    """
    configure_logs(settings, name)
    structlog.contextvars.bind_contextvars(service=name)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve_until_signalled(serve, settings))
    except Exception as error:
        causes = list(_causes(error))
        code = max((_EXIT_CODES.get(type(cause), 1) for cause in causes), default=1)
        if all(isinstance(cause, SttreamError) for cause in causes):
            log.error("service_failed", error="; ".join(str(cause) for cause in causes), exit_code=code)
        else:
            log.exception("service_failed", exit_code=code)
        return code
    log.info("service_stopped")
    return 0


async def _serve_until_signalled(
    serve: Callable[[Settings, asyncio.Event], Awaitable[None]], settings: Settings
) -> None:
    stop = asyncio.Event()

    def on_signal(number: signal.Signals) -> None:
        if stop.is_set():
            # Asked twice: somebody does not want to wait. Leases bring the work to another consumer.
            os._exit(128 + number)
        log.info("signal_received", signal=number.name, next="draining; a second signal ends at once")
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    with contextlib.suppress(Stopped):
        await serve(settings, stop)


async def unless(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T:
    """Return what the work returns; cancel it when `stop` is set first.

    Raises:
        Stopped: it was; let it through.
    """
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not working.done():
        working.cancel()
        await asyncio.wait({working})
        raise Stopped
    return working.result()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's where the platform has it."""
    if importlib.util.find_spec("uvloop") is None:
        return None
    import uvloop

    return uvloop.new_event_loop


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield what is inside nested exception groups."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _causes(inner)
    else:
        yield error
