"""What a recording decodes to, and how files that are none are refused."""

from __future__ import annotations

import errno
import io
import os
import socket
import struct
import wave
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from faster_whisper.audio import decode_audio
from numpy.typing import NDArray

from common.errors import JobError
from consumer import decode as decode_module
from consumer.decode import decode
from consumer.speech import SAMPLE_RATE_HZ
from tests.recordings import EXAMPLES, cut, sound, write_recording

MP3: dict[str, Any] = {"container": "mp3", "codec": "libmp3lame"}
VARIABLE_MP3: dict[str, Any] = MP3 | {"codec_options": {"flags": "+qscale", "global_quality": "472"}}
M4A: dict[str, Any] = {"container": "ipod", "codec": "aac", "options": {"movflags": "faststart"}}
OPUS: dict[str, Any] = {"container": "webm", "codec": "libopus", "rate": 48_000}
SECRET = "00112233445566778899aabbccddeeff"


def decoded(path: Path, max_audio_s: float = 3600) -> NDArray[np.int16]:
    scratch = io.BytesIO()
    with path.open("rb", buffering=0) as source:
        count = decode(source, scratch, max_audio_s)
    samples = np.frombuffer(scratch.getvalue(), dtype=np.int16)
    assert len(samples) == count
    return samples


def refusal(path: Path, max_audio_s: float = 3600) -> JobError:
    with pytest.raises(JobError) as caught:
        decoded(path, max_audio_s)
    assert not caught.value.retryable
    return caught.value


def assert_unreadable(path: Path, *words: str) -> None:
    error = refusal(path)
    assert error.type == "audio_unreadable"
    for word in words:
        assert word in error.detail


def assert_same_as_faster_whisper(path: Path) -> None:
    expected: NDArray[np.float32] = decode_audio(str(path))
    np.testing.assert_array_equal(decoded(path).astype(np.float32) / 32768.0, expected)


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"rate": 8_000},
        {"rate": 48_000, "channels": 2},
        {"container": "flac", "codec": "flac", "rate": 44_100, "channels": 2},
        {"container": "mp3", "codec": "libmp3lame", "rate": 44_100},
        VARIABLE_MP3,
        M4A,
        OPUS,
        OPUS | {"container": "ogg"},
        {"container": "adts", "codec": "aac"},
        {"container": "mpegts", "codec": "aac"},
        {"container": "matroska", "codec": "aac"},
        {"container": "aiff", "codec": "pcm_s16be"},
    ],
    ids=lambda form: " ".join(str(value) for value in form.values() if not isinstance(value, dict)) or "wav",
)
def test_samples_equal_those_of_faster_whisper(tmp_path: Path, form: dict[str, Any]) -> None:
    """Transcripts equal those of plain faster-whisper only if every bit of the sound does."""
    assert_same_as_faster_whisper(write_recording(tmp_path / "recording", 35, **form))


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("austen-*")), ids=lambda path: path.suffix)
def test_samples_of_the_examples_equal_those_of_faster_whisper(path: Path) -> None:
    """Real recordings carry priming, padding and tags that made-up ones lack."""
    assert_same_as_faster_whisper(path)


def test_a_twentieth_of_a_second_is_a_recording(tmp_path: Path) -> None:
    """A click is no error: it gives an empty transcript."""
    assert len(decoded(write_recording(tmp_path / "click.wav", 0.05))) == 800


def test_samples_are_written_as_they_come(tmp_path: Path) -> None:
    """Memory must not grow with the length of a recording."""
    writes: list[int] = []

    class Scratch(io.BytesIO):
        def write(self, block: Any, /) -> int:
            writes.append(len(bytes(block)))
            return super().write(block)

    with write_recording(tmp_path / "long.wav", 150).open("rb", buffering=0) as source:
        assert decode(source, Scratch(), 3600) == 150 * SAMPLE_RATE_HZ
    assert max(writes) < 1_100_000


def test_a_recording_over_the_limit_stops_while_it_decodes(tmp_path: Path) -> None:
    """A day of silence is a few megabytes of FLAC; the limit counts samples, whatever the header says."""
    path = write_recording(tmp_path / "long.flac", 200, container="flac", codec="flac")
    scratch = io.BytesIO()
    with path.open("rb", buffering=0) as source, pytest.raises(JobError) as caught:
        decode(source, scratch, 5)
    assert (caught.value.type, caught.value.retryable) == ("audio_too_long", False)
    assert "STTREAM_MAX_AUDIO_S" in caught.value.detail
    assert scratch.tell() < 40 * 2 * SAMPLE_RATE_HZ
    assert len(decoded(path, 200)) == 200 * SAMPLE_RATE_HZ


