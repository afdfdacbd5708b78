"""Chunks: the pieces, up to 30 s of speech, in which a recording goes to the engine.

Speech spans that follow each other are packed into one chunk, the silence between them left out: the model looks at
30 s at a time whatever is in them, so full chunks are what makes it fast. Chunks bound memory too: the library's own
loop over a whole recording computes the features of all of it first, 3 GB for an hour.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from consumer.speech import SAMPLE_RATE_HZ, Span

if TYPE_CHECKING:
    from numpy.typing import NDArray

# What Whisper's encoder sees.
WINDOW_S = 30.0
# Without speech detection nobody knows where to cut: it is done where it is quietest near the end of the window.
_QUIET_SEARCH_S = 10.0
_QUIET_FRAME_S = 0.1


@dataclass(frozen=True, slots=True)
class Chunk:
    """Stretches of one recording that go to the engine as one piece of audio; in samples at 16 kHz."""

    spans: tuple[Span, ...]

    @property
    def samples(self) -> int:
        """Its length."""
        return sum(span.end - span.start for span in self.spans)

    @property
    def seconds(self) -> float:
        """Its length in seconds of speech."""
        return self.samples / SAMPLE_RATE_HZ

    def place(self, start_s: float, end_s: float) -> tuple[float, float]:
        """Return where a word of this chunk's audio lies in the recording; all in s.

        Both ends are placed in the stretch that the word's middle lies in: the silence between two stretches, which
        the chunk does not have, must not become part of a word.
        """
        middle, passed = (start_s + end_s) / 2 * SAMPLE_RATE_HZ, 0
        for span in self.spans:
            if middle < passed + span.end - span.start or span is self.spans[-1]:
                break
            passed += span.end - span.start
        shift = span.start - passed
        first, last = (min(max(round(at * SAMPLE_RATE_HZ) + shift, span.start), span.end) for at in (start_s, end_s))
        return first / SAMPLE_RATE_HZ, last / SAMPLE_RATE_HZ

    def audio(self, recording: NDArray[np.int16]) -> NDArray[np.float32]:
        """Return its audio, shape (samples,), -1 to 1, 16 kHz: the only part of the recording that is read."""
        pieces = [recording[span.start : span.end] for span in self.spans]
        return np.concatenate(pieces).astype(np.float32) / 32768.0


def chunks_of_speech(spans: Iterable[Span]) -> list[Chunk]:
    """Pack speech spans into chunks of up to 30 s, in order."""
    chunks: list[Chunk] = []
    packed: list[Span] = []
    for span in itertools.chain.from_iterable(map(_fitting, spans)):
        if packed and Chunk((*packed, span)).seconds > WINDOW_S:
            chunks.append(Chunk(tuple(packed)))
            packed = []
        packed.append(span)
    return [*chunks, Chunk(tuple(packed))] if packed else chunks


def _fitting(span: Span) -> Iterator[Span]:
    """Yield a span in pieces that fit a window; speech detection gives none that does not."""
    longest = round(WINDOW_S * SAMPLE_RATE_HZ)
    for start in range(span.start, span.end, longest):
        yield Span(start, min(start + longest, span.end))


def chunks_of_everything(recording: NDArray[np.int16]) -> list[Chunk]:
    """Cut a recording whose silence shall be kept into chunks of up to 30 s."""
    edges = [0, *_quiet_cuts(recording), len(recording)]
    return [Chunk((Span(start, end),)) for start, end in itertools.pairwise(edges) if end > start]


def _quiet_cuts(recording: NDArray[np.int16]) -> Iterator[int]:
    """Yield where to cut: the quietest tenth of a second in the last ten before each chunk is full."""
    longest, search, frame = (round(s * SAMPLE_RATE_HZ) for s in (WINDOW_S, _QUIET_SEARCH_S, _QUIET_FRAME_S))
    start = 0
    while len(recording) - start > longest:
        window = recording[start + longest - search : start + longest].astype(np.float32)
        loudness = np.square(window.reshape(-1, frame)).sum(axis=1)
        start += longest - search + int(loudness.argmin()) * frame + frame // 2
        yield start


def total_seconds(chunks: Sequence[Chunk]) -> float:
    """Return the seconds of speech in all chunks."""
    return sum(chunk.seconds for chunk in chunks)
