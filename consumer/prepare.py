"""The parent side of the prepare pool: recordings in, samples and spans of speech out.

Hostile files are met in child processes that hold nothing of value, get descriptors instead of paths, can open and
reach nothing else (`consumer.sandbox`), and can be killed at any time. A crash, a limit or a cancelled job costs that
one child, which is replaced for the next request.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import orjson
import structlog
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from common.errors import ErrorType, JobError, Unavailable
from consumer.samples import Samples
from consumer.speech import SAMPLE_RATE_HZ, Span

log = structlog.get_logger()

# Imports and the speech detector take about a second on a quiet machine.
_START_LIMIT_S = 60.0
# A process that closed its socket is about to end; its exit code says why.
_LAST_WORDS_S = 5.0
# A killed process that hangs in the kernel (a dead network disk) ends when the disk answers, which may be never.
_KILL_LIMIT_S = 5.0
# The spans of a day of speech are a hundredth of this.
_LONGEST_ANSWER_BYTES = 16 * 1024 * 1024
# The child inherits no variable, so no credentials: only where this code lies, and one thread for each library.
_ENVIRONMENT = {
    "PYTHONPATH": os.fspath(Path(__file__).resolve().parent.parent),
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "HOME": "/nonexistent",
    "HF_HUB_OFFLINE": "1",
    # Without it glibc keeps larger and larger blocks for later once they were freed, in pieces that do not fit the next
    # request: measured with an hour of speech, 354 MB instead of 297, and after it 139 MB instead of 41.
    "MALLOC_MMAP_THRESHOLD_": str(4 * 1024**2),
}
_NO_SAMPLES: NDArray[np.int16] = np.zeros(0, dtype=np.int16)


@dataclass(slots=True)
class Prepared:
    """A recording, ready for the engine; release it with `close` or as a context."""

    samples: NDArray[np.int16]
    """16 kHz mono; read-only, in a scratch file that has no name any more."""
    spans: list[Span]
    """Where somebody speaks, in order; all of it when detection was off; empty when nobody does."""
    duration_s: float

    def close(self) -> None:
        """Let go of the samples; the disk space is free when no slice of them is left."""
        self.samples = _NO_SAMPLES

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class PreparePool:
    """Child processes that decode recordings; requests get a free one in the order in which they came."""

    def __init__(self, *, processes: int, max_audio_s: float, scratch_dir: Path | None = None) -> None:
        self._children = [_Child() for _ in range(processes)]
        self._free: asyncio.Queue[_Child] = asyncio.Queue()
        for child in self._children:
            self._free.put_nowait(child)
        self._max_audio_s = max_audio_s
        self._scratch_dir = scratch_dir
        self._closed = False

    @property
    def pids(self) -> list[int]:
        """The processes that run now."""
        return [child.pid for child in self._children if child.pid is not None]

    async def start(self) -> None:
        """Start all children and wait until they are warm.

        Raises:
            Unavailable: one of them cannot start; its own error output says why.
        """
        started = await asyncio.gather(*(child.start() for child in self._children), return_exceptions=True)
        problems = [problem for problem in started if isinstance(problem, BaseException)]
        if problems:
            await self.aclose()
            raise Unavailable(f"a decoder process cannot start: it {problems[0]}") from problems[0]
        if missing := self._children[0].missing:
            log.warning("decoders_unprotected", missing=missing, next="recordings are decoded without it")

    async def aclose(self) -> None:
        """Kill all children. Cancel the requests that still run before: they fail, at the latest when done."""
        if self._closed:
            return
        self._closed = True
        for child in self._children:
            child.kill()
        # A child comes back when its request has noticed.
        for child in [await self._free.get() for _ in self._children]:
            await child.stop()
            self._free.put_nowait(child)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def prepare(self, source_fd: int, *, vad: bool, timeout_s: float) -> Prepared:
        """Decode a recording and find the speech in it.

        Args:
            source_fd: a regular file, open for reading; stays open.
            vad: search for speech; else all of the recording is one span.
            timeout_s: for the work itself; waiting for a free child does not count.

        Raises:
            JobError: what `decode` raises; or, retryable, `decoder_crashed` (it may have been the file, or a lack of
                memory on this host), `timed_out`, or `internal_error` (no scratch space).
        """
        child = await self._free.get()
        try:
            return await self._prepare_in(child, source_fd, vad, timeout_s)
        finally:
            self._free.put_nowait(child)

    async def _prepare_in(self, child: _Child, source_fd: int, vad: bool, timeout_s: float) -> Prepared:
        if self._closed:
            raise JobError("internal_error", "the decoder pool is closed; tried again elsewhere", retryable=True)
        request = orjson.dumps({"vad": vad, "max_audio_s": self._max_audio_s}) + b"\n"
        try:
            # Without a name from the start: nothing is left behind, however this process ends.
            with tempfile.TemporaryFile(dir=self._scratch_dir, buffering=0) as scratch:
                async with asyncio.timeout(timeout_s):
                    answer = await child.ask(request, (source_fd, scratch.fileno()))
                return _read_answer(answer, scratch)
        except TimeoutError as exc:
            detail = f"decoding took longer than {timeout_s:g} s. Tried again while attempts are left."
            raise JobError("timed_out", detail, retryable=True) from exc
        except _ChildDied as exc:
            await child.stop()  # one that gave an answer without sense still runs, and is not trusted again
            detail = f"the decoder process {exc}. Tried again while attempts are left: it may not be the file's fault."
            raise JobError("decoder_crashed", detail, retryable=True) from exc
        except OSError as exc:
            detail = f"no scratch file or decoder process can be made: {exc.strerror}. Tried again later."
            raise JobError("internal_error", detail, retryable=True) from exc


class _Error(BaseModel):
    """Why a child could not prepare a recording."""

    type: ErrorType
    detail: str
    retryable: bool


class _Answer(BaseModel):
    """What a child sends back."""

    samples: int = 0
    spans: list[tuple[int, int]] = Field(default_factory=list)
    error: _Error | None = None


class _ChildDied(Exception):
    """The process ended in the middle; says how."""


class _Child:
    """One decoder process; started again by the next request after it has ended."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._connection: socket.socket | None = None
        self.missing = ""
        """The protections that it cannot have on this system."""

    @property
    def pid(self) -> int | None:
        """Its process, None while there is none."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def start(self) -> None:
        """Start the process and wait until it is warm.

        Raises:
            _ChildDied: it ended, or was not ready in time.
        """
        await self.stop()
        self._connection, theirs = socket.socketpair()
        self._connection.setblocking(False)
        try:
            with theirs:
                self._process = await _spawn(theirs.fileno())
            async with asyncio.timeout(_START_LIMIT_S):
                self.missing = orjson.loads(await self._read_line())["missing"]
        except BaseException as exc:
            exit_code = await self.stop(grace_s=_LAST_WORDS_S if isinstance(exc, EOFError) else 0.0)
            if isinstance(exc, TimeoutError | EOFError | ConnectionError):
                raise _ChildDied(f"{_how_it_ended(exit_code)} before it was ready") from exc
            raise

    async def ask(self, request: bytes, descriptors: Sequence[int]) -> bytes:
        """Send a request with its descriptors and return the answer.

        Whatever ends the waiting, a time limit and a cancelled job included, ends the process too: it is in the middle
        of a file that nobody waits for.

        Raises:
            _ChildDied: the process ended in the middle.
            JobError: `audio_unreadable`, it spent the processor time that it may.
        """
        try:
            await self._send(request, descriptors)
            return await self._read_line()
        except (EOFError, ConnectionError) as exc:
            exit_code = await self.stop(grace_s=_LAST_WORDS_S)
            if exit_code == -signal.SIGXCPU:
                detail = "decoding it takes far more processor time than a recording of its length needs"
                raise JobError("audio_unreadable", detail) from exc
            raise _ChildDied(_how_it_ended(exit_code)) from exc
        except BaseException:
            await self.stop()
            raise

    def kill(self) -> None:
        """Kill the process; who waits for its answer notices."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def stop(self, *, grace_s: float = 0.0) -> int | None:
        """End the process if there is one.

        Args:
            grace_s: how long it may take to end by itself, so that it is seen how; then it is killed.

        Returns:
            Its exit code, None when there was no process or it does not end.
        """
        process, connection = self._process, self._connection
        try:
            if process is not None and grace_s:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), grace_s)
            self.kill()
        finally:
            self._process = self._connection = None
            if connection is not None:
                connection.close()
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(process.wait(), _KILL_LIMIT_S) if process is not None else None
        return None

    async def _send(self, request: bytes, descriptors: Sequence[int]) -> None:
        """Send a request, to a new process if the last one ended while it had nothing to do."""
        if self._connection is not None and self.pid is not None:
            with contextlib.suppress(ConnectionError):
                socket.send_fds(self._connection, [request], descriptors)
                return
        await self.start()
        if self._connection is not None:
            socket.send_fds(self._connection, [request], descriptors)

    async def _read_line(self) -> bytes:
        loop = asyncio.get_running_loop()
        line = bytearray()
        while not line.endswith(b"\n"):
            if self._connection is None or len(line) > _LONGEST_ANSWER_BYTES:
                raise EOFError
            received = await loop.sock_recv(self._connection, 65_536)
            if not received:
                raise EOFError
            line += received
        return bytes(line)


