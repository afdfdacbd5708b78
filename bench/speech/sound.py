"""Sound by numpy alone: what is no speech, and what a telephone, a room or a hurry does to speech.

Samples are float32, 16 kHz mono, -1 to 1.
"""

from __future__ import annotations

import wave
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

RATE_HZ = 16_000

Sound = NDArray[np.float32]

# Of `with_tempo`: stretches of 30 ms, moved by up to 8 ms to where they fit what is there already.
_GRAIN = 480
_SEARCH = 128
_CHORDS_HZ = ((220.0, 277.2, 329.6), (174.6, 220.0, 261.6), (196.0, 246.9, 293.7), (164.8, 207.7, 246.9))
_BEAT_S = 0.5


def read_wav(path: Path) -> Sound:
    """Read a wav of 16-bit samples, its first channel, at any rate."""
    with wave.open(str(path), "rb") as file:
        channels, rate_hz = file.getnchannels(), file.getframerate()
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")[::channels]
    return resampled(samples.astype(np.float32) / 32768.0, rate_hz / RATE_HZ)


def as_int16(sound: Sound) -> NDArray[np.int16]:
    """Return the samples as files and the engine have them."""
    return cast("NDArray[np.int16]", np.clip(sound * 32767.0, -32768, 32767).astype(np.int16))


def write_wav(path: Path, sound: Sound) -> None:
    """Write a 16 kHz mono wav."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE_HZ, 0, "NONE", ""))
        file.writeframes(as_int16(sound).astype("<i2").tobytes())


def resampled(sound: Sound, speed: float) -> Sound:
    """Play it faster by this factor, which raises the pitch too; below 1 slower."""
    if speed == 1.0 or not len(sound):
        return sound
    length = max(1, round(len(sound) / speed))
    # Silence around it: the transform takes the end and the start for neighbours.
    pad = 1024
    padded = np.pad(sound, (pad, pad + (-(len(sound) + 2 * pad)) % 4096))
    spectrum = np.fft.rfft(padded)
    wanted = round(len(padded) / speed)
    kept = np.zeros(wanted // 2 + 1, complex)
    shared = min(len(kept), len(spectrum))
    kept[:shared] = spectrum[:shared]
    out = np.fft.irfft(kept, wanted) * (wanted / len(padded))
    start = round(pad / speed)
    return _sound(out[start : start + length])


def with_tempo(sound: Sound, tempo: float) -> Sound:
    """Speak faster by this factor at the same pitch (WSOLA: overlapped grains, each where it fits best)."""
    if tempo == 1.0 or len(sound) < 4 * _GRAIN:
        return sound
    hop = _GRAIN // 2
    window = np.hanning(_GRAIN + 1)[:-1]
    source = np.pad(sound, (_SEARCH, _GRAIN * 2 + _SEARCH)).astype(np.float64)
    count = int(len(sound) / tempo) // hop
    out = np.zeros((count + 2) * hop)
    at = 0
    for number in range(count):
        if number:
            at = _best_fit(source, expected=at + hop, around=round(number * hop * tempo))
        out[number * hop : number * hop + _GRAIN] += window * source[at + _SEARCH : at + _SEARCH + _GRAIN]
    return _sound(out[: round(len(sound) / tempo)])


def _best_fit(source: NDArray[np.float64], *, expected: int, around: int) -> int:
    """Return the place near `around` that is most like what would have followed."""
    model = source[expected + _SEARCH : expected + _SEARCH + _GRAIN // 2]
    area = source[around : around + 2 * _SEARCH + _GRAIN // 2]
    if len(model) < _GRAIN // 2 or len(area) < 2 * _SEARCH + _GRAIN // 2:
        return around
    return around - _SEARCH + int(np.correlate(area, model, "valid").argmax())


def with_pitch(sound: Sound, semitones: float) -> Sound:
    """Move the pitch, and with it the size of the speaker's throat, at the same tempo."""
    factor = 2.0 ** (semitones / 12)
    return with_tempo(resampled(sound, factor), 1 / factor) if semitones else sound


def trimmed(sound: Sound, keep_s: float = 0.05) -> Sound:
    """Cut the silence at both ends, but for a little."""
    loud = np.flatnonzero(np.abs(sound) > 0.02 * np.abs(sound).max(initial=1e-6))
    if not loud.size:
        return sound
    keep = round(keep_s * RATE_HZ)
    return sound[max(0, loud[0] - keep) : loud[-1] + keep]


def at_level(sound: Sound, level_db: float) -> Sound:
    """Scale so that what is not silence has this power, in decibels below full scale."""
    power = speech_power(sound)
    return _sound(np.clip(sound * np.sqrt(10 ** (level_db / 10) / power), -1, 1)) if power > 0 else sound


