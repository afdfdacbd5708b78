"""Take away what a decoder never needs: a child that a hostile file took over can read its file, compute and answer.

One filter of system calls (seccomp) for all threads of the process, for good. What is not on the list fails with EPERM,
so that a library gives up cleanly instead of dying: among it every open, so nothing but the descriptors that came with
the request can be read or written, new sockets, exec and fork.

Source: seccomp(2), prctl(2), the headers linux/seccomp.h, linux/filter.h, linux/audit.h, asm/unistd_64.h (x86_64) and
asm-generic/unistd.h (aarch64) of Linux 6.1.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Machine:
    audit_arch: int
    seccomp: int
    column: int
    """Of the numbers below."""


_MACHINES = {"x86_64": _Machine(0xC000003E, 317, 0), "aarch64": _Machine(0xC00000B7, 277, 1)}

# By strace of all formats, and what libc and Python use on the way to a crash; numbers on x86_64 and on aarch64.
_ALLOWED = {
    # What is open already: the connection, the recording, the scratch file, standard error.
    "read": (0, 63),
    "write": (1, 64),
    "readv": (19, 65),
    "writev": (20, 66),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "lseek": (8, 62),
    "close": (3, 57),
    "fstat": (5, 80),
    "newfstatat": (262, 79),  # how some versions of libc do fstat
    "fcntl": (72, 25),  # a memory map duplicates its descriptor
    "recvmsg": (47, 212),
    "sendto": (44, 206),
    "poll": (7, 73),  # ppoll on aarch64
    # Memory
    "mmap": (9, 222),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "mprotect": (10, 226),
    "madvise": (28, 233),
    "brk": (12, 214),
    # Threads
    "futex": (202, 98),
    "set_robust_list": (273, 99),
    "rseq": (334, 293),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "getpid": (39, 172),
    "gettid": (186, 178),
    "exit": (60, 93),
    "exit_group": (231, 94),
    # Signals to itself
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    # Time and chance
    "clock_gettime": (228, 113),
    "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101),
    "getrusage": (98, 165),
    "getrandom": (318, 278),
}
_CLONE = (56, 220)
_TGKILL = (234, 131)
_PRLIMIT64 = (302, 261)
# Newer calls, the same on all machines, each of which replaces an older one (clone3, openat2, …): libc tries the older
# one when it hears that the kernel does not know them. The calls of other ABIs (x32) have higher numbers, too.
_NEWER = 424

_CLONE_THREAD = 0x10000
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_SET_MODE_FILTER = 1
_SECCOMP_FILTER_FLAG_TSYNC = 1  # all threads, not only the calling one

# Where struct seccomp_data holds the number, the architecture and the low half of an argument.
_NUMBER, _ARCHITECTURE = 0, 4
_ARGUMENTS, _ARGUMENT_BYTES = 16, 8
# Instructions: load a word, return, and jump over `jt` or `jf` instructions by a comparison.
_LOAD, _RETURN = 0x20, 0x06
_IF_EQUAL, _IF_AT_LEAST, _IF_ANY_BIT = 0x15, 0x35, 0x45

_ALLOW = 0x7FFF0000
_KILL_PROCESS = 0x80000000
_FAIL = 0x00050000  # with the errno in the low half


def enter_sandbox() -> str:
    """Give up all that a decoder does not need; there is no way back.

    Returns:
        The protections that cannot be had on this system and why; "" when all is well.
    """
    machine = _MACHINES.get(platform.machine())
    if sys.platform != "linux" or machine is None:
        return f"a filter of system calls (there is none for {sys.platform} on {platform.machine()})"
    libc = ctypes.CDLL(None, use_errno=True)
    # Without it a filter needs root; and no setuid program can give back what is taken away here.
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return f"no new privileges, and so a filter of system calls ({_last_error()})"
    program = _program(machine)
    # struct sock_fprog: the count of instructions of eight bytes, and where they are.
    instructions = ctypes.create_string_buffer(program, len(program))
    description = struct.pack("@HP", len(program) // 8, ctypes.addressof(instructions))
    if libc.syscall(machine.seccomp, _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC, description) != 0:
        return f"a filter of system calls ({_last_error()})"
    return ""


def _last_error() -> str:
    return os.strerror(ctypes.get_errno())


def _program(machine: _Machine) -> bytes:
    """Return the filter: the first matching line decides."""
    return b"".join(
        [
            _step(_LOAD, _ARCHITECTURE),
            # The numbers below mean something else to a 32-bit call.
            _step(_IF_EQUAL, machine.audit_arch, jt=1),
            _step(_RETURN, _KILL_PROCESS),
            _step(_LOAD, _NUMBER),
            _step(_IF_AT_LEAST, _NEWER, jf=1),
            _step(_RETURN, _FAIL | errno.ENOSYS),
            *(_allow(numbers[machine.column]) for numbers in _ALLOWED.values()),
            # A thread, but no process; signals and limits only for this process.
            _allow_if(_CLONE[machine.column], 0, _IF_ANY_BIT, (_CLONE_THREAD,)),
            _allow_if(_TGKILL[machine.column], 0, _IF_EQUAL, (os.getpid(),)),
            _allow_if(_PRLIMIT64[machine.column], 0, _IF_EQUAL, (0, os.getpid())),
            _step(_RETURN, _FAIL | errno.EPERM),
        ]
    )


def _allow(number: int) -> bytes:
    return _step(_IF_EQUAL, number, jf=1) + _step(_RETURN, _ALLOW)


def _allow_if(number: int, argument: int, test: int, values: Sequence[int]) -> bytes:
    """Allow a call when one of its arguments passes the test with one of the values; it fails otherwise."""
    tests = b"".join(_step(test, value, jf=1) + _step(_RETURN, _ALLOW) for value in values)
    body = _step(_LOAD, _ARGUMENTS + argument * _ARGUMENT_BYTES) + tests + _step(_RETURN, _FAIL | errno.EPERM)
    return _step(_IF_EQUAL, number, jf=len(body) // 8) + body


def _step(code: int, operand: int, *, jt: int = 0, jf: int = 0) -> bytes:
    """Return one instruction, a struct sock_filter."""
    return struct.pack("=HBBI", code, jt, jf, operand)
