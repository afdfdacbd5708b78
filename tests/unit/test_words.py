"""Words out of an alignment: punctuation joined, silence cut off."""

from __future__ import annotations

import pytest

from consumer.words import before_gap, words_of


def timings(*words):
    """Return words as the library aligns them: text, start, end in s."""
    return [{"word": word, "start": start, "end": end, "probability": 0.5} for word, start, end in words]


def found(*words):
    return [(word.word, word.start, word.end) for word in words_of(timings(*words))]


def test_punctuation_belongs_to_a_word():
    """Nobody says a comma."""
    assert found((" He", 0, 0.2), (" came", 0.2, 0.4), (",", 0.4, 0.4), (" she", 0.4, 0.6), (".", 0.6, 0.6)) == [
        (" He", 0, 0.2),
        (" came,", 0.2, 0.4),
        (" she.", 0.4, 0.6),
    ]


def test_an_opening_mark_belongs_to_the_word_after_it():
    """A quotation mark alone on a line."""
    assert found((' "', 0, 0.1), ("No", 0.1, 0.4), ('."', 0.4, 0.4)) == [(' "No."', 0.1, 0.4)]


def test_silence_before_a_sentence_is_not_part_of_its_first_word():
    """The alignment gives every moment to some word; a subtitle would stand there seconds too early."""
    assert found((" He", 0, 3.0), (" came", 3.0, 3.4), (" home", 3.4, 3.8))[0] == (" He", 2.2, 3.0)


def test_silence_after_a_sentence_is_not_part_of_its_end():
    """Nor may it stay for the whole pause."""
    words = found((" He", 0, 0.4), (" came", 0.4, 0.8), (".", 0.8, 4.0), (" She", 4.0, 4.4))

    assert words[1] == (" came.", 0.4, 0.8)


def test_a_word_that_lasts_for_seconds_has_unwritten_speech_in_it():
    """The model skips a sentence at times, and goes on as if nothing had been said."""
    words = timings((" He", 0, 0.4), (" came", 0.4, 0.8), (".", 0.8, 4.0), (" She", 4.0, 4.4))

    assert before_gap(words) == words[:2]
    assert before_gap(words[:2]) == words[:2]
    assert before_gap(timings((" He", 0, 5.0), (" came", 5.0, 5.4))) != []  # nothing before it could be kept
    assert before_gap([]) == []


@pytest.mark.parametrize("words", [(), ((" a", 1.0, 1.0),), ((".", 0.0, 0.0),)])
def test_odd_alignments_are_no_trouble(words):
    """A model may say a single mark, and an alignment may give a word no time."""
    assert found(*words) == [tuple(word) for word in words]
