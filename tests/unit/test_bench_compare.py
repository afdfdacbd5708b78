"""Comparisons of the benchmarks: a difference is one only where the recordings agree about it."""

from __future__ import annotations

import numpy as np
import pytest

from bench.speech.compare import Times, difference
from bench.speech.recordings import Sentence
from bench.speech.systems import Heard, Timed
from bench.speech.words import Errors


def heard(*words, shift=0.0):
    timed = tuple(Timed(start + shift, start + 0.4 + shift, text) for start, text in words)
    return Heard((Timed(timed[0].start, timed[-1].end, " ".join(word.text for word in timed)),), timed)


def test_a_difference_that_every_recording_shows_is_one():
    """One wrong word more in each of forty recordings."""
    found = difference([Errors(2, 10)] * 40, [Errors(1, 10)] * 40)

    assert (found.value, found.low, found.high) == (pytest.approx(0.1), pytest.approx(0.1), pytest.approx(0.1))


def test_a_difference_that_one_recording_makes_is_none():
    """Forty errors in one recording are luck: the interval holds 0."""
    theirs = [Errors(1, 10)] * 20 + [Errors(1, 50)] * 20
    found = difference([*theirs[:-1], Errors(41, 50)], theirs)

    assert found.low == 0 < found.value < found.high
    assert difference(theirs, theirs).figures("wer") == {
        "wer_difference": 0.0,
        "wer_difference_low": 0.0,
        "wer_difference_high": 0.0,
    }


def test_times_of_the_same_words_are_compared():
    """Words that only one system heard, and how they are written, do not matter."""
    times = Times()
    ours = heard((1.0, "It's"), (1.5, "42"), (2.0, "chairs."), shift=0.1)
    theirs = heard((1.0, "it"), (1.2, "is"), (1.5, "forty-two"), (1.8, "red"), (2.0, "Chairs"))
    times.add(ours, theirs, [Sentence(0.9, 2.4, "It is forty two red chairs.")])

    assert np.allclose(times.starts, [0.1, -0.1, 0.1, 0.1, 0.1])
    assert np.allclose(times.sentence_starts, [0.2])
    assert np.allclose(times.sentence_ends, [0.1])
    result = times.result()
    assert result["words_compared"] == 5
    assert result["word_start_p50_ms"] == 100
    assert result["segments_of_same_text"] == 0
    assert "segment_edge_p50_ms" not in result
