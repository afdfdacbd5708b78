"""Does memory grow with the length of a recording? A real consumer on a real server, watched while it works.

    .venv/bin/python -m bench.memory
    .venv/bin/python -m bench.memory --only "10 minutes" "1 hour" --word-timestamps

Recordings: ten minutes of speech, the block; one hour of it, six times the block; and ten hours, which would take too
long were they full of speech: five times the block and 110 minutes of faint noise after each. A consumer is started
for each of them and ended after it. One JSON line a case, then a table.

Peaks are sampled every 100 ms, of the consumer and its decoders together: `peak_rss_mb` adds up what `ps` shows,
`peak_pss_mb` counts shared pages once, `peak_anonymous_mb` leaves out pages of files, which the kernel takes back when
it needs them. `consumer_max_rss_mb` and `decoder_max_rss_mb` are what /usr/bin/time would say of each process.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog

from bench.durable_submit import queue_of, running
from bench.footprint import MIB, Footprint, Held, peak_rss
from bench.speech.recordings import make_long
from bench.speech.sound import RATE_HZ, as_int16, at_level, pink_noise, read_wav
from bench.speech.voices import PIPER, find_voices
from common.options import Options
from common.records import JobSpec, State

if TYPE_CHECKING:
    from common.queue import JobQueue

ROOT = Path(__file__).resolve().parents[1]
BLOCK_S = 600.0
# Loads of one length follow each other: what a consumer holds before its first job.
_SETTLED_S = 3.0
_START_LIMIT_S = 120.0
_OVER = frozenset({State.TRANSCRIBED, State.COMPLETED, State.FAILED, State.CANCELLED})


@dataclass(frozen=True, slots=True)
class Case:
    """A recording: how often the block, and how long faint noise after each."""

    name: str
    blocks: int
    pause_s: float = 0.0


CASES = (Case("10 minutes", 1), Case("1 hour", 6), Case("10 hours", 5, 6600.0))


def write_recording(path: Path, block: Path, case: Case) -> float:
    """Write a case's recording, piece by piece, and return its seconds."""
    speech = as_int16(read_wav(block)).tobytes()
    # A minute of it, over and over: no level at which a detector hears anybody.
    noise = as_int16(at_level(pink_noise(60.0, np.random.default_rng(1)), -60.0)).tobytes()
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE_HZ, 0, "NONE", ""))
        for _ in range(case.blocks):
            file.writeframes(speech)
            for _ in range(round(case.pause_s / 60)):
                file.writeframes(noise)
        return file.getnframes() / RATE_HZ


