"""Verbs on the queue as a whole: how it stands, and its dead letters."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import TYPE_CHECKING

import click

from cli import parameters
from cli.output import console_of, print_fields, print_json, print_line, print_rich, seconds, shown, to_the_second

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from rich.console import Console, Group

    from cli.http import Producer, Record

WATCH_S = 1.0


@click.command()
@click.option("--watch", is_flag=True, help="Show it anew every second until Ctrl-C.")
@parameters.as_json
@parameters.url
def queue(watch: bool, as_json: bool, url: str | None) -> None:
    """Show depth, running, scheduled, unstored, dead, consumers.

    Unstored: results that the writer has not stored yet.
    """
    with contextlib.suppress(KeyboardInterrupt):  # the way to end --watch
        asyncio.run(_queue(parameters.producer_url(url), watch, as_json))


async def _queue(url: str, watch: bool, as_json: bool) -> None:
    from cli.http import open_producer

    console = console_of(sys.stdout)
    async with open_producer(url) as producer:
        if watch and not as_json and console.is_terminal:
            await _repaint(producer, console)
        async for stats in _looks(producer):
            print_json(stats) if as_json else print_rich(_pictured(stats), words_whole=True)
            if not watch:
                return


async def _repaint(producer: Producer, console: Console) -> None:
    """Show the queue in place until interrupted."""
    from rich.live import Live

    with Live(console=console, auto_refresh=False) as live:
        async for stats in _looks(producer):
            live.update(_pictured(stats), refresh=True)


async def _looks(producer: Producer) -> AsyncIterator[Record]:
    while True:
        yield await producer.get("/v1/queue")
        await asyncio.sleep(WATCH_S)


def _pictured(stats: Record) -> Group:
    """Return the figures as two small tables."""
    from rich import box
    from rich.console import Group
    from rich.table import Column, Table

    figures = Table(box=None, show_header=False, pad_edge=False)
    lanes = "   ".join(f"{priority} {count}" for priority, count in stats["queued"].items())
    oldest = stats["oldest_queued_s"]
    for name, value in (
        ("queue", stats["queue"]),
        ("queued", lanes + (f"   (oldest {seconds(oldest)})" if oldest is not None else "")),
        *((name, stats[name]) for name in ("scheduled", "running", "unstored", "dead") if name in stats),
    ):
        figures.add_row(name, shown(value))
    consumers = Table(Column("consumer", no_wrap=True), "state", "idle", "running", box=box.SIMPLE_HEAD, pad_edge=False)
    for consumer in stats["consumers"]:
        cells = (consumer["name"], consumer["state"], seconds(consumer["idle_s"]), " ".join(consumer["running"]))
        consumers.add_row(*map(shown, cells))
    return Group(figures, consumers if stats["consumers"] else "no consumers")


@click.group()
def dead() -> None:
    """Look at dead letters, run them again, or drop them."""


@dead.command()
@parameters.as_json
@parameters.url
def ls(as_json: bool, url: str | None) -> None:
    """List dead letters, newest first."""
    letters = asyncio.run(_all_letters(parameters.producer_url(url)))
    if as_json:
        for letter in letters:
            print_json(letter)
    elif letters:
        # Not a table: at 80 columns nothing would be left beside an id, which must stay whole to be copied.
        for letter in letters:
            print_line(letter["id"], to_the_second(letter["died_at"]), letter["reason"])
            click.echo(f"  {shown(letter['error']['detail'])}")
    else:
        click.echo("no dead letters")


async def _all_letters(url: str) -> list[Record]:
    from cli.http import open_producer

    async with open_producer(url) as producer:
        return [letter async for letter in _letters(producer)]


async def _letters(producer: Producer) -> AsyncIterator[Record]:
    cursor: str | None = ""
    while cursor is not None:
        page = await producer.get("/v1/dead", **({"cursor": cursor} if cursor else {}))
        for letter in page["dead"]:
            yield letter
        cursor = page.get("next_cursor")


@dead.command()
@click.argument("dead_id", metavar="ID")
@parameters.as_json
@parameters.url
def show(dead_id: str, as_json: bool, url: str | None) -> None:
    """Show a dead letter.

    By its job's id, or by its own when it has no job.
    """
    letter = asyncio.run(_letter(parameters.producer_url(url), dead_id))
    if as_json:
        print_json(letter)
        return
    error = letter["error"]
    told = {name: value for name, value in letter.items() if name not in {"error", "fields"}}
    fields = " ".join(f"{name}={value}" for name, value in (letter.get("fields") or {}).items())
    print_fields([*told.items(), ("error", f"{error['type']}: {error['detail']}"), ("fields", fields)])


async def _letter(url: str, dead_id: str) -> Record:
    from cli.http import open_producer, path_of

    async with open_producer(url) as producer:
        return await producer.get(path_of("dead", dead_id))


@dead.command()
@click.argument("dead_id", metavar="ID|--all", required=False)
@click.option("--all", "all_", is_flag=True, help="All of them.")
@parameters.as_json
@parameters.url
def revive(dead_id: str | None, all_: bool, as_json: bool, url: str | None) -> None:
    """Run dead letters again, with all their attempts anew."""
    _require_one(dead_id, all_, "revive")
    _tell("revived", asyncio.run(_revive(parameters.producer_url(url), dead_id)), as_json)


@dead.command()
@click.argument("dead_id", metavar="ID|--all", required=False)
@click.option("--all", "all_", is_flag=True, help="All of them.")
@parameters.as_json
@parameters.url
def drop(dead_id: str | None, all_: bool, as_json: bool, url: str | None) -> None:
    """Forget dead letters; the database keeps the jobs' records."""
    _require_one(dead_id, all_, "drop")
    _tell("dropped", asyncio.run(_drop(parameters.producer_url(url), dead_id)), as_json)


def _require_one(dead_id: str | None, all_: bool, verb: str) -> None:
    if (dead_id is None) is not all_:
        raise click.UsageError(f"name a dead letter, or all of them: sttream dead {verb} ID, or --all")


def _tell(done: str, ids: list[str], as_json: bool) -> None:
    if as_json:
        print_json({done: len(ids), "ids": ids})
    else:
        click.echo(f"{len(ids)} {done}")


async def _revive(url: str, dead_id: str | None) -> list[str]:
    """Revive one letter, or all; return their ids."""
    from cli.http import open_producer, path_of

    async with open_producer(url) as producer:
        path = path_of("dead", "revive") if dead_id is None else path_of("dead", dead_id, "revive")
        return list((await producer.post(path))["ids"])


async def _drop(url: str, dead_id: str | None) -> list[str]:
    """Drop one letter, or each that is there now but for those that went meanwhile; return their ids."""
    from cli.http import Refused, open_producer, path_of

    async with open_producer(url) as producer:
        if dead_id is not None:
            await producer.delete(path_of("dead", dead_id))
            return [dead_id]
        dropped = []
        for name in [letter["id"] async for letter in _letters(producer)]:
            try:
                await producer.delete(path_of("dead", name))
            except Refused as exc:
                if exc.status not in {404, 409}:
                    raise
            else:
                dropped.append(name)
        return dropped
