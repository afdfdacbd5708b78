"""Hostile files made byte by byte: what no encoder writes.

Each function yields names and contents. Sizes stay under a few megabytes: what is huge is what a reader makes of them.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from fractions import Fraction
from itertools import product

Forged = Iterator[tuple[str, bytes]]

DAY_S = 86_400
U16, U32, U64 = 0xFFFF, 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF


def riff(*chunks: tuple[bytes, bytes], form: bytes = b"WAVE", size: int | None = None) -> bytes:
    """Return a RIFF file of chunks, whose size may be a lie."""
    body = form + b"".join(name + struct.pack("<I", len(content)) + content for name, content in chunks)
    return b"RIFF" + struct.pack("<I", len(body) if size is None else size) + body


def wav_format(  # each parameter is a field to lie in
    *, tag: int = 1, channels: int = 1, rate: int = 16_000, byte_rate: int = 32_000, align: int = 2, bits: int = 16
) -> tuple[bytes, bytes]:
    """Return a wav's format chunk."""
    return b"fmt ", struct.pack("<HHIIHH", tag, channels, rate, byte_rate, align, bits)


def lying_wavs(pcm: bytes) -> Forged:
    """Yield wavs whose header does not describe their samples."""
    lies = [
        *({"rate": rate} for rate in (0, 1, 999, 1_000_001, 4_000_000_000, U32)),
        *({"channels": channels} for channels in (0, 64, 65, 255, U16)),
        *({"channels": channels, "align": 2 * channels % 65_536} for channels in (64, 255, 32_767)),
        *({"bits": bits} for bits in (0, 1, 7, 24, 64, 255, U16)),
        *({"align": align} for align in (0, 1, 3, U16)),
        *({"byte_rate": byte_rate} for byte_rate in (0, 1, U32)),
        *({"tag": tag} for tag in (0, 2, 0x11, 0x31, 0x45, 0x55, 0x0160, 0x1234, 0xFFFE, U16)),
        {"rate": U32, "channels": U16, "bits": U16, "align": U16, "byte_rate": U32},
    ]
    for lie in lies:
        name = "-".join(f"{field}-{value}" for field, value in lie.items())
        yield f"{name}.wav", riff(wav_format(**lie), (b"data", pcm))
    whole = riff(wav_format(), (b"data", pcm))
    for size in (0, 1, 0x7FFF_0000, 0x7FFF_FFFF, U32):
        yield f"riff-size-{size}.wav", whole[:4] + struct.pack("<I", size) + whole[8:]
        yield f"data-size-{size}.wav", whole[:40] + struct.pack("<I", size) + whole[44:]
        yield f"format-size-{size}.wav", whole[:16] + struct.pack("<I", size) + whole[20:]
    yield "no-format.wav", riff((b"data", pcm))
    yield "two-formats.wav", riff(wav_format(), wav_format(rate=U32, channels=U16), (b"data", pcm))
    yield "data-before-format.wav", riff((b"data", pcm), wav_format())
    yield "odd-size.wav", riff(wav_format(), (b"data", pcm[:-1]))
    yield "rf64.wav", b"RF64" + whole[4:12] + b"ds64" + struct.pack("<IQQQI", 28, U64, U64, U64, U32) + whole[12:]


