"""Changes of state as they happen: server-sent events.

Source: HTML standard, 9.2 "Server-sent events".
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence

import orjson
import structlog
from aiohttp import web

from common.records import TERMINAL, Job
from producer import queries
from producer.parts import PARTS
from producer.problems import Problem
from producer.routes.jobs import find
from producer.tail import Event, EventTail, Listener
from producer.views import entry_ms, rfc3339

log = structlog.get_logger()

# A client that has taken nothing for so long is gone, whatever its connection says.
_WRITE_LIMIT_S = 60.0
_ENTRY_ID = re.compile(r"[0-9]{1,19}(-[0-9]{1,19})?")
_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
}


def routes() -> Sequence[web.RouteDef]:
    """Return the routes of this module."""
    return [
        web.get("/v1/jobs/{id}/events", follow_job, allow_head=False),
        web.get("/v1/events", follow_all, allow_head=False),
    ]


async def follow_job(request: web.Request) -> web.StreamResponse:
    """Stream the changes of one job until it has ended: first how it stands, or what followed Last-Event-ID."""
    queries.allow(request)
    parts, job_id = request.app[PARTS], queries.job_id(request)
    with parts.tail.listen(job_id) as listener:
        seen = _last_event_id(request)
        if seen and await _too_old(parts.tail, seen):
            seen = None
        start = seen or await parts.tail.newest()
        job = await find(parts, job_id)
        missed = [event async for event in parts.tail.after(start, job_id)] if seen else []
        if seen and job.terminal and not missed:
            # 204 tells a browser that there is nothing to come back for.
            return web.Response(status=204)
        changes = _changes(missed, listener, start, parts.keep_alive_s)
        return await _send(request, _job_messages(None if seen else _standing(job, start), job, changes))


async def follow_all(request: web.Request) -> web.StreamResponse:
    """Stream the changes of all jobs, from now or from Last-Event-ID on."""
    queries.allow(request)
    parts = request.app[PARTS]
    with parts.tail.listen(None) as listener:
        seen = _last_event_id(request)
        start = seen or await parts.tail.newest()
        reset = bool(seen) and await _too_old(parts.tail, start)
        missed = [event async for event in parts.tail.after(start, None)] if seen else []
        changes = _changes(missed, listener, start, parts.keep_alive_s)
        return await _send(request, _all_messages(reset, changes))


async def _job_messages(standing: bytes | None, job: Job, changes: AsyncIterator[Event | None]) -> AsyncIterator[bytes]:
    """Yield what a client that follows one job receives."""
    if standing is not None:
        yield standing
        if job.terminal:
            return
    async for change in changes:
        yield _message(change)
        if change and change.fields.get("state") in TERMINAL:
            return


async def _all_messages(reset: bool, changes: AsyncIterator[Event | None]) -> AsyncIterator[bytes]:
    """Yield what a client that follows all jobs receives."""
    yield b"event: reset\ndata: {}\n\n" if reset else _message(None)
    async for change in changes:
        yield _message(change)


async def _changes(
    missed: Sequence[Event], listener: Listener, start: str, keep_alive_s: float
) -> AsyncIterator[Event | None]:
    """Yield what was missed and then what comes, each event once; None when nothing has come for a while."""
    last = start
    for event in missed:
        yield event
        last = event.entry_id
    while True:
        try:
            async with asyncio.timeout(keep_alive_s):
                following = await listener.get()
        except TimeoutError:
            yield None
            continue
        if following is None:
            return
        if _order(following.entry_id) > _order(last):
            yield following


async def _send(request: web.Request, messages: AsyncIterator[bytes]) -> web.StreamResponse:
    response = web.StreamResponse(headers=_HEADERS)
    try:
        await response.prepare(request)
        async for message in messages:
            async with asyncio.timeout(_WRITE_LIMIT_S):
                await response.write(message)
        await response.write_eof()
    except (ConnectionError, TimeoutError):
        log.debug("listener_gone", path=request.path)
    return response


def _message(event: Event | None) -> bytes:
    """Return an event as it is sent; None is a comment that keeps the connection open."""
    if event is None:
        return b": keep-alive\n\n"
    data: dict[str, object] = {"id": event.job_id, "at": rfc3339(entry_ms(event.entry_id))}
    kind = "state" if "state" in event.fields else "progress"
    data[kind] = event.fields["state"] if kind == "state" else _number(event.fields.get("progress", ""))
    return _frame(event.entry_id, kind, data)


def _standing(job: Job, entry_id: str) -> bytes:
    """Return the first message: how the job stands at this place of the stream."""
    data = {"id": job.id, "state": job.state, "progress": job.progress}
    return _frame(entry_id, "state", data)


def _frame(entry_id: str, kind: str, data: Mapping[str, object]) -> bytes:
    return f"id: {entry_id}\nevent: {kind}\ndata: ".encode() + orjson.dumps(data) + b"\n\n"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _order(entry_id: str) -> tuple[int, int]:
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence or 0)


async def _too_old(tail: EventTail, entry_id: str) -> bool:
    """Return whether events after this one may have been dropped already."""
    oldest = await tail.oldest()
    return oldest is not None and _order(oldest) > _order(entry_id)


def _last_event_id(request: web.Request) -> str | None:
    text = request.headers.get("Last-Event-ID", "")
    if text and not _ENTRY_ID.fullmatch(text):
        raise Problem(
            400, "invalid_last_event_id", "Last-Event-ID: expected the id of an event, such as 1767225600000-0"
        )
    return text or None
