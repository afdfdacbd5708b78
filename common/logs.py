"""Structured logs on standard error: JSON lines for machines, coloured lines on a terminal."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TextIO, cast

import orjson
import structlog
from structlog.contextvars import merge_contextvars

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from structlog.typing import Processor

    from common.settings import Settings

# Longer values are somebody's data, not a description of what happened.
LONGEST_VALUE = 2_000
# The end of a traceback says what failed; a recursion error would fill the disk with its middle.
LONGEST_TRACEBACK = 12_000
_DEEPEST = 5
_SIXTY_FOUR_BITS = 2**63

# What could rewrite a terminal or turn a line around: controls, bidirectional marks, invisible spaces,
# separators, halves of surrogate pairs (which JSON cannot hold), tags.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)
# Tells what the work at hand is about, for each line that it logs. One variable, asked when there is a line: to bind
# each field in the library's way costs every entry some microseconds, and most log no line.
about: ContextVar[Callable[[], Mapping[str, object]]] = ContextVar("about", default=dict)
_USER_INFO = re.compile(r"(://)[^/\s]+@")
_PARAMETER = re.compile(r"([?&])([^=?&\s]{1,80})=[^&\s'\"]+")
_SECRET = re.compile(r"(?i)sig|credential|token|secret|password|key")


class _Forgiving(io.TextIOBase):
    """A stream that loses what cannot be written: a full disk must cost log lines, never the work that they tell of."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


def configure_logs(settings: Settings, service: str, **more: str) -> None:
    """Send the process's logs to standard error, where standard output is left to data.

    Args:
        settings: `log_level` and `log_format` count.
        service: bound to every line as `service`.
        more: bound to every line, too: those of threads and libraries know no context.
    """
    bound = {"service": service, **more}
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not sys.stderr.isatty())
    level = getattr(logging, settings.log_level.upper())
    structlog.configure(
        processors=[_adder(bound), *_gatherers(), _clean, _renderer(as_json)],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, _Forgiving(sys.stderr))),
        cache_logger_on_first_use=False,
    )
    _route_libraries(bound, as_json)


def safe_text(text: str, longest: int = LONGEST_VALUE) -> str:
    """Return text that is safe to log or to show: no credentials, no control characters, not too long."""
    # Hide first, on a bounded text: cut in its middle, a password would not be recognised.
    hidden = _PARAMETER.sub(_hide_secret, _USER_INFO.sub(r"\1***@", text[: 4 * longest]))
    cut = hidden if len(hidden) <= longest else f"{hidden[:longest]}… ({len(text)} characters)"
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), cut)


def _hide_secret(parameter: re.Match[str]) -> str:
    return f"{parameter[1]}{parameter[2]}=***" if _SECRET.search(parameter[2]) else parameter[0]


def _gatherers() -> list[Processor]:
    """Return the steps that collect what a line says."""
    return [
        merge_contextvars,
        _add_what_it_is_about,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]


def _add_what_it_is_about(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name, value in about.get()().items():
        event.setdefault(name, value)
    return event


def _adder(bound: Mapping[str, str]) -> Processor:
    def add_bound(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event.update(bound)
        return event

    return add_bound


def _clean(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Make every value safe; a traceback keeps its line breaks and its end."""
    traceback = event.pop("exception", None)
    cleaned: MutableMapping[str, Any] = {str(key): _safe(value, 0) for key, value in event.items()}
    if isinstance(traceback, str):
        lines = traceback[-LONGEST_TRACEBACK:].splitlines()
        cleaned["exception"] = "\n".join(safe_text(line) for line in lines)
    return cleaned


def _safe(value: object, depth: int) -> object:
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int) and abs(value) < _SIXTY_FOUR_BITS:
        return int(value)
    if isinstance(value, str):
        return safe_text(value)
    if isinstance(value, dict) and depth < _DEEPEST:
        return {safe_text(str(key)): _safe(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset) and depth < _DEEPEST:
        return [_safe(item, depth + 1) for item in value]
    return safe_text(str(value))


def _renderer(as_json: bool) -> Processor:
    if not as_json:
        return structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    return structlog.processors.JSONRenderer(serializer=_to_json)


def _to_json(event: object, **_: object) -> str:
    return orjson.dumps(event).decode()


def _route_libraries(bound: Mapping[str, str], as_json: bool) -> None:
    """Bring what libraries log through the standard module into the same form, warnings and worse."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[_adder(bound), structlog.stdlib.add_logger_name, *_gatherers()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _clean,
                _renderer(as_json),
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.captureWarnings(True)
