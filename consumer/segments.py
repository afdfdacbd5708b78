"""From words to segments: sentences with the times of the recording, as subtitles and readers want them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from common.transcript import Segment, Word

if TYPE_CHECKING:
    from consumer.chunks import Chunk
    from consumer.reading import Reading

# ruff: noqa: RUF001 these are the marks of other scripts
_SENTENCE_ENDS = re.compile(r"[.。!！?？…][\"'”’)\]]*$")
_CLAUSE_ENDS = re.compile(r"[,，、;；:：][\"'”’)\]]*$")
# A point that ends no sentence: titles, initials, and what stands before a number.
_ABBREVIATIONS = re.compile(r"(?i)^\W*(mr|mrs|ms|mx|dr|prof|st|jr|sr|vs|no|vol|fig|e\.g|i\.e|[a-z])\.$")
# Nobody makes such a pause inside a sentence without ending a line of subtitles there.
_PAUSE_S = 1.0
# From here on a comma ends the segment too, and at the second limit any word does.
_LONG_S, _LONGEST_S = 8.0, 15.0


def segments_of(reading: Reading, chunk: Chunk, *, words: bool) -> tuple[Segment, ...]:
    """Return a chunk's segments, numbered from 0; times in seconds of the recording.

    Args:
        reading: what was read, with times in seconds of the chunk's own audio.
        chunk: where that audio lies in the recording.
        words: keep each word's times.
    """
    return tuple(
        Segment(
            id=number,
            start=sentence[0].start,
            end=sentence[-1].end,
            text="".join(word.word for word in sentence).strip(),
            avg_logprob=round(reading.avg_logprob, 4),
            no_speech_prob=round(reading.no_speech_prob, 4),
            words=tuple(sentence) if words else None,
        )
        for number, sentence in enumerate(sentences([_placed(word, chunk) for word in reading.words]))
    )


def renumbered(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """Return segments numbered from 0 in their order."""
    return tuple(segment.model_copy(update={"id": index}) for index, segment in enumerate(segments))


def _placed(word: Word, chunk: Chunk) -> Word:
    """Return a word with times of the recording, both in the stretch that its middle lies in."""
    start, end = chunk.place(word.start, word.end)
    return Word(start=round(start, 3), end=round(end, 3), word=word.word, probability=round(word.probability, 4))


def sentences(words: Sequence[Word]) -> Iterator[list[Word]]:
    """Yield the words in order, sentence by sentence; a sentence that is too long is cut where it can be."""
    sentence: list[Word] = []
    for word in words:
        if sentence and _ends(sentence, word):
            yield sentence
            sentence = []
        sentence.append(word)
    if sentence:
        yield sentence


def _ends(sentence: Sequence[Word], following: Word) -> bool:
    """Return whether what follows begins a new segment."""
    last = sentence[-1]
    said, lasts_s = last.word.strip(), following.end - sentence[0].start
    if following.start - last.end >= _PAUSE_S or lasts_s > _LONGEST_S:
        return True
    if _SENTENCE_ENDS.search(said):
        return not _ABBREVIATIONS.match(said)
    return lasts_s > _LONG_S and bool(_CLAUSE_ENDS.search(said))
