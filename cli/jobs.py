"""Verbs on jobs: status, cancel, transcript, search, events. Those that submit are in `submit` and `batch`."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import click

from cli import parameters
from cli.output import print_document, print_fields, print_json, print_line, seconds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cli.http import Record


@click.command()
@click.argument("job_id", metavar="ID")
@parameters.as_json
@parameters.url
def status(job_id: str, as_json: bool, url: str | None) -> None:
    """Show a job."""
    job = asyncio.run(_status(parameters.producer_url(url), job_id))
    print_json(job) if as_json else print_job(job)


async def _status(url: str, job_id: str) -> Record:
    from cli.http import open_producer

    async with open_producer(url) as producer:
        return await producer.job(job_id)


@click.command()
@click.argument("job_id", metavar="ID")
@parameters.as_json
@parameters.url
def cancel(job_id: str, as_json: bool, url: str | None) -> None:
    """Cancel a job; one that runs stops at its next chunk."""
    job = asyncio.run(_cancel(parameters.producer_url(url), job_id))
    print_json(job) if as_json else print_line(job["id"], "cancelling" if job["state"] == "running" else job["state"])


async def _cancel(url: str, job_id: str) -> Record:
    from cli.http import open_producer

    async with open_producer(url) as producer:
        return await producer.cancel(job_id)


@click.command()
@click.argument("job_id", metavar="ID")
@parameters.format_
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@parameters.url
def transcript(job_id: str, format_: str | None, as_json: bool, url: str | None) -> None:
    """Print a job's transcript; exit code 1 when there is none."""
    if as_json and format_ not in {None, "json"}:
        raise click.UsageError(f"--json and --format {format_} exclude each other")
    wanted = "json" if as_json else format_ or parameters.DEFAULT_FORMAT
    print_document(asyncio.run(_transcript(parameters.producer_url(url), job_id, wanted)))


async def _transcript(url: str, job_id: str, format_: str) -> bytes:
    from cli.http import open_producer

    async with open_producer(url) as producer:
        return await producer.transcript(job_id, format_)


@click.command()
@click.argument("words", metavar="WORDS...", nargs=-1, required=True)
@click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True, help="The most hits to print.")
@parameters.as_json
@parameters.url
def search(words: Sequence[str], limit: int, as_json: bool, url: str | None) -> None:
    """Find what was said; newest first.

    Prints each sentence in which all words occur, in any order. A phrase has quotes of its own: '"good day" miller'.
    """
    hits = asyncio.run(_search(parameters.producer_url(url), " ".join(words), limit))
    if not hits:
        click.echo("nothing found", err=True)
    for hit in hits:
        print_json(hit) if as_json else print_line(hit["job_id"], seconds(hit["start_s"]), hit["snippet"])


async def _search(url: str, query: str, limit: int) -> list[Record]:
    from cli.http import open_producer

    async with open_producer(url) as producer:
        hits: list[Record] = (await producer.get("/v1/search", q=query, limit=str(limit)))["hits"]
        return hits


@click.command()
@click.argument("job_id", metavar="[ID]", required=False)
@parameters.as_json
@parameters.url
def events(job_id: str | None, as_json: bool, url: str | None) -> None:
    """Print changes of state as they happen.

    Those of one job until it ends, or of all jobs until Ctrl-C. When the producer goes away, it is waited for a while;
    exit code 3 when it does not come back.
    """
    with contextlib.suppress(KeyboardInterrupt):  # the way to end it
        asyncio.run(_events(parameters.producer_url(url), job_id, as_json))


async def _events(url: str, job_id: str | None, as_json: bool) -> None:
    from cli.events import follow
    from cli.http import open_producer

    async with open_producer(url) as producer:
        async for event in follow(producer, job_id):
            print_json(event) if as_json else print_line(*event.values())


def print_job(job: Record) -> None:
    """Print a job for people, one line a field."""
    error = job.get("error")
    times = ("created_at", "queued_at", "started_at", "finished_at", "worker", "batch_id")
    print_fields(
        [
            ("id", job["id"]),
            ("state", job["state"]),
            ("error", f"{error['type']}: {error['detail']}" if error else None),
            ("source", job["source"]),
            ("priority", job["priority"]),
            ("attempts", job["attempts"]),
            ("progress", f"{job['progress']:.0%}"),
            ("audio", seconds(job["audio_s"]) if job.get("audio_s") else None),
            *((name, job.get(name)) for name in times),
            ("options", _listed(job.get("options"))),
            ("metadata", _listed(job.get("metadata"))),
        ]
    )


def _listed(values: Mapping[str, object] | None) -> str:
    return " ".join(f"{name}={_told(value)}" for name, value in (values or {}).items() if value is not None)


def _told(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
