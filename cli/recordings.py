"""Find recordings in a folder."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from deploy.paths import plain_path

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SUFFIXES = frozenset(
    (
        *(".aac", ".aif", ".aiff", ".amr", ".flac", ".m4a", ".m4b", ".mka", ".mp2", ".mp3", ".mpga"),
        *(".oga", ".ogg", ".opus", ".wav", ".weba", ".wma", ".wv"),
        *(".avi", ".mkv", ".mov", ".mp4", ".webm"),
    )
)
_NOT_IN_IDS = re.compile(r"[^A-Za-z0-9_-]+")
_LONGEST_NAME = 60


def find_recordings(folder: Path, pattern: str | None = None, *, recursive: bool = False) -> list[Path]:
    """Return the recordings in a folder, by name.

    Args:
        pattern: of the file's name; by default every suffix of a known kind of recording.
        recursive: look into the folders below, too.
    """
    return sorted(_matching(folder, pattern, recursive))


def _matching(folder: Path, pattern: str | None, recursive: bool) -> Iterator[Path]:
    names = pattern or "*"
    for path in folder.rglob(names) if recursive else folder.glob(names):
        if path.is_file() and (pattern is not None or path.suffix.lower() in SUFFIXES):
            yield path


def id_of(path: Path) -> str:
    """Return a job id that is the same for the same recording, and another one once the file has changed."""
    status = path.stat()
    digest = hashlib.sha256(
        f"{plain_path(path)}\0{status.st_size}\0{status.st_mtime_ns}".encode(errors="surrogateescape")
    )
    return named_id(path, digest.hexdigest()[:16])


def named_id(path: Path, ending: str) -> str:
    """Return a job id that begins with the recording's name, as far as an id can hold it."""
    name = _NOT_IN_IDS.sub("-", path.stem)[:_LONGEST_NAME].strip("-")
    return f"{name}-{ending}" if name else ending
