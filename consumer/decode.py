"""Decode a recording to 16 kHz mono samples, without trusting it.

Runs inside a child process of the prepare pool. The samples of an undamaged file equal those of
`faster_whisper.audio.decode_audio` bit by bit, but they go straight to a scratch file, so memory does not grow with
length.
"""

from __future__ import annotations

import codecs
import io
import os
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import av
from av.audio.fifo import AudioFifo
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Disposition

from common.errors import JobError
from consumer.speech import SAMPLE_RATE_HZ
from consumer.truncation import Declared, Heard, check_whole

# Formats that hold sound themselves. Left out are those that name other files or addresses (hls, concat, dash, sdp) and
# those that are devices, pictures, text or raw bytes. With both options FFmpeg opens nothing but the file it is given.
FORMATS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dts,eac3,flac,flv,matroska,mov,mp3,mpeg,mpegts,nistsphere,ogg,"
    "tta,voc,w64,wav,wv"
)
_SAFE = {"format_whitelist": FORMATS, "protocol_whitelist": ""}

# As decode_audio does: the resampler gets blocks of at least so many samples.
_BLOCK_SAMPLES = 500_000
# No recording has less; one sample a second would turn a block of a megabyte into gigabytes.
_LOWEST_RATE_HZ = 1_000
# Nor more; the resampler's filter grows with the rate, to 0.2 GB at 16 MHz.
_HIGHEST_RATE_HZ = 1_000_000
# What libswresample can mix; thousands of channels would make a block of gigabytes.
_MOST_CHANNELS = 64

# Tracks tried until one can be decoded; each try opens the file again, and a file of a thousand tracks opens slowly.
_MOST_TRACKS = 8

# How playlists and other texts begin, to name them in the error.
_BEGINNINGS = (
    (b"#EXTM3U", "an M3U or HLS playlist"),
    (b"ffconcat", "a concat playlist"),
    (b"[playlist]", "a PLS playlist"),
    (b"v=0", "a session description (SDP)"),
    (b"<", "an XML or HTML document"),
)


class _NothingHeard(JobError):
    """The track cannot be decoded at all; another track may."""

    def __init__(self, detail: str) -> None:
        super().__init__("audio_unreadable", detail)


class _Reader:
    """The source as FFmpeg sees it: without a name; an I/O error is kept, since PyAV may drop it."""

    def __init__(self, source: io.FileIO) -> None:
        self._source = source
        self.failure: OSError | None = None

    def fileno(self) -> int:
        return self._source.fileno()

    def read(self, size: int) -> bytes | None:
        try:
            return self._source.read(size)
        except OSError as exc:
            self.failure = exc
            raise

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return self._source.seek(offset, whence)
        except OSError:
            return -1  # damaged files lead before their start; FFmpeg takes it as "cannot"

    def tell(self) -> int:
        return self._source.tell()


def decode(source: io.FileIO, scratch: BinaryIO, max_audio_s: float) -> int:
    """Write the sound of a recording as 16 kHz mono samples.

    The default audio track is taken, else the first one; the next one when nothing of it can be decoded. Packets that
    are damaged are skipped (decode_audio stops at the first one, without a word).

    Args:
        source: a regular file; its name is not used.
        scratch: gets native int16 samples, from its current position on.
        max_audio_s: counted on the samples that come out, not on what the header says.

    Returns:
        The number of samples written, at least 1.

    Raises:
        JobError: `audio_unreadable` or `audio_too_long`; `source_unreadable` (retryable) when reading fails.
        OSError: the scratch file cannot be written.
    """
    reader = _Reader(source)
    try:
        return _decode_first_that_can(reader, scratch, max_audio_s)
    except FFmpegError as exc:
        raise JobError("audio_unreadable", f"the recording cannot be decoded: {_words(exc)}") from exc
    finally:
        # Whatever else was concluded from a failed read is wrong.
        if reader.failure is not None:
            detail = f"reading the file failed: {reader.failure.strerror}. Tried again later."
            raise JobError("source_unreadable", detail, retryable=True) from reader.failure


def _decode_first_that_can(reader: _Reader, scratch: BinaryIO, max_audio_s: float) -> int:
    """Decode the first track that can be decoded, each from a fresh start of the file."""
    tried = 0
    while True:
        with _open(reader) as container:
            tracks = _tracks(container)
            try:
                return _decode_track(container, tracks[tried], reader, scratch, max_audio_s)
            except _NothingHeard:
                tried += 1
                if tried >= len(tracks):
                    raise


def _open(reader: _Reader) -> InputContainer:
    reader.seek(0)
    try:
        return av.open(reader, "r", options=_SAFE, metadata_errors="ignore")
    except FFmpegError as exc:
        raise JobError("audio_unreadable", f"not a recording: {_looks_like(reader)} ({_words(exc)})") from exc


def _looks_like(reader: _Reader) -> str:
    head = os.pread(reader.fileno(), 4096, 0)
    if not head:
        return "the file is empty"
    for beginning, name in _BEGINNINGS:
        if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(beginning):
            return f"the file is {name}"
    if _is_text(head):
        return "the file is text"
    return "the file is in none of the accepted formats, or damaged at its start"


def _is_text(head: bytes) -> bool:
    """Whether these bytes are UTF-8 without control characters; the last character may be cut."""
    try:
        text, _ = codecs.utf_8_decode(head)
    except UnicodeDecodeError:
        return False
    return all(letter >= " " or letter in "\t\n\r\f" for letter in text)


def _tracks(container: InputContainer) -> list[int]:
    """Return the stream indexes of the audio tracks to try, the default one first."""
    tracks = sorted(container.streams.audio, key=lambda stream: not stream.disposition & Disposition.default)
    if not tracks:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise JobError("audio_unreadable", f"the file has no audio track (found {kinds})")
    return [stream.index for stream in tracks[:_MOST_TRACKS]]


