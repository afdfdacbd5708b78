"""Transcripts as files: whole or not at all, and only in their folder."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from common.errors import JobError, Unavailable
from common.formats import FORMATS, render
from common.transcript import Segment, Timings, Transcript
from consumer.files import STALE_AFTER_S, open_results, sync_folder, write_files


def transcript(said: str = "hello", *, end: float = 1.0) -> Transcript:
    return Transcript(
        job_id="job-1",
        source="file:///audio/a.wav",
        language="en",
        language_probability=1.0,
        duration_s=1.0,
        text=said,
        segments=(Segment(id=0, start=0.0, end=end, text=said, avg_logprob=0.0, no_speech_prob=0.0),),
        model="tiny.en",
        timings=Timings(queued_s=0, fetch_s=0, prepare_s=0, transcribe_s=0, realtime_factor=0),
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@contextmanager
def files_limited_to(size_bytes: int) -> Iterator[None]:
    """A disk that takes no more: the kernel refuses every byte beyond."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_every_format_is_written_and_nothing_else(tmp_path: Path) -> None:
    """Scripts pick the files up by name; a temporary file left over would be picked up too."""
    said = transcript()
    paths = write_files(tmp_path, "job-1", said)
    sync_folder(tmp_path)

    assert paths == [tmp_path / f"job-1.{format_}" for format_ in FORMATS]
    assert contents(tmp_path) == {f"job-1.{format_}": render(said, format_) for format_ in FORMATS}


def test_writing_again_replaces_what_is_there(tmp_path: Path) -> None:
    """A result is delivered again after a crash between its files and its row."""
    write_files(tmp_path, "job-1", transcript("first, and longer"))
    write_files(tmp_path, "job-1", transcript("second"))
    assert (tmp_path / "job-1.txt").read_bytes() == b"second\n"


def test_a_reader_keeps_the_whole_file_it_opened(tmp_path: Path) -> None:
    """Somebody may be downloading the file while it is written again."""
    write_files(tmp_path, "job-1", transcript("first"))
    with (tmp_path / "job-1.txt").open("rb") as reader:
        write_files(tmp_path, "job-1", transcript("second"))
        assert reader.read() == b"first\n"


def test_a_link_in_the_place_of_a_file_is_replaced_not_followed(tmp_path: Path) -> None:
    """Whoever may write to the folder must not make the writer write elsewhere."""
    outside = tmp_path / "outside"
    outside.write_bytes(b"mine")
    results = tmp_path / "results"
    results.mkdir()
    (results / "job-1.txt").symlink_to(outside)

    write_files(results, "job-1", transcript())

    assert outside.read_bytes() == b"mine"
    assert not (results / "job-1.txt").is_symlink()


@pytest.mark.parametrize("job_id", ["../a", "a/b", "", ".", "..", "nul", "a\0b", "a" * 129, "/etc/passwd"])
def test_an_id_cannot_leave_the_folder(tmp_path: Path, job_id: str) -> None:
    """Ids come from clients, and entries may be added by hand."""
    results = tmp_path / "results"
    results.mkdir()
    with pytest.raises(JobError) as refused:
        write_files(results, job_id, transcript())
    assert refused.value.type == "result_unstorable"
    assert not refused.value.retryable
    assert contents(results) == {}
    assert list(tmp_path.iterdir()) == [results]


def test_a_disk_that_takes_no_more_leaves_nothing_half_written(tmp_path: Path) -> None:
    """The result waits for room; until then its readers see the old files or none."""
    write_files(tmp_path, "job-1", transcript("old"))
    before = contents(tmp_path)

    with files_limited_to(100), pytest.raises(Unavailable, match="job-1") as trouble:
        write_files(tmp_path, "job-1", transcript("secret " * 100))

    assert contents(tmp_path) == before
    assert "secret" not in str(trouble.value)


def test_a_folder_that_is_away_is_trouble_that_passes(tmp_path: Path) -> None:
    """A share that is not mounted yet must cost no transcript."""
    away = tmp_path / "away"
    with pytest.raises(Unavailable, match="away"):
        write_files(away, "job-1", transcript())
    with pytest.raises(Unavailable, match="away"):
        sync_folder(away)


def test_a_folder_in_the_place_of_a_file_fails_that_job_only(tmp_path: Path) -> None:
    """Waiting for it to go away would hold up every other result."""
    (tmp_path / "job-1.srt").mkdir()
    with pytest.raises(JobError, match=r"job-1\.srt is in the way"):
        write_files(tmp_path, "job-1", transcript())
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]  # noqa: PTH208 names are enough


def test_what_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    """Only what is ours by name, and too old to be another writer's work of this moment."""
    old = [".job-1.json.0123456789abcdef.part", ".a.b.tsv.0123456789abcdef.part"]
    kept = [".job-1.json.part", "job-1.json", ".hidden", ".job-1.exe.0123456789abcdef.part", "a.json.0123.part"]
    for name in [*old, *kept]:
        (tmp_path / name).touch()
    now_s = (tmp_path / old[0]).stat().st_mtime

    open_results(tmp_path, now_s=now_s + STALE_AFTER_S - 1)
    assert sorted(contents(tmp_path)) == sorted([*old, *kept])

    open_results(tmp_path, now_s=now_s + STALE_AFTER_S + 1)
    assert sorted(contents(tmp_path)) == sorted(kept)


def test_the_results_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    """`sttream up` starts in an empty data folder."""
    open_results(tmp_path / "a" / "b", now_s=0)
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match="file"):
        open_results(tmp_path / "file", now_s=0)
