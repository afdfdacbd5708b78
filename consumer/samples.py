"""The samples of a decoded recording: in a file, mapped into memory, and let go of again when they have been read.

Pages of a map that were read once count as this process's memory for as long as it is there, 1.1 GB for ten hours: the
kernel can take them back, but whoever watches a process, or limits it, sees a process that grows with its recordings.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    import io
    from typing import BinaryIO

    from numpy.typing import NDArray

_SAMPLE_BYTES = 2


class Samples(np.ndarray[tuple[int], np.dtype[np.int16]]):
    """A read-only array whose slices are copies; what was read for one goes back to the page cache at once."""

    _map: mmap.mmap | None

    def __new__(cls, file: io.FileIO | BinaryIO, count: int) -> Self:
        """Map a file of native int16 samples.

        Args:
            file: may be closed afterwards.
            count: at least 1; how many samples it holds.
        """
        pages = mmap.mmap(file.fileno(), count * _SAMPLE_BYTES, prot=mmap.PROT_READ)
        samples = super().__new__(cls, (count,), np.int16, pages)
        samples._map = pages
        return samples

    def __array_finalize__(self, obj: NDArray[Any] | None) -> None:
        self._map = getattr(obj, "_map", None)

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        if self._map is None or not isinstance(found, np.ndarray):
            return found
        copy = np.array(found)
        # All of it: only what was read is there. A thread that reads another part meanwhile reads it again.
        self._map.madvise(mmap.MADV_DONTNEED)
        return copy
