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
from bench.breaker.standin import read_melody
from bench.breaker.watch import Watch
from common.connection import server_is_away
from consumer.chunks import chunks_of_speech
from consumer.prepare import PreparePool

if TYPE_CHECKING:
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

    @property
    def load_s(self) -> float:
        """How long jobs are submitted and faults injected: as the rate says, with room between the faults."""
        return max(self.jobs / self.rate_hz, self.faults * 1.2)


async def run(options: Options) -> Report:
    """Run the breaker once."""
    layout, began = Layout(options.folder), time.monotonic()
    report = Report(options.seed, options.server, options.jobs, options.lease_ms)
    recordings = make_recordings(layout.audio, random.Random(f"recordings {options.seed}"))
    spoken = await _copy_spoken(layout.audio, options.folder)
    ledger = Ledger()
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
        await _break(options, line, ledger, recordings, spoken, report, evidence)
        await line.stop_services()
        await read_server(evidence, line.redis)
        await asyncio.to_thread(read_disk, evidence, layout)
    ledger.complaints += line.complaints()
    ledger.complaints += read_logs(layout, [member.name for member in line.members])
    evidence.processes = await _left_behind()
    report.violations = violations(evidence)
    report.outcomes = Counter(row.state for row in evidence.rows)
    report.submitted = Counter("accepted" if job.accepted else "unknown" for job in ledger.submissions.values())
    report.disk, report.took_s = line.disk.how, time.monotonic() - began
    if report.violations or options.keep:
        keep(layout)
    line.disk.close()
    return report


async def _break(
    options: Options,
    line: Line,
    ledger: Ledger,
    recordings: Recordings,
    spoken: list[Recording],
    report: Report,
    evidence: Evidence,
) -> None:
    """Submit and break until the plan is through, then let everything settle."""
    watch, load = Watch(line), Load(line, ledger, options.seed)
    trouble = Trouble(line, watch, options.seed, options.faults, options.only)
    jobs = plan_jobs(options.jobs, options.seed, recordings, spoken)
    beside = [asyncio.create_task(watch.run()), asyncio.create_task(_tell(load, trouble, watch, len(jobs)))]
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(load.run(jobs, options.load_s))
            group.create_task(trouble.run(options.load_s))
        line.calm()
        stuck = await _settle(line, watch) or await _last_jobs(line, load, watch, recordings)
        ledger.complaints += stuck
    finally:
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
    cancelled = {job.id for job in ledger.submissions.values() if job.cancelled is not Asked.NO}
    report.rescues_s = watch.rescues_s(without=cancelled)
    report.faults, report.left_out = dict(trouble.done), dict(trouble.left_out)
    evidence.published = watch.published


async def _settle(line: Line, watch: Watch) -> list[str]:
    """Wait until nothing is under way; return what is stuck, if anything is."""
    quiet, seen, began_s = 0, watch.seen, time.monotonic()
    moved_s = began_s
    while quiet < _LOOKS:
        await asyncio.sleep(_LOOK_EVERY_S)
        open_ = await _look(line)
        quiet = quiet + 1 if not any(open_.values()) else 0
        now_s = time.monotonic()
        if watch.seen != seen:
            seen, moved_s = watch.seen, now_s
        if now_s - moved_s > _STUCK_AFTER_S or now_s - began_s > _SETTLED_WITHIN_S:
            what = ", ".join(f"{count} in {key}" for key, count in open_.items() if count)
            waited = f"{now_s - began_s:.0f} s, {now_s - moved_s:.0f} s without any event"
            return [f"not settled after {waited}: {what}", *await describe_open(line)]
    return []


async def _look(line: Line) -> dict[str, int]:
    """Return what is under way; a server that was killed last of all is about to come back."""
    try:
        return await count_open(line)
    except Exception as exc:
        if not server_is_away(exc):
            raise
        return {"a server that is away": 1}


async def _last_jobs(line: Line, load: Load, watch: Watch, recordings: Recordings) -> list[str]:
    """See that the line is well after all: new jobs go through, and what killed writers have left is swept up."""
    for path in line.layout.results.glob(".*.part"):
        old_s = time.time() - _OLD_S
        os.utime(path, (old_s, old_s))
    line.restart_writers()
    last = [
        Submission(f"last-{number}", Way.HTTP, str(recording.path), recording.text)
        for number, recording in enumerate(recordings.short[:_LAST_JOBS])
    ]
    await load.run(last, 1.0)
    return await _settle(line, watch)


async def _tell(load: Load, trouble: Trouble, watch: Watch, jobs: int) -> None:
    """Say now and then how far it is."""
    started_s = time.monotonic()
    while True:
        await asyncio.sleep(_TOLD_EVERY_S)
        ends = sum(watch.published.values())
        print(
            f"{time.monotonic() - started_s:5.0f} s  {load.submitted}/{jobs} submitted, {ends} transcribed, "
            f"{sum(trouble.done.values())} faults, {len(load.ledger.complaints)} complaints",
            file=sys.stderr,
            flush=True,
        )


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