@pytest.mark.parametrize(("channels", "rate"), [(1, 1), (1, 16_777_213), (70, 16_000)])
def test_absurd_sound_is_refused_before_it_takes_memory(tmp_path: Path, channels: int, rate: int) -> None:
    """One sample a second, or channels by the thousand, turn a small file into gigabytes."""
    with wave.open(str(tmp_path / "bomb.wav"), "wb") as output:
        output.setparams((channels, 2, rate, 0, "NONE", ""))
        output.writeframes(bytes(2 * channels * 1000))
    assert_unreadable(tmp_path / "bomb.wav", f"{channels} channels at {rate} Hz")


def test_channels_in_no_known_arrangement_are_refused_in_words(tmp_path: Path) -> None:
    """FFmpeg knows how to mix up to eight channels and some more arrangements; nine are none of them."""
    with wave.open(str(tmp_path / "nine.wav"), "wb") as output:
        output.setparams((9, 2, 16_000, 0, "NONE", ""))
        output.writeframes(bytes(18 * 1000))
    assert_unreadable(tmp_path / "nine.wav", "9 channels at 16000 Hz", "cannot be mixed")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"Dear customer, your recording is attached.\n" * 50, "text"),
        ("Grüße aus Köln\n".encode() * 50, "text"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
        (np.random.default_rng(7).bytes(50_000), "none of the accepted formats"),
        (b"\xff\xfb\x90\x64" * 10_000, "none of the accepted formats"),
        (b"RIFF\x10\0\0\0WAVEfmt ", ""),
        (bytes(100_000), ""),
    ],
    ids=["empty", "text", "utf-8 text", "html", "random", "syncs only", "broken wav", "zeros"],
)
@pytest.mark.parametrize("name", ["recording.mp3", "recording"])
def test_what_is_no_recording_is_named(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    """People submit error pages, notes and half-copied files; the error says what was found."""
    (tmp_path / name).write_bytes(content)
    assert_unreadable(tmp_path / name, words)


def test_a_file_that_ends_before_its_sound_is_empty(tmp_path: Path) -> None:
    """A recorder that crashed at once leaves a header and nothing else."""
    with wave.open(str(tmp_path / "header.wav"), "wb") as output:
        output.setparams((1, 2, 16_000, 0, "NONE", ""))
    assert_unreadable(tmp_path / "header.wav", "no sound")


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://{host}/a.ts\n#EXT-X-ENDLIST\n",
    "hls of a file": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{folder}/secret.wav\n#EXT-X-ENDLIST\n",
    "hls with a key": '#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXT-X-KEY:METHOD=AES-128,URI="http://{host}/key"\n'
    "#EXTINF:9,\nfile://{folder}/secret.wav\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile secret.wav\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>'
    '<AdaptationSet mimeType="audio/mp4"><Representation id="1" bandwidth="1"><BaseURL>http://{host}/x.mp4</BaseURL>'
    "</Representation></AdaptationSet></Period></MPD>",
    "pls": "[playlist]\nFile1=http://{host}/x.mp3\nNumberOfEntries=1\n",
}


@pytest.mark.parametrize("extension", [".m3u8", ".mp3", ""])
@pytest.mark.parametrize("playlist", PLAYLISTS)
def test_a_playlist_reads_no_other_file_and_asks_no_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, playlist: str, extension: str
) -> None:
    """FFmpeg follows playlists by itself: a job could read any file of the host, or call services inside a network."""
    write_recording(tmp_path / "secret.wav", 1)
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as server:
        host = f"127.0.0.1:{server.getsockname()[1]}"
        (tmp_path / f"list{extension}").write_text(PLAYLISTS[playlist].format(host=host, folder=tmp_path))
        assert_unreadable(tmp_path / f"list{extension}", "not a recording")
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_a_video_without_sound_says_so(tmp_path: Path) -> None:
    """Screen recordings often have no sound; "index out of range" would help nobody."""
    with av.open(str(tmp_path / "mute.mp4"), "w") as output:
        stream = output.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(10):
            output.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        output.mux(stream.encode(None))
    assert_unreadable(tmp_path / "mute.mp4", "no audio track", "video")


