"""Whatever was said: what is written can be read back."""

from __future__ import annotations

import html
import re

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.formats import render
from common.transcript import Segment, Timings, Transcript

TIMINGS = Timings(queued_s=0, fetch_s=0, prepare_s=0, transcribe_s=0, realtime_factor=0)
TIME = r"(\d{2,}):([0-5]\d):([0-5]\d)[.,](\d{3})"
TIME_LINE = re.compile(f"{TIME} --> {TIME}")

# Text that looks for trouble: what separates lines, columns and cues is as likely as letters.
texts = st.lists(
    st.sampled_from(["a", "7", "-", "--", ">", "-->", "<b>", "&", "\n", "\r\n", "\n\n", "\t", "\x0c", "\u2028", "é"])
    | st.text(max_size=3),
    max_size=12,
).map("".join)
times = st.floats(min_value=-1, max_value=400_000, allow_nan=False)
segments = st.builds(
    Segment,
    id=st.just(0),
    start=times,
    end=times,
    text=texts,
    avg_logprob=st.just(0.0),
    no_speech_prob=st.just(0.0),
)
transcripts = st.lists(segments, max_size=8).map(
    lambda parts: Transcript(
        job_id="j",
        source="s",
        language="en",
        language_probability=1.0,
        duration_s=1.0,
        text="",
        segments=tuple(parts),
        model="m",
        timings=TIMINGS,
    )
)


# The first text ever drawn builds hypothesis's tables of Unicode: that takes longer than its health check likes.
anything = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def spoken(transcript: Transcript) -> list[str]:
    """The words of each cue as anyone may expect them: whitespace apart."""
    lines = (re.sub(r"[\x00-\x20\x7f-\x9f\u2028\u2029]+", " ", part.text).strip() for part in transcript.segments)
    return [line for line in lines if line]


def ms(parts: tuple[str, ...]) -> int:
    hours, minutes, seconds, rest = map(int, parts)
    return ((hours * 60 + minutes) * 60 + seconds) * 1000 + rest


def cues(text: str) -> list[tuple[int, int, str]]:
    """Read cues as a player does: a time line, then text up to an empty line."""
    found = []
    for block in re.split(r"\n\n", text.removesuffix("\n\n")) if text else []:
        lines = re.split(r"\r\n|\r|\n", block)
        at = next(index for index, line in enumerate(lines) if "-->" in line)
        match = TIME_LINE.fullmatch(lines[at])
        assert match, lines[at]
        found.append((ms(match.groups()[:4]), ms(match.groups()[4:]), "\n".join(lines[at + 1 :])))
    return found


def check_times(read: list[tuple[int, int, str]]) -> None:
    starts = [start for start, _, _ in read]
    assert starts == sorted(starts)
    assert all(end > start >= 0 for start, end, _ in read)


@anything
@given(transcripts)
def test_an_srt_file_reads_back_as_the_cues_it_was_made_from(transcript: Transcript) -> None:
    """No text can add, drop, merge or reorder subtitles."""
    read = cues(render(transcript, "srt").decode())
    assert [text for _, _, text in read] == [re.sub("-{2,}>", "->", line) for line in spoken(transcript)]
    assert not any("-->" in text for _, _, text in read)
    check_times(read)


@anything
@given(transcripts)
def test_a_vtt_file_reads_back_as_the_cues_it_was_made_from(transcript: Transcript) -> None:
    """No text can add, drop, merge, reorder or mark up cues."""
    header, _, rest = render(transcript, "vtt").decode().partition("\n\n")
    read = cues(rest)
    assert header == "WEBVTT"
    assert [html.unescape(text) for _, _, text in read] == spoken(transcript)
    assert not any(set("<>") & set(text) for _, _, text in read)
    check_times(read)


@anything
@given(transcripts)
def test_a_tsv_file_reads_back_as_the_cues_it_was_made_from(transcript: Transcript) -> None:
    """Every row has three columns, so a spreadsheet never shifts."""
    header, *rows = render(transcript, "tsv").decode().removesuffix("\n").split("\n")
    read = [(int(start), int(end), text) for start, end, text in (row.split("\t") for row in rows)]
    assert header == "start\tend\ttext"
    assert [text for _, _, text in read] == spoken(transcript)
    check_times(read)


@anything
@given(transcripts)
def test_a_txt_file_has_one_line_a_cue(transcript: Transcript) -> None:
    """Counting lines counts segments, for any idea of what ends a line."""
    assert render(transcript, "txt").decode().splitlines() == spoken(transcript)
