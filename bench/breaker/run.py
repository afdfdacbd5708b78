"""One run of the breaker, from the first recording to the evidence."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.breaker.check import violations
from bench.breaker.evidence import Evidence, count_open, describe_open, read_disk, read_logs, read_server
from bench.breaker.faults import Trouble
from bench.breaker.ledger import Asked, Ledger, Submission, Way, plan_jobs
from bench.breaker.line import Layout, Line, keep
from bench.breaker.load import Load
from bench.breaker.processes import ROOT, left_behind
from bench.breaker.recordings import Recording, Recordings, make_recordings
from bench.breaker.report import Report
from bench.breaker.sabotage import sabotage
from bench.breaker.standin import read_melody
from bench.breaker.watch import Watch
from common.connection import server_is_away
from consumer.chunks import chunks_of_speech
from consumer.prepare import PreparePool

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

# Clips with speech, for jobs that come without options and so with speech detection.
_SPOKEN = ("austen-2-young-man.wav", "austen-5-himself.ogg")
_TOLD_EVERY_S = 10.0
_LOOK_EVERY_S = 0.5
# So often in a row nothing may be under way before a run counts as settled.
_LOOKS = 4
# Without any event for so long, what is left is stuck; every retry and every lease is far shorter.
_STUCK_AFTER_S = 60.0
# However much moves: by then the longest run is settled.
_SETTLED_WITHIN_S = 600.0
_END_WITHIN_S = 20.0
_LAST_JOBS = 8
# Longer than a temporary file of a living writer can be old.
_OLD_S = 3600.0


@dataclass(frozen=True, slots=True)
class Options:
    """What a run shall be."""

    seed: int
    jobs: int
    faults: int
    only: tuple[str, ...]
    """The kinds of fault to inject; all when empty."""
    server: str
    rate_hz: float
    lease_ms: int
    folder: Path
    may_mount: bool
    keep: bool
    """Whether to keep the results of a good run, too."""
    sabotage: bool
    """Whether to do harm at the end that the verdict must name."""

    @property
    def load_s(self) -> float:
        """How long jobs are submitted and faults injected: as the rate says, with room between the faults."""
        return max(self.jobs / self.rate_hz, self.faults * 1.2)


async def run(options: Options) -> Report:
    """Run the breaker once."""
    began_s, layout, ledger = time.monotonic(), Layout(options.folder), Ledger()
    recordings = make_recordings(layout.audio, random.Random(f"recordings {options.seed}"))
    spoken = await _copy_spoken(layout.audio, options.folder)
    line = Line(
        layout,
        kind=options.server,
        seed=options.seed,
        lease_ms=options.lease_ms,
        disk_mib=64 + options.jobs // 20,
        may_mount=options.may_mount,
    )
    evidence = Evidence(line.keys, ledger.submissions, ledger.complaints)
    async with line:
        works = _Works(options, line, ledger)
        await works.run(plan_jobs(options.jobs, options.seed, recordings, spoken), recordings)
        await line.stop_services()
        await read_server(evidence, line.redis)
        await asyncio.to_thread(read_disk, evidence, layout)
    ledger.complaints += line.complaints()
    ledger.complaints += read_logs(layout, [member.name for member in line.members])
    evidence.published = works.watch.published
    evidence.processes = await _left_behind()
    report = works.report(evidence, time.monotonic() - began_s)
    if report.violations or options.keep:
        keep(layout)
    line.disk.close()
    return report


class _Works:
    """What goes on while a line runs: the load, the trouble, and whoever watches both."""

    def __init__(self, options: Options, line: Line, ledger: Ledger) -> None:
        self.options, self.line, self.ledger = options, line, ledger
        self.watch = Watch(line)
        self.load = Load(line, ledger, options.seed)
        self.trouble = Trouble(line, self.watch, options.seed, options.faults, options.only)

    async def run(self, jobs: Sequence[Submission], recordings: Recordings) -> None:
        """Submit and break until the plan is through, then let everything settle."""
        beside = [asyncio.create_task(self.watch.run()), asyncio.create_task(self._tell())]
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.load.run(jobs, self.options.load_s))
                group.create_task(self.trouble.run(self.options.load_s))
            self.line.calm()
            self.ledger.complaints += await self._settle() or await self._last_jobs(recordings)
            if self.options.sabotage:
                await sabotage(self.line, self.ledger, recordings)
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)

    async def _settle(self) -> list[str]:
        """Wait until nothing is under way; return what is stuck, if anything is."""
        quiet, seen, began_s = 0, self.watch.seen, time.monotonic()
        moved_s = began_s
        while quiet < _LOOKS:
            await asyncio.sleep(_LOOK_EVERY_S)
            open_, now_s = await _look(self.line), time.monotonic()
            quiet = quiet + 1 if not any(open_.values()) else 0
            if self.watch.seen != seen:
                seen, moved_s = self.watch.seen, now_s
            if now_s - moved_s > _STUCK_AFTER_S or now_s - began_s > _SETTLED_WITHIN_S:
                what = ", ".join(f"{count} in {key}" for key, count in open_.items() if count)
                waited = f"{now_s - began_s:.0f} s, {now_s - moved_s:.0f} s without any event"
                return [f"not settled after {waited}: {what}", *await describe_open(self.line)]
        return []

    async def _last_jobs(self, recordings: Recordings) -> list[str]:
        """See that the line is well after all: new jobs go through, and what killed writers have left is swept up."""
        for path in self.line.layout.results.glob(".*.part"):
            old_s = time.time() - _OLD_S
            os.utime(path, (old_s, old_s))
        self.line.restart_writers()
        last = [
            Submission(f"last-{number}", Way.HTTP, str(recording.path), recording.text)
            for number, recording in enumerate(recordings.short[:_LAST_JOBS])
        ]
        await self.load.run(last, 1.0)
        return await self._settle()

    async def _tell(self) -> None:
        """Say now and then how far it is."""
        started_s = time.monotonic()
        while True:
            await asyncio.sleep(_TOLD_EVERY_S)
            print(
                f"{time.monotonic() - started_s:5.0f} s  {self.load.submitted}/{self.options.jobs} submitted, "
                f"{len(self.watch.published)} transcribed, {self.trouble.done.total()} faults, "
                f"{len(self.ledger.complaints)} complaints",
                file=sys.stderr,
                flush=True,
            )

    def report(self, evidence: Evidence, took_s: float) -> Report:
        """Return what came of it."""
        options, submissions = self.options, self.ledger.submissions.values()
        cancelled = {job.id for job in submissions if job.cancelled is not Asked.NO}
        return Report(
            seed=options.seed,
            server=options.server,
            jobs=options.jobs,
            lease_ms=options.lease_ms,
            took_s=took_s,
            faults=self.trouble.done,
            left_out=self.trouble.left_out,
            disk=self.line.disk.how,
            submitted=Counter("accepted" if job.accepted else "unknown" for job in submissions),
            outcomes=Counter(row.state for row in evidence.rows),
            rescues_s=self.watch.rescues_s(without=cancelled),
            violations=violations(evidence),
        )


async def _look(line: Line) -> dict[str, int]:
    """Return what is under way; a server that was killed last of all is about to come back."""
    try:
        return await count_open(line)
    except Exception as exc:
        if not server_is_away(exc):
            raise
        return {"a server that is away": 1}


async def _copy_spoken(audio: Path, scratch: Path) -> list[Recording]:
    """Copy the clips and return them with what the stand-in makes of their speech, decoded here without any fault."""
    spoken = []
    async with PreparePool(processes=1, max_audio_s=60, scratch_dir=scratch) as pool:
        for name in _SPOKEN:
            path = audio / name
            shutil.copyfile(ROOT / "examples" / "audio" / name, path)
            with path.open("rb") as file, await pool.prepare(file.fileno(), vad=True, timeout_s=60) as prepared:
                chunks = chunks_of_speech(prepared.spans)
                text = " ".join(read_melody(chunk.audio(prepared.samples)) for chunk in chunks)
            spoken.append(Recording(path, text))
    return spoken


async def _left_behind() -> list[str]:
    """Return what still runs; children of killed services need a moment to notice."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_END_WITHIN_S):
            while left_behind():  # noqa: ASYNC110 - they are not our children: nothing announces their end
                await asyncio.sleep(0.1)
    return [f"{pid} ({command})" for pid, command in left_behind().items()]
