"""Every request has an id, is counted while it is under way, and leaves one line in the log."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING

import structlog
from aiohttp import web
from structlog.contextvars import bound_contextvars

from producer.parts import PARTS
from producer.problems import REQUEST_ID

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler

log = structlog.get_logger()

HEADER = "X-Request-Id"
_GOOD = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Requests:
    """Counts the requests under way, so that a stop can wait for them.

    aiohttp's own shutdown throws away what still arrives: an upload could never end.
    """

    def __init__(self) -> None:
        self._count = 0
        self._none = asyncio.Event()
        self._none.set()

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Count one request while the block runs."""
        self._count += 1
        self._none.clear()
        try:
            yield
        finally:
            self._count -= 1
            if self._count == 0:
                self._none.set()

    async def ended(self, within_s: float) -> int:
        """Wait until none is under way; return how many still are."""
        try:
            async with asyncio.timeout(within_s):
                await self._none.wait()
        except TimeoutError:
            pass
        return self._count


REQUESTS = web.AppKey("requests", Requests)


@web.middleware
async def log_access(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Bind the request's id to every log line of the request, and write one when it is answered."""
    given = request.headers.get(HEADER, "")
    request_id = given if _GOOD.fullmatch(given) else secrets.token_hex(8)
    request[REQUEST_ID] = request_id
    began_s = time.monotonic()
    with bound_contextvars(request_id=request_id), request.app[REQUESTS].under_way():
        response = await handler(request)
        # Looking changes nothing, and is what health checks and waiting clients do all the time.
        looked = request.method in {"GET", "HEAD"} and response.status < HTTPStatus.BAD_REQUEST
        write = log.debug if looked else log.info
        write(
            "request_answered",
            method=request.method,
            path=request.path,
            status=response.status,
            took_s=round(time.monotonic() - began_s, 4),
        )
    return response


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Name the request in its answer, and forbid browsers to guess what an answer is."""
    if REQUEST_ID in request:
        response.headers[HEADER] = request[REQUEST_ID]
    if request.app[PARTS].readiness.stopping:
        response.force_close()
    response.headers["X-Content-Type-Options"] = "nosniff"
    # Not which versions of what run here.
    response.headers["Server"] = "sttream"
