"""Recordings in a folder, and the ids that their jobs get."""

import os

import pytest

from cli.recordings import find_recordings, id_of, named_id
from common.records import check_id


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "below").mkdir()
    for name in ("b.mp3", "a.WAV", "notes.txt", "below/c.ogg", ".hidden"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({}, ["a.WAV", "b.mp3"]),
        ({"recursive": True}, ["a.WAV", "b.mp3", "below/c.ogg"]),
        ({"pattern": "*.txt"}, ["notes.txt"]),
        ({"pattern": "*.flac"}, []),
    ],
)
def test_a_folder_is_searched_by_suffix_or_by_pattern(folder, options, found):
    """A folder of calls also holds lists and notes, which are no recordings unless asked for."""
    assert [str(path.relative_to(folder)) for path in find_recordings(folder, **options)] == found


def test_the_same_file_has_the_same_id_until_it_changes(folder):
    """A second `sttream batch` repeats nothing, and takes what was recorded anew."""
    path = folder / "b.mp3"
    first = id_of(path)
    assert id_of(path) == first

    os.utime(path, ns=(1, 1))
    assert id_of(path) != first


@pytest.mark.parametrize(
    "name", ["con.mp3", "ナレーション.wav", "a b/../c.mp3", "." * 9 + ".wav", "x" * 250 + ".mp3", "-.mp3"]
)
def test_any_name_makes_an_id_that_the_service_takes(tmp_path, name):
    """File names hold anything; ids are safe file names everywhere."""
    check_id(named_id(tmp_path / name, "0123456789abcdef"))