def lying_headers(clips: dict[str, bytes], pcm: bytes) -> Forged:
    """Yield clips of other formats in whose headers one field is absurd."""
    for rate, channels, offset in ((0, 1, 32), (U32, 1, 32), (16_000, 0, 32), (16_000, U32, 32), (16_000, 1, U32)):
        header = b".snd" + struct.pack(">5I", offset, U32, 3, rate, channels)
        yield f"rate-{rate}-channels-{channels}-offset-{offset}.au", header + bytes(8) + pcm
    for name, rate in (("zero", b""), ("infinite", b"\x7f\xff\x80"), ("nan", b"\x7f\xff\xc0"), ("tiny", b"\0\1\x80")):
        common = b"COMM" + struct.pack(">IhIh", 18, 1, U32, 16) + rate.ljust(10, b"\0")
        body = b"AIFF" + common + b"SSND" + struct.pack(">III", len(pcm) + 8, 0, 0) + pcm
        yield f"rate-{name}.aiff", b"FORM" + struct.pack(">I", len(body)) + body
    for name, rate in (("zero", 0.0), ("infinite", float("inf")), ("nan", float("nan")), ("negative", -1.0)):
        description = struct.pack(">d4sIIIII", rate, b"lpcm", 0, 2, 1, 1, 16)
        yield (
            f"rate-{name}.caf",
            b"caff\0\1\0\0desc"
            + struct.pack(">Q", 32)
            + description
            + b"data"
            + struct.pack(">q", -1)
            + bytes(4)
            + pcm,
        )
    for packet, frames, channels in ((0, 0, 1), (U32, U32, 1), (2, 1, U32)):
        description = struct.pack(">d4sIIIII", 16_000.0, b"lpcm", 0, packet, frames, channels, 16)
        yield (
            f"packet-{packet}-channels-{channels}.caf",
            b"caff\0\1\0\0desc" + struct.pack(">Q", 32) + description + b"data" + struct.pack(">Q", 2**63 - 1) + pcm,
        )
    flac = clips["flac"]
    for name, start, content in (
        ("samples-2^36", 21, b"\xff\xff\xff\xff\xff"),
        ("rate-0", 18, b"\0\0\x0f"),
        ("rate-1048575", 18, b"\xff\xff\xff"),
        ("blocks-of-0", 8, bytes(4)),
        ("blocks-of-65535", 8, b"\xff\xff\xff\xff"),
        ("block-length", 5, b"\xff\xff\xff"),
    ):
        yield f"{name}.flac", flac[:start] + content + flac[start + len(content) :]
    yield "granules.ogg", _each(clips["opus"], b"OggS\0", lambda page: page[:6] + b"\xff" * 8 + page[14:])
    yield (
        "serials.ogg",
        _each(clips["opus"], b"OggS\0", lambda page: page[:14] + random.Random(page).randbytes(4) + page[18:]),
    )
    yield "segments.ogg", _each(clips["opus"], b"OggS\0", lambda page: page[:26] + b"\xff" + page[27:])
    for size in (0, 1, U32):
        yield (
            f"voc-{size}.voc",
            b"Creative Voice File\x1a\x1a\0\x0a\x01\x29\x11" + (b"\1" + bytes([size & 255] * 3)) * 9,
        )
        yield f"amr-{size}.amr", b"#!AMR\n" + bytes([size & 255]) * 5_000


def _each(content: bytes, mark: bytes, change: object) -> bytes:
    first, *pieces = content.split(mark)
    return first + b"".join(change(mark + piece) for piece in pieces)  # type: ignore[operator]


def atom(name: bytes, content: bytes, size: int | None = None) -> bytes:
    """Return an MP4 atom, whose size may be a lie."""
    return struct.pack(">I", len(content) + 8 if size is None else size) + name + content


def lying_mp4s(whole: bytes) -> Forged:
    """Yield m4a files in which one field of the index is absurd."""
    for name, field, absurd in (
        *product((b"mvhd", b"mdhd"), (12,), (bytes(4), b"\xff" * 4)),  # units a second
        *product((b"mvhd", b"mdhd"), (16,), (b"\x7f" + b"\xff" * 3, b"\xff" * 4)),  # duration
        *product((b"stts", b"stsz", b"stsc", b"stco", b"stsd"), (4, 8), (b"\x0f" + b"\xff" * 3,)),
        *product((b"mp4a",), (16, 20, 24), (b"\xff" * 4, bytes(4))),  # channels, bits, rate
        *product((b"moov", b"trak", b"stbl", b"mdat", b"esds"), (-4,), (bytes(4), b"\0\0\0\1", b"\xff" * 4)),
        *product((b"elst",), (4, 8, 12), (b"\xff" * 4,)),
    ):
        at = whole.find(name)
        if at >= 0:
            start = at + 4 + (field if field >= 0 else -8)
            yield f"{name.decode()}-{field}-{absurd.hex()}.m4a", whole[:start] + absurd + whole[start + 4 :]
    head = atom(b"ftyp", b"M4A \0\0\2\0isomiso2")
    nest = b""
    for _ in range(4_000):
        nest = atom(b"moov", nest)
    yield "nested-4000.m4a", head + nest
    yield "tracks-60000.m4a", head + atom(b"moov", atom(b"trak", b"") * 60_000)
    yield "atoms-500000.m4a", head + atom(b"free", b"") * 500_000 + whole[len(head) :]
    # The sound lies in another file, FFmpeg's `enable_drefs`.
    at = whole.find(b"url \0\0\0\1")
    outside = b"url \0\0\0\0" + b"neighbour.wav\0"
    yield "reference.m4a", whole[: at - 4] + struct.pack(">I", len(outside) + 4) + outside + whole[at + 8 :]


