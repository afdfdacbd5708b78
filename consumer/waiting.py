"""A chunk on its way through the engine: what is read of it next, and when it is done."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from consumer.reading import TEMPERATURES, Reading, best_of, doubtful, joined
from consumer.speech import SAMPLE_RATE_HZ
from consumer.window import FULL, Extent, Window, extent_for

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from common.options import Options

# Why a chunk is read once more; `common.metrics` counts them.
ReadAgain = Literal["short_window", "temperature", "rest"]

# Sound that is no speech may be read word by word, each time with a rest: that must come to an end.
_LEAST_STEP_S, _MOST_PARTS = 0.5, 8


def _running() -> Future[Reading]:
    """Return a future that nobody can cancel: the engine alone says what becomes of a chunk."""
    future: Future[Reading] = Future()
    future.set_running_or_notify_cancel()
    return future


@dataclass(eq=False, slots=True)
class Waiting:
    """One chunk. It is read in a short window, a full one, at the next temperature, and then its rest likewise."""

    job: Hashable
    audio: Callable[[], NDArray[np.float32]]
    """Returns shape (samples,), -1 to 1, 16 kHz."""
    seconds: float
    options: Options
    prefix: tuple[int, ...]
    short_windows: bool
    over: Callable[[], bool]
    """Whether nobody wants it any more."""
    done: Future[Reading] = field(default_factory=_running)
    language: str | None = None
    """None until it is known."""
    read_s: float = 0.0
    """How far it has been read."""
    _believed: list[Reading] = field(default_factory=list)
    """Up to there."""
    _poor: list[Reading] = field(default_factory=list)
    """What was read of the rest in full, and at lower temperatures, and nobody would believe."""
    _full: bool = False
    """Whether the rest gets the full window."""
    _features: NDArray[np.float32] | None = None
    """Of the rest."""

    def __post_init__(self) -> None:
        self.language = self.options.language

    @property
    def kind(self) -> Hashable:
        """What must be equal for chunks to be read in one call."""
        return self._extent.states, len(self.prefix), self.options.beam_size, self._temperatures[0]

    def window(self, features_of: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Window:
        """Return what the model is to read next.

        Args:
            features_of: makes the spectrogram.
        """
        if self._features is None:
            self._features = features_of(self.audio()[round(self.read_s * SAMPLE_RATE_HZ) :])
        return Window(
            features=self._features,
            extent=self._extent,
            prefix=self.prefix,
            language=self.language,
            task=self.options.task,
            beam_size=self.options.beam_size,
            temperature=self._temperatures[0],
        )

    def judge(self, reading: Reading) -> ReadAgain | None:
        """Take in what was read; return why the chunk must be read once more, or None when it is done."""
        if self._extent != FULL and not self._poor and doubtful(reading):
            self._full = True
            return "short_window"
        if reading.failed and len(self._temperatures) > 1:
            self._poor.append(reading)
            self._full = False  # drawn at random, in full or not
            return "temperature"
        return self._believe(best_of([*self._poor, reading]) if reading.failed else reading)

    def _believe(self, reading: Reading) -> Literal["rest"] | None:
        """Take a reading for true; what it leaves unread is read by itself."""
        self._believed.append(reading.later(self.read_s))
        self.read_s = max(self.seconds - reading.unsaid_s, self.read_s + _LEAST_STEP_S)
        if not reading.stops_early or self.read_s >= self.seconds or len(self._believed) == _MOST_PARTS:
            self.done.set_result(joined(self._believed))
            return None
        self.language = reading.language
        self._features, self._poor, self._full = None, [], False
        return "rest"

    @property
    def _extent(self) -> Extent:
        return extent_for(self.seconds - self.read_s) if self.short_windows and not self._full else FULL

    @property
    def _temperatures(self) -> tuple[float, ...]:
        """That of the next try, and those after it."""
        fixed = self.options.temperature
        return TEMPERATURES[len(self._poor) :] if fixed is None else (fixed,)
