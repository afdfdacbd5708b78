"""`sttream demo`: run the embedded stack on a few recordings, show what was said, stop."""

from __future__ import annotations

import asyncio
import secrets
import shlex
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli import parameters
from cli.exits import FAILED, INTERRUPTED
from cli.output import console_of, counted, own_command, print_json, progress_bar, seconds, shown
from cli.submit import absolute, told_end
from deploy.paths import plain_path

if TYPE_CHECKING:
    from cli.http import Producer, Record
    from deploy.plan import Plan

EXAMPLES = Path("examples") / "audio"
# Lines of text are broken at the terminal's width, and before they grow too long to read.
LONGEST_LINE = 100
REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Clip:
    """One recording and what became of it; `transcript` is None unless it was completed."""

    path: Path
    job: Record
    transcript: Record | None

    @property
    def text(self) -> str:
        """The words, or why there are none."""
        if self.transcript is not None:
            return str(self.transcript["text"]).strip() or "(no speech was found)"
        return told_end(self.job)

    @property
    def audio_s(self) -> float:
        """Length of the recording."""
        return float(self.transcript["duration_s"]) if self.transcript else 0.0

    @property
    def speed(self) -> float | None:
        """Seconds of audio per second of work: fetched, prepared and transcribed."""
        if self.transcript is None:
            return None
        timings = self.transcript["timings"]
        work_s = timings["fetch_s"] + timings["prepare_s"] + timings["transcribe_s"]
        return self.audio_s / work_s if work_s > 0 else None

    @property
    def worked(self) -> bool:
        """Whether there are words."""
        return self.transcript is not None and bool(str(self.transcript["text"]).strip())


@click.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    default=Path("sttream-demo"),
    show_default=True,
    help="Folder of everything that is kept.",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65000),
    help="Port of the producer; the embedded server takes the next.  [default: 8010, or one that is free]",
)
@parameters.as_json
def demo(folder: Path | None, data_dir: Path, port: int | None, as_json: bool) -> None:
    """Transcribe the recordings in FOLDER, show the words, stop.

    They run on an embedded stack of their own. Without FOLDER: the examples of the source tree.
    """
    from cli.recordings import SUFFIXES, find_recordings
    from deploy.plan import make_plan

    folder = _examples() if folder is None else folder
    recordings = find_recordings(folder) if folder.is_dir() else []
    if not recordings:
        raise click.UsageError(f"no recordings in {folder} (files that end in {' '.join(sorted(SUFFIXES))})")
    plan = make_plan(host="127.0.0.1", port=port, data_dir=data_dir, consumers=1, audio=[folder])
    try:
        clips = asyncio.run(_demo(plan, recordings, as_json))
    except asyncio.CancelledError:
        click.get_current_context().exit(INTERRUPTED)
    if not as_json:
        _print_further(plan, data_dir, clips)
    click.get_current_context().exit(0 if all(clip.worked for clip in clips) else FAILED)


def _examples() -> Path:
    beside_the_code = Path(__file__).parent.parent / EXAMPLES
    return EXAMPLES if EXAMPLES.is_dir() or not beside_the_code.is_dir() else beside_the_code


async def _demo(plan: Plan, recordings: list[Path], as_json: bool) -> list[Clip]:
    """Transcribe on a stack of its own, and print the clips before it is stopped."""
    from cli.http import open_producer
    from deploy.local import running_stack

    click.echo(f"starting the embedded stack in {plan.data.path} …", err=True)
    async with running_stack(plan), open_producer(plan.url) as producer:
        began = time.monotonic()
        jobs = [await _submit(producer, path) for path in recordings]
        ended = await _watch(producer, [job["id"] for job in jobs if job["state"] != REFUSED])
        wall_s = time.monotonic() - began
        clips = [
            await _clip(producer, path, ended.get(job["id"], job)) for path, job in zip(recordings, jobs, strict=True)
        ]
        _print_clips(clips, wall_s, as_json)
        click.echo("stopping …", err=True)
    return clips


async def _submit(producer: Producer, path: Path) -> Record:
    """Submit a recording under a fresh id: a demo is for watching the work, not its memory.

    One that the producer does not take comes back as a job of the state `REFUSED`, and the others go on.
    """
    from cli.http import Refused
    from cli.recordings import named_id

    body = {"id": named_id(path, secrets.token_hex(3)), "source": absolute(str(path))}
    try:
        job, _ = await producer.submit(body)
    except Refused as exc:
        return {**body, "state": REFUSED, "error": {"type": exc.code, "detail": str(exc)}}
    return job


async def _watch(producer: Producer, jobs: list[str]) -> dict[str, Record]:
    from cli.wait import wait_for_end

    done: dict[str, float] = dict.fromkeys(jobs, 0.0)
    with progress_bar("{task.percentage:>3.0f}%") as progress:
        task = progress.add_task(f"transcribing {counted(len(jobs), 'recording')}", total=len(jobs))

        def seen(job: Record) -> None:
            done[job["id"]] = 1.0 if job["finished_at"] else job["progress"]
            progress.update(task, completed=sum(done.values()))

        return await wait_for_end(producer, jobs, seen)


async def _clip(producer: Producer, path: Path, job: Record) -> Clip:
    import orjson

    completed = job["state"] == "completed"
    text = await producer.transcript(job["id"], "json") if completed else None
    return Clip(path, job, orjson.loads(text) if text is not None else None)


def _print_clips(clips: list[Clip], wall_s: float, as_json: bool) -> None:
    if as_json:
        for clip in clips:
            print_json({**clip.job, "transcript": clip.transcript})
        return
    for clip in clips:
        _print_clip(clip)
    audio_s = sum(clip.audio_s for clip in clips)
    speed = f"{audio_s / wall_s:.1f} x real time"
    click.echo(f"\n{counted(len(clips), 'clip')}, {seconds(audio_s)} of audio in {seconds(wall_s)}: {speed}")


def _print_clip(clip: Clip) -> None:
    """Print one clip: wrapped for a terminal, its text on one line for a pipe."""
    speed = f"{clip.speed:.1f} x real time" if clip.speed else ""
    click.secho(shown(clip.path.name), bold=True, nl=False)
    click.echo("   ".join(("", seconds(clip.audio_s), speed)) if clip.transcript else f"   {clip.job['state']}")
    text = shown(clip.text)
    if sys.stdout.isatty():
        text = textwrap.fill(text, min(console_of(sys.stdout).width, LONGEST_LINE) - 2)
    click.echo(textwrap.indent(text, "  "))


def _print_further(plan: Plan, data_dir: Path, clips: list[Clip]) -> None:
    """Print what to type next; `sttream up` uses its usual ports, whatever was free for the demo."""
    from deploy.plan import DEFAULT_PORT

    # One that has a transcript, where there is one.
    job_id, queue = max(clips, key=lambda clip: clip.worked).job["id"], plan.settings.queue
    audio = shlex.quote(str(plain_path(clips[0].path.parent)))
    url, redis_cli = f"http://127.0.0.1:{DEFAULT_PORT}", f"redis-cli -p {DEFAULT_PORT + 1}"
    click.echo(f"""
Transcripts (json, txt, srt, vtt, tsv): {plan.data.results}

To look further, start the same data again:
  {own_command()} up --data-dir {shlex.quote(str(data_dir))} --audio {audio}
and in another terminal:
  curl '{url}/v1/jobs/{job_id}/transcript?format=srt'
  curl {url}/v1/queue
  {redis_cli} XPENDING '{{{queue}}}:jobs:normal' transcribers
  {redis_cli} XREVRANGE '{{{queue}}}:events' + - COUNT 5""")