def bombs() -> Forged:
    """Yield small files of a day of sound, and streams that do not end."""
    yield "a-day.amr", b"#!AMR\n" + b"\x7c" * (DAY_S * 50)  # a frame of 20 ms in one byte: nothing was sent
    yield "a-day.ogg", _a_day_of_opus()
    yield "junk-chunks.wav", riff(wav_format(), *[(b"junk", b"")] * 300_000)
    yield "junk-lists.wav", riff(wav_format(), *[(b"LIST", b"INFO")] * 100_000, (b"data", bytes(3_200)))
    yield "starts.ogg", b"".join(_page(b"\x01vorbis" + bytes(23), 2, 0, serial, 0) for serial in range(20_000))
    yield "syncs.aac", b"\xff\xf1\x50\x80\x01\x1f\xfc" * 300_000
    yield "syncs.mp3", b"\xff\xfb\x90\x64" * 500_000
    yield "syncs.ts", (b"\x47\x5f\xff\x10" + b"\xff" * 184) * 20_000
    yield "tables.ts", b"".join(_program_table(number) for number in range(2_000))
    yield "pictures.avi", riff((b"LIST", b"movi" + (b"00dc" + bytes(4)) * 300_000), form=b"AVI ")


def _page(packets: bytes, flags: int, granule: int, serial: int, number: int, lacing: bytes = b"") -> bytes:
    lacing = lacing or bytes([len(packets)])
    head = struct.pack("<4sBBqIIIB", b"OggS", 0, flags, granule, serial, number, 0, len(lacing)) + lacing
    page = head + packets
    return page[:22] + struct.pack("<I", _ogg_checksum(page)) + page[26:]


_OGG_TABLE: list[int] = []


def _ogg_checksum(page: bytes) -> int:
    if not _OGG_TABLE:
        for byte in range(256):
            value = byte << 24
            for _ in range(8):
                value = (value << 1) ^ (0x04C1_1DB7 if value & 0x8000_0000 else 0)
            _OGG_TABLE.append(value & U32)
    checksum = 0
    for byte in page:
        checksum = (checksum << 8 & U32) ^ _OGG_TABLE[checksum >> 24 ^ byte]
    return checksum


def _a_day_of_opus() -> bytes:
    head = _page(b"OpusHead" + struct.pack("<BBHIhB", 1, 1, 0, 48_000, 0, 0), 2, 0, 1, 0)
    tags = _page(b"OpusTags" + struct.pack("<II", 0, 0), 0, 0, 1, 1)
    # Six frames of 20 ms, each of no bytes: 120 ms of silence in two bytes.
    packet, packets = b"\x0b\x06", 255
    pages = [
        _page(packet * packets, 0, (number + 1) * packets * 5_760, 1, number + 2, b"\2" * packets)
        for number in range(round(Fraction(DAY_S * 100, 12 * packets)))
    ]
    return head + tags + b"".join(pages)


def _program_table(program: int) -> bytes:
    """Return an MPEG-TS packet that announces one more program."""
    section = b"\0\xb0\x0d\0\1\xc1\0\0" + struct.pack(">HH", program + 1, 0xE000 | program % 8_000 + 32)
    packet = b"\x47\x40\0\x10\0" + section + struct.pack(">I", _ogg_checksum_mpeg(section))
    return packet.ljust(188, b"\xff")


def _ogg_checksum_mpeg(section: bytes) -> int:
    """Return the checksum of MPEG sections: Ogg's polynomial, another start."""
    _ogg_checksum(b"")
    checksum = U32
    for byte in section:
        checksum = (checksum << 8 & U32) ^ _OGG_TABLE[checksum >> 24 ^ byte]
    return checksum


def id3(*frames: tuple[bytes, bytes], size: int | None = None) -> bytes:
    """Return an ID3v2.4 tag, whose size may be a lie."""
    body = b"".join(name + _seven_bits(len(content)) + b"\0\0" + content for name, content in frames)
    return b"ID3\4\0\0" + _seven_bits(len(body) if size is None else size) + body


def _seven_bits(number: int) -> bytes:
    return bytes(number >> shift & 127 for shift in (21, 14, 7, 0))


