"""A transcript: the record that the consumer makes, the writer stores and the producer hands out."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Word(BaseModel):
    """One word; times in seconds of the recording."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    start: float
    end: float
    word: str
    probability: float


class Segment(BaseModel):
    """A stretch of speech, mostly a sentence; times in seconds of the recording."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    id: int
    start: float
    end: float
    text: str
    avg_logprob: float
    no_speech_prob: float
    words: tuple[Word, ...] | None = None


class Timings(BaseModel):
    """Where the time went, in seconds; `realtime_factor` is seconds of audio per second of work."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    queued_s: float
    fetch_s: float
    prepare_s: float
    transcribe_s: float
    realtime_factor: float


class Transcript(BaseModel):
    """What was said in one recording."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    job_id: str
    source: str
    language: str | None
    """ISO 639 code; None when no speech was found and no language was asked for."""
    language_probability: float | None
    duration_s: float
    text: str
    segments: tuple[Segment, ...]
    model: str
    timings: Timings

    def to_json(self) -> bytes:
        """Return compact JSON; `words` is null where none were asked for."""
        return self.model_dump_json().encode()
