"""The breaker: try to make sttream lose a job, or do one twice.

    python bench/chaos.py --seed 1 --jobs 10000 --faults 300 --server valkey

Starts a real server and real services, submits jobs, breaks everything that can break, and checks what is left. The
last line is the verdict; the exit code is 0 only for PASS. The seed repeats jobs and faults, not the chance of the
machine: a run that failed may need a few more to fail again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import shutil
import sys
import tempfile
from pathlib import Path

# This checkout's code, wherever it is called from, and whatever else is installed. Not this folder: in it `queue.py`
# would hide the standard library's.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.breaker.disk import enter_mount_namespace
from bench.breaker.faults import FAULTS
from bench.breaker.processes import adopt_orphans
from bench.breaker.report import Report
from bench.breaker.run import Options, run


def main() -> None:
    """Run once and say how it went."""
    arguments = _arguments()
    # Before any thread is started: the others would keep the old mounts.
    may_mount = enter_mount_namespace()
    adopt_orphans()
    _quiet_logs()
    folder = Path(tempfile.mkdtemp(prefix=f"sttream-chaos-{arguments.seed}-", dir=arguments.folder))
    print(f"seed {arguments.seed}, {arguments.server}; the run is in {folder}", file=sys.stderr, flush=True)
    options = Options(
        seed=arguments.seed,
        jobs=arguments.jobs,
        faults=arguments.faults,
        only=tuple(arguments.only),
        server=arguments.server,
        rate_hz=arguments.rate,
        lease_ms=arguments.lease_ms,
        folder=folder,
        may_mount=may_mount,
        keep=arguments.keep,
        sabotage=arguments.sabotage,
    )
    report = asyncio.run(run(options))
    _tidy_up(report, folder, keep=arguments.keep)
    print(report.as_json() if arguments.json else report.as_text(), flush=True)
    sys.exit(1 if report.violations else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Try to make sttream lose a job, or do one twice.")
    parser.add_argument("--seed", type=int, default=1, help="repeats jobs and faults (default: 1)")
    parser.add_argument("--jobs", type=int, default=300, help="how many jobs (default: 300)")
    parser.add_argument("--faults", type=int, default=25, help="how many faults (default: 25)")
    kinds = [fault.name for fault in FAULTS]
    parser.add_argument("--only", action="append", default=[], choices=kinds, help="only this kind; may be repeated")
    parser.add_argument("--server", choices=("valkey", "redis"), default="valkey", help="(default: valkey)")
    parser.add_argument("--rate", type=float, default=16.0, help="jobs a second (default: 16)")
    parser.add_argument("--lease-ms", type=int, default=2000, help="lease of the services (default: 2000)")
    parser.add_argument("--folder", type=Path, help="where to put the run's folder (default: the system's)")
    parser.add_argument("--keep", action="store_true", help="keep the folder of a good run, too")
    # The counter-check: a run that must fail.
    parser.add_argument("--sabotage", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser.parse_args()


def _quiet_logs() -> None:
    """Keep what the supervisor and the client library log here out of the report."""
    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def _tidy_up(report: Report, folder: Path, *, keep: bool) -> None:
    """Remove the folder of a good run; of a bad one keep logs, data and database, and say how to repeat it."""
    if not report.violations and not keep:
        shutil.rmtree(folder)
        return
    (folder / "violations.json").write_text(json.dumps(list(report.violations), indent=1))
    print(
        f"kept: {folder} (logs/, server/ with the append-only file, sttream.db, results-kept/, violations.json)\n"
        f"again: {' '.join([sys.executable, *sys.argv])}",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
