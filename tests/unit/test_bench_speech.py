"""Evaluation recordings: the seed decides everything, and references say what is in the sound."""

from __future__ import annotations

import numpy as np
import pytest

from bench.speech.recordings import make_long, make_set, read_set
from bench.speech.sound import (
    RATE_HZ,
    music,
    pink_noise,
    read_wav,
    resampled,
    speech_power,
    telephone,
    tone,
    white_noise,
    with_noise,
    with_pitch,
    with_tempo,
)
from bench.speech.voices import Voice

TEXTS = tuple(f"{'word ' * number}end." for number in range(30))


def voices():
    """Somebody whose every word is a tone of a third of a second."""
    return [
        Voice(name, TEXTS, lambda text, hertz=hertz: tone(0.3 * len(text.split()), hertz))
        for name, hertz in [("low", 200.0), ("high", 300.0), ("higher", 400.0)]
    ]


def hertz_of(sound):
    return float(np.abs(np.fft.rfft(sound)).argmax() * RATE_HZ / len(sound))


def test_a_set_is_what_its_seed_says(tmp_path):
    """A figure that somebody else cannot get is no figure."""
    first = make_set(tmp_path / "a", voices(), seed=3, clips=10, mixed=True)
    again = make_set(tmp_path / "b", voices(), seed=3, clips=10, mixed=True)
    other = make_set(tmp_path / "c", voices(), seed=4, clips=10)

    assert first == again == read_set(tmp_path / "a")
    assert [one.text for one in other] != [one.text for one in first]
    for one in first:
        assert (tmp_path / "a" / one.file).read_bytes() == (tmp_path / "b" / one.file).read_bytes()


def test_recordings_are_as_long_as_they_say(tmp_path):
    """Clips fill one window of the model at most; long ones are made of all voices."""
    made = make_set(tmp_path, voices(), seed=5, clips=20, mixed=True)

    for one in made:
        assert len(read_wav(tmp_path / one.file)) / RATE_HZ == pytest.approx(one.seconds, abs=0.001)
        assert one.text
        assert one.speech_s <= one.seconds
    clips = [one.seconds for one in made if one.file.startswith("clip")]
    assert 1 <= min(clips) <= max(clips) <= 31
    assert len(clips) == 18
    assert {one.condition.noise for one in made} == {"none", "white", "pink", "babble"}


def test_a_long_recording_lasts(tmp_path):
    """Memory and progress are measured with it."""
    one = make_long(tmp_path, voices(), seed=1, seconds=90)

    assert 90 <= one.seconds < 110
    assert set(one.more_voices) == {"low", "high", "higher"}


def test_tempo_and_pitch_move_alone():
    """A fast speaker is not a small one."""
    sound = tone(2.0, 300.0)

    assert len(with_tempo(sound, 1.25)) == pytest.approx(len(sound) / 1.25, abs=2)
    assert hertz_of(with_tempo(sound, 1.25)) == pytest.approx(300, abs=5)
    assert len(with_pitch(sound, 2.0)) == pytest.approx(len(sound), abs=400)
    assert hertz_of(with_pitch(sound, 2.0)) == pytest.approx(300 * 2 ** (2 / 12), abs=5)
    assert hertz_of(resampled(sound, 2.0)) == pytest.approx(600, abs=5)


def test_noise_is_as_loud_as_it_says():
    """The decibels in references.json are those in the file."""
    rng = np.random.default_rng(1)
    sound = 0.1 * tone(3.0)
    for noise in (white_noise(3.0, rng), pink_noise(3.0, rng)):
        added = with_noise(sound, noise, 10.0) - sound
        assert 10 * np.log10(speech_power(sound) / np.square(added).mean()) == pytest.approx(10, abs=0.2)


def test_a_telephone_lets_through_what_a_telephone_does():
    """Half of all recordings come from one."""
    for hertz, passes in [(100.0, False), (1000.0, True), (5000.0, False)]:
        assert (np.abs(telephone(tone(1.0, hertz))).max() > 0.1) == passes
    assert np.abs(music(2.0, np.random.default_rng(1))).max() <= 1
