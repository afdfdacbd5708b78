"""Request bodies, read with limits on size and on slowness."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from aiohttp import ClientPayloadError, web

from producer.problems import Problem

if TYPE_CHECKING:
    from aiohttp import StreamReader

T = TypeVar("T")

# A submission is a few hundred bytes; prompts and metadata at their limits stay below this.
MAX_JSON_BYTES = 64 * 1024
_READ_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Pace:
    """How slow a client may be: so many seconds at first, and bytes per second from then on."""

    grace_s: float = 20.0
    bytes_per_s: float = 4096.0


class PacedBody:
    """Guards the reading of one body: a client that trickles holds a connection for a while, not for ever."""

    def __init__(self, content: StreamReader, pace: Pace) -> None:
        self.content = content
        self._pace = pace
        self._began_s = time.monotonic()

    async def take(self, reading: Coroutine[Any, Any, T]) -> T:
        """Wait for one read.

        Raises:
            Problem: 408 when the client is too slow, 400 when it is gone or breaks the protocol.
        """
        task = asyncio.create_task(reading)
        try:
            while not task.done():
                left_s = self._left_s()
                if left_s <= 0:
                    raise self._too_slow()
                await asyncio.wait({task}, timeout=left_s)
            return task.result()
        except (ConnectionError, ClientPayloadError, web.RequestPayloadError) as exc:
            raise Problem(400, "body_incomplete", "the body ended before it was whole") from exc
        finally:
            task.cancel()

    def _left_s(self) -> float:
        allowed_s = self._pace.grace_s + self.content.total_bytes / self._pace.bytes_per_s
        return self._began_s + allowed_s - time.monotonic()

    def _too_slow(self) -> Problem:
        return Problem(
            408,
            "body_too_slow",
            f"only {self.content.total_bytes} bytes came in {time.monotonic() - self._began_s:.0f} s; expected "
            f"{self._pace.bytes_per_s:.0f} a second. Send the request again.",
        )


async def read_limited(body: PacedBody, limit_bytes: int) -> bytes:
    """Return the whole body.

    Raises:
        Problem: 413 as soon as it is larger than the limit; otherwise as `PacedBody.take`.
    """
    raw = bytearray()
    while part := await body.take(body.content.read(_READ_BYTES)):
        raw += part
        if len(raw) > limit_bytes:
            raise Problem(413, "body_too_large", f"the body is larger than {limit_bytes} bytes")
    return bytes(raw)
