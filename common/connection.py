"""Connections to Redis or Valkey, with every risky default of the client switched off."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import hiredis
import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, NoPermissionError, OutOfMemoryError, ResponseError, TimeoutError
from redis.retry import Retry

from common.errors import SettingsError
from common.primary import REFUSED, follow, primary_is_elsewhere
from common.topology import parse_url

if TYPE_CHECKING:
    from common.settings import Settings

# A blocking read must come back before the socket gives up, or every idle wait looks like an outage.
BLOCK_MS = 2_000
SOCKET_TIMEOUT_S = BLOCK_MS / 1000 + 5
POOL_SIZE = 32

# What the client raises when the server cannot be used now but may be later; LOADING is a ConnectionError. These
# replies have no class of their own: BUSY is a server in a long script, not BUSYGROUP.
_AWAY = (ConnectionError, TimeoutError, OutOfMemoryError, OSError)
_AWAY_REPLIES = ("MISCONF ", "BUSY ")
# Valkey 7.2 and later, and Redis 7.0.
_DENIED_IN_SCRIPT = ("ACL failure in script", "The user executing the script can't")


# An asyncio client whose replies are text. redis-py annotates each reply for all modes of the client at once (bytes or
# text, two protocols), which fits none: what replies look like is pinned here and tested on real servers.
Client = Any


def server_is_away(error: Exception) -> bool:
    """Return whether the error says that the server cannot be used now; trying again later helps."""
    if isinstance(error, _AWAY):
        return not isinstance(error, REFUSED)
    if primary_is_elsewhere(error):
        return True
    return isinstance(error, ResponseError) and str(error).startswith(_AWAY_REPLIES)


def right_is_missing(error: BaseException) -> bool:
    """Return whether this user may not do what it tried, directly or inside a function."""
    if isinstance(error, NoPermissionError):
        return True
    return isinstance(error, ResponseError) and any(text in str(error) for text in _DENIED_IN_SCRIPT)


def refusal(error: BaseException) -> SettingsError | None:
    """Return what to tell an operator when the server refused the user: no wait makes a password or a right appear."""
    if isinstance(error, REFUSED) or right_is_missing(error):
        return SettingsError(
            f"the server refuses the user that STTREAM_REDIS_URL names ({error}): its name, its password or its rights "
            "must change first"
        )
    return None


def group_is_missing(error: Exception) -> bool:
    """Return whether the error says that a stream or its group is gone (emptied server, deleted key)."""
    return isinstance(error, ResponseError) and any(text in str(error) for text in ("NOGROUP", "no such key"))


def library_is_missing(error: Exception) -> bool:
    """Return whether a call failed because the server does not hold this version of the library."""
    return isinstance(error, ResponseError) and "Function not found" in str(error)


def user_of(client: Client) -> str:
    """Return the name that a client logs in with."""
    return str(client.get_connection_kwargs().get("username") or "default")


def is_error_reply(error: Exception) -> bool:
    """Return whether the server answered a command with an error."""
    return isinstance(error, ResponseError)


def blames_the_server(error: Exception) -> bool:
    """Return whether an error would meet any other call just the same."""
    return server_is_away(error) or group_is_missing(error) or library_is_missing(error)


def connect(settings: Settings) -> Client:
    """Return the client of a process's event loop; it connects when first used.

    Its own retries are off: it would repeat a write whose reply was lost, up to ten times. A full pool waits
    instead of raising. Replies are text; bytes that are no UTF-8 come back escaped, so that an entry added by a
    careless client cannot end the read loop. It does not tell its name and version: redis-py sends both without reading
    the answers, and a health check in between takes one of them for its own, an error on servers before 7.2.
    """
    url = parse_url(settings.redis_url.get_secret_value())
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        url.client_url,
        max_connections=POOL_SIZE,
        timeout=SOCKET_TIMEOUT_S,
        protocol=2,
        decode_responses=True,
        encoding_errors="backslashreplace",
        socket_timeout=SOCKET_TIMEOUT_S,
        socket_connect_timeout=5,
        health_check_interval=30,
        driver_info=None,
        retry=AsyncRetry(NoBackoff(), 0),
    )
    pool.connection_class = type("Connection", (_Mended, pool.connection_class), {})
    follow(pool, url, settings.queue)
    return redis.asyncio.Redis.from_pool(pool)  # which closes the pool with the client


async def server_now_ms(client: Client) -> int:
    """Return the server's clock in ms since 1970."""
    seconds, microseconds = await client.time()
    return int(seconds) * 1000 + int(microseconds) // 1000


class _Mended:
    """Mends how the client's connections send, in three places.

    Commands are encoded in C, as the blocking client does: in Python that is a quarter of a busy consumer's time. A
    loop which is told to end does end: redis-py sends under `asyncio.wait_for`, and before Python 3.12 that drops a
    cancellation which comes together with the result (cpython issue 86296). And a connection that was closed between
    two commands is a lost connection: uvloop calls it a RuntimeError.
    """

    def pack_command(self, *args: Any) -> list[bytes]:
        """Encode one command."""
        name, *told = args
        try:
            return [hiredis.pack_command((*str(name).split(), *told))]
        except (TypeError, ValueError):  # half of a surrogate pair, or no value: escaped, or refused with a word
            return super().pack_command(*args)  # type: ignore[misc, no-any-return]

    def pack_commands(self, commands: Iterable[Iterable[Any]]) -> list[bytes]:
        """Encode many."""
        return [piece for command in commands for piece in self.pack_command(*command)]

    async def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
        """Send, as the class does that this is mixed into, and raise a cancellation that came meanwhile."""
        task = asyncio.current_task()
        before = task.cancelling() if task else 0
        try:
            await super().send_packed_command(*args, **kwargs)  # type: ignore[misc]
        except RuntimeError as exc:
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]
            raise ConnectionError(f"the connection was closed before the command was sent: {exc}") from exc
        if task and task.cancelling() > before:
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]
            raise asyncio.CancelledError


def connect_thread(settings: Settings) -> redis.Redis:
    """Return a blocking client for a thread of its own, with time-outs short enough to try twice in a lease."""
    timeout_s = settings.renew_ms / 1000
    url = parse_url(settings.redis_url.get_secret_value())
    client = redis.Redis.from_url(
        url.client_url,
        protocol=2,
        decode_responses=True,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        driver_info=None,
        retry=Retry(NoBackoff(), 0),
    )
    follow(client.connection_pool, url, settings.queue)
    return client
