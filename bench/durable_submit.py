"""What each level of `STTREAM_DURABLE_SUBMIT` costs: servers side by side, and jobs submitted to them in turn.

    .venv/bin/python -m bench.durable_submit --server /usr/bin/redis-server

Every server is configured as `sttream up` does it; that of `memory` syncs once a second, that of `replica` has a
replica. Rounds are short and levels take turns in them, so that a busy moment of the machine meets all of them;
`of_memory` compares within a round. Prints one JSON line a case, medians over the rounds, then a table.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import math
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import structlog
import uvloop

from common.connection import connect
from common.durability import Durability
from common.keys import Keys
from common.outage import Outage, persist
from common.queue import JobQueue, Submitted
from common.records import JobSpec
from common.settings import load_settings
from common.setup import set_up
from deploy.embedded import server_command

LEVELS = ("memory", "disk", "replica")
CALLERS = (1, 16)
# Enough for a 99th percentile of each round.
JOBS = {1: 200, 16: 800}
START_LIMIT_S = 60.0


@dataclass
class Case:
    """One level with so many concurrent callers: a figure a round."""

    level: str
    callers: int
    rates: list[float] = field(default_factory=list)
    p50s_ms: list[float] = field(default_factory=list)
    p99s_ms: list[float] = field(default_factory=list)

    def result(self, memory: Case) -> dict[str, Any]:
        return {
            "case": f"{self.callers} caller{'s' * (self.callers > 1)}",
            "level": self.level,
            "submit_per_s": round(statistics.median(self.rates)),
            "of_memory": round(
                statistics.median(own / best for own, best in zip(self.rates, memory.rates, strict=True)), 2
            ),
            "p50_ms": round(statistics.median(self.p50s_ms), 3),
            "p99_ms": round(statistics.median(self.p99s_ms), 3),
        }


@contextlib.contextmanager
def running(folder: Path, binary: str | None, *more: str) -> Iterator[int]:
    """Run a server as `sttream up` does, and yield its port once it listens."""
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    embedded, config = server_command(folder, port)
    command = [binary or embedded, config, *more]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    try:
        wait_for(port)
        yield port
    finally:
        process.kill()
        process.wait()


def wait_for(port: int) -> None:
    """Wait until a server listens, which takes it a moment.

    Raises:
        TimeoutError: it does not.
    """
    until = time.monotonic() + START_LIMIT_S
    while time.monotonic() < until:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.01)
    raise TimeoutError(f"no server listens on port {port} after {START_LIMIT_S:g} s")


@contextlib.asynccontextmanager
async def queue_of(level: str, port: int) -> AsyncIterator[JobQueue]:
    """Yield a queue that the level's own check has found in order."""
    settings = load_settings({"STTREAM_REDIS_URL": f"redis://127.0.0.1:{port}/0", "STTREAM_DURABLE_SUBMIT": level})
    redis, keys = connect(settings), Keys(settings.queue)
    try:
        await redis.set(keys.epoch, "of-this-run")
        await set_up(redis, keys)
        if level == "memory":
            await redis.config_set("appendfsync", "everysec")
        async with asyncio.timeout(START_LIMIT_S):
            await persist(Outage("server, to be as durable as asked for"), Durability(redis, level).check)
        yield JobQueue(redis, keys, replicated=level == "replica")
    finally:
        await redis.aclose()


async def measure(queue: JobQueue, case: Case, ids: Iterator[int], jobs: int) -> None:
    """Submit so many new jobs and note one figure of each kind."""
    took_ms: list[float] = []
    spec = JobSpec(source="/srv/audio/2026/11/22/call-000001.wav")

    async def caller() -> None:
        for _ in range(jobs // case.callers):
            begun = time.perf_counter()
            submitted = await queue.submit(f"job-{next(ids)}", spec, max_queued=sys.maxsize)
            took_ms.append((time.perf_counter() - begun) * 1000)
            assert submitted is Submitted.QUEUED

    begun = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(case.callers)))
    case.rates.append(len(took_ms) / (time.perf_counter() - begun))
    took_ms.sort()
    case.p50s_ms.append(took_ms[len(took_ms) // 2])
    case.p99s_ms.append(took_ms[math.ceil(len(took_ms) * 0.99) - 1])


async def run(folder: Path, binary: str | None, rounds: int) -> list[dict[str, Any]]:
    cases = [Case(level, callers) for callers in CALLERS for level in LEVELS]
    ids = count()
    async with contextlib.AsyncExitStack() as stack:
        queues: dict[str, JobQueue] = {}
        for level in LEVELS:
            # The replica comes at once, not after the five seconds in which others might want to join it.
            port = stack.enter_context(running(folder / level, binary, "--repl-diskless-sync-delay", "0"))
            if level == "replica":
                stack.enter_context(running(folder / "second", binary, "--replicaof", f"127.0.0.1 {port}"))
            queues[level] = await stack.enter_async_context(queue_of(level, port))
        for case in cases:  # connections are made, code is warm
            await measure(queues[case.level], Case(case.level, case.callers), ids, 20 * case.callers)
        for number in range(rounds):
            turn = number % len(cases)
            for case in cases[turn:] + cases[:turn]:
                await measure(queues[case.level], case, ids, JOBS[case.callers])
    memory = {case.callers: case for case in cases if case.level == "memory"}
    return [case.result(memory[case.callers]) for case in cases]


def table(results: list[dict[str, Any]]) -> str:
    """Return the results in Markdown, beside those of `memory`."""
    lines = ["| callers | level | submits/s | of memory | p50 | p99 |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {result['case'].split()[0]} | `{result['level']}` | {result['submit_per_s']} "
        f"| {result['of_memory']:.0%} | {result['p50_ms']:.2f} ms | {result['p99_ms']:.2f} ms |"
        for result in results
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the levels of STTREAM_DURABLE_SUBMIT.")
    parser.add_argument("--server", help="a redis-server or valkey-server; default: the embedded one")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--folder", type=Path, help="where the servers write: the disk that is measured")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with (
        tempfile.TemporaryDirectory(dir=options.folder) as folder,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        results = runner.run(run(Path(folder), options.server, options.rounds))
    for result in results:
        print(json.dumps(result))
    print(table(results))


if __name__ == "__main__":
    main()
