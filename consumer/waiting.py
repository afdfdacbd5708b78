"""A chunk on its way through the engine: what is read of it next, and when it is done."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from consumer.chunks import quietest
from consumer.reading import TEMPERATURES, Reading, best_of, doubtful, joined, sparse
from consumer.speech import SAMPLE_RATE_HZ
from consumer.window import FULL, Extent, Window, extent_for

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from common.options import Options

# Why a chunk is read once more; `common.metrics` counts them.
ReadAgain = Literal["short_window", "temperature", "rest", "sparse"]

# Sound that is no speech may be read word by word, each time with a rest, or be cut again and again: that must end.
_LEAST_STEP_S, _MOST_PARTS = 0.5, 8


def _running() -> Future[Reading]:
    """Return a future that nobody can cancel: the engine alone says what becomes of a chunk."""
    future: Future[Reading] = Future()
    future.set_running_or_notify_cancel()
    return future


@dataclass(eq=False, slots=True)
class Waiting:
    """One chunk. It is read in a short window, a full one, at the next temperature, and then its rest likewise.

    What is read next lies between `read_s` and the next border, the part. It is all of the chunk until the model has
    stopped early or has skipped most of it.
    """

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
    _borders_s: list[float] = field(init=False)
    """Where parts end, the next one last; none when all is read."""
    _language_probability: float = 0.0
    """As it was when the language was found; later parts are told. 0 before that."""
    _believed: list[Reading] = field(default_factory=list)
    """Of what has been read."""
    _poor: list[Reading] = field(default_factory=list)
    """What was read of the part in full, and at lower temperatures, and nobody would believe."""
    _full: bool = False
    """Whether the part gets the full window."""
    _features: NDArray[np.float32] | None = None
    """Of the part."""

    def __post_init__(self) -> None:
        self.language = self.options.language
        self._borders_s = [self.seconds]

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
            self._features = features_of(self._part())
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
        best = best_of([*self._poor, reading]) if reading.failed else reading
        self._hear(best)
        if self.options.vad and self._may_go_on and sparse(best, self._part_s):
            self._borders_s.append(self.read_s + _quiet_middle_s(self._part()))
            self._begin_part()
            return "sparse"
        return self._believe(best)

    def _believe(self, reading: Reading) -> Literal["rest"] | None:
        """Take a reading for true; what it leaves unread is read by itself."""
        border_s = self._borders_s[-1]
        unread_s = reading.unsaid_s if reading.stops_early and self._may_go_on else 0.0
        self._believed.append(reading.later(self.read_s))
        self.read_s = min(max(border_s - unread_s, self.read_s + _LEAST_STEP_S), border_s)
        if self.read_s == border_s:
            self._borders_s.pop()
        if not self._borders_s:
            self.done.set_result(replace(joined(self._believed), language_probability=self._language_probability))
            return None
        self._begin_part()
        return "rest"

    def _hear(self, reading: Reading) -> None:
        """Take the language from the first reading that counts: of a part it is less sure."""
        if not self._language_probability:
            self.language, self._language_probability = reading.language, reading.language_probability

    def _begin_part(self) -> None:
        """Read the next part now; nothing is known of it."""
        self._features, self._poor, self._full = None, [], False

    def _part(self) -> NDArray[np.float32]:
        first, last = (round(at * SAMPLE_RATE_HZ) for at in (self.read_s, self._borders_s[-1]))
        return self.audio()[first:last]

    @property
    def _part_s(self) -> float:
        return self._borders_s[-1] - self.read_s

    @property
    def _may_go_on(self) -> bool:
        """Whether one part more is allowed."""
        return len(self._believed) + len(self._borders_s) < _MOST_PARTS

    @property
    def _extent(self) -> Extent:
        return extent_for(self._part_s) if self.short_windows and not self._full else FULL

    @property
    def _temperatures(self) -> tuple[float, ...]:
        """That of the next try, and those after it."""
        fixed = self.options.temperature
        return TEMPERATURES[len(self._poor) :] if fixed is None else (fixed,)


def _quiet_middle_s(audio: NDArray[np.float32]) -> float:
    """Return where to cut a part in two: where it is quietest in its middle third."""
    third = len(audio) // 3
    return (third + quietest(audio[third : 2 * third])) / SAMPLE_RATE_HZ
