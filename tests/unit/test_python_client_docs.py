"""docs/python-client.md, Producer and SyncProducer offer the same calls."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from producer.client import Producer, SyncProducer

DOC = Path(__file__).parents[2] / "docs" / "python-client.md"


def calls_of(kind: type) -> dict[str, list[str]]:
    """The public methods, and what each takes."""
    found = inspect.getmembers(kind, inspect.isfunction)
    return {name: list(inspect.signature(call).parameters) for name, call in found if not name.startswith("_")}


def test_every_call_is_listed() -> None:
    """A call that nobody can find is none; one that is only documented is a lie."""
    listed = re.findall(r"^\| `(\w+)\(", DOC.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(calls_of(Producer))


def test_the_twin_has_every_call() -> None:
    """A program that loses its event loop must find the same calls, with the same arguments."""
    assert calls_of(SyncProducer) == calls_of(Producer)