def test_an_unknown_codec_says_so(tmp_path: Path) -> None:
    """A codec without a decoder is a matter of the file, not of this host."""
    path = write_recording(tmp_path / "odd.wav", 1)
    content = bytearray(path.read_bytes())
    content[20:22] = b"\x34\x12"  # the format tag
    path.write_bytes(content)
    assert_unreadable(path, "codec")


def test_an_encrypted_recording_says_so(tmp_path: Path) -> None:
    """Bought audio books are encrypted; they must not decode to noise."""
    options = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": SECRET, "encryption_kid": SECRET}
    path = write_recording(tmp_path / "bought.m4a", 5, container="mp4", codec="aac", options=options)
    assert_unreadable(path, "encrypted")


@pytest.mark.parametrize(
    "form",
    [
        MP3,
        VARIABLE_MP3,
        M4A,
        {},
        {"rate": 48_000, "channels": 2},
        {"container": "flac", "codec": "flac"},
        {"container": "matroska", "codec": "aac"},
    ],
    ids=["mp3", "variable mp3", "m4a", "wav", "stereo wav", "flac", "matroska"],
)
def test_a_truncated_recording_is_refused_with_both_lengths(tmp_path: Path, form: dict[str, Any]) -> None:
    """Half a copied file would give half a transcript that looks like a whole one."""
    path = cut(write_recording(tmp_path / "recording", 20, **form), 0.5)
    assert_unreadable(path, "truncated", "declares 20.", "can be read")


def test_an_m4a_without_its_index_is_refused(tmp_path: Path) -> None:
    """Most recorders write the index last: a cut file has none."""
    path = cut(write_recording(tmp_path / "cut.m4a", 10, container="ipod", codec="aac"), 0.9)
    assert_unreadable(path, "damaged")


@pytest.mark.parametrize("missing_s", [1.0, 2.5])
def test_a_little_less_than_declared_is_fine(tmp_path: Path, missing_s: float) -> None:
    """Headers round, and encoders drop their last frames."""
    path = write_recording(tmp_path / "recording.wav", 60)
    assert len(decoded(cut(path, 1 - missing_s / 60))) > 57 * SAMPLE_RATE_HZ


@pytest.mark.parametrize("tag_bytes", [0, 1 << 20], ids=["plain", "with a cover"])
def test_an_mp3_whose_length_is_only_estimated_is_fine(tmp_path: Path, tag_bytes: int) -> None:
    """Without a Xing header FFmpeg guesses the length from the first frames, and may be wrong by far."""
    parts = [
        write_recording(tmp_path / rate, 10, **MP3, options={"write_xing": "0"}, codec_options={"b": rate}).read_bytes()
        for rate in ("16k", "160k")
    ]
    tag = b"ID3\4\0\0" + bytes(tag_bytes >> shift & 127 for shift in (21, 14, 7, 0)) + bytes(tag_bytes)
    path = tmp_path / "recording.mp3"
    path.write_bytes(tag * bool(tag_bytes) + b"".join(parts))
    with av.open(str(path)) as container:
        assert container.duration is not None
        assert container.duration > 40 * av.time_base
    assert 19 < len(decoded(path)) / SAMPLE_RATE_HZ < 21


@pytest.mark.parametrize("size", [0xFFFF_FFFF, 0x7FFF_FFFF, 0x7FFF_F000, 0])
def test_a_wav_of_unknown_size_is_fine(tmp_path: Path, size: int) -> None:
    """Programs that write to a pipe cannot go back to fill in the size."""
    path = tmp_path / "piped.wav"
    header = b"RIFF" + struct.pack("<I", size) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16000, 32000, 2, 16)
    path.write_bytes(header + b"data" + struct.pack("<I", size) + sound(5).tobytes())
    assert len(decoded(path)) == 5 * SAMPLE_RATE_HZ


def test_a_recording_with_gaps_is_whole(tmp_path: Path) -> None:
    """Browsers send no packets in silence (Opus DTX): fewer samples than seconds are no truncation."""
    whole = write_recording(tmp_path / "whole.webm", 30, **OPUS)
    with av.open(str(whole)) as source, av.open(str(tmp_path / "gaps.webm"), "w") as output:
        stream = output.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(source.streams.audio[0]):
            if packet.pts is not None and not 5 < packet.pts * packet.time_base < 20:
                packet.stream = stream
                output.mux(packet)
    assert 14 < len(decoded(tmp_path / "gaps.webm")) / SAMPLE_RATE_HZ < 16


