"""The queue with a million jobs waiting: rates, memory of a job, and what idle services ask of the server.

    .venv/bin/python bench/scale.py [--many 1000000] [--few 10000] [--repeats 5] [--server valkey]

On one server few jobs wait, on another many. In each repeat so many as are few are submitted to both, then drained from
both, in turns: a busy moment of the machine meets both. Memory is what the server gained by the jobs that were queued
first. Idle services are real ones, each alone on a server of its own: calls are the commands that it sends, those
within functions are counted beside.

Prints one JSON line a case, then a table.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# As in bench/queue.py: this checkout's code, and the standard library's `queue`.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import redis

from bench.queue import OURS, Case, Run, processor_s_when_ran
from bench.servers import processor_s, running, used_bytes

SERVICES = ("producer", "consumer", "writer")
IDLE_S = 15.0
# A consumer loads a model first.
READY_LIMIT_S = 120.0


class Waiting:
    """A server on which jobs wait, and what was measured on it."""

    def __init__(self, waiting: int, few: int, port: int, pid: int, folder: Path) -> None:
        self.waiting, self._few = waiting, few
        self._run = Run(Case(OURS, Path(sys.executable), few), port, pid, folder)
        before = used_bytes(self._run.redis)
        self._run.told("many", waiting)
        self._bytes = (used_bytes(self._run.redis) - before) / waiting
        self._found: list[dict[str, float]] = []

    def submit(self) -> None:
        """Add as many as are few."""
        told = self._run.told("many", self._few)
        self._found.append({"enqueue_per_s": told["count"] / told["took_s"]})

    def drain(self) -> None:
        """Take as many out."""
        run, count = self._run, self._few
        run.stamps.unlink(missing_ok=True)
        server_before_s = processor_s(run.server_pid)
        with run.worker() as pid:
            worker_before_s = processor_s_when_ran(run, pid, 1)
            worker_s = processor_s_when_ran(run, pid, count) - worker_before_s
            server_s = processor_s(run.server_pid) - server_before_s
        times = sorted(run.times_ns())[:count]
        self._found[-1] |= {
            "drain_per_s": (count - 1) / ((times[-1] - times[0]) / 1e9),
            "worker_cpu_us_per_job": worker_s / count * 1e6,
            "server_cpu_us_per_job": server_s / count * 1e6,
        }

    def result(self, few: Waiting) -> dict[str, Any]:
        """Return the medians, and the rates as shares of those with few jobs, median of the repeats too."""
        told: dict[str, Any] = {"case": OURS, "waiting": self.waiting, "bytes_per_job": round(self._bytes)}
        for name in self._found[0]:
            told[name] = round(statistics.median(found[name] for found in self._found))
        for name in ("enqueue_per_s", "drain_per_s"):
            shares = [own[name] / other[name] for own, other in zip(self._found, few._found, strict=True)]
            told[name.replace("_per_s", "_of_few")] = round(statistics.median(shares), 2)
        return told


def rates(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure with few and with many jobs waiting."""
    with contextlib.ExitStack() as stack:
        both = []
        for waiting in (options.few, options.many):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.folder)))
            port, pid = stack.enter_context(running(options.server, folder, appendfsync="everysec"))
            both.append(Waiting(waiting, options.few, port, pid, folder))
        for number in range(options.repeats):
            for one in both[:: -1 if number % 2 else 1]:
                one.submit()
                one.drain()
        return [one.result(both[0]) for one in both]


def idle(service: str, options: argparse.Namespace) -> dict[str, Any]:
    """Count what a service with nothing to do asks of the server."""
    with tempfile.TemporaryDirectory(dir=options.folder) as folder, running(options.server, Path(folder)) as (port, _):
        environ = {
            "STTREAM_REDIS_URL": f"redis://127.0.0.1:{port}/0",
            "STTREAM_DATABASE_URL": f"sqlite+aiosqlite:///{folder}/bench.db",
            "STTREAM_RESULTS_DIR": f"{folder}/results",
            "STTREAM_UPLOAD_DIR": f"{folder}/uploads",
            "STTREAM_MODEL": "bundled",
            "STTREAM_DURABLE_SUBMIT": "memory",
            "STTREAM_HTTP_PORT": "0",
            "STTREAM_LOG_FORMAT": "json",
        }
        command = str(Path(sys.executable).parent / "sttream")
        subprocess.run([command, "setup"], env=os.environ | environ, stdout=subprocess.DEVNULL, check=True)
        process = subprocess.Popen([command, service], env=os.environ | environ, stderr=subprocess.DEVNULL)
        try:
            return {"case": OURS, "service": service} | _calls(port)
        finally:
            process.terminate()
            process.wait(30)


def _calls(port: int) -> dict[str, float]:
    """Watch the server for a while, once the service has settled down."""
    client = redis.Redis(port=port, decode_responses=True)
    _wait_until_settled(client)
    sent = within = 0
    begun = time.monotonic()
    with client.monitor() as monitor:  # type: ignore[no-untyped-call]
        while time.monotonic() - begun < IDLE_S:
            if monitor.connection.can_read(timeout=0.2):
                within, sent = (
                    (within + 1, sent) if monitor.next_command()["client_type"] == "lua" else (within, sent + 1)
                )
    took_s = time.monotonic() - begun
    return {"idle_calls_per_s": round(sent / took_s, 2), "within_functions_per_s": round(within / took_s, 2)}


def _wait_until_settled(client: Any) -> None:
    """Wait until the groups are there, which a service sees to, and somebody waits for something to do."""
    begun = time.monotonic()
    while not client.info("clients")["blocked_clients"]:
        if time.monotonic() - begun > READY_LIMIT_S:
            raise TimeoutError(f"the service waits for nothing after {READY_LIMIT_S:.0f} s")
        time.sleep(0.2)
    time.sleep(3)


def table(results: list[dict[str, Any]]) -> str:
    """Return the results in Markdown."""
    lines = ["| waiting | queued/s | drained/s | worker µs | server µs | bytes a job |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {one['waiting']:,} | {one['enqueue_per_s']:,} ({one['enqueue_of_few']:.2f}) | {one['drain_per_s']:,} "
        f"({one['drain_of_few']:.2f}) | {one['worker_cpu_us_per_job']} | {one['server_cpu_us_per_job']} "
        f"| {one['bytes_per_job']} |"
        for one in results
        if "waiting" in one
    ]
    lines += ["", "| idle service | calls/s | within functions |", "|---|---|---|"]
    lines += [
        f"| {one['service']} | {one['idle_calls_per_s']} | {one['within_functions_per_s']} |"
        for one in results
        if "service" in one
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description="Measure the queue with a million jobs waiting.")
    parser.add_argument("--many", type=int, default=1_000_000)
    parser.add_argument("--few", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--short", action="store_true", help="a twentieth of the many, once")
    parser.add_argument("--server", choices=("valkey", "redis"), default="valkey")
    parser.add_argument("--folder", type=Path, help="where the servers write")
    parser.add_argument("--json", action="store_true", help="no table")
    options = parser.parse_args()
    if options.short:
        options.many, options.repeats = options.many // 20, 1
    loads = [os.getloadavg()[0]]
    results = rates(options)
    results += [idle(service, options) for service in SERVICES]
    loads.append(os.getloadavg()[0])
    for result in results:
        print(json.dumps(result))
    if not options.json:
        load = f"load {min(loads):.1f} to {max(loads):.1f} on {os.cpu_count()} cores"
        print(f"\n{table(results)}\n\n{options.server}, appendfsync everysec, {options.repeats} repeats, {load}")


if __name__ == "__main__":
    main()
