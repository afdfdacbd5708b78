"""Words for error rates: spelling, figures and contractions that sound the same are made the same.

Both the reference and what was heard go through `normalized`, so a choice made here favours nobody.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import jiwer

_ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["zero", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}
_UNITS = {"$": "dollars", "£": "pounds", "€": "euros"}
_WHOLE = {
    "can't": "can not",
    "cannot": "can not",
    "won't": "will not",
    "shan't": "shall not",
    "i'm": "i am",
    "let's": "let us",
    "mr": "mister",
    "mrs": "missus",
    "dr": "doctor",
    "ok": "okay",
    "alright": "all right",
}
_ENDINGS = (("n't", " not"), ("'re", " are"), ("'ve", " have"), ("'ll", " will"), ("'d", " would"))
# After others an 's is a genitive.
_SHORT_IS = frozenset(["it", "that", "there", "what", "he", "she", "who", "where", "here", "how"])
_NUMBER = frozenset(_ONES + _TENS + list(_ORDINALS.values()))


@dataclass(frozen=True, slots=True)
class Errors:
    """Words that were heard wrongly, missed or invented, and the words that were said."""

    wrong: int
    said: int

    @property
    def rate(self) -> float:
        return self.wrong / self.said if self.said else 0.0


def normalized(text: str) -> str:
    """Return the words of a text, lower case, with one blank between them."""
    text = text.lower().replace("’", "'")  # noqa: RUF001 - as typesetters write it
    text = re.sub(r"\[.*?\]|\(.*?\)|♪", " ", text)  # [music] and the like are no words
    text = re.sub(r"([$£€])\s?([\d,.]*\d)", lambda found: f"{found[2]} {_UNITS[found[1]]}", text)
    text = text.replace("%", " percent ").replace("&", " and ")
    text = re.sub(r"\d[\d,.:]*(st|nd|rd|th)?\b", _figures, text)
    words = [_spoken(word) for word in re.findall(r"[a-z']+", text.replace(".m.", "m "))]
    return _without_and(" ".join(words).split())


def error_count(reference: str, heard: str) -> Errors:
    """Compare what was said with what was heard; both are normalized first."""
    said, found = normalized(reference), normalized(heard)
    if not said or not found:
        return Errors(len(found.split()) if not said else len(said.split()), len(said.split()))
    result = jiwer.process_words(said, found)
    return Errors(result.substitutions + result.deletions + result.insertions, len(said.split()))


def total(errors: Sequence[Errors]) -> Errors:
    """Return the sum over several recordings: every word counts the same."""
    return Errors(sum(one.wrong for one in errors), sum(one.said for one in errors))


def number_words(number: int) -> str:
    """Return a number below a million as it is spoken, without "and"."""
    if number < 20:
        return _ONES[number]
    if number < 100:
        return _TENS[number // 10] + (f" {_ONES[number % 10]}" if number % 10 else "")
    size, name = (100, "hundred") if number < 1000 else (1000, "thousand")
    rest = number % size
    return f"{number_words(number // size)} {name}" + (f" {number_words(rest)}" if rest else "")


def _figures(found: re.Match[str]) -> str:
    """Return a number in figures as words: whole, with decimals, an ordinal, or a time of day."""
    ending = found[1] or ""
    figures = found[0].removesuffix(ending).rstrip(",.:").replace(",", "")
    if ":" in figures:
        return " " + " ".join(_number(part) for part in figures.split(":") if part.strip("0")) + " "
    whole, _, decimals = figures.removesuffix(".00").partition(".")
    words = _number(whole)
    if decimals:
        words += " point " + " ".join(_ONES[int(digit)] for digit in decimals if digit.isdigit())
    return f" {_ordinal(words) if ending else words} "


def _number(figures: str) -> str:
    """Return a number's words; one too long to be a number is read figure by figure."""
    if len(figures) > 6:
        return " ".join(_ONES[int(figure)] for figure in figures if figure.isdigit())
    return number_words(int(figures))


def _ordinal(words: str) -> str:
    *before, last = words.split()
    ending = "ieth" if last.endswith("y") else "th"
    return " ".join([*before, _ORDINALS.get(last, last.removesuffix("y") + ending)])


def _spoken(word: str) -> str:
    word = word.strip("'")
    if word in _WHOLE:
        return _WHOLE[word]
    for ending, spoken in _ENDINGS:
        if word.endswith(ending):
            return word.removesuffix(ending) + spoken
    if word.endswith("'s") and word[:-2] in _SHORT_IS:
        return f"{word[:-2]} is"
    return word.replace("'", "")


def _without_and(words: list[str]) -> str:
    """Leave out the "and" within a number: "one hundred and five"."""
    kept = [
        word
        for number, word in enumerate(words)
        if not (
            word == "and"
            and 0 < number < len(words) - 1
            and words[number - 1] in {"hundred", "thousand"}
            and words[number + 1] in _NUMBER
        )
    ]
    return " ".join(kept)