def test_sound_that_ends_before_the_picture_is_whole(tmp_path: Path) -> None:
    """Matroska declares one length for all tracks; only the picture may be that long."""
    with av.open(str(tmp_path / "video.mkv"), "w") as output:
        video = output.add_stream("mpeg4", rate=1)
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        audio = output.add_stream("pcm_s16le", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(sound(5).reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate, frame.pts = 16_000, 0
        output.mux(audio.encode(frame))
        for second in range(30):
            picture = av.VideoFrame(32, 32, "yuv420p")
            picture.pts, picture.time_base = second, Fraction(1, 1)
            output.mux(video.encode(picture))
        output.mux(video.encode(None))
    assert len(decoded(tmp_path / "video.mkv")) == 5 * SAMPLE_RATE_HZ


@pytest.mark.parametrize("form", [MP3, M4A], ids=["mp3", "m4a"])
def test_damage_in_the_middle_costs_only_the_damaged_packets(tmp_path: Path, form: dict[str, Any]) -> None:
    """faster-whisper stops at the first bad packet and drops the rest of the recording without a word."""
    path = write_recording(tmp_path / "recording", 20, **form)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = np.random.default_rng(3).bytes(2000)
    path.write_bytes(content)
    assert 19 < len(decoded(path)) / SAMPLE_RATE_HZ <= 20.1


def test_sound_that_changes_its_form_on_the_way_is_decoded(tmp_path: Path) -> None:
    """Recordings of broadcasts switch between mono and stereo; the fifo alone would read past the second channel."""
    stereo = write_recording(tmp_path / "a.mp3", 5, **MP3, channels=2, rate=44_100)
    mono = write_recording(tmp_path / "b.mp3", 5, **MP3, rate=44_100, options={"write_xing": "0"})
    (tmp_path / "both.mp3").write_bytes(stereo.read_bytes() + mono.read_bytes())
    assert 9.8 < len(decoded(tmp_path / "both.mp3")) / SAMPLE_RATE_HZ < 10.3


def write_tracks(path: Path, codecs: tuple[str, ...], default: int) -> Path:
    with av.open(str(path), "w", format="matroska") as output:
        streams = [output.add_stream(codec, rate=16_000, layout="mono") for codec in codecs]
        for position, stream in enumerate(streams):
            stream.disposition = av.stream.Disposition.default if position == default else av.stream.Disposition(0)
        for position, stream in enumerate(streams):
            samples = np.full((1, 16_000), 1000 * (position + 1), dtype=np.int16)
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate, frame.pts = 16_000, 0
            output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("default", [0, 1])
def test_of_several_tracks_the_default_one_is_heard(tmp_path: Path, default: int) -> None:
    """A film's default track is its own language; the others are comments and dubs."""
    path = write_tracks(tmp_path / "film.mkv", ("pcm_s16le", "pcm_s16le"), default)
    assert set(decoded(path)) == {1000 * (default + 1)}


def test_a_track_that_cannot_be_decoded_gives_way_to_the_next(tmp_path: Path) -> None:
    """Cameras put their own data into an extra audio track."""
    path = write_tracks(tmp_path / "film.mkv", ("flac", "pcm_s16le"), 0)
    content = path.read_bytes()
    assert content.count(b"A_FLAC") == 1
    path.write_bytes(content.replace(b"A_FLAC", b"A_DATA"))
    assert set(decoded(path)) == {2000}


def test_only_a_few_of_a_thousand_tracks_are_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each try opens the file again: a small file of tracks that cannot be decoded would take minutes."""
    opened: list[bool] = []
    monkeypatch.setattr(
        decode_module, "_open", lambda reader, real=decode_module._open: opened.append(True) or real(reader)
    )
    path = write_tracks(tmp_path / "film.mkv", ("flac",) * 12, 0)
    path.write_bytes(path.read_bytes().replace(b"A_FLAC", b"A_DATA"))
    assert_unreadable(path, "codec")
    assert len(opened) == 8


def test_a_disk_that_fails_is_not_the_recordings_fault(tmp_path: Path) -> None:
    """An I/O error in the middle must be retried, not end a job, and not look like a truncated file."""

    class FailingDisk(io.FileIO):
        def read(self, size: int | None = -1, /) -> Any:
            if self.tell() > 100_000:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().read(size)

    write_recording(tmp_path / "recording.wav", 20)
    with FailingDisk(tmp_path / "recording.wav") as source, pytest.raises(JobError) as caught:
        decode(source, io.BytesIO(), 3600)
    assert (caught.value.type, caught.value.retryable) == ("source_unreadable", True)
