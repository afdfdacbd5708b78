"""A real consumer process, its engine around the stand-in: `python -m bench.breaker.consumer SEED`."""

from __future__ import annotations

import functools
import os
import sys
from typing import TYPE_CHECKING

from bench.breaker.standin import MelodyReader
from common.process import run_service
from common.settings import load_settings
from consumer.service import serve_consumer

if TYPE_CHECKING:
    from common.settings import Settings

# Enough for jobs to share a batch, and for some to hang without stopping the rest.
_BATCH_SIZE = "2"


def load_stand_in(seed: str, _: Settings) -> MelodyReader:
    """Return the stand-in; each start of a process stumbles in other places."""
    return MelodyReader(f"{seed}-{os.getpid()}")


if __name__ == "__main__":
    serve = functools.partial(serve_consumer, load=functools.partial(load_stand_in, sys.argv[1]))
    run_service("consumer", serve, load_settings({"STTREAM_BATCH_SIZE": _BATCH_SIZE, **os.environ}))
