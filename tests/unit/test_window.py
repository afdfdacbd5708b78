"""Windows: long enough for the speech and the emptiness behind it, and of few kinds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from consumer.window import FULL, extent_for


@given(st.floats(0.01, 30.0))
def test_the_speech_and_a_margin_fit(seconds):
    """A word that is cut off is lost."""
    extent = extent_for(seconds)

    assert extent.frames >= min(3000, seconds * 100 + 100)
    assert extent.frames % 2 == 0  # two make a state


@given(st.floats(0.01, 30.0))
def test_the_decoder_sees_that_the_speech_is_over(seconds):
    """With less emptiness than this it says it again."""
    extent = extent_for(seconds)

    assert extent.states >= min(1500, (seconds + 11) * 50)


def test_there_are_few_kinds():
    """Chunks of one kind are read together."""
    assert {extent_for(tenth / 10).states for tenth in range(1, 301)} == {750, 1000, 1250, 1500}


def test_what_fills_the_window_gets_all_of_it():
    """Nothing is short about 29 s."""
    assert extent_for(29.0) == extent_for(30.0) == FULL
