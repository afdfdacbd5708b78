"""The only stand-in of a run: it takes the place of the model inside the real engine, and reads melodies.

What a job wants of it comes in `hotwords`, an option that a real model gets as well: no code on the way knows of it.
"""

from __future__ import annotations

import math
import os
import random
import time
import zlib
from enum import StrEnum
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from bench.breaker.recordings import NOTES_HZ, RATE_HZ
from common.transcript import Word
from consumer.reading import Reading

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from common.options import Options
    from consumer.window import Window

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
    """Stands for `consumer.whisper`: names the notes it hears; now and then it is slow, or fails."""

    name = identity = "melody-reader"
    workers = 4
    device = "cpu"
    multilingual = short_windows = True

    def __init__(self, seed: str) -> None:
        self._rng = random.Random(seed)

    def features(self, audio: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the sound itself: a melody needs no spectrogram."""
        return audio[np.newaxis]

    def prefix(self, options: Options) -> tuple[int, ...]:
        """Return the orders, a number a letter."""
        return tuple(map(ord, options.hotwords or ""))

    def try_batch(self, size: int) -> None:
        """Do nothing: the size is set."""

    def read(self, windows: Sequence[Window]) -> list[Reading]:
        """Return the notes of each window, in one word."""
        return [self._read(window.features[0], Orders("".join(map(chr, window.prefix)))) for window in windows]

    def _read(self, sound: NDArray[np.float32], orders: Orders) -> Reading:
        if np.abs(sound).max(initial=0) > _LOUD:  # on silence a model that is well never fails
            self._follow(orders)
        heard = Word(start=0.0, end=len(sound) / RATE_HZ, word=read_melody(sound), probability=1.0)
        tokens = 4 * math.ceil(heard.end)  # as many as in speech: a text that is too short is read again
        return Reading((heard,), tokens, -0.1, 0.0, 1.0, "en", 1.0)

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
