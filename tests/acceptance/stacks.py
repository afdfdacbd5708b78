"""Run the command line as a user does, and find every process that it leaves."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.ports import free_port
from tests.recordings import EXAMPLES
from tests.until import until

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "cli.main")
# Beside a whole suite on two cores.
LIMIT_S = 60.0


def environ(**more: str) -> dict[str, str]:
    """Return this process's environment without its settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("STTREAM_")}
    return kept | {"PYTHONPATH": str(ROOT)} | more


def sttream(*arguments: str, cwd: Path = ROOT, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=cwd,
        env=environ(**settings),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def processes_of(folder: Path) -> dict[int, str]:
    """Return the command lines of all processes that know a data folder: the stack's, and what those have started."""
    found: dict[int, str] = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            # The server writes its own title over both, but works in the folder.
            known = command + (process / "environ").read_bytes().decode(errors="replace")
            if str(folder) in known + str((process / "cwd").readlink()):
                found[int(process.name)] = command
    return found


def descendants(pid: int) -> list[int]:
    """Return the process ids of all that a process has started, and those have."""
    listed = " ".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children"))
    children = [int(child) for child in listed.split()]
    return [*children, *(one for child in children for one in descendants(child))]


def runs(pid: int) -> bool:
    """Return whether a process has not ended; one that nobody has waited for yet has."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@dataclass
class Up:
    """A running `sttream up`."""

    process: subprocess.Popen[str]
    data: Path
    port: int
    output: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def run(self, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        """Run a client verb against this stack."""
        return sttream(*arguments, cwd=cwd, STTREAM_URL=self.url)

    def wait_until_ready(self) -> None:
        """Read what it prints until it is ready.

        Raises:
            AssertionError: it ended first.
        """
        assert self.process.stdout is not None
        if not any("sttream is ready" in line for line in self.process.stdout):
            raise AssertionError(f"`sttream up` ended with {self.process.wait()}:\n{self.output.read_text()}")

    def pid_of(self, service: str) -> int:
        """Return the process id of a service."""
        return next(pid for pid, command in processes_of(self.data).items() if command.endswith(f"cli.main {service} "))

    def stop(self, signal_: signal.Signals = signal.SIGINT) -> int:
        """Signal the supervisor and return its exit code."""
        self.process.send_signal(signal_)
        return self.process.wait(LIMIT_S)

    async def nothing_is_left(self, within_s: float = 10.0) -> None:
        """Wait until every process of the stack is gone."""
        await until(lambda: not processes_of(self.data), within_s=within_s, what=f"no process of {self.data}")


@contextlib.contextmanager
def up(data: Path, *arguments: str, ready: bool = True, **settings: str) -> Iterator[Up]:
    """Run `sttream up` while the block runs; whatever is left of it then is killed."""
    # Its own, the server's, and those for health of the writer and the consumers.
    port = free_port(8)
    options = ["--data-dir", str(data), "--port", str(port), "--audio", str(EXAMPLES), *arguments]
    output = data.with_suffix(".output")
    with output.open("a") as errors:
        process = subprocess.Popen(
            [*COMMAND, "up", *options],
            cwd=data.parent,
            env=environ(**settings),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    running = Up(process, data, port, output)
    try:
        if ready:
            running.wait_until_ready()
        yield running
    finally:
        _end(running)


def _end(running: Up) -> None:
    if running.process.poll() is None:
        running.process.kill()
    running.process.wait()
    if running.process.stdout is not None:
        running.process.stdout.close()
    for pid in processes_of(running.data):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def words(text: str) -> Sequence[str]:
    """Return the words of a text, as references are written."""
    return "".join(letter if letter.isalpha() else " " for letter in text.lower()).split()
