"""What the service costs on top of its engine: the same files through HTTP, Redis, consumer and writer, and without.

    .venv/bin/python -m bench.pipeline [--short]

A whole embedded stack (`sttream up`: Valkey that syncs each write, producer, one consumer, writer with files and
SQLite) gets all files at once over HTTP, and is timed until the last transcript is stored. `engine` is the consumer's
work alone (`bench.transcribers`), in a process of its own. They take turns; `of_engine` is the median of the rounds'
ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp

from bench.engine import Material, System, materials
from deploy.local import running_stack
from deploy.plan import make_plan

# Requests under way at a time, as from a client that has a folder to submit.
CALLS = 16
POLL_S = 0.1
TERMINAL = {"completed", "failed", "cancelled"}


class Service:
    """A running stack, as a client sees it."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url, self._session = url, session
        self._calls = asyncio.Semaphore(CALLS)

    async def transcribe(self, files: Sequence[str], beam_size: int) -> float:
        """Return the seconds from the first request until every transcript is stored."""
        begun = time.perf_counter()
        ids = await asyncio.gather(*(self._submit(file, beam_size) for file in files))
        for job_id in ids:
            await self._stored(job_id)
        return time.perf_counter() - begun

    async def _submit(self, file: str, beam_size: int) -> str:
        job = {"source": file, "options": {"beam_size": beam_size}}
        async with self._calls, self._session.post(f"{self._url}/v1/jobs", json=job) as answer:
            answer.raise_for_status()
            return str((await answer.json())["id"])

    async def _stored(self, job_id: str) -> None:
        while True:
            async with self._session.get(f"{self._url}/v1/jobs/{job_id}") as answer:
                job: dict[str, Any] = await answer.json()
            if job["state"] in TERMINAL:
                assert job["state"] == "completed", job["error"]
                return
            await asyncio.sleep(POLL_S)


async def measure(material: Material, folder: Path, beam_size: int, rounds: int) -> dict[str, Any]:
    """Let service and engine take turns."""
    plan = make_plan(
        host="127.0.0.1", port=None, data_dir=folder, consumers=1, audio=[material.folder], environ=dict(os.environ)
    )
    alone = System("sttream", "bundled")
    walls: dict[str, list[float]] = {"service": [], "engine": []}
    try:
        async with running_stack(plan), aiohttp.ClientSession() as session:
            service = Service(plan.url, session)
            for turn in range(rounds + 1):
                through = await service.transcribe(material.files, beam_size)
                without = (await asyncio.to_thread(alone.transcribe, material.files, beam_size))["wall_s"]
                if turn:  # the first is to get warm
                    walls["service"].append(through)
                    walls["engine"].append(without)
    finally:
        alone.close()
    ratios = [without / through for through, without in zip(walls["service"], walls["engine"], strict=True)]
    return {
        "case": "sttream",
        "material": material.name,
        "beam_size": beam_size,
        "audio_s_per_s": round(material.seconds / statistics.median(walls["service"]), 1),
        "engine_audio_s_per_s": round(material.seconds / statistics.median(walls["engine"]), 1),
        "of_engine": round(statistics.median(ratios), 3),
        "files": len(material.recordings),
        "audio_s": round(material.seconds),
        "rounds": rounds,
        "load": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.pipeline", description="Measure the service beside its engine.")
    parser.add_argument("--beam", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, help="default: 5, short 2")
    parser.add_argument("--short", action="store_true", help="less material, fewer rounds")
    parser.add_argument("--json", action="store_true", help="no table")
    options = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for material in materials(Path(folder), ("short", "mixed"), seed=options.seed, short=options.short):
            rounds = options.rounds or (2 if options.short else 5)
            data = Path(folder) / f"data-{material.name}"
            found.append(asyncio.run(measure(material, data, options.beam, rounds)))
            print(json.dumps(found[-1]), flush=True)
    if not options.json:
        names = ["material", "audio_s_per_s", "engine_audio_s_per_s", "of_engine"]
        print(f"| {' | '.join(name.replace('_', ' ') for name in names)} |\n{'|---' * len(names)}|")
        for one in found:
            print(f"| {' | '.join(str(one[name]) for name in names)} |")


if __name__ == "__main__":
    main()
