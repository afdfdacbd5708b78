"""Consumers of a running stack that a test starts and kills by itself."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis import Redis

from tests.acceptance.stacks import COMMAND, ROOT, Up, environ
from tests.until import until

# Renewed often, so that a rescue takes a moment.
QUICK = {"STTREAM_LEASE_MS": "3000", "STTREAM_RENEW_MS": "300"}


@dataclass
class Consumer:
    """A consumer's process."""

    process: subprocess.Popen[bytes]
    output: Path

    def logged(self, event: str) -> list[dict[str, Any]]:
        """Return its log lines of a kind."""
        lines = [json.loads(line) for line in self.output.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event]


@contextlib.contextmanager
def server_of(stack: Up) -> Iterator[Redis]:
    """Look into a stack's server."""
    server = Redis(port=stack.port + 1, decode_responses=True)
    try:
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def consumer(
    stack: Up, audio: Path, *arguments: str, program: str | None = None, **settings: str
) -> Iterator[Consumer]:
    """Run a consumer while the block runs.

    Args:
        stack: where its server is.
        audio: a folder of recordings.
        arguments: what comes after `consumer`.
        program: Python text to run in place of the command line's consumer.
        settings: of it alone.
    """
    command = COMMAND if program is None else (sys.executable, "-c", program)
    told = {
        "STTREAM_REDIS_URL": f"redis://127.0.0.1:{stack.port + 1}/0",
        "STTREAM_AUDIO_ROOTS": str(audio),
        "STTREAM_MODEL": "bundled",
        "STTREAM_DEVICE": "cpu",
        "STTREAM_LOG_FORMAT": "json",
    }
    output = audio / f"consumer-{len(list(audio.glob('consumer-*')))}.output"
    with output.open("wb") as written:
        process = subprocess.Popen(
            [*command, "consumer", *arguments],
            cwd=ROOT,
            env=environ(**(told | QUICK | settings)),
            stdout=written,
            stderr=subprocess.STDOUT,
        )
    try:
        yield Consumer(process, output)
    finally:
        process.kill()
        process.wait()


def job_of(server: Redis, job_id: str) -> dict[str, str]:
    """Return a job's hash: asking the producer a hundred times a second would take the engine's cores."""
    job: dict[str, str] = server.hgetall(f"{{sttream}}:job:{job_id}")
    return job


async def ended(server: Redis, job_id: str, *, within_s: float) -> dict[str, str]:
    """Wait for the end of a job, and return its hash."""
    states = {"completed", "failed", "cancelled"}
    job: dict[str, str] = await until(
        lambda: (job := job_of(server, job_id)).get("state") in states and job,
        within_s=within_s,
        what=f"{job_id} has ended",
    )
    return job
