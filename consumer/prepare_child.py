"""The child side of the prepare pool: decode a recording and find the speech in it.

Started by `consumer.prepare` as `python -m consumer.prepare_child FD`, FD being its end of a socket pair; nothing else
comes in by argument, path or environment. Warm, it enters the sandbox and says so. Then each request is one JSON line
that carries two descriptors, the recording (read only) and an empty scratch file, and gets one JSON line back. A file
that makes this process fail fails its own job: the parent starts another process.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import math
import os
import pkgutil
import resource
import select
import signal
import socket
import sys
import threading
import wave
from typing import TYPE_CHECKING, Any, BinaryIO

import av
import numpy as np
import orjson

from common.errors import JobError
from consumer.decode import decode
from consumer.samples import Samples
from consumer.sandbox import enter_sandbox
from consumer.speech import SAMPLE_RATE_HZ, find_speech

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# The socket, the two files and what the libraries keep open (under 16 measured), with room.
_OPEN_FILES = 64
# Warm it holds 0.1 GB, and with an hour of speech 0.5 GB; what needs more is a bomb. RLIMIT_AS would count the maps of
# scratch files and libraries, too.
_DATA_BYTES = 4 * 1024**3
_SAMPLE_BYTES = 2
# Sound comes out some hundred times faster than it plays, in blocks of up to a minute: a file that costs so much
# processor time before the next block is no recording. More of it would not help, so no second attempt is made.
_CPU_A_BLOCK_S = 20
# The speech detector takes a five hundredth of real time.
_CPU_OF_DETECTION = 0.1
# Decode and write go on for one block beyond the limit before it is noticed.
_SCRATCH_SLACK_BYTES = 64 * 1024 * 1024


def main() -> None:
    """Answer requests until the parent is gone."""
    # Ctrl-C is for the parent: it hands the work back and then closes the socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, _OPEN_FILES))
    resource.setrlimit(resource.RLIMIT_DATA, (_DATA_BYTES, _DATA_BYTES))
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        threading.Thread(target=_exit_with_parent, args=(connection,), daemon=True).start()
        _warm_up()
        _send(connection, {"missing": enter_sandbox()})  # ready
        with contextlib.suppress(ConnectionError):  # the parent was killed with an answer unread
            while _serve_one(connection):
                # Here, not while a job waits: libav objects that refer to each other are freed only by the collector.
                gc.collect()


def _exit_with_parent(connection: socket.socket) -> None:
    """End this process as soon as nobody holds the other end, whatever the main thread is doing."""
    poller = select.poll()
    poller.register(connection, 0)  # hang-up is always reported
    poller.poll()
    os._exit(0)


def _warm_up() -> None:
    """Go the way of a request once: what is not loaded now cannot be loaded in the sandbox, where no file opens."""
    for module in pkgutil.walk_packages(av.__path__, "av."):  # PyAV loads some when it meets subtitles
        if module.name not in {"av.__main__", "av.datasets"}:
            importlib.import_module(module.name)
    if sys.platform == "linux":
        with _memory_file() as recording, _memory_file() as scratch:
            with wave.open(recording, "wb") as silence:
                silence.setparams((1, _SAMPLE_BYTES, SAMPLE_RATE_HZ, 0, "NONE", ""))
                silence.writeframes(bytes(SAMPLE_RATE_HZ * _SAMPLE_BYTES))
            _prepare({"vad": True, "max_audio_s": 60}, recording.fileno(), scratch.fileno())
    else:
        find_speech(np.zeros(SAMPLE_RATE_HZ, dtype=np.int16))
    gc.collect()
    gc.freeze()  # what is loaded now stays out of later collections


def _memory_file() -> BinaryIO:
    """Return a file that needs no folder to lie in: a container may have none to write to."""
    return os.fdopen(os.memfd_create("warm-up"), "w+b")


def _serve_one(connection: socket.socket) -> bool:
    """Answer one request; false when the parent has closed the connection."""
    line, descriptors, _, _ = socket.recv_fds(connection, 4096, 2)
    if not line:
        return False
    source_fd, scratch_fd = descriptors
    try:
        answer = _prepare(orjson.loads(line), source_fd, scratch_fd)
    except JobError as exc:
        answer = {"error": {"type": exc.type, "detail": exc.detail, "retryable": exc.retryable}}
    except OSError as exc:
        detail = f"the scratch file cannot be written: {exc.strerror}. Tried again later."
        answer = {"error": {"type": "internal_error", "detail": detail, "retryable": True}}
    finally:
        os.close(source_fd)
        os.close(scratch_fd)
    _send(connection, answer)
    return True


def _prepare(request: dict[str, Any], source_fd: int, scratch_fd: int) -> dict[str, Any]:
    """Decode one recording to the scratch file and find the speech in it."""
    most_bytes = int(request["max_audio_s"] * SAMPLE_RATE_HZ * _SAMPLE_BYTES) + _SCRATCH_SLACK_BYTES
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, resource.RLIM_INFINITY))
    with (
        os.fdopen(source_fd, "rb", buffering=0, closefd=False) as source,
        _Scratch(io.FileIO(scratch_fd, "wb", closefd=False)) as scratch,
    ):
        _allow_cpu(_CPU_A_BLOCK_S)
        count = decode(source, scratch, request["max_audio_s"])
    if not request["vad"]:
        return {"samples": count, "spans": [[0, count]]}
    _allow_cpu(_CPU_A_BLOCK_S + count / SAMPLE_RATE_HZ * _CPU_OF_DETECTION)
    with os.fdopen(scratch_fd, "rb", closefd=False) as written:
        samples = Samples(written, count)
    return {"samples": count, "spans": [[span.start, span.end] for span in find_speech(samples)]}


class _Scratch(io.BufferedWriter):
    """The scratch file; each block of sound that it gets allows the work for the next one."""

    def write(self, block: ReadableBuffer, /) -> int:
        _allow_cpu(_CPU_A_BLOCK_S)
        return super().write(block)


def _allow_cpu(more_s: float) -> None:
    """Let the kernel end this process (SIGXCPU) when it has used so much more processor time than now."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit_s = math.ceil(used.ru_utime + used.ru_stime + more_s)
    resource.setrlimit(resource.RLIMIT_CPU, (limit_s, resource.RLIM_INFINITY))


def _send(connection: socket.socket, answer: dict[str, Any]) -> None:
    connection.sendall(orjson.dumps(answer) + b"\n")


if __name__ == "__main__":
    main()
