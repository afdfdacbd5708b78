"""Which sources open, and how the others are refused."""

from __future__ import annotations

import errno
import os
import socket
import unicodedata
from pathlib import Path

import pytest

from common.errors import ErrorType, JobError
from common.sources import check_source, open_source

NFC = unicodedata.normalize("NFC", "Köln, Ångström")
NFD = unicodedata.normalize("NFD", NFC)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "audio"
    folder.mkdir()
    (folder / "clip.wav").write_bytes(b"sound")
    return folder


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "private"
    folder.mkdir()
    (folder / "secret.wav").write_bytes(b"secret")
    return folder


def read(source: str | Path, *roots: Path, max_bytes: int = 1000) -> bytes:
    with open_source(str(source), roots, max_bytes) as opened:
        content = opened.file.read()
        assert content is not None
        assert opened.size_bytes == len(content)
        return content


def refusal(source: str | Path, *roots: Path, max_bytes: int = 1000) -> JobError:
    with pytest.raises(JobError) as caught:
        check_source(str(source), roots, max_bytes)
    assert caught.value.detail
    return caught.value


def assert_refused(type_: ErrorType, source: str | Path, *roots: Path) -> None:
    error = refusal(source, *roots)
    assert (error.type, error.retryable) == (type_, False), error.detail


@pytest.mark.parametrize("form", ["{}", "file://{}", "file://localhost{}", "FILE://{}", "file:{}"])
def test_a_file_opens_by_path_and_by_url(root: Path, form: str) -> None:
    """People write file sources in all of these ways."""
    assert read(form.format(root / "clip.wav"), root) == b"sound"


def test_a_url_is_percent_decoded_and_a_path_is_not(root: Path) -> None:
    """A name with a space or a percent sign must reach the right file in both forms."""
    (root / "50% off #1?.wav").write_bytes(b"odd")
    assert read((root / "50% off #1?.wav").as_uri(), root) == b"odd"
    assert read(root / "50% off #1?.wav", root) == b"odd"


def test_a_name_that_is_not_utf8_opens_by_url(root: Path) -> None:
    """Old archives hold names in Latin-1; a URL can still say their bytes."""
    Path(os.fsdecode(os.fsencode(root) + b"/caf\xe9.wav")).write_bytes(b"latin")
    assert read(f"file://{root}/caf%E9.wav", root) == b"latin"


@pytest.mark.parametrize(
    "source", ["s3://bucket/key", "https://user:hunter2@host/a.mp3?X-Amz-Signature=hunter2", "ftp://x/y", "data:,x"]
)
def test_other_schemes_are_unsupported_and_not_repeated(root: Path, source: str) -> None:
    """The error says what this version reads, and shows no credentials that a URL may hold."""
    error = refusal(source, root)
    assert error.type == "source_unsupported"
    assert "files only" in error.detail
    assert "hunter2" not in error.detail


def test_a_file_url_of_another_host_is_unsupported(root: Path) -> None:
    """file://server/share means a file of that host, not of this one."""
    assert_refused("source_unsupported", f"file://server{root}/clip.wav", root)


