"""Make recordings for tests: real files in real formats, written with PyAV."""

from __future__ import annotations

import wave
from collections.abc import Mapping
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

EXAMPLES = Path(__file__).resolve().parent.parent / "examples" / "audio"


def sound(seconds: float, rate: int = 16_000) -> NDArray[np.int16]:
    """Return a wavering tone with noise; the same each time."""
    times = np.arange(round(seconds * rate)) / rate
    tone = 8000 * np.sin(2 * np.pi * 220 * times) * (0.5 + 0.5 * np.sin(2 * np.pi * 3 * times))
    return (tone + np.random.default_rng(1).normal(0, 1500, times.size)).astype(np.int16)


def write_recording(
    path: Path,
    seconds: float = 10.0,
    *,
    container: str = "wav",
    codec: str = "pcm_s16le",
    rate: int = 16_000,
    channels: int = 1,
    options: Mapping[str, str] | None = None,
    codec_options: Mapping[str, str] | None = None,
) -> Path:
    """Encode `sound` and return the path."""
    with av.open(str(path), "w", format=container, options=dict(options or {})) as output:
        layout = {1: "mono", 2: "stereo"}[channels]
        stream = output.add_stream(codec, rate=rate, layout=layout, options=dict(codec_options or {}))
        samples = np.repeat(sound(seconds, rate), channels)
        for start in range(0, len(samples), 8192 * channels):
            block = samples[start : start + 8192 * channels].reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), format="s16", layout=layout)
            frame.sample_rate, frame.pts = rate, start // channels
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def cut(path: Path, share: float) -> Path:
    """Keep only the first part of a file."""
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    return path


def write_speech(path: Path, rounds: int) -> Path:
    """Write all example clips one after another, with pauses, some times over; 27 s a round, 16 kHz mono wav."""
    from faster_whisper import decode_audio

    clips = [decode_audio(str(clip)) for clip in sorted(EXAMPLES.glob("austen-*"))]
    pause = np.zeros(8_000, dtype=np.float32)
    pieces = [piece for clip in clips * rounds for piece in (clip, pause)]
    with wave.open(str(path), "wb") as output:
        output.setnchannels(1)
        output.setsampwidth(2)
        output.setframerate(16_000)
        output.writeframes((np.concatenate(pieces) * 32767).astype("<i2").tobytes())
    return path
