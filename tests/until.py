"""Wait for something to become true: the only way in which a test waits."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

# Short beside anything a test waits for, long beside the cost of asking.
POLL_S = 0.01


async def until(condition: Callable[[], Any | Awaitable[Any]], *, within_s: float, what: str) -> Any:
    """Return the first true value of `condition` (a plain or an async function)."""
    try:
        async with asyncio.timeout(within_s):
            while True:
                value = condition()
                if inspect.isawaitable(value):
                    value = await value
                if value:
                    return value
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise AssertionError(f"{what}: not within {within_s} s") from None
