"""Whether to believe what the model read: the library's rules, and those for short windows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from common.transcript import Word
from consumer.reading import Reading, best_of, doubtful, joined, sparse

WORD = Word(start=0.0, end=1.0, word=" yes", probability=1.0)
GOOD = Reading((WORD,), 4, -0.3, 0.1, 1.2, "en", 1.0)


@pytest.mark.parametrize(
    ("changed", "failed"),
    [
        ({}, False),
        ({"avg_logprob": -1.1}, True),
        ({"compression_ratio": 2.5}, True),
        ({"avg_logprob": -1.1, "no_speech_prob": 0.7}, False),  # silence: no temperature makes it speech
    ],
)
def test_a_poor_reading_is_tried_at_the_next_temperature(changed, failed):
    """As in faster-whisper: its transcripts are what ours are measured by."""
    assert replace(GOOD, **changed).failed is failed


@pytest.mark.parametrize(
    ("changed", "silent"),
    [({}, False), ({"no_speech_prob": 0.9}, False), ({"no_speech_prob": 0.9, "avg_logprob": -1.0}, True)],
)
def test_what_the_model_thinks_is_silence_is_dropped_only_if_it_is_unsure_of_the_words(changed, silent):
    """Quiet speech looks like silence, too."""
    assert replace(GOOD, **changed).silent is silent


@pytest.mark.parametrize(
    ("changed", "is_doubtful"),
    [
        ({}, False),
        ({"avg_logprob": -1.1}, True),
        ({"unsaid_s": 9.0}, False),  # in a full window it would stop there, too
        ({"language_probability": 0.6}, True),
    ],
)
def test_a_short_window_is_believed_when_nothing_speaks_against_it(changed, is_doubtful):
    """A wrong yes costs words, a wrong no only time."""
    assert doubtful(replace(GOOD, **changed)) is is_doubtful


@pytest.mark.parametrize(
    ("changed", "seconds", "is_sparse"),
    [
        ({"tokens": 40}, 15.0, False),
        ({"tokens": 8}, 15.0, True),
        ({"tokens": 8, "unsaid_s": 12.0}, 15.0, False),  # it stops early: that is another matter
        ({"tokens": 2}, 4.0, False),  # a word and a breath
        ({"tokens": 0, "words": ()}, 15.0, False),  # nobody speaks
        ({"tokens": 8, "avg_logprob": -1.4, "no_speech_prob": 0.9}, 15.0, False),  # nor here
    ],
)
def test_a_text_that_is_far_too_short_for_its_speech_has_lost_sentences(changed, seconds, is_sparse):
    """No probability shows it: the model is sure of what it wrote."""
    assert sparse(replace(GOOD, **changed), seconds) is is_sparse


def test_of_poor_readings_the_likeliest_that_does_not_repeat_itself_is_kept():
    """A loop is very sure of itself."""
    loop = replace(GOOD, avg_logprob=-0.1, compression_ratio=9.0)
    unsure, worse = replace(GOOD, avg_logprob=-1.2), replace(GOOD, avg_logprob=-1.9)

    assert best_of([loop, worse, unsure]) == unsure
    assert best_of([loop, replace(loop, avg_logprob=-0.2)]) == loop


def test_parts_of_a_chunk_are_one_reading():
    """Words in order, and figures that weigh each part by what was said in it."""
    rest = replace(GOOD, words=(WORD,), tokens=1, avg_logprob=-0.8, compression_ratio=1.5).later(3.0)

    whole = joined([GOOD, rest])

    assert [word.start for word in whole.words] == [0.0, 3.0]
    assert (whole.tokens, whole.compression_ratio) == (5, 1.5)
    assert whole.avg_logprob == pytest.approx(-0.4)
    assert joined([GOOD]) == replace(GOOD, avg_logprob=pytest.approx(-0.3))


def test_parts_in_which_nobody_spoke_are_left_out():
    """What the model says of silence is made up, wherever in a chunk the silence is."""
    silence = replace(GOOD, avg_logprob=-1.5, no_speech_prob=0.9)

    assert joined([silence, GOOD.later(3.0)]).words == GOOD.later(3.0).words
    assert joined([GOOD, silence]).words == GOOD.words
    assert joined([silence]).words == ()
