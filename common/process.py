"""How a service process starts and ends: event loop, logs, signals, exit code."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import importlib.util
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

import structlog

from common.connection import refusal
from common.errors import DataLost, SettingsError, SttreamError, Unavailable
from common.logs import configure_logs
from common.settings import Settings

log = structlog.get_logger()
T = TypeVar("T")

# Of <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
# The largest that glibc takes, and what is worth giving back.
_BUFFER_BYTES, _FREE_BYTES = 32 * 1024**2, 64 * 1024**2
_EXIT_CODES: dict[type[BaseException], int] = {SettingsError: 2, Unavailable: 3, DataLost: 4}

# A page of entries makes a few thousand.
_OBJECTS_UNTIL_COLLECTED = 20_000


class Stopped(Exception):
    """The process was asked to stop before it had begun its work."""


def run_service(
    name: str, serve: Callable[[Settings, asyncio.Event], Awaitable[None]], settings: Settings, **bound: str
) -> NoReturn:
    """Run one service until SIGTERM or SIGINT, and end the process.

    Exit code: 0 stopped as asked, 1 it failed, 2 wrong settings, 3 something it needs cannot be reached, 4 data were
    lost and an operator must decide.

    Args:
        name: bound to each log line as `service`.
        serve: runs until the event it is given is set, then drains.
        settings: handed to `serve`.
        bound: further fields of each log line.
    """
    configure_logs(settings, name, **bound)
    structlog.contextvars.bind_contextvars(service=name)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve_and_leave(serve, settings))
    raise AssertionError("unreachable: the process has ended")


async def _serve_and_leave(serve: Callable[[Settings, asyncio.Event], Awaitable[None]], settings: Settings) -> NoReturn:
    """Serve, and end the process from inside: closing the event loop would wait for every busy thread.

    A model that is being downloaded, or a chunk of a job that was handed back, may take minutes; nobody waits for it.
    """
    try:
        with contextlib.suppress(Stopped):
            await serve(settings, _stop_on_signals())
    except Exception as error:  # noqa: BLE001 the edge of the process: whatever it is, it is logged
        code = _explain(error)
    else:
        log.info("service_stopped")
        code = 0
    with contextlib.suppress(OSError):  # a full disk, a reader that is gone
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _explain(error: Exception) -> int:
    """Log why the service failed and return its exit code."""
    causes = _decisive([refusal(cause) or cause for cause in _causes(error)])
    code = max((_EXIT_CODES.get(type(cause), 1) for cause in causes), default=1)
    if all(isinstance(cause, SttreamError) for cause in causes):
        told = dict.fromkeys(str(cause) for cause in causes)  # two loops may have met the same
        log.error("service_failed", error="; ".join(told), exit_code=code)
    else:
        log.error("service_failed", exit_code=code, exc_info=error)
    return code


def _decisive(causes: Sequence[BaseException]) -> Sequence[BaseException]:
    """Leave out what only followed: on lost data, or as a user that the server refuses, every loop fails somehow."""
    for kind in (DataLost, SettingsError):
        if found := [cause for cause in causes if isinstance(cause, kind)]:
            return found
    return causes


def _stop_on_signals() -> asyncio.Event:
    """Return an event that the first SIGTERM or SIGINT sets; the second ends the process."""
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
    return stop


def calm_collector() -> None:
    """Let Python look for cycles seldom, and never again among what a service has loaded by now.

    It looks after each 700 new objects by default, and at times at all there are: with the libraries of a consumer that
    takes 50 ms, in the middle of whatever it does, and a quarter of a busy consumer's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_OBJECTS_UNTIL_COLLECTED)


def one_thread_a_library() -> None:
    """Let numerical libraries that are loaded from now on use one thread.

    A consumer's own threads keep all cores busy; those of each library would only wait for each other. Measured on 16
    cores: seven of them spent on the spectrograms of 23 windows a second, which take one.
    """
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")  # noqa: TID251 told to others, not read


def keep_buffers() -> None:
    """Let the C library keep a model's buffers for its next step, in one place for each core, where it is glibc.

    By itself it gives much of them back after each step, and keeps the rest once for each thread. What is given back
    costs a fault a page when it comes again. Measured on two cores: decision 14.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_M_MMAP_THRESHOLD, _BUFFER_BYTES)
            mallopt(_M_TRIM_THRESHOLD, _FREE_BYTES)
            mallopt(_M_ARENA_MAX, available_cores())


def available_cores() -> int:
    """Return the cores that this process may use; a container's quota is not seen here."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
