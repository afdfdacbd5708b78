"""Where somebody speaks: the voice activity detection that faster-whisper brings with it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from faster_whisper.vad import VadOptions, get_speech_timestamps
from numpy.typing import NDArray

SAMPLE_RATE_HZ = 16_000

# The detector's frame. Blocks start on multiples of it, so that every block sees the frames that one pass would see.
_FRAME = 512
# Ten minutes: the detector holds several float32 copies of what it is given, about 0.2 GB for a block.
_BLOCK = 18_750 * _FRAME
# The detector pads speech by 0.4 s on both sides. It ends it after 1.4 s without, where the library waits for 2 s: what
# is to be read is cut at pauses only, and is shorter with more of them (decision 14).
_PAD_S = 0.4
_SILENCE_S = 1.4


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of speech, in samples at 16 kHz; `end` is the first sample after it."""

    start: int
    end: int


def find_speech(samples: NDArray[np.int16], max_speech_s: float = 30.0, *, block: int = _BLOCK) -> list[Span]:
    """Find where somebody speaks.

    A recording of up to one block gives exactly what faster-whisper's `vad_filter=True` gives with this
    `max_speech_duration_s` and a `min_silence_duration_ms` of 1400. A longer one is searched block by block, so that
    memory does not grow with length. A block ends where its last span starts, and the next block begins there: only
    the detector's memory of the sound before is lost. Measured on three times 40 minutes of speech, with the library's
    2 s of silence: after a border one to three edges move, by up to 0.26 s and so within their padding, or two
    neighbouring spans are joined; under 0.1 % of the time differs.

    Args:
        samples: 16 kHz mono; may be a memory map.
        max_speech_s: longer speech is split, at a pause where there is one.
        block: samples searched at a time, a multiple of 512 and at least twice max_speech_s.

    Returns:
        Spans in order, not overlapping; empty when nobody speaks.
    """
    spans: list[Span] = []
    start = earliest = 0
    while start < len(samples):
        end = min(start + block, len(samples))
        found = _search(samples[start:end], max_speech_s, start, earliest)
        start, earliest = end, end
        if end < len(samples):
            found, earliest = _settled(found, end)
            start = earliest - earliest % _FRAME
        spans += found
    return spans


def _settled(found: list[Span], end: int) -> tuple[list[Span], int]:
    """Return the spans that more sound cannot change, and from which sample to search on."""
    lead = int(_PAD_S * SAMPLE_RATE_HZ)
    if found and found[-1].end > end - lead - int(_SILENCE_S * SAMPLE_RATE_HZ):
        return found[:-1], found[-1].start
    # Silence at the end: speech that starts with the next block is padded into this one.
    return found, end - lead


def _search(samples: NDArray[np.int16], max_speech_s: float, offset: int, earliest: int) -> list[Span]:
    """Return the spans of one block that starts at `offset`, without what lies before `earliest`."""
    options = VadOptions(max_speech_duration_s=max_speech_s, min_silence_duration_ms=round(1000 * _SILENCE_S))
    # As decode_audio scales: the detector must see the same numbers as in faster-whisper.
    found = get_speech_timestamps(samples.astype(np.float32) / 32768.0, options)
    spans = [Span(max(earliest, offset + span["start"]), offset + span["end"]) for span in found]
    return [span for span in spans if span.start < span.end]
