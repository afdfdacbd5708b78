"""Chunks: every sample of speech goes to the engine once, in pieces of up to 30 s."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from consumer.chunks import WINDOW_S, Chunk, chunks_of_everything, chunks_of_speech
from consumer.speech import SAMPLE_RATE_HZ, Span


@st.composite
def spans_of_a_recording(draw):
    """Speech spans in order, each up to the detector's limit of 30 s."""
    lengths = draw(st.lists(st.tuples(st.integers(0, 160_000), st.integers(1, 480_000)), max_size=40))
    spans, at = [], 0
    for gap, length in lengths:
        spans.append(Span(at + gap, at + gap + length))
        at += gap + length
    return spans


@given(spans_of_a_recording())
def test_chunks_hold_every_span_once_in_order_and_fit_the_window(spans):
    """A span lost is text lost; a chunk too long is cut by the model."""
    chunks = chunks_of_speech(spans)

    assert [span for chunk in chunks for span in chunk.spans] == spans
    assert all(chunk.seconds <= WINDOW_S for chunk in chunks)


@given(spans_of_a_recording(), st.floats(1, WINDOW_S))
def test_chunks_are_as_full_as_is_asked_for(spans, packed_s):
    """Two neighbours that fit in one chunk would be read one by one; more than is asked for shares none."""
    chunks = chunks_of_speech(spans, packed_s, first_packed_s=packed_s)

    for chunk, following in itertools.pairwise(chunks):
        assert Chunk((*chunk.spans, following.spans[0])).seconds > packed_s
    assert all(chunk.seconds <= packed_s for chunk in chunks if len(chunk.spans) > 1)


def test_the_first_chunk_may_hold_more():
    """It is what the language of all is detected in."""
    spans = [Span(at * SAMPLE_RATE_HZ, (at + 4) * SAMPLE_RATE_HZ) for at in range(0, 60, 5)]

    first, second, *_ = chunks_of_speech(spans, 10.0, first_packed_s=30.0)

    assert (first.seconds, second.seconds) == (28, 8)


def test_the_audio_of_a_chunk_is_its_spans_joined():
    """The silence between spans is what detection saves."""
    recording = np.arange(100, dtype=np.int16)

    audio = Chunk((Span(10, 12), Span(50, 53))).audio(recording)

    assert audio.dtype == np.float32
    assert (audio * 32768).tolist() == [10, 11, 50, 51, 52]


def test_a_span_that_is_too_long_is_cut():
    """The model would not see its end."""
    long = Span(0, round(70 * SAMPLE_RATE_HZ))

    chunks = chunks_of_speech([long])

    assert [chunk.seconds for chunk in chunks] == [30, 30, 10]
    assert [span for chunk in chunks for span in chunk.spans][-1].end == long.end


def test_without_detection_long_recordings_are_cut_where_it_is_quiet():
    """A cut in the middle of a word loses the word."""
    rng = np.random.default_rng(1)
    recording = rng.integers(-8000, 8000, 70 * SAMPLE_RATE_HZ, dtype=np.int16)
    pause = slice(25 * SAMPLE_RATE_HZ, round(25.1 * SAMPLE_RATE_HZ))
    recording[pause] = 0

    chunks = chunks_of_everything(recording)

    edges = [chunk.spans[0] for chunk in chunks]
    assert edges[0].start == 0
    assert pause.start <= edges[0].end <= pause.stop
    assert [span.start for span in edges[1:]] == [span.end for span in edges[:-1]]
    assert edges[-1].end == len(recording)
    assert all(chunk.seconds <= WINDOW_S for chunk in chunks)


def test_an_empty_recording_has_no_chunks():
    """Nothing said, nothing transcribed."""
    assert chunks_of_everything(np.empty(0, dtype=np.int16)) == []
    assert chunks_of_speech([]) == []
