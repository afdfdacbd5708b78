"""Ports for the servers that tests start: free, and nobody else's until the server has taken them."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import secrets
import socket
from collections.abc import Iterator

# Below those that connections get: one of them would take the port between this look and the server's start. The
# breaker's are from 20000 on.
_FIRST, _LAST = 10_000, 19_999
# Workers of a parallel run look in ranges of their own: two that look at the same moment would find the same port.
_WORKERS = 8


def free_port(count: int = 1) -> int:
    """Return a port that is free together with the `count - 1` after it; none is given twice, until all were."""
    ports = _ports()
    port = next(port for port in ports if all(map(_is_free, range(port, port + count))))
    for _ in range(count - 1):
        next(ports)
    return port


@functools.cache
def _ports() -> Iterator[int]:
    """Return this worker's ports, round and round, from one that no other run on this machine is likely to begin at."""
    each = (_LAST + 1 - _FIRST) // _WORKERS
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
    begin = secrets.randbelow(each)
    return (_FIRST + worker * each + (begin + number) % each for number in itertools.count())


def _is_free(port: int) -> bool:
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.bind(("127.0.0.1", port))
        return True
    return False
