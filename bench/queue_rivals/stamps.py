"""What all rivals share: the job, which leaves a time stamp, and how a script is told what to do.

    python RIVAL.py many COUNT         queue so many jobs, in bulk where the library can; prints how long it took
    python RIVAL.py one COUNT RATE     queue one after the other at a rate; prints when each was begun to be queued
    python RIVAL.py work               run jobs until ended

Needs nothing but the standard library: it runs beside each rival, in its environment.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PORT = int(os.environ["BENCH_PORT"])
URL = f"redis://127.0.0.1:{PORT}/0"
# Appended to by every process that runs jobs: eight bytes a job.
_FILE = os.open(os.environ["BENCH_STAMPS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def stamp() -> None:
    """Do the job: say when it ran."""
    os.write(_FILE, struct.pack("<q", time.time_ns()))


def play(many: Callable[[int], Any], one: Callable[[], Any], work: Callable[[], Any], loop: Any = None) -> None:
    """Do what the command line says; each part may be a coroutine function."""
    if loop is None:
        with asyncio.Runner() as runner:
            runner.run(_play(many, one, work))
    else:
        loop.run_until_complete(_play(many, one, work))


async def _play(many: Callable[[int], Any], one: Callable[[], Any], work: Callable[[], Any]) -> None:
    verb, *told = sys.argv[1:]
    if verb == "work":
        await _done(work())
    elif verb == "many":
        await _done(many(16))  # connections are made, code is warm
        begun = time.perf_counter()
        await _done(many(int(told[0]) - 16))
        print(json.dumps({"took_s": time.perf_counter() - begun, "count": int(told[0]) - 16}))
    else:
        begun, stamps = time.monotonic(), []
        for number in range(int(told[0])):
            await asyncio.sleep(max(0.0, begun + number / float(told[1]) - time.monotonic()))
            stamps.append(time.time_ns())
            await _done(one())
        print(json.dumps(stamps))


async def _done(result: Any) -> None:
    if inspect.isawaitable(result):
        await result


def become(*command: str) -> None:
    """Go on as a program of this environment: a rival's own worker."""
    program = str(Path(sys.executable).parent / command[0])
    os.execv(program, [program, *command[1:]])  # noqa: S606 no shell is wanted
