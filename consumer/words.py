"""When each word was said: the model's alignment, cleaned as faster-whisper cleans it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TypedDict

from common.transcript import Word

# ruff: noqa: RUF001 these are the marks of other scripts
_SENTENCE_ENDS = frozenset(".。!！?？")
_OPENING = frozenset("\"'“¿([{-")
_CLOSING = frozenset("\"'.。,，!！?？:：”)]}、")
# Silence of up to two seconds is left between words, but nobody draws one out for so long.
_LONGEST_WORD_S = 2.0
# The alignment gives the silence at a sentence's border to a word: one that lasts longer than twice the usual is cut.
_LONGEST_USUAL_S = 0.7


class Timing(TypedDict):
    """One word as the library aligns it; times in seconds of the window's audio."""

    word: str
    start: float
    end: float
    probability: float


def before_gap(timings: Sequence[Timing]) -> Sequence[Timing]:
    """Return the words up to where the model has left something out.

    The alignment gives every moment to some word: one that lasts for seconds has speech in it that was not written
    down. What follows it is read again with what was left out.
    """
    for number, timing in enumerate(timings):
        if number and timing["end"] - timing["start"] > _LONGEST_WORD_S:
            return timings[:number]
    return timings


def words_of(timings: Sequence[Timing]) -> tuple[Word, ...]:
    """Return the words, punctuation joined to them; joined they are the text."""
    words = [Word(start=t["start"], end=t["end"], word=t["word"], probability=t["probability"]) for t in timings]
    return tuple(_with_punctuation(_without_silence(words)))


def _without_silence(words: list[Word]) -> list[Word]:
    """Cut what is too long where a sentence ends or begins."""
    lasts = [word.end - word.start for word in words if word.end > word.start]
    most = 2 * min(_LONGEST_USUAL_S, statistics.median(lasts)) if lasts else 0.0
    cut: list[Word] = []
    for word in words:
        begins = not cut or cut[-1].word in _SENTENCE_ENDS
        if word.end - word.start <= most:
            cut.append(word)
        elif word.word in _SENTENCE_ENDS:
            cut.append(word.model_copy(update={"end": word.start + most}))
        elif begins:
            cut.append(word.model_copy(update={"start": word.end - most}))
        else:
            cut.append(word)
    return cut


def _with_punctuation(words: Sequence[Word]) -> list[Word]:
    """Join punctuation to the word that it belongs to: opening marks to the next, closing ones to the one before."""
    joined: list[Word] = []
    opening = ""
    for word in words:
        mark = word.word.strip()
        if word.word.startswith(" ") and mark in _OPENING:
            opening += word.word
        elif joined and not opening and _CLOSING.issuperset(mark) and not joined[-1].word.endswith(" "):
            joined[-1] = joined[-1].model_copy(update={"word": joined[-1].word + word.word})
        else:
            joined.append(word.model_copy(update={"word": opening + word.word}))
            opening = ""
    return joined
