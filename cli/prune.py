"""The verb that forgets jobs which ended long ago."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli import parameters
from cli.output import counted, print_json
from cli.setup import stores

if TYPE_CHECKING:
    from common.pruning import Pruned
    from common.settings import Settings

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_AGE = re.compile(r"(\d{1,6})([smhdw])")


class _Age(click.ParamType[float]):
    """A length of time: a whole number and a unit."""

    name = "age"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = _AGE.fullmatch(str(value))
        if match is None:
            self.fail(f"{value!r}: expected a whole number and s, m, h, d or w, such as 90d", param, ctx)
        return int(match[1]) * float(_UNITS_S[match[2]])


@click.command()
@click.option(
    "--older-than", "age_s", type=_Age(), required=True, metavar="AGE", help="Ended so long ago: 90d, 12h, 4w."
)
@click.option("--state", type=click.Choice(parameters.ENDED), help="Only jobs that ended so.")
@click.option("--batch", "batch_id", metavar="ID", help="Only jobs of this batch.")
@click.option("--delete", is_flag=True, help="Really do it; else it is only counted.")
@click.option(
    "--data-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Of the stack that `sttream up` runs on this folder, in place of the one in the settings.",
)
@parameters.as_json
def prune(
    *, age_s: float, state: str | None, batch_id: str | None, delete: bool, data_dir: Path | None, as_json: bool
) -> None:
    """Remove jobs that ended long ago, with all their files.

    Transcripts, uploads and records. Counts only, until --delete is given. Jobs that the queue still knows stay:
    those that run again, those with a dead letter, and all that ended within STTREAM_JOB_TTL_S. Other recordings than
    uploads are never touched. The id of a job that was removed may be used again.
    """
    from common.settings import load_settings
    from deploy.plan import settings_of_stack

    settings = load_settings() if data_dir is None else settings_of_stack(data_dir)
    pruned = asyncio.run(_prune(settings, age_s, state, batch_id, delete, quiet=as_json))
    if as_json:
        told = {"jobs": pruned.jobs, "files": pruned.files, "size_bytes": pruned.size_bytes, "kept": pruned.kept}
        print_json({**told, "deleted": delete})
        return
    did = "removed" if delete else "would be removed (repeat with --delete)"
    click.echo(f"{_told(pruned)} {did}" if pruned.jobs else "nothing to remove")
    if pruned.kept:
        click.echo(f"{counted(pruned.kept, 'job')} kept: the queue still knows them")


async def _prune(
    settings: Settings, age_s: float, state: str | None, batch_id: str | None, delete: bool, *, quiet: bool
) -> Pruned:
    from common.epoch import agreed_epoch
    from common.keys import Keys
    from common.pruning import Pruned, Pruner
    from common.queue import JobQueue
    from common.records import State

    pruned = Pruned()
    async with stores(settings) as (redis, database):
        keys = Keys(settings.queue)
        # A server that is not this database's knows none of its jobs, and would keep none.
        await agreed_epoch(redis, keys, database)
        queue = JobQueue(redis, keys)
        before_ms = await queue.now_ms() - round(1000 * age_s)
        pruner = Pruner(database, queue, settings.results_dir, settings.upload_dir)
        async for pruned in pruner.prune(
            before_ms, state=State(state) if state else None, batch_id=batch_id, dry_run=not delete
        ):
            if pruned.jobs and not quiet:
                click.echo(f"{_told(pruned)} so far", err=True)
    return pruned


def _told(pruned: Pruned) -> str:
    files = f"{counted(pruned.files, 'file')} ({pruned.size_bytes / 1e6:.1f} MB)"
    return f"{counted(pruned.jobs, 'job')}, {files}"
