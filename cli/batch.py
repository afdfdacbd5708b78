"""Submit a folder of recordings."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli import parameters
from cli.exits import FAILED
from cli.output import complain, counted, print_json, progress_bar
from cli.submit import absolute, told_error
from deploy.paths import plain_path

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.progress import Progress, TaskID

    from cli.http import Producer, Record

SUBMITTED_AT_A_TIME = 16


@dataclass(slots=True)
class Tally:
    """What became of the recordings so far; jobs in the order of their files."""

    jobs: dict[str, Record] = field(default_factory=dict)
    known: int = 0
    refused: dict[Path, str] = field(default_factory=dict)
    """Why a recording was not taken."""

    def count(self) -> Counter[str]:
        """Return how many jobs are in each state."""
        return Counter(job["state"] for job in self.jobs.values())


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--pattern", metavar="GLOB", help="Names to take, such as '*.mp3'.  [default: every kind of recording]")
@click.option("--recursive", is_flag=True, help="Look into the folders below, too.")
@parameters.priority
@click.option("--wait", is_flag=True, help="Wait until every job has ended.")
@parameters.as_json
@parameters.url
def batch(
    *, folder: Path, pattern: str | None, recursive: bool, priority: str, wait: bool, as_json: bool, url: str | None
) -> None:
    """Queue each recording in a folder.

    A job's id comes from the file's path, size and time: calling this again queues only what is new.
    """
    from cli.recordings import find_recordings

    recordings = find_recordings(folder, pattern, recursive=recursive)
    if not recordings:
        raise click.UsageError(f"no recordings in {folder} ({_looked_for(pattern, recursive)})")
    tally = Tally()
    try:
        asyncio.run(_batch(parameters.producer_url(url), recordings, priority, wait, tally))
    finally:
        _complain(tally)
    if as_json:
        for job in tally.jobs.values():
            print_json(job)
    click.echo(_summary(tally, wait), err=as_json)
    states = tally.count()
    click.get_current_context().exit(FAILED if tally.refused or states["failed"] or states["cancelled"] else 0)


async def _batch(url: str, recordings: list[Path], priority: str, wait: bool, tally: Tally) -> None:
    from cli.http import open_producer

    async with open_producer(url) as producer:
        with progress_bar("{task.completed:.0f}/{task.total:.0f}") as progress:
            task = progress.add_task("submitting", total=len(recordings))
            turns = asyncio.Semaphore(SUBMITTED_AT_A_TIME)

            async def submit(path: Path) -> None:
                async with turns:
                    await _submit_one(producer, path, priority, tally)
                    progress.advance(task)

            await asyncio.gather(*map(submit, recordings))
            if wait:
                await _wait(producer, tally, progress, task)


async def _submit_one(producer: Producer, path: Path, priority: str, tally: Tally) -> None:
    """Submit a recording; what the producer refuses for good is noted."""
    from cli.http import Refused
    from cli.recordings import id_of

    try:
        body = {"id": id_of(path), "source": absolute(str(path)), "priority": priority}
        job, new = await submit_when_there_is_room(producer, body)
    except (Refused, OSError) as exc:
        if isinstance(exc, Refused) and exc.status >= 500:
            raise
        tally.refused[path] = f"{exc.code}: {exc}" if isinstance(exc, Refused) else str(exc)
        return
    tally.jobs[job["id"]] = job
    tally.known += not new


async def submit_when_there_is_room(producer: Producer, body: Mapping[str, object]) -> tuple[Record, bool]:
    """Submit a job; a full queue is waited out as the producer asks."""
    from cli.http import Refused

    while True:
        try:
            return await producer.submit(body)
        except Refused as exc:
            if exc.status != 429 or exc.try_again_s is None:
                raise
            await asyncio.sleep(exc.try_again_s)


async def _wait(producer: Producer, tally: Tally, progress: Progress, task: TaskID) -> None:
    from cli.wait import ENDED, wait_for_end

    def seen(job: Record) -> None:
        tally.jobs[job["id"]] = job
        states = tally.count()
        told = f"transcribing, {states['completed']} done, {states['failed'] + states['cancelled']} failed"
        progress.update(task, completed=sum(states[state] for state in ENDED), description=told)

    progress.update(task, completed=0, total=len(tally.jobs), description="transcribing")
    await wait_for_end(producer, list(tally.jobs), seen)


def _complain(tally: Tally) -> None:
    """Say of each recording without a transcript why, one line each; the progress bar is gone by now."""
    from cli.wait import ENDED

    for path, why in tally.refused.items():
        complain(f"{plain_path(path)}: {why}")
    for job in tally.jobs.values():
        if job["state"] in ENDED - {"completed"}:
            complain(f"{job['source']}: {told_error(job)}")


def _summary(tally: Tally, wait: bool) -> str:
    states = tally.count()
    found = counted(len(tally.jobs) + len(tally.refused), "file")
    parts = [f"{len(tally.jobs) - tally.known} submitted", f"{tally.known} known before"]
    if tally.refused:
        parts.append(f"{len(tally.refused)} refused")
    if wait:
        parts += [f"{states['completed']} completed", f"{states['failed']} failed"]
        parts += [f"{states['cancelled']} cancelled"] if states["cancelled"] else []
    return f"{found}: {', '.join(parts)}"


def _looked_for(pattern: str | None, recursive: bool) -> str:
    from cli.recordings import SUFFIXES

    names = f"names like {pattern}" if pattern else f"files that end in {' '.join(sorted(SUFFIXES))}"
    return names + ("" if recursive else ", not in folders below; see --recursive")
