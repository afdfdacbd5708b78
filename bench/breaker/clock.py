"""The wall clocks of the service processes, which can be stepped; monotonic time is left alone, as a real step does."""

from __future__ import annotations

import mmap
import shutil
import subprocess
from pathlib import Path

_SOURCE = Path(__file__).with_name("clock.c")
_OFFSET_BYTES = 8


def build_library(folder: Path) -> Path | None:
    """Compile what steps clocks into the folder; None where there is no C compiler: clocks then stay as they are."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    library = folder / "clock.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(_SOURCE), "-ldl"], check=True)
    return library


class Clock:
    """The wall clock of one service, which is off by the number in a file that its processes have mapped."""

    def __init__(self, file: Path, library: Path) -> None:
        self._file, self._library = file, library
        file.write_bytes(bytes(_OFFSET_BYTES))

    @property
    def environ(self) -> dict[str, str]:
        """What makes a process follow this clock."""
        return {"LD_PRELOAD": str(self._library), "BREAKER_CLOCK": str(self._file)}

    def step(self, offset_s: int) -> None:
        """Set the clock off by so many seconds from the true time; 0 sets it right."""
        with self._file.open("r+b") as file, mmap.mmap(file.fileno(), _OFFSET_BYTES) as page:
            page[:] = offset_s.to_bytes(_OFFSET_BYTES, "little", signed=True)
