"""Chunks: the pieces, up to 30 s of speech, in which a recording goes to the engine.

Speech spans that follow each other are packed into one chunk, the silence between them left out. How full a chunk is
to be is the engine's affair: where the model looks at 30 s whatever is in them, full chunks make it fast; where it
looks at the speech alone, small ones do, and sentences that belong to different people stay apart. Chunks bound memory
too: the library's own loop over a whole recording computes the features of all of it first, 3 GB for an hour.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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


def chunks_of_speech(
    spans: Iterable[Span], packed_s: float = WINDOW_S, *, first_packed_s: float | None = None
) -> list[Chunk]:
    """Pack speech spans into chunks, in order.

    Args:
        spans: in order; one that is longer than 30 s is cut.
        packed_s: spans share a chunk while it is not longer than that; one alone may be.
        first_packed_s: the same for the first chunk, if that is another.
    """
    chunks: list[Chunk] = []
    packed: list[Span] = []
    for span in itertools.chain.from_iterable(map(_fitting, spans)):
        if packed and Chunk((*packed, span)).seconds > (packed_s if chunks else first_packed_s or packed_s):
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
    longest, search = (round(s * SAMPLE_RATE_HZ) for s in (WINDOW_S, _QUIET_SEARCH_S))
    start = 0
    while len(recording) - start > longest:
        start += longest - search
        start += quietest(recording[start : start + search])
        yield start


def quietest(samples: NDArray[Any]) -> int:
    """Return where to cut: the middle of the quietest tenth of a second.

    Args:
        samples: shape (samples,), 16 kHz mono, a tenth of a second or more.
    """
    frame = round(_QUIET_FRAME_S * SAMPLE_RATE_HZ)
    frames = samples[: len(samples) // frame * frame].astype(np.float32).reshape(-1, frame)
    return int(np.square(frames).sum(axis=1).argmin()) * frame + frame // 2


def total_seconds(chunks: Sequence[Chunk]) -> float:
    """Return the seconds of speech in all chunks."""
    return sum(chunk.seconds for chunk in chunks)
