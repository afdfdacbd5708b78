"""From the text of a source to an opened file beneath an allowed root.

The producer checks a source when a job is submitted; the consumer opens it when the job runs. Both go the same way:
the text must name a place beneath a root, links are followed only as far as they stay beneath one, and the file is
opened component by component without following anything, so that nobody can swap a folder for a link meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import stat
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import unquote_to_bytes

from common.errors import JobError

# Opens a folder that may be passed through but not listed (mode 711), too; other systems need it readable.
_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: a fifo that took the file's place after it was looked at must not block the open.
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC

_NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})
_NOT_ALLOWED = frozenset({errno.EACCES, errno.EPERM})

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a fifo",
    stat.S_IFSOCK: "a socket",
}


@dataclass(frozen=True, slots=True)
class OpenedSource:
    """A recording, open for reading; closes with its context."""

    file: io.FileIO
    size_bytes: int
    path: Path
    """Where it lies, links resolved."""

    @property
    def fd(self) -> int:
        """The descriptor, owned by `file`."""
        return self.file.fileno()

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_source(source: str, roots: Sequence[Path], max_bytes: int) -> None:
    """Refuse a source that `open_source` would refuse now.

    Raises:
        JobError: as `open_source` does.
    """
    open_source(source, roots, max_bytes).close()


def open_source(source: str, roots: Sequence[Path], max_bytes: int) -> OpenedSource:
    """Open the file that a source names.

    Args:
        source: `file:///…` (percent-encoded) or an absolute path. Its name is found whether it was written in
            composed (NFC) or decomposed (NFD) characters. `..` is taken out of the text before links are followed.
        roots: absolute folders that it may lie in.
        max_bytes: the largest file accepted.

    Raises:
        JobError: `source_*` or `file_too_large`. Places outside the roots give the same error whether they exist or
            not. Only trouble of the host (I/O error, too many open files, a root not mounted) is retryable.
    """
    root, wanted = _beneath_roots(path_of(source), roots, source)
    try:
        real = Path(os.path.realpath(_as_spelled_on_disk(root, wanted, roots)))
        root = _real_root_of(real, roots, source)
        return _open_beneath(root, real.relative_to(root).parts, source, max_bytes)
    except OSError as exc:
        raise _refusal(exc, source, root) from exc


def upload_name(job_id: str, digest: str, suffix: str) -> str:
    """Return the name of a job's upload in the upload folder.

    Args:
        job_id: whose it is.
        digest: of its content, in hexadecimal; the first 16 digits count.
        suffix: with its dot, or empty.
    """
    return f"{job_id}-{digest[:16]}{suffix}"


def is_upload_of(job_id: str, name: str) -> bool:
    """Return whether a file in the upload folder is the upload of this job, and not of one whose id begins alike."""
    return re.fullmatch(re.escape(job_id) + r"-[0-9a-f]{16}(\.[a-z0-9]{1,8})?", name) is not None


def path_of(source: str) -> str:
    """Return the absolute path that the source names. Touches no file.

    Raises:
        JobError: it is relative, of a kind that this version does not read, or holds what no file name can.
    """
    scheme, colon, rest = source.partition(":")
    if source.startswith("/"):
        path = source
    elif not colon or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        raise JobError(
            "source_outside_roots",
            f"{_shown(source)} is a relative path; write it from the root, as file:///folder/name or /folder/name",
        )
    elif scheme.lower() != "file":
        # The rest is not shown: it may hold credentials or a signature.
        raise JobError("source_unsupported", f"{scheme[:20]}: sources are not supported; this version reads files only")
    else:
        path = _path_of_url(rest)
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError:
        encoded = b"\0"
    if b"\0" in encoded:
        raise JobError("source_unsupported", f"{_shown(source)} holds a character that no file name can hold")
    return path


def _path_of_url(rest: str) -> str:
    """Return the path of what follows `file:`. "?" and "#" belong to the name: a file has no query."""
    if rest.startswith("//"):
        host, _, path = rest[2:].partition("/")
        if host.lower() not in {"", "localhost"}:
            raise JobError("source_unsupported", f"file://{host[:60]}/… names another host; use file:///…")
        rest = "/" + path
    if not rest.startswith("/"):
        raise JobError("source_outside_roots", "a file: source needs an absolute path, as in file:///folder/name")
    return os.fsdecode(unquote_to_bytes(rest))


def _beneath_roots(path: str, roots: Sequence[Path], source: str) -> tuple[Path, tuple[str, ...]]:
    """Return the root that the text of the path lies beneath, and the components below it. Touches no file."""
    if not roots:
        raise JobError("source_outside_roots", "no folder is allowed for file sources; set STTREAM_AUDIO_ROOTS")
    parts = Path(os.path.normpath(path)).parts
    # normpath keeps a leading "//", which POSIX lets mean something else; here it is "/".
    parts = ("/", *parts[1:])
    for root in roots:
        for spelling in {root, Path(os.path.realpath(root))}:
            if _composed(parts[: len(spelling.parts)]) == _composed(spelling.parts):
                return root, parts[len(spelling.parts) :]
    raise _outside(source)


def _real_root_of(real: Path, roots: Sequence[Path], source: str) -> Path:
    for root in roots:
        resolved = Path(os.path.realpath(root))
        if real.is_relative_to(resolved):
            return resolved
    raise _outside(source)


def _as_spelled_on_disk(root: Path, wanted: Sequence[str], roots: Sequence[Path]) -> Path:
    """Return the path with each component as the file system spells it; unchanged from where nothing is found."""
    path = root
    for position, name in enumerate(wanted):
        found = _spelling(path, name, roots)
        if found is None:
            return path.joinpath(*wanted[position:])
        path /= found
    return path


def _spelling(folder: Path, name: str, roots: Sequence[Path]) -> str | None:
    if name.isascii():
        return name
    for form in dict.fromkeys((name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name))):
        if os.path.lexists(folder / form):
            return form
    # Composed and decomposed characters in one name: only now look at the folder, and never at one outside the roots.
    real = Path(os.path.realpath(folder))
    if not any(real.is_relative_to(os.path.realpath(root)) for root in roots):
        return None
    with contextlib.suppress(OSError), os.scandir(real) as entries:
        return next((entry.name for entry in entries if _composed((entry.name,)) == _composed((name,))), None)
    return None


def _composed(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(unicodedata.normalize("NFC", name) for name in names)


def _open_beneath(root: Path, parts: Sequence[str], source: str, max_bytes: int) -> OpenedSource:
    """Open the file at `parts` below the resolved root, following no link on the way."""
    with contextlib.ExitStack() as folders:
        folder = _enter(folders, os.fspath(root), None)
        for name in parts[:-1]:
            folder = _enter(folders, name, folder)
        name = parts[-1] if parts else "."
        # Looked at first: opening a device can have effects of its own (tapes rewind, watchdogs start).
        _check_kind(os.stat(name, dir_fd=folder, follow_symlinks=False), source)
        file = os.fdopen(os.open(name, _FILE, dir_fd=folder), "rb", buffering=0)
    try:
        status = os.fstat(file.fileno())
        _check_kind(status, source)
        if status.st_size > max_bytes:
            raise JobError(
                "file_too_large",
                f"{_shown(source)} has {status.st_size} bytes, more than the limit of {max_bytes} "
                "(STTREAM_MAX_FILE_BYTES)",
            )
    except BaseException:
        file.close()
        raise
    return OpenedSource(file, status.st_size, root.joinpath(*parts))


def _enter(folders: contextlib.ExitStack, name: str, folder: int | None) -> int:
    fd = os.open(name, _FOLDER, dir_fd=folder)
    folders.callback(os.close, fd)
    return fd


def _check_kind(status: os.stat_result, source: str) -> None:
    if stat.S_ISLNK(status.st_mode):
        # Links were resolved before: what is left is a loop, or a link put there in this very moment.
        raise OSError(errno.ELOOP, "a symbolic link that leads nowhere")
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise JobError("source_not_a_file", f"{_shown(source)} is {kind}; expected a recording, a regular file")


def _refusal(exc: OSError, source: str, root: Path) -> JobError:
    """Return the error that says what the operating system said."""
    if not root.is_dir():
        return JobError(
            "source_unreadable",
            f"{_shown(source)}: its root {root} is not there on this host; is it mounted? Tried again later.",
            retryable=True,
        )
    if exc.errno in _NOT_THERE:
        return JobError("source_missing", f"{_shown(source)} does not exist, or is a link that leads nowhere")
    if exc.errno in _NOT_ALLOWED:
        return JobError("source_unreadable", f"{_shown(source)} may not be read by this service's user")
    return JobError(
        "source_unreadable",
        f"{_shown(source)} cannot be opened now: {exc.strerror}. Tried again later.",
        retryable=True,
    )


def _outside(source: str) -> JobError:
    return JobError(
        "source_outside_roots",
        f"{_shown(source)} lies outside the folders allowed for file sources; see STTREAM_AUDIO_ROOTS",
    )


def _shown(source: str) -> str:
    return repr(source if len(source) <= 200 else source[:200] + "…")
