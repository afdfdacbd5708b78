"""A transcript as people and players read it: json, txt, srt, vtt, tsv.

All but json are made from the same cues, so they agree on order, times and words. Only json has word times.

Source: whisper/utils.py (openai-whisper) for the look of each format; the WebVTT recommendation, 3.1 and 4.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from common.transcript import Transcript

Format = Literal["json", "txt", "srt", "vtt", "tsv"]
FORMATS: Final[tuple[Format, ...]] = ("json", "txt", "srt", "vtt", "tsv")

_MEDIA_TYPES: Final[dict[Format, str]] = {
    "json": "application/json",
    "txt": "text/plain; charset=utf-8",
    "srt": "application/x-subrip; charset=utf-8",
    "vtt": "text/vtt; charset=utf-8",
    "tsv": "text/tab-separated-values; charset=utf-8",
}

# What some reader takes for the end of a line or of a column, and what no text file should hold. Spaces that
# belong to a language (no-break, ideographic) stay.
_BREAKS = re.compile(r"[\x00-\x20\x7f-\x9f\u2028\u2029]+")

# One replacement must not make a new arrow: "--->" with "-->" replaced by "->" would be "-->" again.
_ARROW = re.compile(r"-{2,}>")


@dataclass(frozen=True, slots=True)
class Cue:
    """One line of speech; `start_ms` never lies before the cue before it, `end_ms` lies after `start_ms`."""

    start_ms: int
    end_ms: int
    text: str


def render(transcript: Transcript, format_: Format) -> bytes:
    """Return the transcript as a whole file, in UTF-8."""
    if format_ == "json":
        return transcript.to_json()
    return _WRITERS[format_](_cues(transcript)).encode()


def media_type(format_: Format) -> str:
    """Return the Content-Type of a format."""
    return _MEDIA_TYPES[format_]


def _cues(transcript: Transcript) -> Iterator[Cue]:
    """Yield the segments that have words, in order, with times that players accept.

    A cue lasts at least 1 ms: WebVTT drops one that ends where it starts. Segments that overlap stay so.
    """
    earliest_ms = 0
    for segment in transcript.segments:
        start_ms = max(earliest_ms, _ms(segment.start))
        end_ms = max(start_ms + 1, _ms(segment.end))
        if text := _BREAKS.sub(" ", segment.text).strip():
            earliest_ms = start_ms
            yield Cue(start_ms, end_ms, text)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _span(cue: Cue, point: str) -> str:
    return f"{_clock(cue.start_ms, point)} --> {_clock(cue.end_ms, point)}"


def _clock(ms: int, point: str) -> str:
    """Return `HH:MM:SS` and the ms; always with hours, which every player reads."""
    seconds, ms = divmod(ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{point}{ms:03}"


def _txt(cues: Iterator[Cue]) -> str:
    return "".join(f"{cue.text}\n" for cue in cues)


def _srt(cues: Iterator[Cue]) -> str:
    return "".join(
        f"{number}\n{_span(cue, ',')}\n{_ARROW.sub('->', cue.text)}\n\n" for number, cue in enumerate(cues, start=1)
    )


def _vtt(cues: Iterator[Cue]) -> str:
    return "WEBVTT\n\n" + "".join(f"{_span(cue, '.')}\n{_escape(cue.text)}\n\n" for cue in cues)


def _escape(text: str) -> str:
    """Return cue text without markup; an arrow becomes `--&gt;`, which cannot end the cue."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _tsv(cues: Iterator[Cue]) -> str:
    return "start\tend\ttext\n" + "".join(f"{cue.start_ms}\t{cue.end_ms}\t{cue.text}\n" for cue in cues)


_WRITERS: Final[dict[Format, Callable[[Iterator[Cue]], str]]] = {
    "txt": _txt,
    "srt": _srt,
    "vtt": _vtt,
    "tsv": _tsv,
}
