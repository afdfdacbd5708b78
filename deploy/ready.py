"""Whether what was started can be used."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from deploy.errors import ServiceFailed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from redis.asyncio import Redis

    from deploy.supervisor import Supervised

    # Returns what is missing; None when nothing is.
    Ask = Callable[[], Awaitable[str | None]]

POLL_S = 0.1


async def until_ready(supervised: Supervised, ask: Ask, within_s: float) -> None:
    """Ask a service until it is ready.

    Raises:
        ServiceFailed: it ended before it was ready, or the time is over; with the end of its log.
    """
    name = supervised.service.name
    missing: str | None = "not asked yet"
    try:
        async with asyncio.timeout(within_s):
            while missing is not None:
                # First a pause: what was told to start gets to start before we load what asks it.
                await asyncio.sleep(POLL_S)
                if supervised.last_exit is not None:
                    ended = f"{name} ended ({supervised.last_exit}) before it was ready"
                    raise ServiceFailed(f"{ended}:\n{supervised.last_words()}")
                missing = await ask()
    except TimeoutError as exc:
        late = f"{name} was not ready within {within_s:g} s ({missing})"
        raise ServiceFailed(f"{late}:\n{supervised.last_words()}") from exc


async def server_answers(redis: Redis) -> str | None:
    """Ask the server; one that is still loading its data does not answer yet."""
    from common.connection import server_is_away

    try:
        await redis.ping()
    except Exception as exc:
        if not server_is_away(exc):
            raise
        return str(exc) or type(exc).__name__
    return None


async def service_is_ready(url: str) -> str | None:
    """Ask `/readyz`."""
    import aiohttp

    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session,
            session.get(url) as response,
        ):
            return None if response.status == 200 else (await response.text())[:500]
    except (aiohttp.ClientError, TimeoutError) as exc:
        return str(exc) or type(exc).__name__
