"""Lexicons: named lists of the terms that recordings of one kind are full of, for spelling them right.

A file each in one folder, `<name>.txt`: a term a line, UTF-8; empty lines and those that begin with `#` do not count.
The terms join a job's hotwords.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import NamedTuple

from common.errors import JobError
from common.logs import safe_text
from common.options import MOST_PROMPT_CHARACTERS, Options

_SUFFIX = ".txt"
# UTF-8 takes up to four bytes a character; what is longer is not read to find that out. Comments are allowed for.
_MOST_BYTES = 64 * 1024


class _Cached(NamedTuple):
    """A lexicon as its file was when it was read."""

    version: tuple[int, int, int]
    terms: tuple[str, ...]


class Lexicons:
    """The lexicons of one folder; each is read once, and again when its file has changed."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._cache: dict[str, _Cached] = {}

    def apply(self, options: Options) -> Options:
        """Return the options with the lexicon's terms among the hotwords, and without its name. Blocks on the disk.

        Raises:
            JobError: lexicon_unknown, lexicon_unreadable, or option_unsupported when they are more than a model takes.
        """
        if options.lexicon is None:
            return options
        own = [options.hotwords] if options.hotwords else []
        hotwords = ", ".join([*own, *self._terms(options.lexicon)])
        if len(hotwords) > MOST_PROMPT_CHARACTERS:
            raise JobError(
                "option_unsupported",
                f"lexicon {options.lexicon!r} and the hotwords have {len(hotwords)} characters, a model takes "
                f"{MOST_PROMPT_CHARACTERS}; leave some terms out, or split the lexicon by kind of recording",
            )
        return options.model_copy(update={"hotwords": hotwords, "lexicon": None})

    def _terms(self, name: str) -> tuple[str, ...]:
        if self._folder is None:
            raise JobError(
                "lexicon_unknown", f"lexicon {name!r}: there are none; set STTREAM_LEXICONS_DIR to their folder"
            )
        path = self._folder / f"{name}{_SUFFIX}"
        try:
            found = path.stat()
            if not stat.S_ISREG(found.st_mode):
                raise JobError("lexicon_unreadable", f"lexicon {name!r}: {path.name} is no regular file")
            version = (found.st_mtime_ns, found.st_size, found.st_ino)
            cached = self._cache.get(name)
            if cached is None or cached.version != version:
                cached = self._cache[name] = _Cached(version, _read(name, path))
        except FileNotFoundError:
            self._cache.pop(name, None)
            names = sorted(path.stem for path in self._folder.glob(f"*{_SUFFIX}"))
            known = safe_text(", ".join(names) or "none", 200)
            raise JobError("lexicon_unknown", f"lexicon {name!r}: not in the folder; known are: {known}") from None
        except OSError as exc:
            detail = f"lexicon {name!r}: {path.name} cannot be read: {exc.strerror}"
            raise JobError("lexicon_unreadable", detail, retryable=True) from exc
        return cached.terms


def _read(name: str, path: Path) -> tuple[str, ...]:
    with path.open("rb") as file:
        raw = file.read(_MOST_BYTES + 1)
    if len(raw) > _MOST_BYTES:
        raise JobError("lexicon_unreadable", f"lexicon {name!r}: {path.name} has more than {_MOST_BYTES} bytes")
    try:
        lines = [line.strip() for line in raw.decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as exc:
        raise JobError("lexicon_unreadable", f"lexicon {name!r}: {path.name} is no UTF-8 (byte {exc.start})") from exc
    terms = tuple(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not terms:
        raise JobError("lexicon_unreadable", f"lexicon {name!r}: {path.name} has no terms; expected one a line")
    return terms
