"""The services' logs on a terminal, one line each with the service's name before it."""

from __future__ import annotations

import asyncio
import textwrap
from collections import deque
from datetime import datetime
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

POLL_S = 0.2
_COLOURS = ("cyan", "magenta", "green", "blue", "yellow")
_LEVELS = {"warning": "yellow", "error": "red", "critical": "red"}


class Follower:
    """Shows what is appended to log files from now on, but for what is routine.

    Args:
        logs: a file by service.
        show: takes a line.
    """

    def __init__(self, logs: dict[str, Path], show: Callable[[str], None]) -> None:
        self._logs, self._show = logs, show
        self._read = {service: _size(path) for service, path in logs.items()}
        self._width = max(map(len, logs))
        self._colours = {service: _COLOURS[at % len(_COLOURS)] for at, service in enumerate(logs)}

    async def follow(self) -> None:
        """Show new lines until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(POLL_S)

    def look(self) -> None:
        """Show the whole lines that came since the last look; a file that became shorter was put aside."""
        for service, path in self._logs.items():
            if _size(path) < self._read[service]:
                self._read[service] = 0
            for line in self._new_lines(service, path):
                if not is_routine(line):
                    self._show(self._dressed(service, line))

    def _new_lines(self, service: str, path: Path) -> list[str]:
        if _size(path) == self._read[service]:
            return []
        with path.open("rb") as file:
            file.seek(self._read[service])
            whole, _, _ = file.read().rpartition(b"\n")
        if not whole:
            return []
        self._read[service] += len(whole) + 1
        return whole.decode(errors="replace").splitlines()

    def _dressed(self, service: str, line: str) -> str:
        import click

        return f"{click.style(service.ljust(self._width), fg=self._colours[service])}  {readable(line)}"


def is_routine(line: str) -> bool:
    """Return whether a line says that somebody looked at something: a program that waits for a job looks often.

    What was refused counts, too: `/readyz` says no until everything is there, and whoever asked has the answer.
    """
    try:
        fields = orjson.loads(line)
        return bool(fields["event"] == "request_answered" and fields["method"] == "GET")
    except (ValueError, KeyError, TypeError):
        return False


def readable(line: str) -> str:
    """Return a JSON log line as `time event key=value …`; any other line as it is."""
    import click

    try:
        fields: dict[str, Any] = orjson.loads(line)
        at = datetime.fromisoformat(fields.pop("timestamp")).astimezone()
        event = click.style(str(fields.pop("event")), fg=_LEVELS.get(fields.pop("level", "")))
    except (ValueError, KeyError, TypeError, AttributeError):
        return line
    fields.pop("service", None)
    traceback = fields.pop("exception", None)
    values = " ".join(f"{key}={value}" for key, value in fields.items() if value is not None)
    return f"{at:%H:%M:%S} {event} {values}".rstrip() + (f"\n{traceback}" if traceback else "")


def last_words(path: Path, since: int = 0, lines: int = 15) -> str:
    """Return why a service ended, from the end of its log, indented: the error that it named, else its last lines.

    Args:
        since: where in the file the service's own lines begin, in bytes.
    """
    import click

    try:
        with path.open("rb") as file:
            file.seek(since)
            last = [line.decode(errors="replace").rstrip() for line in deque(file, maxlen=lines)]
    except OSError as exc:
        return f"  ({path} cannot be read: {exc})"
    told = (_error_of(last[-1]) if last else None) or "\n".join(click.unstyle(readable(line)) for line in last)
    return textwrap.indent(told, "  ") or f"  (nothing was logged in {path})"


def _error_of(line: str) -> str | None:
    """Return the error that a JSON log line names."""
    try:
        return str(orjson.loads(line)["error"])
    except (ValueError, KeyError, TypeError):
        return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
