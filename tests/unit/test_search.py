"""What a search means, before any database is asked: words, phrases, and what is shown of a hit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.search import LONGEST_QUERY, Query, snippet, words_of


def folded(text: str) -> list[str]:
    return [word.folded for word in words_of(text)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't, he said: 3.5 km!", ["don", "t", "he", "said", "3", "5", "km"]),
        ("STRASSE Straße", ["strasse", "strasse"]),
        ("e\u0301te\u0301 \xe9t\xe9", ["\xe9t\xe9", "\xe9t\xe9"]),
        ("Привет, МИР", ["привет", "мир"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("开放时间 9点", ["开", "放", "时", "间", "9", "点"]),
        ("안녕 하세요", ["안녕", "하세요"]),
        ("snake_case 😀 \0 --", ["snake", "case"]),
    ],
)
def test_words_are_letters_marks_and_digits(text: str, words: list[str]) -> None:
    """Both databases index what comes out here; what is split otherwise is not found."""
    assert folded(text) == words


@given(st.text())
def test_nothing_but_words_reaches_a_database(text: str) -> None:
    """The query is safe because of what it is made of, and a word must be found by itself."""
    for word in words_of(text):
        assert word.folded.isprintable() or not word.folded.isascii()
        assert not set(word.folded) & set(" \"'\\*:^()&|!<>-+,{}\0")
        assert 0 < len(word.folded) <= 100
        assert text[word.start : word.end]


@pytest.mark.parametrize(
    ("query", "phrases"),
    [
        ("Hello world", (("hello",), ("world",))),
        ('"hello world" again', (("again",), ("hello", "world"))),
        ('say "hello world', (("say",), ("hello", "world"))),
        ('"" a""b a', (("a",), ("b",))),
        ("a AND b OR NOT c NEAR(d)", (("a",), ("and",), ("b",), ("or",), ("not",), ("c",), ("near", "d"))),
        ("wor* text:x ^y", (("wor",), ("text", "x"), ("y",))),
        ("时间", (("时", "间"),)),
    ],
)
def test_only_quotes_have_a_meaning(query: str, phrases: tuple[tuple[str, ...], ...]) -> None:
    """What looks like an operator of a database is a word that somebody may have said."""
    assert Query.parse(query).phrases == phrases


@pytest.mark.parametrize(
    "query", ["", "  ", '"', '""', "*:^ -- 😀", "\0", "\ud800", "a" * (LONGEST_QUERY + 1), "a " * 5000]
)
def test_a_query_without_words_or_too_long_is_refused(query: str) -> None:
    """It would find everything, or keep the database busy for nothing."""
    with pytest.raises(ValueError, match="expected"):
        Query.parse(query)


@pytest.mark.parametrize(
    ("text", "query", "shown"),
    [
        ("He had LEISURE, and leisure.", "leisure", "He had ⟦LEISURE⟧, and ⟦leisure⟧."),
        ("Good morning. Good night.", '"good night" good', "⟦Good⟧ morning. ⟦Good night⟧."),
        ("今天开放时间是九点", "开放时间", "今天⟦开放时间⟧是九点"),
        ("a" * 50 + " x" * 300, "x", None),
        ("never", "x", "never"),
    ],
)
def test_what_matched_is_marked(text: str, query: str, shown: str | None) -> None:
    """A hit that does not show why it is one has to be read as a whole."""
    found = snippet(text, Query.parse(query))
    if shown is not None:
        assert found == shown
    else:
        assert found.startswith("a" * 50 + " ⟦x⟧ ⟦x⟧")
        assert found.endswith("…")


def test_a_long_segment_is_cut_before_and_after_the_match() -> None:
    """One segment of a hostile recording must not fill the page."""
    found = snippet("b " * 1000 + "x" + " c" * 1000, Query.parse("x"))
    assert found.startswith("…")
    assert "b ⟦x⟧ c" in found
    assert found.endswith("…")
    assert len(found) < 410
