"""A real consumer process, its engine around the stand-in: `python -m bench.breaker.consumer SEED`."""

from __future__ import annotations

import functools
import os
import sys
from typing import TYPE_CHECKING, Any, cast

from bench.breaker.standin import MelodyReader
from common.process import run_service
from common.settings import load_settings
from consumer.engine import Engine
from consumer.service import serve_consumer

if TYPE_CHECKING:
    from common.settings import Settings
    from common.watchdog import Watchdog

# Enough for jobs to share the engine, and for some to hang without stopping the rest.
_CHUNKS_AT_A_TIME = 4


def load_stand_in(seed: str, settings: Settings, watchdog: Watchdog) -> Engine:
    """Return the real engine around the stand-in; each start of a process stumbles in other places."""
    reader = cast("Any", MelodyReader(f"{seed}-{os.getpid()}"))
    chunks = settings.batch_size or _CHUNKS_AT_A_TIME
    return Engine(reader, "melody-reader", chunks, 6, watchdog, identity="melody-reader")


if __name__ == "__main__":
    serve = functools.partial(serve_consumer, load=functools.partial(load_stand_in, sys.argv[1]))
    run_service("consumer", serve, load_settings())