@pytest.mark.parametrize("source", ["clip.wav", "./clip.wav", "file:clip.wav", ""])
def test_a_relative_path_is_refused(root: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a service was started must not decide which file is read."""
    monkeypatch.chdir(root)
    assert_refused("source_outside_roots", source, root)


@pytest.mark.parametrize("name", ["a\0.wav", "file:///a%00.wav"])
def test_a_nul_character_is_refused(root: Path, name: str) -> None:
    """C ends a name there: what is checked would not be what is opened."""
    assert_refused("source_unsupported", name if ":" in name else f"{root}/{name}", root)


def test_a_lone_surrogate_is_refused(root: Path) -> None:
    """JSON can hold text that no file system can."""
    assert_refused("source_unsupported", f"{root}/\ud800.wav", root)


def test_without_roots_the_error_names_the_setting() -> None:
    """Who sets the service up for the first time meets this error."""
    error = refusal("/clip.wav")
    assert error.type == "source_outside_roots"
    assert "STTREAM_AUDIO_ROOTS" in error.detail


def test_a_path_outside_is_refused_whether_it_exists_or_not(root: Path, outside: Path) -> None:
    """Nobody can find out by submitting jobs which files a host has."""
    for parent in (outside, root / ".." / "private", root / "no-such-folder" / ".." / ".." / "private"):
        there, missing = refusal(parent / "secret.wav", root), refusal(parent / "absent.wav", root)
        assert there.type == missing.type == "source_outside_roots"
        assert there.detail.replace("secret", "absent") == missing.detail


def test_a_folder_whose_name_begins_like_a_root_is_outside(root: Path) -> None:
    """/audio-private is not beneath /audio."""
    neighbour = root.with_name("audio-private")
    neighbour.mkdir()
    (neighbour / "clip.wav").write_bytes(b"x")
    assert_refused("source_outside_roots", neighbour / "clip.wav", root)


def test_dots_that_stay_inside_are_fine(root: Path) -> None:
    """Scripts join paths without tidying them."""
    assert read(f"{root}/sub/..//./clip.wav", root) == b"sound"
    assert read(f"/{root}/clip.wav", root) == b"sound"


def test_links_that_leave_the_roots_are_refused(root: Path, outside: Path) -> None:
    """A link put into an allowed folder must not open the rest of the host, whether its target exists or not."""
    (root / "file.wav").symlink_to(outside / "secret.wav")
    (root / "folder").symlink_to(outside)
    (root / "absent.wav").symlink_to(outside / "absent.wav")
    for name in ("file.wav", "folder/secret.wav", "folder/absent.wav", f"folder/{NFC}.wav", "absent.wav"):
        assert_refused("source_outside_roots", root / name, root)


def test_links_that_stay_inside_any_root_are_followed(root: Path, outside: Path) -> None:
    """Collections are often made of links, between roots too."""
    (root / "by-date").mkdir()
    (root / "by-date" / "today.wav").symlink_to("../clip.wav")
    (root / "other").symlink_to(outside)
    assert read(root / "by-date" / "today.wav", root) == b"sound"
    assert read(root / "other" / "secret.wav", root, outside) == b"secret"


def test_a_root_that_is_a_link_itself_works_by_both_names(root: Path, tmp_path: Path) -> None:
    """/data is a link to a mount on many hosts."""
    alias = tmp_path / "data"
    alias.symlink_to(root)
    assert read(alias / "clip.wav", alias) == b"sound"
    assert read(root / "clip.wav", alias) == b"sound"


def test_what_is_no_regular_file_is_refused_without_opening_it(root: Path) -> None:
    """A directory, a fifo without a writer, a socket, a device: none may hang or feed a consumer for ever."""
    os.mkfifo(root / "fifo.wav")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "s.wav"))
    for name in ("", "fifo.wav", "s.wav"):
        assert_refused("source_not_a_file", root / name, root)
    assert_refused("source_not_a_file", "/dev/zero", Path("/dev"))
    (root / "zero.wav").symlink_to("/dev/zero")
    assert_refused("source_outside_roots", root / "zero.wav", root)


def test_what_is_missing_is_missing(root: Path) -> None:
    """No attempt is spent twice on a file that is not there."""
    (root / "broken.wav").symlink_to("absent.wav")
    (root / "loop.wav").symlink_to("loop.wav")
    (root / "loop").symlink_to("loop")
    for name in (
        "absent.wav",
        "broken.wav",
        "loop.wav",
        "loop/a.wav",
        "no/a.wav",
        "clip.wav/a",
        "x" * 300,
        f"{NFC}.wav",
    ):
        assert_refused("source_missing", root / name, root)


def test_a_root_that_is_not_mounted_is_worth_another_attempt(tmp_path: Path) -> None:
    """All jobs of a batch would fail for good while a share is away for a minute."""
    error = refusal(tmp_path / "share" / "clip.wav", tmp_path / "share")
    assert (error.type, error.retryable) == ("source_unreadable", True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_says_so(root: Path) -> None:
    """Wrong permissions are the most frequent mistake of a new set-up."""
    (root / "clip.wav").chmod(0)
    assert_refused("source_unreadable", root / "clip.wav", root)


@pytest.mark.parametrize(
    ("code", "retryable"),
    [(errno.EACCES, False), (errno.EMFILE, True), (errno.EIO, True), (errno.ESTALE, True)],
)
def test_trouble_of_the_host_is_retried(
    root: Path, monkeypatch: pytest.MonkeyPatch, code: int, retryable: bool
) -> None:
    """A stale network share or too many open files say nothing about the recording."""

    def refuse(*_: object, **__: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", refuse)
    error = refusal(root / "clip.wav", root)
    assert (error.type, error.retryable) == ("source_unreadable", retryable)


def test_a_file_over_the_limit_is_too_large(root: Path) -> None:
    """The limit holds for files that never pass the upload route."""
    assert read(root / "clip.wav", root, max_bytes=5) == b"sound"
    error = refusal(root / "clip.wav", root, max_bytes=4)
    assert (error.type, error.retryable) == ("file_too_large", False)


@pytest.mark.parametrize(("on_disk", "asked"), [(NFC, NFD), (NFD, NFC), (NFC, NFC), (NFD, NFD)])
def test_a_name_is_found_in_either_unicode_form(root: Path, on_disk: str, asked: str) -> None:
    """macOS hands out decomposed names, most others composed ones, and both look the same."""
    (root / on_disk).mkdir()
    (root / on_disk / f"{on_disk}.wav").write_bytes(b"found")
    assert read(root / asked / f"{asked}.wav", root) == b"found"
    assert read((root / asked / f"{asked}.wav").as_uri(), root) == b"found"


def test_forms_may_differ_between_and_within_components(root: Path) -> None:
    """Trees that were copied between systems hold both forms, even in one name."""
    mixed = NFC.replace("Å", unicodedata.normalize("NFD", "Å"))
    assert mixed not in {NFC, NFD}
    (root / NFD / "plain" / mixed).mkdir(parents=True)
    (root / NFD / "plain" / mixed / f"{NFC}.wav").write_bytes(b"found")
    assert read(root / NFC / "plain" / NFD / f"{NFD}.wav", root) == b"found"


def test_the_name_as_given_wins_over_its_twin(root: Path) -> None:
    """Two files whose names look the same are two files."""
    (root / f"{NFC}.wav").write_bytes(b"composed")
    (root / f"{NFD}.wav").write_bytes(b"decomposed")
    assert read(root / f"{NFC}.wav", root) == b"composed"
    assert read(root / f"{NFD}.wav", root) == b"decomposed"


def test_a_folder_is_not_listed_when_a_form_of_the_name_exists(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listing a folder of a million recordings takes a second, for each job."""
    (root / f"{NFC}.wav").write_bytes(b"found")

    def refuse(*_: object) -> None:
        raise AssertionError("the folder was listed")

    monkeypatch.setattr(os, "scandir", refuse)
    assert read(root / f"{NFD}.wav", root) == b"found"
    assert_refused("source_missing", root / "absent.wav", root)


def test_a_folder_swapped_for_a_link_after_the_check_opens_nothing(
    root: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The classic race: the path is checked, then changed, then opened."""
    (root / "sub").mkdir()
    (root / "sub" / "secret.wav").write_bytes(b"harmless")
    resolve = os.path.realpath

    def resolve_then_swap(path: str | Path) -> str:
        real = resolve(path)
        if str(path).endswith("secret.wav"):
            (root / "sub").rename(root / "moved")
            (root / "sub").symlink_to(outside)
        return real

    monkeypatch.setattr(os.path, "realpath", resolve_then_swap)
    assert_refused("source_missing", root / "sub" / "secret.wav", root)


def test_no_descriptor_is_left_behind(root: Path, outside: Path) -> None:
    """A consumer opens millions of files; one leak a failure would stop it within a day."""
    (root / "link.wav").symlink_to(outside / "secret.wav")
    before = len(list(Path("/dev/fd").iterdir()))
    for name in ("clip.wav", "link.wav", "absent.wav", "", "clip.wav/a"):
        for max_bytes in (1, 1000):
            try:
                check_source(str(root / name), [root], max_bytes)
            except JobError:
                continue
    assert len(list(Path("/dev/fd").iterdir())) == before
