"""The only stand-in of a run: it takes the place of the model library inside the real engine, and reads melodies.

What a job wants of it comes in `hotwords`, an option that a real model gets as well: no code on the way knows of it.
"""

from __future__ import annotations

import os
import random
import time
import zlib
from enum import StrEnum
from itertools import groupby
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from faster_whisper.transcribe import Segment

from bench.breaker.recordings import NOTES_HZ, RATE_HZ

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

# The exit code of a process that a poison job has killed.
POISONED = 86
# Longer than the time limit of the jobs that hang, short enough for their threads to come back.
HANG_S = 8.0
# Shares of all chunks: slow ones are what a killed consumer has in hand.
_SLOW, _SOMETIMES, _OFTEN = 0.08, 0.02, 0.4
_FRAME = 800  # 50 ms
_LEAST_FRAMES = 4
_LOUD = 0.05


class Orders(StrEnum):
    """What a job may want of the stand-in."""

    NONE = ""
    DIE = "die"
    """End the process on the spot, as a library that crashes does."""
    HANG = "hang"
    """Work far beyond the job's time limit, and answer nobody meanwhile."""
    STUMBLE = "stumble"
    """Fail often, with an error that another attempt may not meet."""


class MelodyReader:
    """Stands for `WhisperModel`: names the notes it hears; now and then it is slow, or fails."""

    def __init__(self, seed: str) -> None:
        self.model = SimpleNamespace(is_multilingual=True)
        self._rng = random.Random(seed)

    def transcribe(self, audio: NDArray[np.float32], **arguments: Any) -> tuple[Iterator[Segment], SimpleNamespace]:
        """Return the notes as one segment; as in the library, the work is done while it is iterated."""
        orders = Orders(arguments.get("hotwords") or "")
        return self._segments(audio, orders), SimpleNamespace(language="en", language_probability=1.0)

    def _segments(self, audio: NDArray[np.float32], orders: Orders) -> Iterator[Segment]:
        if np.abs(audio).max(initial=0) > _LOUD:  # on silence a model that is well never fails
            self._follow(orders)
        yield Segment(
            id=0,
            seek=0,
            start=0.0,
            end=len(audio) / RATE_HZ,
            text=read_melody(audio),
            tokens=[],
            avg_logprob=-0.1,
            compression_ratio=1.0,
            no_speech_prob=0.0,
            words=None,
            temperature=0.0,
        )

    def _follow(self, orders: Orders) -> None:
        """Do what was ordered, and now and then what nobody ordered."""
        if orders is Orders.DIE:
            os._exit(POISONED)
        if orders is Orders.HANG:
            time.sleep(HANG_S)
        if self._rng.random() < _SLOW:
            time.sleep(1 + 2 * self._rng.random())
        if self._rng.random() < (_OFTEN if orders is Orders.STUMBLE else _SOMETIMES):
            raise RuntimeError("the stand-in stumbles")


def read_melody(audio: NDArray[np.float32]) -> str:
    """Return the names of the notes in 16 kHz audio, or a name for sound that has none."""
    frames = audio[: len(audio) // _FRAME * _FRAME].reshape(-1, _FRAME)
    loud = np.sqrt(np.square(frames).mean(axis=1)) > _LOUD
    pitches = np.abs(np.fft.rfft(frames, axis=1)).argmax(axis=1) * RATE_HZ // _FRAME
    words = []
    for is_note, run in groupby(zip(loud, pitches, strict=True), key=lambda frame: bool(frame[0])):
        heard = [int(pitch) for _, pitch in run]
        if is_note and len(heard) >= _LEAST_FRAMES:
            words.append(_nearest(max(set(heard), key=heard.count)))
    return " ".join(words) or f"sound-{zlib.crc32(audio.tobytes()):08x}"


def _nearest(pitch_hz: int) -> str:
    return min(NOTES_HZ, key=lambda note: abs(NOTES_HZ[note] - pitch_hz))
