"""Tell a recording that was cut off from one that is whole.

FFmpeg decodes what is there and does not say that something is missing, so the length that the file declares is
compared with the length that came out. Good files must never be refused: a declared length counts only where the file
itself states it.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError

from common.errors import JobError

# A recording is truncated when it ends this much before the time that it declares, by both measures.
_MISSING_S = 2.0
_MISSING_SHARE = 0.05
# Formats whose header or index says how long the recording is. Others (ogg, mpegts, aac, amr) are measured by FFmpeg
# from the bytes that are there, so that a cut cannot be seen.
_DECLARING = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "flac", "matroska,webm", "mp3", "aiff", "au", "asf"})
# Sizes from here on are what programs write into a wav header when they do not know the size yet.
_WAV_SIZE_UNKNOWN = 0x7FFF_0000


@dataclass(slots=True)
class Heard:
    """How far the decoder came in one track."""

    end_s: float = 0.0
    """Where the last frame ends, counted from the start of the track; 0 when the format has no times."""
    decoded_s: float = 0.0
    first_byte: int | None = None
    """Where the sound starts in the file."""
    damaged_packets: int = 0
    problem: FFmpegError | None = None
    """The last one; the packet was skipped."""

    def note(self, problem: FFmpegError) -> None:
        """Count a packet that could not be read or decoded."""
        self.damaged_packets += 1
        self.problem = problem

    @property
    def reached_s(self) -> float:
        """How far the recording reaches.

        By the time of the last frame where there is one: a recorder that sends nothing in silence (Opus DTX) leaves
        fewer samples than seconds, and the recording is whole all the same.
        """
        return max(self.end_s, self.decoded_s)


@dataclass(frozen=True, slots=True)
class Declared:
    """What a file says of one track, read before decoding changes it."""

    format: str
    length_s: float | None
    bit_rate: int | None

    @classmethod
    def of(cls, container: InputContainer, stream: AudioStream) -> Declared:
        """Read what the container says."""
        name = container.format.name
        length_s = _stated_s(container, stream) if name in _DECLARING else None
        return cls(name, length_s, stream.codec_context.bit_rate)


def check_whole(declared: Declared, heard: Heard, fd: int) -> None:
    """Refuse a recording that was cut off.

    Raises:
        JobError: `audio_unreadable`, naming both lengths.
    """
    expected_s = _expected_s(declared, heard.first_byte, fd)
    if expected_s is None or expected_s - heard.reached_s <= max(_MISSING_S, _MISSING_SHARE * expected_s):
        return
    damage = f"; {heard.damaged_packets} packets are damaged" if heard.damaged_packets else ""
    raise JobError(
        "audio_unreadable",
        f"the file is truncated or damaged: it declares {expected_s:.1f} s of sound, and {heard.reached_s:.1f} s "
        f"can be read{damage}",
    )


def _stated_s(container: InputContainer, stream: AudioStream) -> float | None:
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    # Matroska gives one duration for all its tracks; with a video beside it the sound may well end earlier.
    if container.duration is not None and len(container.streams) == 1:
        return container.duration / av.time_base
    return None


def _expected_s(declared: Declared, first_byte: int | None, fd: int) -> float | None:
    """Return the declared length, None where it is FFmpeg's own estimate."""
    if not declared.bit_rate or first_byte is None or first_byte < 0:
        return declared.length_s
    if declared.format == "wav":
        return _stated_by_wav_s(fd, first_byte, declared.bit_rate)
    # Without a stated length (mp3 without a Xing header) FFmpeg divides the size by the bit rate. That is wrong for a
    # variable bit rate, and says nothing about a cut.
    estimate_s = (os.fstat(fd).st_size - first_byte) * 8 / declared.bit_rate
    if declared.length_s is not None and abs(declared.length_s - estimate_s) <= 0.02 * declared.length_s:
        return None
    return declared.length_s


def _stated_by_wav_s(fd: int, first_byte: int, bit_rate: int) -> float | None:
    """Return the length by the header of a wav's data chunk; FFmpeg corrects it silently when the file is shorter."""
    header = os.pread(fd, 8, first_byte - 8) if first_byte >= 8 else b""
    if len(header) < 8 or not header.startswith(b"data"):
        return None
    (size,) = struct.unpack("<I", header[4:])
    return size * 8 / bit_rate if size < _WAV_SIZE_UNKNOWN else None
