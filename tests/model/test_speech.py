"""Where the real speech detector hears somebody, in short and in long recordings."""

from __future__ import annotations

import functools
import itertools
import random

import numpy as np
import pytest
from faster_whisper.audio import decode_audio
from faster_whisper.vad import VadOptions, get_speech_timestamps
from numpy.typing import NDArray

from consumer.speech import SAMPLE_RATE_HZ, Span, find_speech
from tests.recordings import EXAMPLES

# 41 s of sound: a recording of some minutes then has several blocks.
BLOCK = 1280 * 512


@functools.cache
def clips() -> list[NDArray[np.int16]]:
    paths = sorted(EXAMPLES.glob("austen-*"))
    return [(decode_audio(str(path)) * 32768.0).astype(np.int16) for path in paths]


def talk(seconds: float, pauses_s: tuple[float, float]) -> NDArray[np.int16]:
    """Return the example clips in random order with pauses of random length; the same each time."""
    rng, noise = random.Random(5), np.random.default_rng(5)
    parts: list[NDArray[np.int16]] = []
    while sum(map(len, parts)) < seconds * SAMPLE_RATE_HZ:
        pause = round(rng.uniform(*pauses_s) * SAMPLE_RATE_HZ)
        parts += [rng.choice(clips()), noise.normal(0, 20, pause).astype(np.int16)]
    return np.concatenate(parts)


def in_one_pass(samples: NDArray[np.int16]) -> list[Span]:
    options = VadOptions(max_speech_duration_s=30, min_silence_duration_ms=1400)
    found = get_speech_timestamps(samples.astype(np.float32) / 32768.0, options)
    return [Span(span["start"], span["end"]) for span in found]


def heard(spans: list[Span], length: int) -> NDArray[np.bool_]:
    mask = np.zeros(length, dtype=np.bool_)
    for span in spans:
        mask[span.start : span.end] = True
    return mask


def test_a_short_recording_gives_what_faster_whisper_gives() -> None:
    """Transcripts equal those of plain faster-whisper only if the same stretches are transcribed."""
    for samples in (*clips(), talk(60, (0.1, 5))):
        assert find_speech(samples) == in_one_pass(samples) != []


@pytest.mark.parametrize("pauses_s", [(0.1, 0.6), (0.2, 4), (2.5, 6)], ids=["continuous", "mixed", "pauses"])
def test_a_long_recording_gives_nearly_what_one_pass_gives(pauses_s: tuple[float, float]) -> None:
    """Searching in blocks, which bounds memory, must not lose or invent speech at their borders.

    Tolerance: 0.5 % of the time (an edge moves by up to 0.25 s after a border, within its 0.4 s of padding). Real
    blocks are 15 times as long, with a fifteenth of the borders.
    """
    samples = talk(300, pauses_s)
    spans = find_speech(samples, block=BLOCK)
    differing = heard(spans, len(samples)) ^ heard(in_one_pass(samples), len(samples))
    assert differing.mean() < 0.005
    assert abs(len(spans) - len(in_one_pass(samples))) <= 1


def test_spans_are_in_order_and_fit_the_window() -> None:
    """The engine cuts chunks at the spans: none may overlap, be empty or exceed Whisper's 30 s."""
    samples = talk(200, (0.1, 1))
    spans = find_speech(samples, block=BLOCK)
    assert all(0 < span.end - span.start <= 30 * SAMPLE_RATE_HZ for span in spans)
    assert all(before.end <= after.start for before, after in itertools.pairwise(spans))
    assert spans[-1].end <= len(samples)


@pytest.mark.parametrize(
    "samples",
    [
        np.zeros(0, np.int16),
        np.zeros(1, np.int16),
        np.zeros(90 * SAMPLE_RATE_HZ, np.int16),
        np.random.default_rng(2).normal(0, 1000, 90 * SAMPLE_RATE_HZ).astype(np.int16),
        (8000 * np.sin(2 * np.pi * 440 / SAMPLE_RATE_HZ * np.arange(90 * SAMPLE_RATE_HZ))).astype(np.int16),
    ],
    ids=["nothing", "one sample", "silence", "noise", "tone"],
)
def test_what_is_no_speech_gives_no_spans(samples: NDArray[np.int16]) -> None:
    """Whisper invents text on silence and tones: they must not reach it."""
    assert find_speech(samples, block=BLOCK) == []


def test_speech_right_after_a_border_keeps_its_padding() -> None:
    """The first word of a block would lose its onset."""
    clip = clips()[1]
    silence = np.zeros(2 * BLOCK, dtype=np.int16)
    [alone] = find_speech(np.concatenate([silence, clip]))
    for shift in (0, 512, 4000, -512):
        border = np.concatenate([silence[: BLOCK + shift], clip, silence[:BLOCK]])
        [span] = find_speech(border, block=BLOCK)
        assert abs((span.start - BLOCK - shift) - (alone.start - 2 * BLOCK)) <= 0.1 * SAMPLE_RATE_HZ
