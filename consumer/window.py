"""What the model is given to read: a chunk's spectrogram, and how much emptiness behind it.

Whisper pads everything to 30 s, and for a short clip most of its work is to look at nothing. A short window leaves that
out: the encoder sees the speech and a second behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FRAMES_PER_S = 100
# What Whisper was trained on: 30 s, of which most recordings fill a part.
FULL_FRAMES = 3000


@dataclass(frozen=True, slots=True)
class Window:
    """One chunk, and how it is to be read."""

    features: NDArray[np.float32]
    """The chunk's log-mel spectrogram, shape (mels, frames), 100 frames a second."""
    frames: int
    """What the encoder sees, features and emptiness; 3000 is the full window."""
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


# The lengths of window that there are, in frames. Few, so that chunks find company; and fixed, so that what is read in
# a chunk does not depend on the company that it finds.
_LENGTHS = (400, 600, 800, 1000, 1250, 1500, 2000, 2500, FULL_FRAMES)
# Emptiness that the encoder sees behind the speech: a word is not cut, and its end is heard.
_MARGIN_FRAMES = 100


def frames_for(seconds: float) -> int:
    """Return the length of the window, in frames, in which a chunk is read first."""
    wanted = seconds * FRAMES_PER_S + _MARGIN_FRAMES
    return next((length for length in _LENGTHS if length >= wanted), FULL_FRAMES)
