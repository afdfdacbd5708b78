"""sttream's queue beside others that run on Redis: jobs that do nothing, the same server, one worker each.

    .venv/bin/python bench/queue.py [--rivals tarsk,ardiq,…] [--jobs 20000] [--repeats 3] [--server valkey]

A case is a script in `queue_rivals/`, run in the environment of the others (`--venv`, made from
`queue_rivals/requirements.txt` when it is missing) or in ours. For each repeat and each case anew a server, configured
alike; cases take turns, so that a busy moment of the machine meets all. A job appends its time to a file: the drain
lasts from the first to the last of these stamps. Processor times are those of the worker with all its children, and of
the server, over that time; they tell more than rates do on a machine that others use too.

Prints one JSON line a case, medians over the repeats, then a table, with the load of the machine meanwhile.
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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# This checkout's code, wherever it is called from, and whatever else is installed. Not this folder: in it the name of
# this file would hide the module `queue` of the standard library.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import redis

from bench.servers import processor_s, running, used_bytes

RIVALS = Path(__file__).parent / "queue_rivals"
OURS = "sttream"
# Jobs of one drain, where the default would take minutes.
FEWER = {"rq": 500, "celery": 5_000}
# How long a drain may take, and how long nothing may happen in it.
DRAIN_LIMIT_S, STALLED_S = 180.0, 30.0
RATE_HZ = 50


@dataclass
class Case:
    """One queue, and what was measured of it in each repeat."""

    name: str
    python: Path
    jobs: int
    found: list[dict[str, float]] = field(default_factory=list)

    def result(self) -> dict[str, Any]:
        """Return the medians."""
        names = dict.fromkeys(name for found in self.found for name in found)
        medians = {name: statistics.median(found[name] for found in self.found if name in found) for name in names}
        shown = {name: round(value, 2) if value < 100 else round(value) for name, value in medians.items()}
        return {"case": self.name, "jobs": self.jobs, "repeats": len(self.found), **shown}


class Run:
    """One server, and one case on it."""

    def __init__(self, case: Case, port: int, server_pid: int, folder: Path) -> None:
        self.case, self.server_pid = case, server_pid
        self.stamps = folder / "stamps"
        self.redis = redis.Redis(port=port)
        self._environ = {**os.environ, "BENCH_PORT": str(port), "BENCH_STAMPS": str(self.stamps)}
        self._script = RIVALS / f"with_{case.name}.py"

    def told(self, *words: object) -> Any:
        """Run a part of the case's script, and return what it printed."""
        done = subprocess.run(
            self._command(*words), env=self._environ, cwd=RIVALS, stdout=subprocess.PIPE, timeout=300, check=True
        )
        return json.loads(done.stdout.splitlines()[-1])

    @contextlib.contextmanager
    def worker(self) -> Iterator[int]:
        """Run the worker, and yield its process id."""
        process = subprocess.Popen(
            self._command("work"), env=self._environ, cwd=RIVALS, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            yield process.pid
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _command(self, *words: object) -> list[str]:
        return [str(self.case.python), str(self._script), *map(str, words)]

    def times_ns(self) -> list[int]:
        """Return when each job ran, as far as they have."""
        raw = self.stamps.read_bytes() if self.stamps.exists() else b""
        return [int.from_bytes(raw[at : at + 8], "little") for at in range(0, len(raw) - 7, 8)]


def drain(run: Run) -> dict[str, float]:
    """Queue jobs, then start a worker and wait until all have run."""
    count = run.case.jobs
    before = used_bytes(run.redis)
    told = run.told("many", count)
    queued = used_bytes(run.redis) - before
    server_before_s = processor_s(run.server_pid)
    with run.worker() as pid:
        worker_before_s = processor_s_when_ran(run, pid, 1)
        worker_s = processor_s_when_ran(run, pid, count) - worker_before_s
        server_s = processor_s(run.server_pid) - server_before_s
    times = run.times_ns()
    return {
        "enqueue_per_s": told["count"] / told["took_s"],
        "drain_per_s": (count - 1) / ((max(times) - min(times)) / 1e9),
        "worker_cpu_us_per_job": worker_s / count * 1e6,
        "server_cpu_us_per_job": server_s / count * 1e6,
        "bytes_per_job": queued / count,
    }


def processor_s_when_ran(run: Run, pid: int, count: int) -> float:
    """Wait until so many jobs have run; return the processor seconds of the worker by then."""
    begun = changed = time.monotonic()
    size = 0
    while True:
        found = run.stamps.stat().st_size if run.stamps.exists() else 0
        if found >= 8 * count:
            return processor_s(pid, children=True)
        now = time.monotonic()
        if found != size:
            size, changed = found, now
        if now - begun > DRAIN_LIMIT_S or now - changed > STALLED_S:
            raise TimeoutError(f"{run.case.name}: {size // 8} of {count} jobs had run after {now - begun:.0f} s")
        time.sleep(0.002)


def latency(run: Run, count: int) -> dict[str, float]:
    """Queue jobs one after the other while a worker waits for them."""
    run.stamps.unlink(missing_ok=True)
    with run.worker() as pid:
        run.told("one", 20, RATE_HZ)  # until the worker runs, and its code is warm
        processor_s_when_ran(run, pid, 20)
        time.sleep(1)
        begun = run.told("one", count, RATE_HZ)
        processor_s_when_ran(run, pid, 20 + count)
    ran = run.times_ns()[20:]
    if len(ran) != count:
        raise ValueError(f"{len(ran)} runs of {count} jobs: some ran twice, and cannot be told apart")
    took_ms = sorted((at - asked) / 1e6 for asked, at in zip(begun, ran, strict=True))
    return {"p50_ms": took_ms[count // 2], "p99_ms": took_ms[int(count * 0.99)]}


def measure(case: Case, options: argparse.Namespace) -> None:
    """Add one repeat."""
    found: dict[str, float] = {}
    try:
        for part in (drain, lambda run: latency(run, options.latency_jobs)):
            with (
                tempfile.TemporaryDirectory(dir=options.folder) as folder,
                running(options.server, Path(folder), appendfsync=options.fsync) as (port, pid),
            ):
                found |= part(Run(case, port, pid, Path(folder)))
    except (subprocess.SubprocessError, TimeoutError, OSError, ValueError) as exc:
        print(f"{case.name}: {exc}", file=sys.stderr)
    if found:
        case.found.append(found)


def environment(folder: Path, maker: str) -> Path:
    """Return the Python of the others' environment; let `maker`, a Python, make it when it is missing."""
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"making {folder} (once)", file=sys.stderr)
        subprocess.run([maker, "-m", "venv", str(folder)], check=True)
        install = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--no-deps"]
        for line in (RIVALS / "requirements.txt").read_text().splitlines():
            if line and subprocess.run([*install, line], check=False).returncode:
                print(f"left out: {line} cannot be installed for this Python", file=sys.stderr)
    return python


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Return the results in Markdown, the fastest first."""
    names = {
        "drain_per_s": "drained/s",
        "worker_cpu_us_per_job": "worker µs",
        "server_cpu_us_per_job": "server µs",
        "enqueue_per_s": "queued/s",
        "bytes_per_job": "bytes",
        "p50_ms": "p50 ms",
        "p99_ms": "p99 ms",
    }
    lines = [f"| queue | {' | '.join(names.values())} |", "|---" * (len(names) + 1) + "|"]
    lines += [
        f"| {result['case']} | {' | '.join(f'{result.get(name, 0):,}' for name in names)} |"
        for result in sorted(results, key=lambda result: -result.get("drain_per_s", 0))
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, and print."""
    options = _options()
    theirs = environment(options.venv, options.python) if options.rivals else Path()
    cases = [
        Case(name, Path(sys.executable) if name == OURS else theirs, min(options.jobs, FEWER.get(name, options.jobs)))
        for name in (OURS, *options.rivals)
    ]
    loads = [os.getloadavg()[0]]
    for _ in range(options.repeats):
        for case in cases:
            measure(case, options)
            loads.append(os.getloadavg()[0])
    results = [case.result() for case in cases if case.found]
    for result in results:
        print(json.dumps(result))
    if not options.json:
        load = f"load {min(loads):.1f} to {max(loads):.1f} on {os.cpu_count()} cores"
        print(f"\n{table(results)}\n\n{options.server}, appendfsync {options.fsync}, {options.repeats} repeats, {load}")


def _options() -> argparse.Namespace:
    found = sorted(path.stem.removeprefix("with_") for path in RIVALS.glob("with_*.py"))
    others = [name for name in found if name != OURS]
    parser = argparse.ArgumentParser(description="Measure sttream's queue beside others.")
    parser.add_argument("--rivals", default=",".join(others), help="names, separated by commas; '' for none")
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--latency-jobs", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--short", action="store_true", help="a fifth of the jobs, once")
    parser.add_argument("--server", choices=("valkey", "redis"), default="valkey")
    parser.add_argument("--fsync", choices=("everysec", "always", "no"), default="everysec")
    parser.add_argument("--venv", type=Path, default=Path(__file__).parent / ".rivals")
    parser.add_argument(
        "--python", default=sys.executable, help="makes --venv; ardiq needs 3.12, the locks are of 3.13"
    )
    parser.add_argument("--folder", type=Path, help="where the servers write")
    parser.add_argument("--json", action="store_true", help="no table")
    options = parser.parse_args()
    options.rivals = [name for name in options.rivals.split(",") if name]
    if unknown := set(options.rivals) - set(others):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(others)}")
    if options.short:
        options.jobs, options.latency_jobs, options.repeats = options.jobs // 5, options.latency_jobs // 5, 1
    return options


if __name__ == "__main__":
    main()
