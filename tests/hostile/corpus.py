"""Some hundred hostile files, the same ones for the same seed, made from one example clip."""

from __future__ import annotations

import functools
import os
import random
import socket
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from urllib.parse import quote_from_bytes

import av
import numpy as np
from numpy.typing import NDArray

from tests.hostile import forgeries
from tests.hostile.forgeries import riff, wav_format
from tests.recordings import EXAMPLES

COMPLETED, FAILED, REFUSED = "completed", "failed", "refused"
ANY = frozenset({COMPLETED, FAILED})
# The neighbour that playlists point at says these words; nothing else in the corpus does.
NEIGHBOUR = EXAMPLES / "austen-4-amiable-woman.m4a"
NEIGHBOUR_WORDS = frozenset({"amiable", "woman", "married", "respectable"})
_CLIP = EXAMPLES / "austen-2-young-man.wav"

# No dates and random ids.
_BITEXACT = {"fflags": "+bitexact"}
# Container, codec, rate: what people submit, and what FFmpeg reads beside it.
_FORMS = {
    "wav": ("wav", "pcm_s16le", 16_000),
    "flac": ("flac", "flac", 16_000),
    "mp3": ("mp3", "libmp3lame", 16_000),
    "opus": ("ogg", "libopus", 48_000),
    "m4a": ("ipod", "aac", 16_000),
    "webm": ("webm", "libopus", 48_000),
    "amr": ("amr", "libopencore_amrnb", 8_000),
    "aac": ("adts", "aac", 16_000),
    "ts": ("mpegts", "aac", 16_000),
    "mka": ("matroska", "pcm_s16le", 16_000),
    "aiff": ("aiff", "pcm_s16be", 16_000),
    "caf": ("caf", "alac", 16_000),
    "flv": ("flv", "libmp3lame", 22_050),
    "avi": ("avi", "adpcm_ms", 16_000),
    "wv": ("wv", "wavpack", 16_000),
    "mpg": ("mpeg", "mp2", 44_100),
}
# The others are too quiet for anybody to be heard: what a decoder makes of them is what counts here, and a model that
# transcribes them all would take most of the time.
_HEARD = ("wav", "flac", "mp3", "opus", "m4a", "webm")


@dataclass(frozen=True, slots=True)
class HostileFile:
    """One source to submit, and the ends that are right for it."""

    path: Path
    kind: str
    ends: frozenset[str] = ANY

    @property
    def source(self) -> str:
        """As a path where JSON can say it, else as a URL, which can say any bytes."""
        try:
            return os.fsencode(self.path).decode()
        except UnicodeDecodeError:
            return "file://" + quote_from_bytes(os.fsencode(self.path))


def make_corpus(folder: Path, seed: int, *, port: int = 9) -> list[HostileFile]:
    """Make the files below `folder / "audio"`, the root of the service; nothing beside it may be read.

    Args:
        folder: empty, and so that no process is left that holds a fifo or socket of it.
        seed: of every choice.
        port: where playlists point; nobody may connect there.
    """
    rng = random.Random(seed)
    root = folder / "audio"
    root.mkdir()
    quiet = {name: _encoded(folder / "clip", name, volume=0.002) for name in _FORMS}
    clips = quiet | {name: _encoded(folder / "clip", name, volume=1.0) for name in _HEARD}
    (folder / "clip").unlink()
    pcm = quiet["wav"][44:32_044]
    neighbour = root / "neighbour.wav"
    _write(neighbour, _speech(NEIGHBOUR), ("wav", "pcm_s16le", 16_000))
    forged = {
        ("truncated", ANY): _truncated(clips, rng),
        ("bits flipped", ANY): _flipped(clips, rng),
        ("pieces moved", ANY): _shuffled(clips, rng),
        ("lying wav", ANY): forgeries.lying_wavs(pcm),
        ("lying header", ANY): forgeries.lying_headers(quiet, pcm),
        ("lying mp4", ANY): forgeries.lying_mp4s(quiet["m4a"]),
        ("bomb", ANY): forgeries.bombs(),
        ("huge metadata", ANY): forgeries.huge_metadata(quiet),
        ("playlist", frozenset({FAILED})): forgeries.playlists(os.fspath(neighbour), port),
        ("no recording", frozenset({FAILED})): forgeries.other_things(rng),
        ("noise", ANY): forgeries.noise_behind_a_start(rng),
        ("absurd samples", ANY): _absurd_samples(),
        ("odd name", frozenset({COMPLETED})): _odd_names(),
    }
    corpus = [
        file
        for (kind, ends), files in forged.items()
        for file in _laid(root / kind.replace(" ", "-"), kind, files, ends)
    ]
    return [*corpus, *_written_by_ffmpeg(root / "tracks"), *_not_files(root, folder), *_elsewhere(root, port)]


