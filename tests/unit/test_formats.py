"""Each format, byte for byte, where players and scripts are picky."""

from __future__ import annotations

import orjson
import pytest

from common.formats import FORMATS, Format, media_type, render
from common.transcript import Segment, Timings, Transcript, Word

TIMINGS = Timings(queued_s=0.1, fetch_s=0.1, prepare_s=0.2, transcribe_s=1.0, realtime_factor=3.5)


def segment(start: float, end: float, text: str, **more: object) -> Segment:
    return Segment.model_validate(
        {
            "id": 0,
            "start": start,
            "end": end,
            "text": text,
            "avg_logprob": -0.2,
            "no_speech_prob": 0.01,
            **more,
        }
    )


def transcript(*segments: Segment) -> Transcript:
    return Transcript(
        job_id="job-1",
        source="file:///audio/a.wav",
        language="en",
        language_probability=0.9,
        duration_s=3.5,
        text=" ".join(part.text for part in segments),
        segments=segments,
        model="tiny.en",
        timings=TIMINGS,
    )


TWO = transcript(segment(0.0, 1.25, " Hello there."), segment(3599.9996, 3661.5, " Good bye."))


@pytest.mark.parametrize(
    ("format_", "expected"),
    [
        ("txt", "Hello there.\nGood bye.\n"),
        (
            "srt",
            "1\n00:00:00,000 --> 00:00:01,250\nHello there.\n\n2\n01:00:00,000 --> 01:01:01,500\nGood bye.\n\n",
        ),
        (
            "vtt",
            "WEBVTT\n\n00:00:00.000 --> 00:00:01.250\nHello there.\n\n01:00:00.000 --> 01:01:01.500\nGood bye.\n\n",
        ),
        ("tsv", "start\tend\ttext\n0\t1250\tHello there.\n3600000\t3661500\tGood bye.\n"),
    ],
)
def test_each_format_looks_as_its_readers_expect(format_: Format, expected: str) -> None:
    """Players and spreadsheets parse these bytes; a rounded 59.9996 s must carry over into the minute."""
    assert render(TWO, format_).decode() == expected


def test_json_is_the_transcript_itself() -> None:
    """What a client reads back is what the consumer made."""
    assert Transcript.model_validate(orjson.loads(render(TWO, "json"))) == TWO


@pytest.mark.parametrize(
    ("format_", "expected"),
    [("txt", b""), ("srt", b""), ("vtt", b"WEBVTT\n\n"), ("tsv", b"start\tend\ttext\n")],
)
def test_silence_gives_a_valid_empty_file(format_: Format, expected: bytes) -> None:
    """A recording without speech is a result, not an error."""
    assert render(transcript(), format_) == expected


def test_text_cannot_pose_as_a_time_line() -> None:
    """An arrow in the speech would start a new cue in a player; `--->` shortened once would still be one."""
    hostile = transcript(segment(0, 1, "a --> b ---> c\n\n2\n00:00:05,000 --> 00:00:06,000\nx"))
    lines = render(hostile, "srt").decode().splitlines()
    assert lines[2:] == ["a -> b -> c 2 00:00:05,000 -> 00:00:06,000 x", ""]
    assert render(hostile, "vtt").decode().count("-->") == 1


def test_markup_in_vtt_is_text() -> None:
    """Unescaped, `<v Roger>` would be a voice tag and the words would vanish."""
    shown = render(transcript(segment(0, 1, "<v Roger> R&B &lt;")), "vtt").decode()
    assert "&lt;v Roger&gt; R&amp;B &amp;lt;\n" in shown


def test_tabs_and_line_ends_of_any_kind_become_one_space() -> None:
    """One cue is one line in txt and one row in tsv, whatever splits lines for the reader."""
    odd = transcript(segment(0, 1, "a\tb\r\nc\x0bd\x85e\u2028f\0g"))
    assert render(odd, "tsv").decode().split("\n")[1] == "0\t1000\ta b c d e f g"


def test_spaces_that_belong_to_the_language_stay() -> None:
    """French puts a no-break space before `!`; it is no separator."""
    assert render(transcript(segment(0, 1, "Bonjour\u00a0!")), "txt").decode() == "Bonjour\u00a0!\n"


def test_a_cue_without_length_still_shows() -> None:
    """WebVTT ignores a cue whose end is not after its start: its words would be lost."""
    short = transcript(segment(2.0, 2.0, "oh"), segment(1.5, 1.6, "no"))
    assert render(short, "tsv").decode().splitlines()[1:] == ["2000\t2001\toh", "2000\t2001\tno"]


def test_a_segment_without_words_is_left_out() -> None:
    """An empty cue ends the file for some players; the numbers stay without a gap."""
    numbered = render(transcript(segment(0, 1, "a"), segment(1, 2, " \n"), segment(2, 3, "b")), "srt").decode()
    assert [block.split("\n")[0] for block in numbered.strip().split("\n\n")] == ["1", "2"]


def test_word_timestamps_do_not_change_subtitles() -> None:
    """Asking for words must not turn every word into a cue."""
    words = (Word(start=0, end=1, word="hi", probability=0.9),)
    assert render(transcript(segment(0, 1, "hi", words=words)), "srt") == render(transcript(segment(0, 1, "hi")), "srt")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_time_that_is_no_number_is_refused_by_name(bad: float) -> None:
    """The writer turns this into a failed job with a reason, not into a crash."""
    with pytest.raises(ValueError, match="finite"):
        render(transcript(segment(0, bad, "a")), "vtt")


def test_every_format_has_a_media_type() -> None:
    """A new format cannot be forgotten in the table that HTTP answers from."""
    assert [media_type(format_).partition(";")[0] for format_ in FORMATS] == [
        "application/json",
        "text/plain",
        "application/x-subrip",
        "text/vtt",
        "text/tab-separated-values",
    ]