def speech_power(sound: Sound) -> float:
    """Return the mean power of its louder parts, so that pauses do not count."""
    frames = np.square(sound[: len(sound) // 400 * 400].reshape(-1, 400)).mean(axis=1) if len(sound) >= 400 else None
    if frames is None:
        return float(np.square(sound).mean()) if len(sound) else 0.0
    return float(frames[frames >= 0.05 * frames.max()].mean())


def joined(pieces: Sequence[Sound]) -> Sound:
    """Return the pieces one after another."""
    return _sound(np.concatenate([silence(0), *pieces]))


def silence(seconds: float) -> Sound:
    """Return digital silence."""
    return np.zeros(round(seconds * RATE_HZ), np.float32)


def white_noise(seconds: float, rng: np.random.Generator) -> Sound:
    """Return noise with as much power at every frequency."""
    return _sound(0.1 * rng.standard_normal(round(seconds * RATE_HZ)))


def pink_noise(seconds: float, rng: np.random.Generator) -> Sound:
    """Return noise whose power falls by 3 dB an octave, as that of rooms and machines."""
    length = round(seconds * RATE_HZ)
    spectrum = np.fft.rfft(rng.standard_normal(max(length, 2)))
    frequencies = np.fft.rfftfreq(max(length, 2), 1 / RATE_HZ)
    noise = np.fft.irfft(spectrum / np.sqrt(np.maximum(frequencies, 20.0)), max(length, 2))
    return _sound(0.1 * noise / noise.std())[:length]


def babble(seconds: float, voices: Sequence[Sound], rng: np.random.Generator) -> Sound:
    """Return a room full of people: speech backwards, so that there are no words to be found in it.

    Args:
        seconds: how long.
        voices: speech, each piece from another voice if possible.
        rng: chooses where each begins.
    """
    length = round(seconds * RATE_HZ)
    sum_ = np.zeros(length, np.float64)
    for voice in voices:
        backwards = np.roll(voice[::-1], int(rng.integers(max(1, len(voice)))))
        sum_ += np.resize(at_level(backwards, -26), length)
    return _sound(0.1 * sum_ / max(sum_.std(), 1e-9))


def tone(seconds: float, hertz: float = 440.0) -> Sound:
    """Return one steady tone."""
    return _sound(0.25 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE_HZ)) / RATE_HZ))


def music(seconds: float, rng: np.random.Generator) -> Sound:
    """Return chords with overtones, a bass and drums, as a radio's or a hotline's."""
    length = round(seconds * RATE_HZ)
    out = np.zeros(length, np.float64)
    beat = round(_BEAT_S * RATE_HZ)
    for number, start in enumerate(range(0, length, beat)):
        chord = _CHORDS_HZ[number // 4 % len(_CHORDS_HZ)]
        part = _beat_of(chord, beat, drum=number % 2 == 0, rng=rng)
        out[start : start + beat] += part[: length - start]
    return _sound(0.5 * out / np.abs(out).max(initial=1e-6))


def _beat_of(chord: Sequence[float], beat: int, *, drum: bool, rng: np.random.Generator) -> NDArray[np.float64]:
    times = np.arange(beat) / RATE_HZ
    fading = np.exp(-2.5 * times)
    notes = sum(np.sin(2 * np.pi * hz * k * times) / k**1.5 for hz in chord for k in (1, 2, 3, 4)) * fading
    bass = 1.5 * np.sin(np.pi * chord[0] * times) * fading
    melody = np.sin(2 * np.pi * 2 * float(rng.choice(np.asarray(chord))) * times) * fading
    hit = 3.0 * np.sin(2 * np.pi * 60 * times) if drum else rng.standard_normal(beat)
    return np.asarray(notes + bass + melody + hit * np.exp(-25 * times), np.float64)


def telephone(sound: Sound) -> Sound:
    """Keep what an 8 kHz telephone line lets through, 300 to 3400 Hz, in its 8 bits (mu-law)."""
    spectrum = np.fft.rfft(sound)
    hertz = np.fft.rfftfreq(max(len(sound), 1), 1 / RATE_HZ)
    edges = np.clip((hertz - 200) / 100, 0, 1) * np.clip((3700 - hertz) / 300, 0, 1)
    narrow = np.clip(np.fft.irfft(spectrum * edges, len(sound)), -1, 1)
    bits = np.round(np.sign(narrow) * np.log1p(255 * np.abs(narrow)) / np.log(256) * 127) / 127
    return _sound(np.sign(bits) * (256 ** np.abs(bits) - 1) / 255)


def reverberant(sound: Sound, decay_s: float, rng: np.random.Generator) -> Sound:
    """Put it into a small room: a third of the level comes back from the walls.

    Args:
        sound: what is said there.
        decay_s: seconds until the echo is 60 dB down.
        rng: makes the room.
    """
    times = np.arange(round(decay_s * RATE_HZ)) / RATE_HZ
    room = rng.standard_normal(len(times)) * np.exp(-6.9 * times / decay_s)
    room *= 0.35 / np.sqrt(np.square(room).sum())
    size = 1 << (len(sound) + len(room)).bit_length()
    echo = np.fft.irfft(np.fft.rfft(sound, size) * np.fft.rfft(room, size), size)[: len(sound)]
    return _sound(sound + echo)


def with_noise(sound: Sound, noise: Sound, snr_db: float) -> Sound:
    """Add noise, this many decibels below the speech."""
    level = np.sqrt(speech_power(sound) / max(float(np.square(noise).mean()), 1e-12) / 10 ** (snr_db / 10))
    return _sound(np.clip(sound + level * noise[: len(sound)], -1, 1))


def _sound(samples: NDArray[np.float64] | NDArray[np.float32]) -> Sound:
    return cast("Sound", np.ascontiguousarray(samples, np.float32))
