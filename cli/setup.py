"""The verb that prepares a server and a database, and an operator's decision to go on without lost data."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import click

from cli.output import counted
from cli.reasons import reason_of
from cli.services import visible_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from common.connection import Client
    from common.database import Database
    from common.keys import Keys
    from common.settings import Settings


@click.command()
@click.option(
    "--accept-data-loss",
    is_flag=True,
    help="Begin anew on what the server holds now, though it is not what the database remembers.",
)
def setup(accept_data_loss: bool) -> None:
    """Load the functions, create groups, migrate the database.

    Services do it themselves where their users may. Refused with exit code 4 when the server has lost its data: no
    service begins anew before an operator says so.
    """
    from common.settings import load_settings

    asyncio.run(_set_up(load_settings(), accept_data_loss))
    click.echo("function library, groups and tables are there")


async def _set_up(settings: Settings, accept_data_loss: bool) -> None:
    from common.keys import Keys
    from common.setup import set_up_once

    keys = Keys(settings.queue)
    async with stores(settings) as (redis, database):
        if accept_data_loss:
            await _begin_anew(redis, keys, database)
        await set_up_once(redis, keys, database)


async def begin_anew(settings: Settings) -> None:
    """Take what the server holds for the queue's data, and print what that means."""
    from common.keys import Keys

    async with stores(settings) as (redis, database):
        await _begin_anew(redis, Keys(settings.queue), database)


async def _begin_anew(redis: Client, keys: Keys, database: Database) -> None:
    from common import epoch

    before, now = await epoch.begin_anew(redis, keys, database)
    if before in {None, now}:
        click.echo(f"nothing was lost: server and database agree about queue {keys.queue}")
        return
    click.echo(f"""\
queue {keys.queue} begins anew: its epoch is {now} and was {before}
  kept     {counted(await database.count(), "job")} that had ended, in the database; uploads and transcripts
  lost     what was only on the server: jobs that waited, were scheduled, ran or were not stored yet; dead letters
  to find  ids that your clients hold and `sttream status ID` does not know; the names of uploads hold their jobs' ids
  to mend  submit them again under the same ids: `sttream batch FOLDER`, repeated, queues what is not known\
""")


@contextlib.asynccontextmanager
async def stores(settings: Settings) -> AsyncIterator[tuple[Client, Database]]:
    """Connect to both and migrate. The services wait for what is away; a person wants to know.

    Raises:
        SettingsError: the server refuses the user.
        Unavailable: one of them cannot be used now.
    """
    from common.connection import connect, refusal, server_is_away
    from common.database import Database
    from common.errors import Unavailable

    database = Database.open(settings.database_url.get_secret_value())
    async with connect(settings) as redis, contextlib.aclosing(database):
        try:
            await redis.ping()
            await database.migrate()
            yield redis, database
        except Exception as exc:
            if refused := refusal(exc):
                raise refused from exc
            if not server_is_away(exc):
                raise
            where = visible_url(settings.redis_url.get_secret_value())
            raise Unavailable(
                f"the server at {where} cannot be used: {reason_of(exc)}. Is STTREAM_REDIS_URL right?"
            ) from exc
