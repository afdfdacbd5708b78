"""Two systems on the same recordings: is one of them better, or was it the choice of recordings?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any

import numpy as np

from bench.speech.recordings import Sentence
from bench.speech.systems import Heard, Timed
from bench.speech.words import Errors, normalized, total

_RESAMPLES = 2000
_CENTRAL = (2.5, 97.5)


@dataclass(frozen=True, slots=True)
class Difference:
    """How much higher one error rate is than the other, and the interval that holds 95 % of its resamples."""

    value: float
    low: float
    high: float

    def figures(self, name: str) -> dict[str, float]:
        """Return it as fields of a result."""
        return {
            f"{name}_difference": round(self.value, 4),
            f"{name}_difference_low": round(self.low, 4),
            f"{name}_difference_high": round(self.high, 4),
        }


def difference(ours: Sequence[Errors], theirs: Sequence[Errors], seed: int = 0) -> Difference:
    """Compare two error rates on the same recordings.

    Bootstrap paired by recording: recordings are drawn with replacement, and both systems get the same draw, so that a
    hard recording counts for both.
    """
    wrong = np.array([(one.wrong, other.wrong) for one, other in zip(ours, theirs, strict=True)])
    said = np.array([one.said for one in ours])
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(said), size=(_RESAMPLES, len(said)))
    rates = wrong[draws].sum(axis=1) / np.maximum(said[draws].sum(axis=1), 1)[:, None]
    low, high = np.percentile(rates[:, 0] - rates[:, 1], _CENTRAL)
    return Difference(total(ours).rate - total(theirs).rate, float(low), float(high))


@dataclass
class Times:
    """How far apart times are, in seconds: those of words that both heard, of segments, of sentences as they are."""

    starts: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    segments: list[float] = field(default_factory=list)
    """Starts and ends of segments with the same text."""
    segments_of_both: int = 0
    all_segments: int = 0
    sentence_starts: list[float] = field(default_factory=list)
    """From where a sentence really begins to where its first word does; speech fades in, so not 0."""
    sentence_ends: list[float] = field(default_factory=list)

    def add(self, ours: Heard, theirs: Heard, sentences: Iterable[Sentence]) -> None:
        """Compare one recording."""
        own = _tokens(ours.words)
        for one, other in _matching(own, _tokens(theirs.words)):
            self.starts.append(one.start - other.start)
            self.ends.append(one.end - other.end)
        pairs = list(_matching(_plain(ours.segments), _plain(theirs.segments)))
        self.segments += [one.start - other.start for one, other in pairs]
        self.segments += [one.end - other.end for one, other in pairs]
        self.segments_of_both += len(pairs)
        self.all_segments += len(ours.segments)
        self._add_truth(own, sentences)

    def _add_truth(self, own: Sequence[Timed], sentences: Iterable[Sentence]) -> None:
        said = [
            Timed(sentence.start if not at else np.nan, sentence.end if at == len(words) - 1 else np.nan, word)
            for sentence in sentences
            for words in [normalized(sentence.text).split()]
            for at, word in enumerate(words)
        ]
        for one, other in _matching(own, said):
            self.sentence_starts += [one.start - other.start] if other.start == other.start else []
            self.sentence_ends += [one.end - other.end] if other.end == other.end else []

    def result(self) -> dict[str, Any]:
        """Return medians and 95th percentiles of the differences, whichever way they go, in milliseconds."""
        figures = {
            "words_compared": len(self.starts),
            "segments_of_same_text": round(self.segments_of_both / max(self.all_segments, 1), 3),
        }
        for name, values in (
            ("word_start", self.starts),
            ("word_end", self.ends),
            ("segment_edge", self.segments),
            ("sentence_start", self.sentence_starts),
            ("sentence_end", self.sentence_ends),
        ):
            if values:
                middle, most = np.percentile(np.abs(values), [50, 95]) * 1000
                figures |= {f"{name}_p50_ms": round(middle), f"{name}_p95_ms": round(most)}
        return figures


def _tokens(words: Iterable[Timed]) -> list[Timed]:
    """Return words as error rates count them: "42" is two, each with the time of both."""
    return [Timed(word.start, word.end, token) for word in words for token in normalized(word.text).split()]


def _plain(segments: Iterable[Timed]) -> list[Timed]:
    return [Timed(segment.start, segment.end, normalized(segment.text)) for segment in segments]


def _matching(one: Sequence[Timed], other: Sequence[Timed]) -> Iterable[tuple[Timed, Timed]]:
    """Yield what both have, in order."""
    matcher = SequenceMatcher(None, [word.text for word in one], [word.text for word in other], autojunk=False)
    for block in matcher.get_matching_blocks():
        yield from zip(one[block.a : block.a + block.size], other[block.b : block.b + block.size], strict=True)