async def _spawn(connection_fd: int) -> asyncio.subprocess.Process:
    """Start a child in a session of its own, so that Ctrl-C reaches only the parent."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-P", "-X", "faulthandler", "-m", "consumer.prepare_child", str(connection_fd)),
        pass_fds=(connection_fd,),
        env=_ENVIRONMENT,
        cwd="/",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )


def _how_it_ended(exit_code: int | None) -> str:
    if exit_code is None:
        return "does not end: it waits for a disk"
    if exit_code >= 0:
        return f"ended with exit code {exit_code}"
    return f"was ended by signal {signal.Signals(-exit_code).name}"


def _read_answer(line: bytes, scratch: io.FileIO) -> Prepared:
    """Turn a child's answer into samples and spans, or raise its error.

    A child that met a hostile file is not trusted: its answer must have the right form and fit the scratch file.
    """
    try:
        answer = _Answer.model_validate_json(line)
    except ValidationError as exc:
        raise _ChildDied("gave an answer that makes no sense") from exc
    if answer.error is not None:
        raise JobError(answer.error.type, answer.error.detail, retryable=answer.error.retryable)
    count = answer.samples
    spans = [Span(start, end) for start, end in answer.spans]
    if count * 2 != os.fstat(scratch.fileno()).st_size or any(not 0 <= s.start < s.end <= count for s in spans):
        raise _ChildDied(f"gave an answer that does not fit its {count} samples")
    samples = Samples(scratch, count) if count else _NO_SAMPLES
    return Prepared(samples, spans, count / SAMPLE_RATE_HZ)