@contextlib.contextmanager
def consumer(folder: Path, port: int, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a consumer while the block runs; it logs to the folder."""
    told = {
        "PYTHONPATH": str(ROOT),
        "STTREAM_REDIS_URL": f"redis://127.0.0.1:{port}/0",
        "STTREAM_AUDIO_ROOTS": str(folder),
        "STTREAM_SCRATCH_DIR": str(folder),
        "STTREAM_MODEL": "bundled",
        "STTREAM_DEVICE": "cpu",
        "STTREAM_LOG_FORMAT": "json",
        "STTREAM_MAX_AUDIO_S": str(24 * 3600),
        "STTREAM_MAX_FILE_BYTES": str(8 * 1024**3),
        "STTREAM_TIMEOUT_S": str(24 * 3600),
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("STTREAM_")}
    with (folder / "consumer.log").open("ab") as log:
        command = [sys.executable, "-P", "-m", "cli.main", "consumer"]
        process = subprocess.Popen(command, env=kept | told | settings, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


async def done(queue: JobQueue, job_id: str, process: subprocess.Popen[bytes]) -> AsyncIterator[float]:
    """Yield the progress of a job twice a second until it is transcribed.

    Raises:
        RuntimeError: it failed, or the consumer ended.
    """
    while True:
        job = await queue.job(job_id)
        if job is None or process.poll() is not None:
            raise RuntimeError(f"{job_id}: {'the consumer ended' if job else 'the job is gone'}")
        if job.state in _OVER:
            if job.state not in {State.TRANSCRIBED, State.COMPLETED}:
                raise RuntimeError(f"{job_id}: {job.state}, {job.error}")
            return
        yield job.progress
        await asyncio.sleep(0.5)


async def measure(queue: JobQueue, recording: Path, case: Case, port: int, options: Options) -> dict[str, Any]:
    """Have one recording transcribed by a consumer of its own."""
    seconds = write_recording(recording, recording.parent / "long.wav", case)
    # One job at a time: two would hold two recordings, whatever their length.
    with consumer(recording.parent, port, STTREAM_SLOTS="1") as process, Footprint(process.pid) as seen:
        await warm(seen)
        idle = sum(seen.now(), start=Held())
        begun = time.perf_counter()
        job_id = f"{case.blocks}-blocks"
        await queue.submit(job_id, JobSpec(source=str(recording), options=options), max_queued=10)
        prepared_s = 0.0
        async for progress in done(queue, job_id, process):
            prepared_s = prepared_s or (time.perf_counter() - begun if progress else 0.0)
        took_s = time.perf_counter() - begun
        figures = {
            "idle_pss_mb": idle.pss,
            "idle_anonymous_mb": idle.anonymous,
            "peak_rss_mb": seen.whole.rss,
            "peak_pss_mb": seen.whole.pss,
            "peak_anonymous_mb": seen.whole.anonymous,
            "consumer_anonymous_mb": seen.own.anonymous,
            "decoder_anonymous_mb": seen.children.anonymous,
            "consumer_max_rss_mb": peak_rss(process.pid),
            "decoder_max_rss_mb": seen.largest_child,
        }
    return {
        "case": "sttream",
        "recording": case.name,
        "seconds": round(seconds),
        "speech_s": round(case.blocks * BLOCK_S),
        **{name: round(size / MIB) for name, size in figures.items()},
        "prepared_s": round(prepared_s, 1),
        "took_s": round(took_s, 1),
        "load": round(os.getloadavg()[0], 1),
    }


async def warm(seen: Footprint) -> None:
    """Wait until the consumer and its decoders are loaded: what they hold stays the same for a while."""
    async with asyncio.timeout(_START_LIMIT_S):
        held, since = Held(), time.monotonic()
        while time.monotonic() - since < _SETTLED_S:
            await asyncio.sleep(0.2)
            own, children = seen.now()
            if not children.pss or abs((own + children).pss - held.pss) > MIB:
                held, since = own + children, time.monotonic()


async def run(folder: Path, port: int, cases: list[Case], options: Options) -> list[dict[str, Any]]:
    async with queue_of("disk", port) as queue:
        results = []
        for case in cases:
            results.append(await measure(queue, folder / "recording.wav", case, port, options))
            print(json.dumps(results[-1]), flush=True)
        return results


def table(results: list[dict[str, Any]]) -> str:
    """Return the peaks in Markdown, and how they are to those of the first recording."""
    names = ("peak_rss_mb", "peak_pss_mb", "peak_anonymous_mb", "consumer_anonymous_mb", "decoder_anonymous_mb")
    head = [f"{name.removesuffix('_mb').replace('_', ' ')}, MiB" for name in names]
    lines = [f"| recording | {' | '.join(head)} | took |", "|---" * (len(names) + 2) + "|"]
    for result in results:
        cells = [f"{result[name]} ({result[name] / results[0][name]:.2f} x)" for name in names]
        lines.append(f"| {result['recording']} | {' | '.join(cells)} | {result['took_s']:.0f} s |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.memory", description="Measure memory by the length of recordings.")
    parser.add_argument("--only", nargs="+", choices=[case.name for case in CASES], help="default: all")
    parser.add_argument("--word-timestamps", action="store_true")
    parser.add_argument("--no-vad", action="store_true", help="without speech detection; not for ten hours")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--server", help="a redis-server or valkey-server; default: the embedded one")
    parser.add_argument("--folder", type=Path, help="where recordings and scratch files lie; must be a disk")
    parser.add_argument("--piper", type=Path, default=PIPER, help="the Python of an environment with Piper")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # a run that is ended ends what it has started
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    options = Options(word_timestamps=given.word_timestamps, vad=not given.no_vad)
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        make_long(folder, find_voices(given.piper)[0], seed=given.seed, seconds=BLOCK_S)
        with running(folder / "server", given.server) as port:
            cases = [case for case in CASES if not given.only or case.name in given.only]
            results = asyncio.run(run(folder, port, cases, options))
    print(table(results))


if __name__ == "__main__":
    main()
