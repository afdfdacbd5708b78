"""What must stand before a service runs: the tables, the data epoch, the function library, the groups.

Every process looks, with rights that all have, and makes what is missing where its user may. Where it may not, it waits
until somebody has: another service, or an operator with `sttream setup`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from common.connection import Client
from common.epoch import agreed_epoch, check_epoch, found_epoch
from common.errors import Unavailable
from common.group import Group
from common.keys import TRANSCRIBERS, WRITERS, Keys
from common.outage import Outage, persist
from common.rights import Missing, making
from common.scripts import library_is_there, load_library

if TYPE_CHECKING:
    from common.database import Database

log = structlog.get_logger()

# Somebody who has just run `sttream setup` looks at the services next.
LOOKED_AGAIN_S = 1.0
# Services start together: for so many looks it is no news that another one is not done yet.
_LOOKS_UNTOLD = 3


async def set_up(redis: Client, keys: Keys, database: Database | None = None) -> SetUp:
    """Make what is missing. Safe to run many times, and from many processes.

    Waits, for as long as it takes, while the server or the database is away, and while something is missing that this
    process may not make.

    Raises:
        DataLost: the server holds other data than the database remembers.
    """
    if database is not None:
        await persist(Outage("database, to migrate it"), database.migrate)
    outage, looks, told = Outage("server, to set it up"), 0, ""
    while True:
        try:
            return await persist(outage, lambda: set_up_once(redis, keys, database))
        except Missing as exc:
            looks += 1
            if looks > _LOOKS_UNTOLD and str(exc) != told:
                told = str(exc)
                log.warning("setup_awaited", missing=told, next="looking again every second")
        await asyncio.sleep(LOOKED_AGAIN_S)


async def set_up_once(redis: Client, keys: Keys, database: Database | None = None) -> SetUp:
    """Do the same without waiting; the database is migrated.

    Raises:
        Missing: something is not there, and this process may not make it.
    """
    # The epoch first: on a server that was emptied nothing is made before an operator has decided.
    if database is None:
        epoch = await found_epoch(redis, keys)
    else:
        epoch = await agreed_epoch(redis, keys, database)
    await _make_missing(redis, keys)
    return SetUp(redis, keys, epoch)


class SetUp:
    """What a process runs on: the data that it found when it started, with library and groups."""

    def __init__(self, redis: Client, keys: Keys, epoch: str) -> None:
        self._redis = redis
        self._keys = keys
        self._epoch = epoch

    async def check(self) -> None:
        """Compare the server's epoch with the one at the start.

        Raises:
            DataLost: the server was emptied or replaced meanwhile.
        """
        await check_epoch(self._redis, self._keys, self._epoch)

    async def restore(self) -> None:
        """Make again what the server has lost beside its data: library or groups. Safe to repeat.

        Raises:
            DataLost: the server was emptied or replaced meanwhile.
            Unavailable: this user may not make what is missing; try again when somebody has.
        """
        try:
            await self.check()
            await _make_missing(self._redis, self._keys)
        except Missing as exc:
            raise Unavailable(str(exc)) from exc


async def _make_missing(redis: Client, keys: Keys) -> None:
    if not await library_is_there(redis, keys.epoch):
        with making(redis, "the function library"):
            await load_library(redis)
    for group in (Group(redis, keys.lanes, TRANSCRIBERS, ""), Group(redis, [keys.results], WRITERS, "")):
        if await group.missing():
            with making(redis, f"group {group.group!r}"):
                await group.create()
