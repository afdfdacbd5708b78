"""From words to segments: sentences with the times of the recording."""

from __future__ import annotations

import pytest

from common.transcript import Word
from consumer.chunks import Chunk
from consumer.reading import Reading
from consumer.segments import segments_of, sentences
from consumer.speech import Span


def said(text, *, each_s=0.4, start_s=0.0, pauses=None):
    """Return the words of a text, one after another; `pauses` are seconds before the words of these numbers."""
    words, at = [], start_s
    for number, word in enumerate(text.split(" ")):
        at += (pauses or {}).get(number, 0.0)
        words.append(Word(start=at, end=at + each_s, word=f" {word}", probability=0.9))
        at += each_s
    return words


def texts(words):
    return ["".join(word.word for word in sentence).strip() for sentence in sentences(words)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("He came. She left!", ["He came.", "She left!"]),
        ("Did he? Yes.", ["Did he?", "Yes."]),
        ('He said "no." Then he left.', ['He said "no."', "Then he left."]),
        ("Mr. Dashwood came.", ["Mr. Dashwood came."]),
        ("Write to J. Smith at No. 9.", ["Write to J. Smith at No. 9."]),
        ("It costs 3.5 million, he said.", ["It costs 3.5 million, he said."]),
        ("没有。 好的。", ["没有。", "好的。"]),
        ("no end", ["no end"]),
    ],
)
def test_sentences_end_where_they_do(text, expected):
    """A subtitle is a sentence; a title or an initial ends none."""
    assert texts(said(text)) == expected


def test_a_pause_ends_a_segment():
    """Nobody reads a line of which half is said a second later."""
    assert texts(said("hold on please", pauses={2: 1.2})) == ["hold on", "please"]


def test_a_long_sentence_is_cut_at_a_comma():
    """Three lines of subtitles are too many."""
    assert texts(said("one two three, four five six, seven eight", each_s=1.5)) == [
        "one two three, four five six,",
        "seven eight",
    ]


def test_a_sentence_without_an_end_is_cut_all_the_same():
    """What a model makes of a speaker who never stops."""
    parts = texts(said(" ".join(["word"] * 100)))

    assert len(parts) == 3
    assert " ".join(parts) == " ".join(["word"] * 100)


def test_times_are_the_recordings():
    """What was left out between two stretches of speech counts again."""
    chunk = Chunk((Span(16_000, 32_000), Span(80_000, 112_000)))  # 1-2 s and 5-7 s
    words = (*said("He came.", each_s=0.5), *said("She left.", start_s=1.0, each_s=0.75))
    reading = Reading(words, 8, -0.12345, 0.01, 1.0, "en", 1.0)

    first, second = segments_of(reading, chunk, words=True)

    assert (first.start, first.end, first.text) == (1.0, 2.0, "He came.")
    assert (second.start, second.end, second.text) == (5.0, 6.5, "She left.")
    assert [word.start for word in second.words] == [5.0, 5.75]
    assert (first.id, second.id, first.avg_logprob) == (0, 1, -0.1235)


def test_a_word_lies_in_one_stretch_of_speech():
    """The model may hear it across the cut; it was said on the side where most of it is."""
    chunk = Chunk((Span(0, 16_000), Span(160_000, 176_000)))
    word = Word(start=0.9, end=1.4, word=" over", probability=0.5)
    [segment] = segments_of(Reading((word,), 1, 0, 0, 1, "en", 1.0), chunk, words=False)

    assert (segment.start, segment.end) == (10.0, 10.4)
    assert segment.words is None


def test_nothing_read_is_no_segment():
    """Silence has no subtitle."""
    assert segments_of(Reading((), 0, 0, 0, 1, "en", 1.0), Chunk((Span(0, 9),)), words=True) == ()
