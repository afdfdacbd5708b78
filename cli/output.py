"""What verbs print: JSON lines for programs, lines and tables for people; all else goes to standard error."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console, RenderableType
    from rich.progress import Progress

# A table that is not read on a terminal is not cut to one.
_PIPED_COLUMNS = 200


def print_json(record: Any) -> None:
    """Print one object as one line."""
    import orjson

    click.echo(orjson.dumps(record))


def print_line(*cells: object) -> None:
    """Print cells on one line, two blanks between them."""
    click.echo("  ".join(shown(cell) for cell in cells))


def shown(value: object) -> str:
    """Return a value as text that cannot rewrite the terminal and holds no credentials."""
    from common.logs import safe_text

    return safe_text(str(value))


def print_document(content: bytes) -> None:
    """Print a file's content, which on a terminal must not leave the prompt in the middle of a line."""
    click.echo(content, nl=not content.endswith(b"\n"))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table whose cells break over lines rather than lose text."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for column in table.columns:
        column.overflow = "fold"
    for row in rows:
        table.add_row(*(Text(shown(cell)) for cell in row))
    print_rich(table)


def print_rich(renderable: RenderableType, *, words_whole: bool = False) -> None:
    """Print something of rich's, without blanks at the ends of lines and without empty lines around it.

    Args:
        words_whole: rather print wider than the terminal than break an id.
    """
    console = console_of(sys.stdout)
    if words_whole:
        console.width = max(console.width, console.measure(renderable).minimum)
    with console.capture() as capture:
        console.print(renderable)
    click.echo("\n".join(line.rstrip() for line in capture.get().splitlines()).strip("\n"))


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Print one `name  value` a line; what is None or empty is left out."""
    given = [(name, value) for name, value in fields if value not in (None, "")]
    width = max((len(name) for name, _ in given), default=0)
    for name, value in given:
        print_line(name.ljust(width), value)


def complain(message: str) -> None:
    """Say on standard error what went wrong; line breaks stay."""
    click.echo("Error: " + "\n".join(map(shown, message.splitlines())), err=True)


def progress_bar(*columns: str) -> Progress:
    """Return a progress bar on standard error, shown on a terminal only.

    Args:
        columns: what stands right of the bar, in rich's markup.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = console_of(sys.stderr)
    parts = (TextColumn("{task.description}"), BarColumn(), *map(TextColumn, columns), TimeElapsedColumn())
    return Progress(*parts, console=console, transient=True, disable=not console.is_terminal)


def console_of(stream: Any) -> Console:
    """Return rich's view of a stream: as wide as the terminal, wide when there is none."""
    from rich.console import Console

    console = Console(file=stream, highlight=False)
    if not console.is_terminal:
        console = Console(file=stream, highlight=False, width=_PIPED_COLUMNS)
    return console


def seconds(value: float | None) -> str:
    """Return a length of time as people read it."""
    if value is None:
        return "-"
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def to_the_second(moment: str) -> str:
    """Return an RFC 3339 time of the API without fractions of a second."""
    return re.sub(r"\.\d+", "", moment)


def counted(count: int, noun: str) -> str:
    """Return "1 file", "2 files"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def own_command() -> str:
    """Return what a user types to call this command again: its name, or its path where that is not on PATH."""
    called = Path(sys.argv[0])
    if shutil.which("sttream") or called.name != "sttream":
        return "sttream"
    return os.path.relpath(called)
