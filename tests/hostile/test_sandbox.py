"""What a process can still do inside the sandbox of the decoders."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from consumer.sandbox import enter_sandbox

ROOT = Path(__file__).resolve().parents[2]

# One line each, tried inside; what it needs is made before.
FORBIDDEN = {
    "read another file": "os.open('/etc/passwd', os.O_RDONLY)",
    "read the parent's environment": "os.open(f'/proc/{os.getppid()}/environ', os.O_RDONLY)",
    "write a file": "os.open('/tmp/written', os.O_WRONLY | os.O_CREAT)",
    "list a folder": "os.listdir('/')",
    "remove a file": "os.unlink('/tmp/nothing')",
    "make a folder": "os.mkdir('/tmp/made')",
    "rename": "os.rename('/tmp/nothing', '/tmp/something')",
    "change a mode": "os.chmod('/tmp', 0o777)",
    "make a socket": "socket.socket()",
    "make a pair of sockets": "socket.socketpair()",
    "connect a socket": "unconnected.connect(('127.0.0.1', 9))",
    "listen": "unconnected.listen()",
    "hand a descriptor over": "socket.send_fds(ours, [b'x'], [0])",
    "execute a program": "os.execv('/bin/true', ['true'])",
    "fork": "os.fork()",
    "spawn": "os.posix_spawn('/bin/true', ['true'], {})",
    "signal its parent": "os.kill(os.getppid(), 0)",
    "change its parent's limits": "resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))",
    "read its parent's memory": "call(310 if x86 else 270, os.getppid(), 0, 0, 0, 0, 0)",
    "trace its parent": "call(101 if x86 else 117, 16, os.getppid(), 0, 0)",
    "become somebody else": "os.setuid(1)",
    "queue work in the kernel (io_uring)": "call(425, 1, 0)",
    "open by openat2": "call(437, -100, b'/etc/passwd', bytes(24), 24)",
    "get a descriptor of its parent": "call(434, os.getppid(), 0)",
    "read a file in another thread": "in_the_other_thread()",
}
ALLOWED = {
    "read what is open": "os.pread(recording.fileno(), 4, 0)",
    "write what is open": "os.write(recording.fileno(), b'sound')",
    "map what is open": "mmap.mmap(recording.fileno(), 4)",
    "answer": "ours.sendall(b'{}')",
    "start a thread": "threading.Thread(target=len, args=('',)).start()",
    "move its own limits": "resource.setrlimit(resource.RLIMIT_CPU, (900, resource.RLIM_INFINITY))",
    "take memory": "bytearray(100_000_000)",
}
PROGRAM = """
import ctypes, errno, json, mmap, os, platform, queue, resource, socket, sys, tempfile, threading
from consumer.sandbox import enter_sandbox

libc, x86 = ctypes.CDLL(None, use_errno=True), platform.machine() == "x86_64"
unconnected, (ours, theirs), recording = socket.socket(), socket.socketpair(), tempfile.TemporaryFile()
os.write(recording.fileno(), b"RIFF")
tasks, answers = queue.Queue(), queue.Queue()

def other_thread():
    tasks.get()
    try:
        os.open("/etc/passwd", os.O_RDONLY)
        answers.put(None)
    except OSError as exc:
        answers.put(exc)

def in_the_other_thread():
    tasks.put(None)
    if problem := answers.get():
        raise problem

def call(number, *arguments):
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "")

def tried(line):
    try:
        eval(line)
    except OSError as exc:
        return errno.errorcode[exc.errno]
    return "done"

threading.Thread(target=other_thread, daemon=True).start()
lines = json.loads(sys.argv[1])
missing = enter_sandbox()
print(json.dumps([missing, {name: tried(line) for name, line in lines.items()}]), flush=True)
"""

on_linux = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in {"x86_64", "aarch64"}, reason="no filter is known here"
)


@on_linux
def test_inside_nothing_can_be_reached_and_all_that_a_decoder_needs_works() -> None:
    """A file that takes a decoder over must find no other file, no network, no process and no way to make one."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(FORBIDDEN | ALLOWED)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    missing, found = json.loads(result.stdout)
    assert missing == ""
    # A call that is younger than all the allowed ones does not exist: libc then tries its older form.
    newer = dict.fromkeys(
        ("queue work in the kernel (io_uring)", "open by openat2", "get a descriptor of its parent"), "ENOSYS"
    )
    assert found == dict.fromkeys(FORBIDDEN, "EPERM") | newer | dict.fromkeys(ALLOWED, "done")


def test_a_machine_without_a_filter_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A protection that is not there must not be believed in."""
    monkeypatch.setattr(platform, "machine", lambda: "s390x")
    assert "s390x" in enter_sandbox()
