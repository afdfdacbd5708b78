"""The recordings of a run: melodies that the stand-in can read, so that what each one says is known beforehand.

What a recording says is fixed by its notes when it is written, not by the code under test: a transcript is right when
it names the notes.
"""

from __future__ import annotations

import random
import wave
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import av
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

RATE_HZ = 16_000
NOTES_HZ = {"do": 400, "re": 500, "mi": 600, "fa": 700, "sol": 800, "la": 900, "ti": 1000, "do2": 1100}
NOTE_S = 0.4
# Longer than two of the frames that a recording without speech detection is cut in: no note is cut in two.
GAP_S = 0.2
_LOUDNESS = 9000
# One container and codec a name: what people send.
_KINDS = {"wav": ("wav", "pcm_s16le", RATE_HZ), "ogg": ("ogg", "libopus", 48_000), "flac": ("flac", "flac", RATE_HZ)}
_SHORT = 24
# Beyond the five minutes of one chunk twice: jobs with several chunks can be caught between two of them.
_LONG_NOTES = 1_050


@dataclass(frozen=True, slots=True)
class Recording:
    """A file, and what the stand-in must make of it; None for one that no decoder can read."""

    path: Path
    text: str | None


@dataclass(frozen=True, slots=True)
class Recordings:
    """All recordings of a run."""

    short: tuple[Recording, ...]
    long: Recording
    broken: Recording


def make_recordings(folder: Path, rng: random.Random) -> Recordings:
    """Write the recordings of a run."""
    folder.mkdir()
    short = []
    for number in range(_SHORT):
        kind = list(_KINDS)[number % len(_KINDS)]
        short.append(_write_melody(folder / f"melody-{number}.{kind}", _melody(rng, rng.randint(3, 8)), kind))
    long = _write_melody(folder / "long.wav", _melody(rng, _LONG_NOTES), "wav")
    broken = folder / "broken.wav"
    broken.write_bytes(b"RIFF" + rng.randbytes(2000))
    return Recordings(tuple(short), long, Recording(broken, None))


def _melody(rng: random.Random, notes: int) -> list[str]:
    return rng.choices(list(NOTES_HZ), k=notes)


def _write_melody(path: Path, notes: Sequence[str], kind: str) -> Recording:
    container, codec, rate_hz = _KINDS[kind]
    samples = np.concatenate([_sound(note, rate_hz) for note in notes])
    if kind == "wav":
        _write_wav(path, samples)
    else:
        _encode(path, samples, container, codec, rate_hz)
    return Recording(path, " ".join(notes))


def _sound(note: str, rate_hz: int) -> NDArray[np.int16]:
    times = np.arange(round(NOTE_S * rate_hz)) / rate_hz
    tone = _LOUDNESS * np.sin(2 * np.pi * NOTES_HZ[note] * times)
    return np.concatenate([tone, np.zeros(round(GAP_S * rate_hz))]).astype(np.int16)


def _write_wav(path: Path, samples: NDArray[np.int16]) -> None:
    with wave.open(str(path), "wb") as output:
        output.setnchannels(1)
        output.setsampwidth(2)
        output.setframerate(RATE_HZ)
        output.writeframes(samples.astype("<i2").tobytes())


def _encode(path: Path, samples: NDArray[np.int16], container: str, codec: str, rate_hz: int) -> None:
    with av.open(str(path), "w", format=container) as output:
        stream = cast("av.AudioStream", output.add_stream(codec, rate=rate_hz, layout="mono"))
        for start in range(0, len(samples), 8192):
            block = np.ascontiguousarray(samples[start : start + 8192].reshape(1, -1))
            frame = av.AudioFrame.from_ndarray(block, format="s16", layout="mono")
            frame.sample_rate, frame.pts = rate_hz, start
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
