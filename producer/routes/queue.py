"""The queue and its dead letters over HTTP."""

from __future__ import annotations

import re
from collections.abc import Sequence

from aiohttp import web

from common.dead import DeadLetter
from common.logs import safe_text
from producer import queries
from producer.parts import PARTS, Parts
from producer.problems import Problem
from producer.views import answer, dead_view, queue_view

_REVIVED_AT_ONCE = 200


def routes() -> Sequence[web.RouteDef]:
    """Return the routes of this module."""
    return [
        web.get("/v1/queue", show),
        web.get("/v1/dead", show_dead),
        web.post("/v1/dead/revive", revive_all),
        web.get("/v1/dead/{id}", show_one),
        web.delete("/v1/dead/{id}", drop),
        web.post("/v1/dead/{id}/revive", revive),
    ]


async def show(request: web.Request) -> web.Response:
    """Return what waits, runs and is dead, and the consumers."""
    queries.allow(request)
    parts = request.app[PARTS]
    return answer(queue_view(await parts.overview.stats(parts.settings.lease_ms)))


async def show_dead(request: web.Request) -> web.Response:
    """Return a page of dead letters, newest first."""
    queries.allow(request, "limit", "cursor")
    cursor = request.query.get("cursor", "")
    if not re.fullmatch(r"|[0-9]{1,19}-[0-9]{1,19}", cursor):
        raise Problem(400, "invalid_cursor", "cursor: expected the next_cursor of a page", param="cursor")
    letters, following = await request.app[PARTS].dead.page(cursor, queries.limit(request))
    return answer({"dead": [dead_view(letter) for letter in letters], "next_cursor": following})


async def show_one(request: web.Request) -> web.Response:
    """Return one dead letter."""
    queries.allow(request)
    return answer(dead_view(await _find(request)))


async def revive(request: web.Request) -> web.Response:
    """Run one dead letter again."""
    queries.allow(request)
    letter = await _find(request)
    if not await request.app[PARTS].dead.revive(letter):
        raise _too_late(letter)
    return answer({"revived": 1, "ids": [letter.id]}, 202)


async def revive_all(request: web.Request) -> web.Response:
    """Run every dead letter again."""
    queries.allow(request)
    ids = await _revive_all(request.app[PARTS])
    return answer({"revived": len(ids), "ids": ids}, 202)


async def _revive_all(parts: Parts) -> list[str]:
    """Go from the newest to the oldest, so that what dies again meanwhile is not met again."""
    revived: list[str] = []
    after: str | None = ""
    while after is not None:
        letters, after = await parts.dead.page(after, _REVIVED_AT_ONCE)
        revived += [letter.id for letter in letters if await parts.dead.revive(letter)]
    return revived


async def drop(request: web.Request) -> web.Response:
    """Forget one dead letter; a failed job stays failed."""
    queries.allow(request)
    parts, letter = request.app[PARTS], await _find(request)
    if not await parts.dead.drop(letter, parts.settings.job_ttl_s):
        raise _too_late(letter)
    return answer({"dropped": 1, "ids": [letter.id]})


async def _find(request: web.Request) -> DeadLetter:
    # Not a job's id for certain: an entry added by hand may name anything.
    name = request.match_info["id"]
    letter = await request.app[PARTS].dead.find(name)
    if letter is None:
        raise Problem(404, "dead_letter_unknown", f"no dead letter {safe_text(repr(name), 150)}")
    return letter


def _too_late(letter: DeadLetter) -> Problem:
    return Problem(409, "dead_letter_gone", f"{safe_text(letter.id, 150)} was revived or dropped meanwhile")
