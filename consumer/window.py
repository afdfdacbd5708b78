"""What the model is given to read: a chunk's spectrogram, and how much emptiness behind it.

Whisper pads everything to 30 s, and for a short clip most of its work is to look at nothing. A short window leaves that
out: the encoder sees the speech and a second behind it, the decoder ten seconds more (or what is left of the 30), as
states that were made once.
The encoder's work grows faster than what it sees, so that several small windows cost less than a large one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FRAMES_PER_S = 100
# What the encoder makes one state of.
FRAMES_A_STATE = 2
_STATES_PER_S = FRAMES_PER_S // FRAMES_A_STATE
# Emptiness that the encoder sees behind the speech: a word is not cut, and its end is heard.
_MARGIN_S = 1.0
_STEP_FRAMES = 50
# Speech that is packed into one short window, where it pauses: more is slower and no better, less loses its company.
PACKED_S = 10.0
# Emptiness that the decoder sees behind that, at least, as long as all is within 30 s: with less it does not see that
# the speech is over, and says it again. More costs time. Measured, see decision 13.
_EMPTINESS_S = 10.0
# The lengths that the decoder may see. Few, so that chunks find company; and fixed, so that what is read in a chunk
# does not depend on the company that it finds.
_STEP_STATES = 250


@dataclass(frozen=True, slots=True)
class Extent:
    """How much of its 30 s the model is given."""

    frames: int
    """What the encoder sees: the speech, and the emptiness behind it."""
    states: int
    """What the decoder sees: a state for two of those frames, and states of emptiness."""


# What Whisper was trained on, and of which most recordings fill a small part.
FULL = Extent(3000, 1500)


@dataclass(frozen=True, slots=True)
class Window:
    """One chunk, and how it is to be read."""

    features: NDArray[np.float32]
    """The chunk's log-mel spectrogram, shape (mels, frames), 100 frames a second."""
    extent: Extent
    prefix: tuple[int, ...]
    """Tokens of prompt and hotwords that come before the transcript."""
    language: str | None
    """None: detected."""
    task: str
    beam_size: int
    temperature: float

    @property
    def seconds(self) -> float:
        """How long its audio is."""
        return int(self.features.shape[1]) / FRAMES_PER_S


def extent_for(seconds: float) -> Extent:
    """Return how much of the model's window a chunk of this length needs."""
    frames = _rounded_up((seconds + _MARGIN_S) * FRAMES_PER_S, _STEP_FRAMES)
    if frames >= FULL.frames:
        return FULL
    states = _rounded_up(frames / FRAMES_A_STATE + _EMPTINESS_S * _STATES_PER_S, _STEP_STATES)
    return Extent(frames, min(states, FULL.states))


def _rounded_up(amount: float, step: int) -> int:
    return math.ceil(amount / step) * step