def huge_metadata(clips: dict[str, bytes]) -> Forged:
    """Yield clips with more words, pictures and chapters than sound."""
    mp3, m4a, flac = clips["mp3"], clips["m4a"], clips["flac"]
    chapter = (b"CHAP", b"a\0" + struct.pack(">4I", 0, 1_000, U32, U32) + b"TIT2\0\0\0\4\0\0\3abc")
    yield "comment-4-mb.mp3", id3((b"COMM", b"\3eng\0" + b"c" * 4_000_000)) + mp3
    yield "texts-5000.mp3", id3(*[(b"TXXX", b"\3key%d\0value" % number) for number in range(5_000)]) + mp3
    yield "same-text-50000.mp3", id3(*[(b"TXXX", b"\3key\0value")] * 50_000) + mp3
    yield "cover-8-mb.mp3", id3((b"APIC", b"\0image/png\0\3\0" + random.Random(1).randbytes(8_000_000))) + mp3
    yield "covers-2000.mp3", id3(*[(b"APIC", b"\0image/png\0\3\0\x89PNG\r\n\x1a\n")] * 2_000) + mp3
    yield "chapters-20000.mp3", id3(*[chapter] * 20_000) + mp3
    yield "not-utf8.mp3", id3((b"TIT2", b"\3\xff\xfe\xed\xa0\x80\0\0"), (b"TPE1", b"\1\xff\xfe\0\xd8")) + mp3
    yield "tag-size.mp3", id3((b"TIT2", b"\3x"), size=0x0FFF_FFFF) + mp3
    yield "tags-1000.mp3", id3((b"TIT2", b"\3x")) * 1_000 + mp3
    picture = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 65_535, 65_535) + b"\x08\2\0\0\0"
    yield "cover-65535x65535.mp3", id3((b"APIC", b"\0image/png\0\3\0" + picture)) + mp3
    for name, comment in (
        ("huge", struct.pack("<II", U32, U32)),
        ("many", struct.pack("<II", 0, U32) + b"\1\0\0\0a" * 99),
    ):
        block = b"\4" + len(comment).to_bytes(3, "big") + comment
        yield f"comment-{name}.flac", flac[:4] + b"\0" + flac[5:42] + block + flac[42:]
    seeks = b"\3" + (18 * 900_000).to_bytes(3, "big")
    yield "seeks-900000.flac", flac[:4] + b"\0" + flac[5:42] + seeks + bytes(18 * 100_000) + flac[42:]
    free = atom(
        b"udta",
        atom(b"meta", bytes(4) + atom(b"ilst", atom(b"\xa9nam", atom(b"data", b"\0\0\0\1" * 2 + b"t" * 4_000_000)))),
    )
    yield "title-4-mb.m4a", m4a + atom(b"moov", free)
    names = b"".join(struct.pack(">QB", number, 3) + b"abc" for number in range(255))
    yield "chapters-255.m4a", m4a + atom(b"moov", atom(b"udta", atom(b"chpl", bytes(8) + b"\xff" + names)))
    info = b"INFO" + b"".join(b"ICMT" + struct.pack("<I", 4) + b"abc\0" for _ in range(100_000))
    yield "info-100000.wav", riff((b"LIST", info), wav_format(), (b"data", bytes(32_000)))


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{target}\n#EXT-X-ENDLIST\n",
    "hls-key": '#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXT-X-KEY:METHOD=AES-128,URI="{target}"\n#EXTINF:9,\n{target}\n',
    "hls-map": '#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXT-X-MAP:URI="{target}"\n#EXTINF:9,\n{target}\n#EXT-X-ENDLIST\n',
    "m3u": "{target}\n{target}\n",
    "concat": "ffconcat version 1.0\nfile '{target}'\n",
    "concat-unsafe": "ffconcat version 1.0\noption safe 0\nfile '{target}'\nduration 3\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio {port} RTP/AVP 0\n"
    "a=control:{target}\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet '
    'mimeType="audio/wav"><Representation id="1" bandwidth="1"><BaseURL>{target}</BaseURL></Representation>'
    "</AdaptationSet></Period></MPD>",
    "smil": '<smil><body><audio src="{target}"/></body></smil>',
    "svg": '<!DOCTYPE svg [<!ENTITY x SYSTEM "{target}">]><svg xmlns="http://www.w3.org/2000/svg"><text>&x;</text></svg>',
    "pls": "[playlist]\nFile1={target}\nNumberOfEntries=1\n",
    "asx": '<asx version="3.0"><entry><ref href="{target}"/></entry></asx>',
    "imf": '<?xml version="1.0"?><AssetMap xmlns="http://www.smpte-ra.org/schemas/429-9/2007/AM"><Path>{target}</Path></AssetMap>',
}


