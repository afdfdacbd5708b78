"""Query strings and path names, checked: a mistyped filter must not list everything."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar

from common.logs import safe_text
from common.records import check_id
from producer.problems import Problem

if TYPE_CHECKING:
    from aiohttp import web

E = TypeVar("E", bound=StrEnum)

DEFAULT_LIMIT = 50
LARGEST_LIMIT = 200


def allow(request: web.Request, *names: str) -> None:
    """Refuse parameters that this route does not know, and any given twice.

    Raises:
        Problem: 422 naming the first.
    """
    for name in request.query:
        shown = safe_text(name, 60)
        if name not in names:
            known = ", ".join(names) or "none"
            raise Problem(422, "invalid_parameter", f"{shown}: unknown parameter; known: {known}", param=shown)
        if len(request.query.getall(name)) > 1:
            raise Problem(422, "invalid_parameter", f"{shown}: given twice", param=shown)


def limit(request: web.Request, largest: int = LARGEST_LIMIT) -> int:
    """Return how many items a page may hold."""
    text = request.query.get("limit", str(DEFAULT_LIMIT))
    if text.isascii() and text.isdigit() and len(text) < 5 and 1 <= int(text) <= largest:
        return int(text)
    raise Problem(
        422,
        "invalid_parameter",
        f"limit: expected 1 to {largest}, found {safe_text(repr(text), 60)}",
        param="limit",
    )


def one_of(request: web.Request, name: str, choices: Iterable[str], default: str) -> str:
    """Return a parameter that has a closed set of values."""
    text = request.query.get(name, default)
    known = list(choices)
    if text in known or (name not in request.query and text == default):
        return text
    raise Problem(
        422,
        "invalid_parameter",
        f"{name}: expected {', '.join(known)}, found {safe_text(repr(text), 60)}",
        param=name,
    )


def batch_id(request: web.Request) -> str | None:
    """Return the batch asked for, None for any."""
    try:
        return check_id(request.query["batch_id"]) if "batch_id" in request.query else None
    except ValueError as exc:
        raise Problem(422, "invalid_parameter", f"batch_id: {safe_text(str(exc), 200)}", param="batch_id") from exc


def job_id(request: web.Request) -> str:
    """Return the id in the path.

    Raises:
        Problem: 404 when no job can have such an id.
    """
    name = request.match_info["id"]
    try:
        return check_id(name)
    except ValueError as exc:
        raise no_job(name) from exc


def no_job(name: str) -> Problem:
    """Return the problem of an id that nobody knows."""
    return Problem(404, "job_unknown", f"no job {safe_text(repr(name), 150)}")
