"""Full-text search: what a word is, what is indexed of a transcript, how a search is asked and its hits are shown.

Words are found here and nowhere else; both databases get them ready-made, so that they find the same, and what a user
typed reaches them as letters, marks and digits only.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, groupby, islice
from typing import Any, Final, Self

from sqlalchemy import ColumnElement, Select, cast, column, literal, select, table, text, tuple_
from sqlalchemy.dialects.postgresql import TSQUERY

from common.tables import jobs, segments
from common.transcript import Transcript

LONGEST_QUERY: Final = 1000
"""Characters."""

MARKS: Final = "⟦", "⟧"
"""Stand around what matched in a snippet, and nowhere else: in the text itself they become square brackets."""

# PostgreSQL refuses an index entry beyond 1 MB, and with it the transcript. No sentence comes near these.
_MOST_WORDS: Final = 2000
_LONGEST_WORD: Final = 100

_LONGEST_SNIPPET: Final = 400
_BEFORE_MATCH: Final = 100

# Scripts without blanks between words: each character counts as a word, and a text as the phrase of its characters.
_WITHOUT_BLANKS: Final = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
_READABLE: Final = str.maketrans({MARKS[0]: "[", MARKS[1]: "]", "\0": "\ufffd"})


@dataclass(frozen=True, slots=True)
class Word:
    """A word as it is compared, and where it stands in its text."""

    folded: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Query:
    """What must occur in a segment: phrases, each of one word or more."""

    phrases: tuple[tuple[str, ...], ...]

    @classmethod
    def parse(cls, query: str) -> Self:
        """Read words and "phrases in quotes"; nothing else has a meaning. An open quote reaches to the end.

        Raises:
            ValueError: the query has no word, or is too long.
        """
        if len(query) > LONGEST_QUERY:
            raise ValueError(f"expected at most {LONGEST_QUERY} characters, found {len(query)}")
        parts = query.split('"')
        texts = chain(chain.from_iterable(part.split() for part in parts[::2]), parts[1::2])
        phrases = (tuple(word.folded for word in words_of(text)) for text in texts)
        found = tuple(dict.fromkeys(phrase for phrase in phrases if phrase))
        if not found:
            raise ValueError('expected words, or a "phrase in quotes"; found no letter or digit')
        return cls(found)

    def matching(self, dialect: str, *, after: tuple[int, str, int] | None, limit: int) -> Select[Any]:
        """Return the query of one page of segments: those of the job that ended last first, as they were spoken."""
        wanted = (jobs.c.finished_ms, segments.c.job_id, segments.c.number)
        query = (
            select(*wanted, segments.c.start_s, segments.c.end_s, segments.c.text)
            .join(jobs, jobs.c.id == segments.c.job_id)
            .where(self._occurs(dialect))
            .order_by(jobs.c.finished_ms.desc(), segments.c.job_id.desc(), segments.c.number)
            .limit(limit)
        )
        if after is not None:
            job, number = after[:2], after[2]
            place = tuple_(*wanted[:2])
            query = query.where((place < job) | ((place == job) & (segments.c.number > number)))
        return query

    def _occurs(self, dialect: str) -> ColumnElement[bool]:
        if dialect == "postgresql":
            phrases = (" <-> ".join(f"'{word}'" for word in phrase) for phrase in self.phrases)
            return segments.c.words.bool_op("@@")(cast(literal(" & ".join(phrases)), TSQUERY))
        index = table("segment_words", column("rowid"))
        words = " AND ".join(f'"{" ".join(phrase)}"' for phrase in self.phrases)
        return segments.c.id.in_(
            select(index.c.rowid).where(text("segment_words MATCH :words").bindparams(words=words))
        )


@dataclass(frozen=True, slots=True)
class Hit:
    """A segment in which everything occurs that was searched for."""

    job_id: str
    finished_ms: int
    number: int
    start_s: float
    end_s: float
    snippet: str
    """Its text, with `MARKS` around what matched; cut where it is long."""


def to_hit(row: Mapping[str, Any], query: Query) -> Hit:
    """Return the hit of a row that `Query.matching` selected."""
    facts = {name: row[name] for name in ("job_id", "finished_ms", "number", "start_s", "end_s")}
    return Hit(snippet=snippet(row["text"], query), **facts)


def to_rows(job_id: str, transcript: Transcript, dialect: str) -> list[dict[str, Any]]:
    """Return the values of a job's rows in `segments`; what holds no word needs none."""
    rows = []
    for number, segment in enumerate(transcript.segments):
        words = [word.folded for word in islice(words_of(segment.text), _MOST_WORDS)]
        if words:
            row = {"job_id": job_id, "number": number, "start_s": segment.start, "end_s": segment.end}
            rows.append(row | {"text": segment.text.translate(_READABLE), "words": _indexed(words, dialect)})
    return rows


def words_of(text: str) -> Iterator[Word]:
    """Yield the words of a text: runs of letters, marks and digits, without regard to case and to forms of writing."""
    for alone, run in groupby(enumerate(text), key=lambda place: _kind(place[1])):
        if alone is None:
            continue
        places = [place for place, _ in run]
        for start, end in ((place, place + 1) for place in places) if alone else [(places[0], places[-1] + 1)]:
            folded = _fold(text[start:end])
            if folded:
                yield Word(folded, start, end)


def snippet(text: str, query: Query) -> str:
    """Return a segment's text with `MARKS` around what matched, cut where it is long."""
    words = list(words_of(text))
    folded = [word.folded for word in words]
    found = [
        (words[first].start, words[first + len(phrase) - 1].end)
        for phrase in query.phrases
        for first in range(len(words) - len(phrase) + 1)
        if tuple(folded[first : first + len(phrase)]) == phrase
    ]
    found.sort(key=lambda match: (match[0], -match[1]))  # of two that begin together, the longer
    begin = max(0, found[0][0] - _BEFORE_MATCH) if found and len(text) > _LONGEST_SNIPPET else 0
    end = min(len(text), begin + _LONGEST_SNIPPET)
    pieces, done = ["…" if begin else ""], begin
    for first, last in found:
        if done <= first and last <= end:
            pieces += [text[done:first], MARKS[0], text[first:last], MARKS[1]]
            done = last
    return "".join([*pieces, text[done:end], "…" if end < len(text) else ""])


def _indexed(words: Sequence[str], dialect: str) -> str:
    """Return words as the database indexes them; on PostgreSQL the text of a tsvector."""
    if dialect == "postgresql":
        return " ".join(f"'{word}':{place}" for place, word in enumerate(words, 1))
    return " ".join(words)


def _fold(word: str) -> str:
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", word).casefold())
    return "".join(character for character in folded if _kind(character) is not None)[:_LONGEST_WORD]


@lru_cache(maxsize=4096)
def _kind(character: str) -> bool | None:
    """Return whether a character is a word by itself; None when it belongs to no word."""
    if unicodedata.category(character)[0] not in "LMN":
        return None
    return unicodedata.name(character, "").startswith(_WITHOUT_BLANKS)
