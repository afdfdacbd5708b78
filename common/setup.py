"""What must stand before a service runs: the function library, the groups, the data epoch, the tables.

Services do it themselves where their users may; `sttream setup` does it for those that may not.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from common.connection import Client
from common.errors import DataLost
from common.group import Group
from common.keys import TRANSCRIBERS, WRITERS, Keys
from common.outage import Outage, persist
from common.scripts import load_library

if TYPE_CHECKING:
    from common.database import Database


async def set_up(redis: Client, keys: Keys, database: Database | None = None) -> Epoch:
    """Create what is missing. Safe to run many times, and from many processes.

    Waits, for as long as it takes, while the server or the database is away.
    """
    epoch = await persist(Outage("server, to set it up"), lambda: _set_up_server(redis, keys))
    if database is not None:
        await persist(Outage("database, to migrate it"), database.migrate)
    return epoch


async def _set_up_server(redis: Client, keys: Keys) -> Epoch:
    await load_library(redis)
    await Group(redis, keys.lanes, TRANSCRIBERS, "").create()
    await Group(redis, [keys.results], WRITERS, "").create()
    return await Epoch.begin(redis, keys)


class Epoch:
    """Tells the data that a process started with from an emptied or replaced server's."""

    def __init__(self, redis: Client, keys: Keys, seen: str) -> None:
        self._redis = redis
        self._keys = keys
        self._seen = seen

    @classmethod
    async def begin(cls, redis: Client, keys: Keys) -> Epoch:
        """Read the epoch, and write one on a server that has none."""
        if not await redis.exists(keys.epoch):  # a server at maxmemory refuses to set even what is there
            await redis.set(keys.epoch, secrets.token_hex(8), nx=True)
        return cls(redis, keys, str(await redis.get(keys.epoch)))

    async def restore(self) -> None:
        """Compare, then bring back the functions and groups that the server lost.

        Raises:
            DataLost: the server holds other data than when this process started.
        """
        await self.check()
        await _set_up_server(self._redis, self._keys)

    async def check(self) -> None:
        """Compare.

        Raises:
            DataLost: the server holds other data than when this process started.
        """
        found = await self._redis.get(self._keys.epoch)
        if found != self._seen:
            raise DataLost(
                f"{self._keys.epoch} was {self._seen!r} when this process started and is {found!r} now: the server "
                "was emptied or replaced. This process stops; restore the data, or start the services anew to go on "
                "without it."
            )
