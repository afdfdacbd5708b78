"""What the model read in one window, and whether to believe it.

The rules for the full window are faster-whisper's own; those for a window that was cut short send what is doubtful
back to a full one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from common.transcript import Word

# As in faster-whisper (and in Whisper before it): worse than this is tried again at the next temperature.
TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_LEAST_LOGPROB = -1.0
_MOST_REPETITIVE = 2.4
_NO_SPEECH = 0.6
# Speech detection leaves up to 0.4 s of silence behind the last word, and the alignment is a few tenths off.
_MOST_UNSAID_S = 1.5
# The slowest speakers say two words a second. Of less speech than that nobody can say how much it should be.
_LEAST_TOKENS_A_S, _ENOUGH_S = 1.0, 5.0
# A wrong language costs the whole recording, the full window only time.
_SURE_LANGUAGE = 0.8


@dataclass(frozen=True, slots=True)
class Reading:
    """What the model read in one window."""

    words: tuple[Word, ...]
    """In order; times in seconds of the window's audio. Joined they are the text."""
    tokens: int
    avg_logprob: float
    no_speech_prob: float
    compression_ratio: float
    """Of the text: above 2.4 it repeats itself."""
    language: str
    language_probability: float
    """1 where it was given."""
    unsaid_s: float = 0.0
    """Seconds of audio after the end of the words."""

    def later(self, seconds: float) -> Reading:
        """Return the same with all times so much later."""
        moved = (
            word.model_copy(update={"start": word.start + seconds, "end": word.end + seconds}) for word in self.words
        )
        return replace(self, words=tuple(moved))

    @property
    def stops_early(self) -> bool:
        """Whether there is speech after the end of the text: the model stops too soon at times, in any window."""
        return bool(self.words) and self.unsaid_s > _MOST_UNSAID_S

    @property
    def text(self) -> str:
        """The text."""
        return "".join(word.word for word in self.words).strip()

    @property
    def silent(self) -> bool:
        """Whether this is what the model makes of a window in which nobody speaks: it is not kept."""
        return self.no_speech_prob > _NO_SPEECH and self.avg_logprob <= _LEAST_LOGPROB

    @property
    def failed(self) -> bool:
        """Whether another temperature may do better."""
        poor = self.avg_logprob < _LEAST_LOGPROB or self.compression_ratio > _MOST_REPETITIVE
        return poor and not (self.no_speech_prob > _NO_SPEECH and self.avg_logprob < _LEAST_LOGPROB)


def doubtful(reading: Reading) -> bool:
    """Return whether what was read in a short window must be read again in a full one.

    Beside what fails anywhere: a language that the model is not sure of. A text that stops early does so in the full
    window too, nearly always; its rest is read by itself.
    """
    return reading.failed or reading.language_probability < _SURE_LANGUAGE


def sparse(reading: Reading, seconds: float) -> bool:
    """Return whether there is far too little text for so much speech: whole sentences were skipped.

    The model does that in any window that has several sentences with pauses between them, and is sure of itself.

    Args:
        reading: of a window of speech, its long silences left out.
        seconds: how long that is.
    """
    said_s = seconds - reading.unsaid_s
    spoken = bool(reading.words) and not reading.silent
    return spoken and said_s > _ENOUGH_S and reading.tokens < _LEAST_TOKENS_A_S * said_s


def joined(parts: Sequence[Reading]) -> Reading:
    """Return what was read of one chunk in one or more windows; without words when nobody spoke in any."""
    spoken = [part for part in parts if not part.silent]
    if not spoken:
        return replace(parts[0], words=())
    tokens = sum(part.tokens for part in spoken)
    return replace(
        spoken[0],
        words=tuple(word for part in spoken for word in part.words),
        tokens=tokens,
        avg_logprob=sum(part.avg_logprob * part.tokens for part in spoken) / max(tokens, 1),
        compression_ratio=max(part.compression_ratio for part in spoken),
    )


def best_of(readings: Sequence[Reading]) -> Reading:
    """Return what to keep when each temperature failed: the likeliest of those that do not repeat themselves."""
    calm = [reading for reading in readings if reading.compression_ratio <= _MOST_REPETITIVE]
    return max(calm or readings, key=lambda reading: reading.avg_logprob)