def _decode_track(container: InputContainer, track: int, reader: _Reader, scratch: BinaryIO, max_audio_s: float) -> int:
    stream = container.streams[track]
    # PyAV gives no codec context, whatever its types say, when FFmpeg has no decoder.
    if not isinstance(stream, AudioStream) or getattr(stream, "codec_context", None) is None:
        raise _NothingHeard("the sound is in a codec that is not known here")
    stream.codec_context.thread_count = 1
    declared, heard = Declared.of(container, stream), Heard()
    samples = 0
    for frame in _resampled(_blocks(_frames(container, stream, heard))):
        samples += frame.samples
        if samples > max_audio_s * SAMPLE_RATE_HZ:
            raise JobError(
                "audio_too_long", f"the recording is longer than the limit of {max_audio_s:g} s (STTREAM_MAX_AUDIO_S)"
            )
        scratch.write(frame.to_ndarray().data)
    if not samples:
        raise _nothing_heard(stream.codec_context.name, heard)
    check_whole(declared, heard, reader.fileno())
    return samples


def _frames(container: InputContainer, stream: AudioStream, heard: Heard) -> Iterator[AudioFrame]:
    """Yield the decoded frames and note in `heard` how far they reach."""
    start_s = float((stream.start_time or 0) * stream.time_base) if stream.time_base else 0.0
    for packet in _packets(container, stream, heard):
        if heard.first_byte is None:
            heard.first_byte = packet.pos
            if packet.has_sidedata("encryption_info"):
                raise _NothingHeard(f"the sound ({stream.codec_context.name}) is encrypted")
        try:
            frames = stream.decode(packet)
        except FFmpegError as exc:
            heard.note(exc)
            continue
        for frame in frames:
            length_s = frame.samples / max(frame.sample_rate, 1)  # 0 is refused further on
            heard.decoded_s += length_s
            if frame.time is not None:
                heard.end_s = max(heard.end_s, frame.time - start_s + length_s)
            yield frame


def _packets(container: InputContainer, stream: AudioStream, heard: Heard) -> Iterator[Packet[AudioStream]]:
    """Yield the packets of a track; a file that cannot be read further ends there."""
    try:
        yield from container.demux(stream)
    except FFmpegError as exc:
        heard.note(exc)
    except IndexError:
        return  # at the end, PyAV stumbles over tracks that appeared on the way (MPEG-TS does that)


def _blocks(frames: Iterable[AudioFrame]) -> Iterator[AudioFrame]:
    """Join frames to blocks of one form of sound each; the fifo itself does not check the number of channels."""
    fifo = AudioFifo()
    form: tuple[str, str, int] | None = None
    for frame in frames:
        frame.pts = None  # damaged packets leave gaps, which the fifo would refuse
        if form != _form(frame):
            _check_form(frame)
            yield from _drained(fifo)
            fifo, form = AudioFifo(), _form(frame)
        fifo.write(frame)
        if fifo.samples >= _BLOCK_SAMPLES:
            yield from _drained(fifo)
    yield from _drained(fifo)


def _drained(fifo: AudioFifo) -> Iterator[AudioFrame]:
    block = fifo.read()
    if block is not None:
        yield block


def _resampled(blocks: Iterable[AudioFrame]) -> Iterator[AudioFrame]:
    """Yield 16 kHz mono int16 frames; a recording that changes its form on the way gets a new resampler."""
    resampler: AudioResampler | None = None
    form: tuple[str, str, int] | None = None
    for block in blocks:
        if resampler is None or form != _form(block):
            yield from _flushed(resampler)
            resampler, form = AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE_HZ), _form(block)
        yield from _resample(resampler, block)
    yield from _flushed(resampler)


def _resample(resampler: AudioResampler, block: AudioFrame) -> list[AudioFrame]:
    try:
        return resampler.resample(block)
    except FFmpegError as exc:
        # Nine channels, or more than 24, have no known arrangement.
        raise JobError(
            "audio_unreadable", f"the sound ({_sound(block)}) cannot be mixed to one channel: {_words(exc)}"
        ) from exc


def _flushed(resampler: AudioResampler | None) -> Iterator[AudioFrame]:
    # A resampler with nothing to do hands back the None that flushes it, whatever its types say.
    frames: list[AudioFrame | None] = [*resampler.resample(None)] if resampler else []
    yield from (frame for frame in frames if frame is not None)


def _form(frame: AudioFrame) -> tuple[str, str, int]:
    return frame.format.name, frame.layout.name, frame.sample_rate


def _check_form(frame: AudioFrame) -> None:
    rate_fits = _LOWEST_RATE_HZ <= frame.sample_rate <= _HIGHEST_RATE_HZ
    if not rate_fits or frame.layout.nb_channels > _MOST_CHANNELS:
        raise JobError(
            "audio_unreadable",
            f"the sound has {_sound(frame)}; "
            f"expected up to {_MOST_CHANNELS} channels at {_LOWEST_RATE_HZ} to {_HIGHEST_RATE_HZ} Hz",
        )


def _sound(frame: AudioFrame) -> str:
    return f"{frame.layout.nb_channels} channels at {frame.sample_rate} Hz"


def _nothing_heard(codec: str, heard: Heard) -> _NothingHeard:
    if heard.problem is not None:
        return _NothingHeard(
            f"nothing of the sound ({codec}) can be decoded: all of {heard.damaged_packets} packets are damaged "
            f"({_words(heard.problem)})"
        )
    return _NothingHeard(f"the file holds no sound: its audio track ({codec}) is empty")


def _words(exc: FFmpegError) -> str:
    return exc.strerror or type(exc).__name__
