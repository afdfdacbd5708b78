"""Submit recordings, and wait for their transcripts."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli import parameters
from cli.exits import FAILED, exit_code_of
from cli.output import complain, print_document, print_json, print_line, progress_bar, shown
from common.errors import SttreamError
from deploy.paths import plain_path

if TYPE_CHECKING:
    from cli.http import Producer, Record


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked for.

    Args:
        body: of each submission, all but its source.
        format_: of the transcript, when waiting.
    """

    sources: tuple[str, ...]
    body: dict[str, object]
    upload: bool
    wait: bool
    format_: str
    as_json: bool


@click.command()
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.option("--id", "job_id", help="The job's id; submitting it again repeats nothing.")
@parameters.priority
@click.option("--language", metavar="CODE", help="ISO 639 code, such as en; detected when left out.")
@click.option("--option", "options", metavar="K=V", multiple=True, help="A decoding option, such as beam_size=1.")
@click.option("--metadata", metavar="K=V", multiple=True, help="Kept with the job.")
@click.option("--upload", is_flag=True, help="Send the file itself: the service does not see this path.")
@click.option("--wait", is_flag=True, help="Wait, then print the transcript.")
@parameters.format_
@parameters.as_json
@parameters.url
def submit(  # noqa: PLR0913 - one parameter an option
    *,
    sources: tuple[str, ...],
    job_id: str | None,
    priority: str,
    language: str | None,
    options: tuple[str, ...],
    metadata: tuple[str, ...],
    upload: bool,
    wait: bool,
    format_: str | None,
    as_json: bool,
    url: str | None,
) -> None:
    """Queue recordings.

    SOURCE is a file below one of the service's audio roots; with --upload, any file that this command can read.
    """
    if format_ is not None and not wait:
        raise click.UsageError("--format needs --wait: there is a transcript to print only at the end")
    if job_id is not None and len(sources) > 1:
        raise click.UsageError("--id names one job, and there are several sources")
    body: dict[str, object] = {"priority": priority}
    body |= {"id": job_id} if job_id is not None else {}
    body |= {"options": decoded} if (decoded := parameters.decoding_options(options, language)) else {}
    body |= {"metadata": parameters.pairs(metadata, "--metadata")} if metadata else {}
    request = Request(sources, body, upload, wait, format_ or parameters.DEFAULT_FORMAT, as_json)
    click.get_current_context().exit(asyncio.run(_submit(parameters.producer_url(url), request)))


async def _submit(url: str, request: Request) -> int:
    """Submit each source, and wait for them in turn; return the exit code: the worst one."""
    from cli.http import open_producer

    worst, submitted = 0, []
    async with open_producer(url) as producer:
        for source in request.sources:
            try:
                submitted.append(await _submit_one(producer, source, request))
            except SttreamError as exc:
                if len(request.sources) == 1:
                    raise
                complain(f"{source}: {exc}")
                worst = max(worst, exit_code_of(exc))
        if not request.wait:
            for job in submitted:
                print_json(job) if request.as_json else print_line(job["id"], job["state"], job["source"])
            return worst
        return max(worst, await _wait(producer, submitted, request))


async def _submit_one(producer: Producer, source: str, request: Request) -> Record:
    if not request.upload:
        job, _ = await producer.submit({"source": absolute(source), **request.body})
        return job
    job, _ = await producer.upload(_file(source), request.body)
    return job


def _file(source: str) -> Path:
    path = Path(source).expanduser()
    if not path.is_file():
        raise click.UsageError(f"{path}: there is no such file to upload")
    return path


async def _wait(producer: Producer, submitted: list[Record], request: Request) -> int:
    """Print each transcript, in the order of the sources, as soon as it and those before it are there."""
    code = 0
    for job in submitted:
        # The bar is gone from the terminal before anything is printed.
        ended = await _watch(producer, job)
        code = max(code, await _print_end(producer, ended, request, headed=len(submitted) > 1))
    return code


async def _watch(producer: Producer, job: Record) -> Record:
    """Show a bar until a job has ended; return it."""
    from cli.wait import ENDED, wait_for_end

    with progress_bar("{task.percentage:>3.0f}%") as progress:
        task = progress.add_task("", total=1.0)

        def seen(job: Record) -> None:
            done = 1.0 if job["state"] in ENDED else job["progress"]
            progress.update(task, completed=done, description=f"{job['state']} {shown(Path(job['source']).name)}")

        seen(job)
        return (await wait_for_end(producer, [job["id"]], seen))[job["id"]]


async def _print_end(producer: Producer, job: Record, request: Request, *, headed: bool) -> int:
    import orjson

    completed = job["state"] == "completed"
    if request.as_json:
        text = orjson.loads(await producer.transcript(job["id"], "json")) if completed else None
        print_json({**job, "transcript": text})
    elif completed:
        if headed:
            click.echo(f"==> {shown(job['source'])} <==")
        print_document(await producer.transcript(job["id"], request.format_))
    if not completed:
        complain(f"{job['source']}: {told_end(job)} (job {job['id']})")
    return 0 if completed else FAILED


def told_end(job: Record) -> str:
    """Return how a job ended that has no transcript, in words."""
    return f"{job['state']}: {told_error(job)}" if job.get("error") else str(job["state"])


def told_error(job: Record) -> str:
    """Return a job's error in words; its state when it has none."""
    error = job.get("error")
    return f"{error['type']}: {error['detail']}" if error else str(job["state"])


def absolute(source: str) -> str:
    """Return a source as the service understands it: URLs as they are, paths from the root."""
    return source if "://" in source else str(plain_path(Path(source)))
