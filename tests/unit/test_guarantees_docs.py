"""docs/guarantees.md is a contract: each failure names a test, and each test that it names is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
_NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def rows() -> list[str]:
    """Return the rows of the tables of failures."""
    tables = TEXT.partition("## Each failure")[2].partition("\n## ")[0]
    return [line for line in tables.splitlines() if line.startswith("| ") and not line.startswith("| when |")]


@pytest.mark.parametrize(("path", "name"), sorted(set(_NAMED.findall(TEXT))))
def test_a_named_test_is_there(path: str, name: str) -> None:
    """A promise whose test was renamed or deleted is a promise that nobody keeps."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))

    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_each_failure_names_a_test() -> None:
    """A line that no test shows is a hope."""
    assert len(rows()) > 30
    assert [row for row in rows() if not _NAMED.search(row)] == []
