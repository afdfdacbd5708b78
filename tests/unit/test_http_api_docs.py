"""docs/http-api.md is a contract: its lists and the code say the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from common.errors import ErrorType
from common.options import Options
from producer.intake import Submission
from producer.routes import events, jobs, queue, search

ROOT = Path(__file__).parents[2]
DOC = (ROOT / "docs" / "http-api.md").read_text(encoding="utf-8")


def _section(title: str) -> str:
    return DOC.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_every_route_is_listed_and_every_listed_route_exists() -> None:
    """A route that nobody can find is no feature; one that is only documented is a lie."""
    routes = {f"{route.method} {route.path}" for module in (jobs, search, queue, events) for route in module.routes()}
    listed = set(re.findall(r"^\| \[`(\w+ /v1[^`]*)`\]", DOC, re.MULTILINE))
    assert listed == routes


def test_every_code_that_the_producer_uses_is_listed() -> None:
    """Programs decide by the code."""
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "producer").rglob("*.py"))
    used = set(re.findall(r"Problem\(\s*\d{3},\s*\"(\w+)\"", sources))
    # Those that come from HTTP itself, and one that is written as a name.
    used |= {"not_found", "method_not_allowed", "unavailable"}
    listed = set(re.findall(r"`([a-z]+_[a-z_]+|unavailable)`", _section("Problems")))
    assert used == listed - {"source_unreadable", "source_"}


def test_every_error_type_is_explained() -> None:
    """Whoever sees `error.type` must be able to look it up."""
    assert set(re.findall(r"^\| `(\w+)`", _section("Error types"), re.MULTILINE)) == set(get_args(ErrorType))


def test_every_field_and_option_of_a_submission_is_explained() -> None:
    """`batch_id` is not among them: batches make their jobs themselves."""
    table = "".join(re.findall(r"^\| `.*$", _section("Submit"), re.MULTILINE))
    named = set(re.findall(r"`([a-z_]+)`", table))
    assert (set(Submission.model_fields) - {"batch_id"}) | set(Options.model_fields) <= named
