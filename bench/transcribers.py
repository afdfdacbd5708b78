"""The programs that `bench.engine` compares: each a process of its own that transcribes lists of files when told to.

    .venv/bin/python -m bench.transcribers sttream      (a JSON line a task on standard input)

A task is `{"files": […], "beam_size": N}`; the answer is its seconds, the processor time of the process and its
children, and the texts. Loading does not count: services do it once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import structlog

from common.process import available_cores, keep_buffers, one_thread_a_library

# Texts of files, in their order.
Transcribe = Callable[[Sequence[str], int], list[str]]
# Of the batched pipeline: its own default, and more bring nothing on a CPU.
BATCH_SIZE = 8


@contextmanager
def sttream(model: str) -> Iterator[Transcribe]:
    """Our consumer without its streams: decoders, engine, and as many jobs at a time as it holds."""
    one_thread_a_library()  # both as a consumer does
    keep_buffers()
    from bench.jobs import work
    from common.metrics import ConsumerMetrics
    from common.settings import load_settings
    from common.watchdog import Watchdog
    from consumer.engine import Engine
    from consumer.prepare import PreparePool
    from consumer.service import JOBS_A_CHUNK
    from consumer.transcriber import Transcriber
    from consumer.whisper import Whisper

    environ = {"STTREAM_MODEL": model, "STTREAM_DEVICE": "cpu", "STTREAM_AUDIO_ROOTS": "/"}
    settings, metrics = load_settings(environ), ConsumerMetrics()
    engine = Engine.start(Whisper.load(settings), None, Watchdog(600), metrics)

    async def run(pool: PreparePool, files: Sequence[str], beam_size: int) -> list[str]:
        transcriber = Transcriber(settings, pool, engine, metrics)
        slots = asyncio.Semaphore(JOBS_A_CHUNK * engine.at_a_time)

        async def one(file: str) -> str:
            async with slots:
                outcome: Any = await transcriber.handle(work(file, beam_size))
                return str(json.loads(outcome.body)["text"])

        return list(await asyncio.gather(*(one(file) for file in files)))

    with asyncio.Runner() as runner, tempfile.TemporaryDirectory() as scratch:
        pool = PreparePool(processes=1, max_audio_s=86_400, scratch_dir=Path(scratch))
        runner.run(pool.start())
        try:
            yield lambda files, beam_size: runner.run(run(pool, files, beam_size))
        finally:
            runner.run(pool.aclose())
            engine.close()


@contextmanager
def library(model: str) -> Iterator[Transcribe]:
    """faster-whisper as its documentation begins: one file after another, all defaults."""
    from faster_whisper import WhisperModel

    from consumer.whisper import find_model

    whisper = WhisperModel(find_model(model)[0], device="cpu", compute_type="int8")

    def transcribe(files: Sequence[str], beam_size: int) -> list[str]:
        return [_text(whisper.transcribe(file, beam_size=beam_size)[0]) for file in files]

    yield transcribe


@contextmanager
def batched(model: str, *, files_side_by_side: bool) -> Iterator[Transcribe]:
    """The library at its best: the batched pipeline, for a file a core, each with a pipeline of its own, or for one."""
    from faster_whisper import BatchedInferencePipeline, WhisperModel

    from consumer.whisper import find_model

    workers, threads = (available_cores(), 1) if files_side_by_side else (1, available_cores())
    whisper = WhisperModel(
        find_model(model)[0], device="cpu", compute_type="int8", cpu_threads=threads, num_workers=workers
    )

    def transcribe(files: Sequence[str], beam_size: int) -> list[str]:
        def one(file: str) -> str:
            pipeline = BatchedInferencePipeline(whisper)
            return _text(pipeline.transcribe(file, beam_size=beam_size, batch_size=BATCH_SIZE)[0])

        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(one, files))

    yield transcribe


def _text(segments: Any) -> str:
    return " ".join(segment.text.strip() for segment in segments)


def processor_s() -> float:
    """Return the processor time of this process and of its children that run."""
    user_s, system_s, *_ = os.times()
    ticks = 0
    for children in Path("/proc/self/task").glob("*/children"):
        for child in children.read_text().split():
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return user_s + system_s + ticks / os.sysconf("SC_CLK_TCK")


SYSTEMS: dict[str, Callable[[str], AbstractContextManager[Transcribe]]] = {
    "sttream": sttream,
    "faster-whisper": library,
    "faster-whisper-batched": lambda model: batched(model, files_side_by_side=True),
    "faster-whisper-batched-threads": lambda model: batched(model, files_side_by_side=False),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.transcribers", description="Transcribe lists of files when told to.")
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("--model", default="bundled")
    options = parser.parse_args()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    with SYSTEMS[options.system](options.model) as transcribe:
        print(json.dumps({"ready": options.system}), flush=True)
        for line in sys.stdin:
            task = json.loads(line)
            begun, before_s = time.perf_counter(), processor_s()
            texts = transcribe(task["files"], task["beam_size"])
            took_s, cpu_s = time.perf_counter() - begun, processor_s() - before_s
            print(json.dumps({"wall_s": took_s, "cpu_s": cpu_s, "texts": texts}), flush=True)


if __name__ == "__main__":
    main()