def playlists(neighbour: str, port: int) -> Forged:
    """Yield texts that name a neighbour, a file of the host and an address, under harmless names too."""
    targets = {
        "neighbour": neighbour.rpartition("/")[2],
        "absolute": f"file://{neighbour}",
        "passwd": "/etc/passwd",
        "address": f"http://127.0.0.1:{port}/clip.wav",
    }
    suffixes = (".m3u8", ".wav", ".mp3")
    for number, ((name, text), (where, target)) in enumerate(product(PLAYLISTS.items(), targets.items())):
        suffix = suffixes[number % len(suffixes)]
        yield f"{name}-{where}{suffix}", text.format(target=target, port=port).encode()


def other_things(rng: random.Random) -> Forged:
    """Yield what is no recording at all."""
    yield "nothing.wav", b""
    yield "one-byte.mp3", b"\xff"
    yield "letter.mp3", b"Sehr geehrte Damen und Herren,\n" * 200
    yield "error.mp3", b"<!DOCTYPE html><html><body>404</body></html>"
    yield "subtitles.srt", b"1\n00:00:00,000 --> 00:00:02,000\nThe young man\n\n" * 50
    yield (
        "subtitles.ass",
        b"[Script Info]\nScriptType: v4.00+\n[Events]\nDialogue: 0,0:00:00.00,0:00:02.00,x,,0,0,0,,Hi\n",
    )
    yield "subtitles.vtt", b"WEBVTT\n\n00:00.000 --> 00:02.000\nThe young man\n"
    yield "metadata.txt", b";FFMETADATA1\ntitle=x\n[CHAPTER]\nSTART=0\nEND=1\n"
    yield "zeros.mp3", bytes(1_000_000)
    yield "ones.mp3", b"\xff" * 1_000_000
    yield "archive.zip", b"PK\3\4\x14\0\0\0\x08\0" + rng.randbytes(3_000) + b"PK\5\6" + bytes(18)
    yield "program", b"\x7fELF\2\1\1" + bytes(9) + rng.randbytes(5_000)
    yield "document.pdf", b"%PDF-1.7\n" + rng.randbytes(3_000)
    yield "picture.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\1\0\0\0\1\0\x08\2\0\0\0" + rng.randbytes(500)
    yield "picture.jpg", b"\xff\xd8\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0" + rng.randbytes(3_000)


def noise_behind_a_start(rng: random.Random) -> Forged:
    """Yield random bytes behind what a format begins with."""
    for name, start in {
        "wav": b"RIFF\xff\xff\xff\x7fWAVEfmt ",
        "ogg": b"OggS\0\2",
        "flac": b"fLaC\0\0\0\x22",
        "mp3": b"ID3\3\0\0\0\0\x0f\x76",
        "m4a": b"\0\0\0\x20ftypM4A \0\0\0\0M4A mp42isom\0\0\0\0",
        "webm": b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81\1\x42\xf7\x81\1",
        "aiff": b"FORM\0\1\0\0AIFFCOMM",
        "caf": b"caff\0\1\0\0desc",
        "amr": b"#!AMR-WB\n",
        "asf": bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"),
        "flv": b"FLV\1\4\0\0\0\x09\0\0\0\0",
        "avi": b"RIFF\xff\xff\0\0AVI LIST",
        "wv": b"wvpk\xff\xff\0\0\x10\4",
        "ape": b"MAC \x96\x0f\0\0",
        "tta": b"TTA1\1\0\1\0\x10\0\x80\x3e\0\0",
        "ac3": b"\x0b\x77",
        "dts": b"\x7f\xfe\x80\1",
        "mpg": b"\0\0\1\xba\x44\0\4\0\4\1",
        "nist": b"NIST_1A\n   1024\nsample_count -i 999999999999\nsample_rate -i 1\nchannel_count -i 999\nend_head\n",
        "w64": b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\0\0",
    }.items():
        yield f"noise.{name}", start + rng.randbytes(20_000)