def _laid(folder: Path, kind: str, files: forgeries.Forged, ends: frozenset[str]) -> Iterator[HostileFile]:
    folder.mkdir()
    for name, content in files:
        path = folder / name
        path.write_bytes(content)
        yield HostileFile(path, kind, ends)


@functools.cache
def _speech(clip: Path) -> NDArray[np.int16]:
    from faster_whisper import decode_audio

    return (decode_audio(os.fspath(clip)) * 32767).astype(np.int16)


def _encoded(scratch: Path, form: str, volume: float) -> bytes:
    _write(scratch, (_speech(_CLIP) * volume).astype(np.int16), _FORMS[form])
    return scratch.read_bytes()


def _write(path: Path, speech: NDArray[np.int16], form: tuple[str, str, int]) -> None:
    """Encode 16 kHz speech."""
    container, codec, rate = form
    samples = np.interp(np.arange(0, len(speech), 16_000 / rate), np.arange(len(speech)), speech).astype(np.int16)
    with av.open(os.fspath(path), "w", format=container, options=_BITEXACT) as output:
        stream = output.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        fifo = av.AudioFifo()
        fifo.write(frame)
        for piece in fifo.read_many(8_192, partial=True):
            output.mux(stream.encode(piece))
        output.mux(stream.encode(None))


def _truncated(clips: dict[str, bytes], rng: random.Random) -> forgeries.Forged:
    for name, content in clips.items():
        for share in (0.02, rng.choice((0.3, 0.6, 0.9))):
            size = max(1, int(len(content) * share) + rng.randrange(-8, 8))
            yield f"{size}.{name}", content[:size]
        yield f"head-missing.{name}", content[rng.randrange(16, 400) :]


def _flipped(clips: dict[str, bytes], rng: random.Random) -> forgeries.Forged:
    for name, content in clips.items():
        for number, (within, flips) in enumerate(((64, 2), (512, 8), (len(content), rng.choice((20, 2_000))))):
            damaged = bytearray(content)
            for _ in range(flips):
                damaged[rng.randrange(min(within, len(content)))] ^= 1 << rng.randrange(8)
            yield f"{number}.{name}", bytes(damaged)


def _shuffled(clips: dict[str, bytes], rng: random.Random) -> forgeries.Forged:
    for name, content in clips.items():
        # Two pieces change places, or the rest is another file's.
        at = sorted(rng.randrange(len(content)) for _ in range(3))
        swapped = content[: at[0]] + content[at[1] : at[2]] + content[at[0] : at[1]] + content[at[2] :]
        joined = content[: at[2]] + rng.choice([clip for form, clip in clips.items() if form != name])
        yield name, rng.choice((swapped, joined))


def _absurd_samples() -> forgeries.Forged:
    """Yield floats that are no numbers, and sound of one sample."""
    for name, value in (("nan", np.nan), ("infinite", np.inf), ("huge", 1e38), ("tiny", 1e-42)):
        samples = np.full(16_000, value, dtype="<f4").tobytes()
        yield f"{name}.wav", riff(wav_format(tag=3, bits=32, align=4, byte_rate=64_000), (b"data", samples))
    for count in (1, 2, 511, 513):
        yield f"{count}-samples.wav", riff(wav_format(), (b"data", b"\xff\x7f" * count))
    yield "square.wav", riff(wav_format(), (b"data", (b"\xff\x7f" * 80 + b"\0\x80" * 80) * 100))


def _odd_names() -> forgeries.Forged:
    sound = riff(wav_format(), (b"data", bytes(16_000)))
    for name in (
        *(
            "new\nline.wav",
            "tab\tand\x1b[31mred.wav",
            "'quotes' \"and\" `ticks`.wav",
            "-rf.wav",
            "--help",
            "a b  c .wav",
        ),
        *("%2e%2e%2fetc.wav", "..wav", "...", "*?[a].wav", "$(reboot);.wav", "back\\slash.wav", "C:\\con.wav", "http:"),
        *(
            "\u202egnp.wav",
            "zero\u200bwidth.wav",
            "😀.wav",
            unicodedata.normalize("NFC", "Köln.wav"),
            "{}.wav",
            "#?.wav",
        ),
        *(unicodedata.normalize("NFD", "Ångström.wav"), "n" * 251 + ".wav", "caf\udce9.wav", "\udcff\udcfe", "\x7f"),
    ):
        yield name, sound


