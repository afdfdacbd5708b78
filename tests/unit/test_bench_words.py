"""Error rates of the benchmarks: what sounds the same counts as the same, and nothing else does."""

from __future__ import annotations

import pytest

from bench.speech.words import Errors, error_count, normalized, number_words, total


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("It's 42 chairs, isn't it?", "it is forty two chairs is not it"),
        ("forty-two", "forty two"),
        ("1,250 people", "one thousand two hundred fifty people"),
        ("two hundred and five people", "two hundred five people"),
        ("a hundred and a half", "a hundred and a half"),
        ("the 3rd, the 12th, the 20th and the 21st", "the third the twelfth the twentieth and the twenty first"),
        ("7% of $12", "seven percent of twelve dollars"),
        ("at 10:30, not 9:00", "at ten thirty not nine"),
        ("3.5 points for $12.00.", "three point five points for twelve dollars"),
        ("I can't, we won't, they'll, you’re", "i can not we will not they will you are"),  # noqa: RUF001 - typeset
        ("Mr. Miller's dog", "mister millers dog"),
        ("9 a.m. to 5 p.m.", "nine am to five pm"),
        ("[music] (applause) ♪ hello", "hello"),
        ("4719 12345678", "four thousand seven hundred nineteen one two three four five six seven eight"),
        ("", ""),
        ("...", ""),
    ],
)
def test_what_sounds_the_same_is_written_the_same(written, spoken):
    """A model that writes figures is not worse than one that writes words."""
    assert normalized(written) == spoken
    assert normalized(spoken) == spoken


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (80, "eighty"),
        (99, "ninety nine"),
        (100, "one hundred"),
        (1001, "one thousand one"),
        (999_999, "nine hundred ninety nine thousand nine hundred ninety nine"),
    ],
)
def test_numbers_are_read_aloud(number, words):
    """Up to a million, which is what people say in calls."""
    assert number_words(number) == words


def test_errors_are_counted_by_word_and_added_up():
    """The rate over a set is that of all its words, not the mean of the rates of its clips."""
    one = error_count("One two three.", "one too three four")
    assert one == Errors(wrong=2, said=3)
    assert error_count("Three words said", "") == Errors(wrong=3, said=3)
    assert error_count("", "invented words") == Errors(wrong=2, said=0)
    assert total([one, Errors(0, 7)]) == Errors(2, 10)
    assert total([one, Errors(0, 7)]).rate == 0.2
