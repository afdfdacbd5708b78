"""Search over HTTP: the segments of stored transcripts by their words."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Final

from aiohttp import web
from pydantic import TypeAdapter

from common.records import check_id
from common.search import Hit, Query
from producer import cursors, queries
from producer.parts import PARTS
from producer.problems import Problem
from producer.views import answer, hit_view

LARGEST_LIMIT: Final = 100

_PLACE: TypeAdapter[tuple[int, str, int]] = TypeAdapter(tuple[int, str, int])


def routes() -> Sequence[web.RouteDef]:
    """Return the routes of this module."""
    return [web.get("/v1/search", search)]


async def search(request: web.Request) -> web.Response:
    """Return a page of hits."""
    queries.allow(request, "q", "limit", "cursor")
    limit = queries.limit(request, LARGEST_LIMIT)
    hits = await request.app[PARTS].database.search(_query(request), after=_after(request), limit=limit)
    following = _cursor(hits[-1]) if len(hits) == limit else None
    return answer({"hits": [hit_view(hit) for hit in hits], "next_cursor": following})


def _query(request: web.Request) -> Query:
    try:
        return Query.parse(request.query.get("q", ""))
    except ValueError as exc:
        raise Problem(422, "invalid_parameter", f"q: {exc}", param="q") from exc


def _cursor(hit: Hit) -> str:
    return cursors.pack([hit.finished_ms, hit.job_id, hit.number])


def _after(request: web.Request) -> tuple[int, str, int] | None:
    cursor = request.query.get("cursor")
    if not cursor:
        return None
    with contextlib.suppress(ValueError):
        place = cursors.unpack(cursor, _PLACE)
        if place and max(abs(place[0]), abs(place[2])) < 2**62 and check_id(place[1]):
            return place
    raise cursors.invalid()
