"""Transcripts as files: `<results>/<job id>.json` and the other formats, each whole or not at all.

A file is written under a temporary name in the same folder, synced, then renamed over its final name. Whoever sees
a file sees all of it, also after a crash or a power cut.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from common.errors import JobError, Unavailable
from common.formats import FORMATS, render
from common.records import check_id
from common.transcript import Transcript

# A writer that is alive renames its temporary files within seconds; minutes leave room for a disk that hangs.
STALE_AFTER_S: Final = 600.0

# What lies in the way of one file, while the folder is as it should be.
_THIS_FILE_ONLY: Final = frozenset({errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST})

_TEMPORARY_NAME: Final = re.compile(rf"\.[\w.-]{{1,128}}\.({'|'.join(FORMATS)})\.[0-9a-f]{{16}}\.part", re.ASCII)


def write_files(results_dir: Path, job_id: str, transcript: Transcript) -> list[Path]:
    """Write a transcript in every format, over what is there; survives a power cut after `sync_folder`.

    Returns:
        The files, in the order of `FORMATS`.

    Raises:
        Unavailable: the folder cannot be written now; nothing temporary is left.
        JobError: `result_unstorable`, this transcript cannot be written whatever the disk does.
    """
    stem = _safe_stem(job_id)
    targets = [results_dir / f"{stem}.{format_}" for format_ in FORMATS]
    temporary = [results_dir / f".{target.name}.{secrets.token_hex(8)}.part" for target in targets]
    with _told(f"transcript files of job {job_id} in {results_dir}", job_id):
        try:
            for format_, path in zip(FORMATS, temporary, strict=True):
                _write_synced(path, render(transcript, format_))
            for path, target in zip(temporary, targets, strict=True):
                path.replace(target)
        finally:
            for path in temporary:
                path.unlink(missing_ok=True)
    return targets


def sync_folder(folder: Path) -> None:
    """Make names given in a folder survive a power cut: one call for many files.

    Raises:
        Unavailable: they may not have reached the disk; write them again.
    """
    with _told(f"folder {folder}"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def open_results(results_dir: Path, *, now_s: float) -> None:
    """Make the results folder where it is missing, and remove what a killed writer left in it.

    Args:
        results_dir: the folder; its parents are made too.
        now_s: seconds since 1970 by the clock that dates files.

    Raises:
        Unavailable: the folder cannot be made or written.
    """
    with _told(f"results folder {results_dir}"):
        if not results_dir.is_dir():
            results_dir.mkdir(parents=True, exist_ok=True)
            sync_folder(results_dir.parent)
        for path in list(_stale(results_dir, now_s)):
            path.unlink(missing_ok=True)


def _stale(results_dir: Path, now_s: float) -> Iterator[Path]:
    """Yield temporary files, ours by name, that no living writer can still be writing."""
    for path in results_dir.iterdir():
        if _TEMPORARY_NAME.fullmatch(path.name):
            try:
                changed_s = path.lstat().st_mtime
            except FileNotFoundError:  # renamed or swept by another writer meanwhile
                continue
            if now_s - changed_s > STALE_AFTER_S:
                yield path


def _write_synced(path: Path, content: bytes) -> None:
    """Write a new file; its content is on the disk when this returns."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _safe_stem(job_id: str) -> str:
    try:
        return check_id(job_id)
    except ValueError as exc:
        raise JobError("result_unstorable", f"{exc}; no file is written") from exc


@contextmanager
def _told(what: str, job_id: str = "") -> Iterator[None]:
    """Say of a failure whether it is the host's or that of one transcript."""
    try:
        yield
    except OSError as exc:
        reason = f"{what}: {exc.strerror or type(exc).__name__}"
        if job_id and exc.errno in _THIS_FILE_ONLY:
            found = Path(exc.filename2 or exc.filename or "").name
            detail = f"{reason} ({found} is in the way); remove it, then revive the dead letter"
            raise JobError("result_unstorable", detail) from exc
        raise Unavailable(f"{reason}; nothing is lost, it is tried again") from exc
