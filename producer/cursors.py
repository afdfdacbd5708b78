"""Cursors: a place in a list as an opaque text."""

from __future__ import annotations

import base64
import contextlib
from typing import TypeVar

import orjson
from pydantic import TypeAdapter

from producer.problems import Problem

T = TypeVar("T")


def pack(place: object) -> str:
    """Return a place, made of lists, numbers and texts, as an opaque text."""
    return base64.urlsafe_b64encode(orjson.dumps(place)).decode().rstrip("=")


def unpack(cursor: str, place: TypeAdapter[T]) -> T | None:
    """Return the place that a cursor tells, None when it tells none of this form."""
    with contextlib.suppress(ValueError):
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        return place.validate_json(base64.b64decode(padded, b"-_", validate=True), strict=True)
    return None


def invalid() -> Problem:
    """Return the problem of a cursor that was not handed out by this route, or for another filter."""
    detail = "cursor: expected the next_cursor of a page with the same filter"
    return Problem(400, "invalid_cursor", detail, param="cursor")
