"""Samples in a file: read like an array, without staying in memory."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import numpy as np
import pytest

from consumer.samples import Samples

COUNT = 4_000_000
RESIDENT = re.compile(r"^Rss:\s+(\d+) kB", re.MULTILINE)


@pytest.fixture
def written(tmp_path):
    values = np.arange(COUNT, dtype=np.int64).astype(np.int16)
    values.tofile(tmp_path / "scratch")
    with (tmp_path / "scratch").open("rb") as file:
        yield Samples(file, COUNT), values


def mapped_bytes(path):
    """Return how much of a mapped file is in this process's memory."""
    maps = Path("/proc/self/smaps").read_text().split(str(path))[1:]
    return sum(1024 * int(RESIDENT.search(part)[1]) for part in maps)


def test_they_are_the_samples_of_the_file(written):
    """Chunks, names of parts and the speech detector read them as an array."""
    samples, values = written

    assert len(samples) == COUNT
    assert samples.dtype == np.int16
    assert (samples[5:5000] == values[5:5000]).all()
    assert (samples[-7:] == values[-7:]).all()
    assert samples[70_000] == values[70_000]
    assert len(samples[9:9]) == 0
    assert samples[100:200].data.nbytes == 200
    np.testing.assert_array_equal(samples, values)


def test_they_cannot_be_changed(written):
    """Every chunk of a job reads the same recording."""
    with pytest.raises(ValueError, match="read-only"):
        written[0][0] = 1


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="memory is counted by /proc")
def test_what_was_read_does_not_stay(written, tmp_path):
    """A consumer must not grow with the length of its recordings."""
    samples, values = written
    for start in range(0, COUNT, 480_000):
        part = samples[start : start + 480_000]
        assert (part == values[start : start + 480_000]).all()
        assert mapped_bytes(tmp_path / "scratch") <= 64 * mmap.PAGESIZE


def test_slices_are_kept_when_the_recording_is_gone(written):
    """A chunk may still be with the engine when its job has ended."""
    samples, values = written
    part = samples[10:20]
    del samples

    assert (part == values[10:20]).all()
    assert type(part) is np.ndarray
