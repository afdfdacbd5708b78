"""Paths as they are shown and handed on."""

from __future__ import annotations

from pathlib import Path


def plain_path(path: Path) -> Path:
    """Return a path from the root without `~` and `..`; links are followed only where `..` makes it necessary."""
    path = path.expanduser().absolute()
    return path.resolve() if ".." in path.parts else path