def _written_by_ffmpeg(folder: Path) -> Iterator[HostileFile]:
    """Yield files without sound, and with more tracks than any film has."""
    folder.mkdir()
    none = frozenset({FAILED})
    for name in ("video.mp4", "video.mkv", "video.webm.wav"):
        _write_video(folder / name)
        yield HostileFile(folder / name, "no sound", none)
    for count, codec in ((200, "pcm_s16le"), (900, "pcm_s16le"), (900, "A_UNKNOWN")):
        path = folder / f"tracks-{count}-{codec}.mka"
        _write_tracks(path, count)
        if codec == "A_UNKNOWN":
            path.write_bytes(path.read_bytes().replace(b"A_PCM/INT/LIT", b"A_UNKNOWN/LIT"))
        yield HostileFile(path, "many tracks", none if codec == "A_UNKNOWN" else ANY)


def _write_video(path: Path) -> None:
    container = "mp4" if path.suffix == ".mp4" else "matroska"
    with av.open(os.fspath(path), "w", format=container, options=_BITEXACT) as output:
        stream = output.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(10):
            picture = av.VideoFrame.from_ndarray(np.zeros((48, 32), dtype=np.uint8), format="yuv420p")
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))


def _write_tracks(path: Path, count: int) -> None:
    with av.open(os.fspath(path), "w", format="matroska", options=_BITEXACT) as output:
        streams = [output.add_stream("pcm_s16le", rate=16_000, layout="mono") for _ in range(count)]
        for stream in streams:
            packet = av.Packet(bytes(3_200))
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, 0, 0, Fraction(1, 16_000)
            output.mux(packet)


def _not_files(root: Path, folder: Path) -> Iterator[HostileFile]:
    """Yield what has a name and is no file, and links that lead out or nowhere."""
    odd = root / "not-files"
    odd.mkdir()
    (folder / "outside.wav").write_bytes(riff(wav_format(), (b"data", bytes(16_000))))
    os.mkfifo(odd / "fifo.wav")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(odd / "socket.wav")) if len(os.fspath(odd)) < 90 else (odd / "socket.wav").mkdir()
    (odd / "folder.wav").mkdir()
    links: Iterable[tuple[str, str | Path]] = (
        *(("out.wav", folder / "outside.wav"), ("loop.wav", "loop.wav"), ("nowhere.wav", "missing.wav")),
        *(("zero.wav", "/dev/zero"), ("up.wav", "../../outside.wav"), ("input.wav", "/dev/stdin"), ("root.wav", "/")),
        *(("environ.wav", "/proc/self/environ"), ("memory.wav", "/proc/self/mem")),
    )
    for name, target in links:
        (odd / name).symlink_to(target)
    for path in sorted(odd.iterdir()):
        yield HostileFile(path, "no file", frozenset({REFUSED}))
    (odd / "within.wav").symlink_to(root / "odd-name" / "#?.wav")
    yield HostileFile(odd / "within.wav", "link within", frozenset({COMPLETED}))
    for name, size, ends in (
        ("huge", 1 << 34, {REFUSED}),
        ("zeros", 200_000_000, {FAILED}),
        ("silence", 300_000_000, {FAILED}),
    ):
        head = riff(wav_format(), size=0)[:36] + b"data" + b"\xff" * 4 if name == "silence" else b""
        (odd / name).write_bytes(head)
        os.truncate(odd / name, size)
        yield HostileFile(odd / name, "sparse", frozenset(ends))


def _elsewhere(root: Path, port: int) -> Iterator[HostileFile]:
    """Yield places that a source must not reach, by its text alone."""
    for place in ("/etc/passwd", "/proc/self/environ", "/dev/zero", f"{root}/../outside.wav", f"{root}/missing.wav"):
        yield HostileFile(Path(place), "elsewhere", frozenset({REFUSED}))
    yield HostileFile(Path(f"{root}/a/../../outside.wav"), "elsewhere", frozenset({REFUSED}))
    yield HostileFile(Path(f"concat:{root}/neighbour.wav|http://127.0.0.1:{port}/"), "elsewhere", frozenset({REFUSED}))
