"""From the bytes of a submission to a checked job."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from common.logs import safe_text
from common.records import JobSpec, check_id
from producer.problems import Problem

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)")
_LONGEST_DELAY_S = 366 * 86_400.0
_SHOWN_PROBLEMS = 5
_SHOWN_VALUE = 60


class Submission(JobSpec):
    """The body of `POST /v1/jobs`: a job, its id, and when it shall start."""

    id: str | None = None
    delay_s: float | None = Field(None, ge=0, le=_LONGEST_DELAY_S)
    run_at: str | None = None
    """RFC 3339 with a zone."""

    @model_validator(mode="before")
    @classmethod
    def _no_batch(cls, value: object) -> object:
        """Batches make their jobs themselves: in a submission the field is unknown."""
        if isinstance(value, dict) and "batch_id" in value:
            raise PydanticCustomError("batch_unknown", "batch_id: unknown field")
        return value

    @field_validator("id")
    @classmethod
    def _good_id(cls, value: str | None) -> str | None:
        return value if value is None else check_id(value)

    @field_validator("run_at")
    @classmethod
    def _good_time(cls, value: str | None) -> str | None:
        if value is not None:
            _milliseconds(value)
        return value

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.delay_s is not None and self.run_at is not None:
            raise PydanticCustomError("two_starts", "run_at: give delay_s or run_at, not both")
        return self

    @property
    def spec(self) -> JobSpec:
        """The job itself: what two submissions must share to be the same one."""
        return JobSpec.model_construct(**{name: getattr(self, name) for name in JobSpec.model_fields})

    @property
    def due_ms(self) -> int:
        """The time given by `run_at` in ms since 1970; 0 for none."""
        return max(0, _milliseconds(self.run_at)) if self.run_at else 0

    @property
    def delay_ms(self) -> int:
        """The wait given by `delay_s`; 0 for none."""
        return round((self.delay_s or 0) * 1000)


def parse_submission(raw: bytes) -> Submission:
    """Read the JSON of a submission.

    Raises:
        Problem: 400 when it is not JSON, 422 when it is not a submission.
    """
    return check_submission(load_json(raw))


def check_submission(body: object) -> Submission:
    """Return the submission, nothing coerced: `"5"` is no number and `1` is no flag.

    Raises:
        Problem: 422 naming each field that is unknown or wrong.
    """
    if not isinstance(body, dict):
        raise Problem(422, "invalid_field", f"expected a JSON object, found {type(body).__name__}")
    try:
        return Submission.model_validate(body, strict=True)
    except ValidationError as exc:
        _refuse(exc.errors(include_url=False))


def load_json(raw: bytes) -> Any:
    """Parse JSON as strictly as the standard allows: one meaning for every reader.

    Raises:
        Problem: 400 saying what is wrong: no UTF-8, no JSON, a name given twice, NaN, a number of thousands of
            digits, nesting without end, a NUL or half a character, which no database stores.
    """
    try:
        value = json.loads(raw.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
        for text in _texts(value):
            text.encode()
            if "\0" in text:
                raise ValueError("a text holds a NUL character (\\u0000)")
        return value
    except (ValueError, RecursionError) as exc:
        why = "nested too deep" if isinstance(exc, RecursionError) else safe_text(_why(exc), 200)
        raise Problem(400, "invalid_json", f"the body is no JSON that can be read: {why}") from exc


def _why(error: ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is no UTF-8"
    if isinstance(error, UnicodeEncodeError):
        return "a text holds half of a surrogate pair"
    return str(error)


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the name {name[:_SHOWN_VALUE]!r} is given twice in one object")
        found[name] = value
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _texts(value: object) -> Iterator[str]:
    """Yield every text in the value, names of fields too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield name
            yield from _texts(item)


def _milliseconds(text: str) -> int:
    if not _RFC_3339.fullmatch(text):
        raise ValueError("expected RFC 3339 with a zone, such as 2026-03-01T06:00:00Z")
    return round(datetime.fromisoformat(text.upper()).timestamp() * 1000)


def _refuse(errors: Sequence[ErrorDetails]) -> NoReturn:
    problems = [_describe(error) for error in errors]
    shown = "; ".join(message for _, message in problems[:_SHOWN_PROBLEMS])
    more = f"; and {len(problems) - _SHOWN_PROBLEMS} more" if len(problems) > _SHOWN_PROBLEMS else ""
    raise Problem(422, "invalid_field", shown + more, param=problems[0][0])


def _describe(error: ErrorDetails) -> tuple[str | None, str]:
    """Return the field at fault as a dotted path, and what is wrong with it."""
    field = safe_text(".".join(str(step) for step in error["loc"]), 100)
    message = error["msg"].removeprefix("Value error, ")
    if not field:
        # A rule between fields begins its message with the field to name.
        return message.partition(":")[0], message
    if error["type"] == "extra_forbidden":
        return field, f"{field}: unknown field"
    if error["type"] == "missing":
        return field, f"{field}: missing"
    found = error["input"]
    shown = "" if isinstance(found, dict | list) else f" (found {safe_text(repr(found), _SHOWN_VALUE)})"
    return field, f"{field}: {message[:1].lower()}{message[1:]}{shown}"
