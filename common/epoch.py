"""The data epoch: tells the data that jobs were accepted on from those of an emptied or replaced server.

A random text, written once on the server and remembered in the database. What the server holds can vanish with it; the
database then still knows, and no service begins a new life in silence. Services without a database never write an
epoch: they take the one that they find.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from common.errors import DataLost
from common.rights import Missing, making

if TYPE_CHECKING:
    from common.connection import Client
    from common.database import Database
    from common.keys import Keys


async def found_epoch(redis: Client, keys: Keys) -> str:
    """Return the server's epoch.

    Raises:
        Missing: it has none.
    """
    found = await redis.get(keys.epoch)
    if found is None:
        raise Missing(
            f"{keys.epoch} is not on the server: the first producer or writer makes it, or `sttream setup`. Is "
            "STTREAM_REDIS_URL the same everywhere? Producers and writers say so when the server was emptied"
        )
    return str(found)


async def agreed_epoch(redis: Client, keys: Keys, database: Database) -> str:
    """Return the epoch of server and database; make it where neither has one.

    The server's comes first, and the first of several processes wins in both places: one that is killed in between
    leaves a server's epoch that the next start remembers.

    Raises:
        DataLost: the database remembers an epoch that is not the server's.
        Missing: neither has one, and this user may not write it.
    """
    remembered = await database.epoch(keys.queue)
    if remembered is None:
        remembered = await database.remember_epoch(keys.queue, await _made_epoch(redis, keys))
    await check_epoch(redis, keys, remembered)
    return remembered


async def check_epoch(redis: Client, keys: Keys, expected: str) -> None:
    """Compare.

    Raises:
        DataLost: the server has no epoch, or another one.
    """
    found = await redis.get(keys.epoch)
    if found != expected:
        raise DataLost(
            f"{keys.epoch} should be {expected} and is {found or 'missing'}: the server was emptied or replaced, and "
            "jobs that were only on it are gone. Nothing goes on without your decision: restore its data or mend "
            "STTREAM_REDIS_URL, or begin anew on what is there with `sttream setup --accept-data-loss`"
        )


async def begin_anew(redis: Client, keys: Keys, database: Database) -> tuple[str | None, str]:
    """Take what the server holds now, be it nothing, for the queue's data: an operator's decision.

    An epoch that the server has is kept: services that run on it go on, and a call that was cut off can be repeated.

    Returns:
        The epoch that the database remembered before, and the one from now on; equal when nothing was lost.
    """
    before = await database.epoch(keys.queue)
    epoch = await _made_epoch(redis, keys)
    return before, await database.remember_epoch(keys.queue, epoch, replace=True)


async def _made_epoch(redis: Client, keys: Keys) -> str:
    """Return the server's epoch; write one on a server that has none."""
    found = await redis.get(keys.epoch)  # first: a server at maxmemory refuses to set even what is there
    if found is None:
        made = secrets.token_hex(8)
        with making(redis, keys.epoch):
            found = await redis.set(keys.epoch, made, nx=True, get=True) or made
    return str(found)
