"""Run a program that dies with the process that started it: `python -I -S tied.py PARENT_PID PROGRAM ARG...`.

A killed supervisor cannot stop its services, and services without one would hold ports and data that the next start
needs. Linux sends the signal asked for here, also after `exec`; elsewhere the program just runs. This is a program of
its own, and not a `preexec_fn`, because code between fork and exec is not safe in a process with threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Become the program.

    SIGKILL, because nobody is left to wait for a slower end: work comes back through its lease, and the server has
    synced what it confirmed.
    """
    parent_pid, program = int(arguments[0]), arguments[1:]
    if sys.platform == "linux" and ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        sys.exit("prctl(PR_SET_PDEATHSIG) was refused; the service is not started")
    if os.getppid() != parent_pid:
        sys.exit(f"the supervisor (pid {parent_pid}) ended meanwhile; the service is not started")
    os.execv(program[0], program)  # noqa: S606 - becoming the program is what this file is for


if __name__ == "__main__":
    main(sys.argv[1:])
