"""The arguments and options that several verbs share, and how their text is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pydantic_core import ErrorDetails

    Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

# The same as in common.records and common.formats, which take longer to import than `--help` may; a test compares.
PRIORITIES = ("high", "normal", "low")
ENDED = ("cancelled", "completed", "failed")
FORMATS = ("json", "txt", "srt", "vtt", "tsv")
DEFAULT_FORMAT = "txt"

as_json: Decorator = click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a line.")
url: Decorator = click.option("--url", metavar="URL", help="Where the producer is.  [default: from the settings]")
priority: Decorator = click.option("--priority", type=click.Choice(PRIORITIES), default="normal", show_default=True)
format_: Decorator = click.option(
    "--format",
    "format_",
    type=click.Choice(FORMATS),
    help=f"Form of the transcript.  [default: {DEFAULT_FORMAT}]",
)


def producer_url(given: str | None) -> str:
    """Return the producer's URL: as given, else from the settings."""
    if given:
        return given
    from common.settings import load_settings

    return load_settings().producer_url


def pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    """Read `K=V` texts.

    Raises:
        click.UsageError: one has no name or no `=`.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise click.UsageError(f"{option} {text!r}: expected NAME=VALUE")
        found[name.strip()] = value
    return found


def decoding_options(texts: Sequence[str], language: str | None) -> dict[str, object]:
    """Read `--option K=V` texts and `--language` into the types that the API wants.

    Raises:
        click.UsageError: naming each option that is unknown or wrong.
    """
    from pydantic import ValidationError

    from common.options import Options

    given = pairs(texts, "--option") | ({"language": language} if language else {})
    try:
        options = Options.model_validate(given)
    except ValidationError as exc:
        known = ", ".join(Options.model_fields)
        raise click.UsageError("; ".join(_problem(error, known) for error in exc.errors())) from exc
    return options.model_dump(mode="json", exclude_unset=True)


def _problem(error: ErrorDetails, known: str) -> str:
    """Return what is wrong with one option, in our words where the library's speak of models."""
    name = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"unknown option {name}; known: {known}"
    return f"{name}: {error['msg'].removeprefix('Value error, ')}"
