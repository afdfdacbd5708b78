"""The function library: every change of state, in Lua, run by the server as one step.

The library's name holds a digest of its text. Two versions of sttream therefore never call each other's functions,
and a process that finds its library missing loads it again (`common.setup`).
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.connection import library_is_missing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from common.connection import Client

_FOLDER = Path(__file__).parent / "lua"


@functools.cache
def library_source() -> tuple[str, str]:
    """Return the library's name and text: the prelude, then one file a function."""
    files = sorted(_FOLDER.glob("*.lua"), key=lambda path: (not path.stem.startswith("_"), path.stem))
    body = "\n".join(path.read_text(encoding="utf-8") for path in files)
    name = f"sttream_{hashlib.sha256(body.encode()).hexdigest()[:12]}"
    return name, f"#!lua name={name}\nlocal LIBRARY = '{name}'\n{body}"


def fcall(name: str, keys: Sequence[str], args: Sequence[str | int | float]) -> tuple[str | int | float, ...]:
    """Return the command that calls a function of the library."""
    return ("FCALL", f"{library_source()[0]}_{name}", len(keys), *keys, *args)


async def library_is_there(redis: Client, epoch_key: str) -> bool:
    """Ask a function that only reads: `FUNCTION LIST` is a right that few users have."""
    try:
        await call(redis, "epoch", [epoch_key], [])
    except Exception as exc:
        if library_is_missing(exc):
            return False
        raise
    return True


async def load_library(redis: Client) -> None:
    """Load the library; needs the right to `FUNCTION LOAD`."""
    # REPLACE: another process may have loaded the same text since we looked.
    await redis.function_load(library_source()[1], replace=True)


async def call(redis: Client, name: str, keys: Sequence[str], args: Sequence[str | int | float]) -> Any:
    """Call one function; the reply as the function's header describes it."""
    return await redis.execute_command(*fcall(name, keys, args))
