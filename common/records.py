"""The records that travel: what is submitted, what a job is, what a failure is.

A job lives in two places. While it is under way its Redis hash is the truth; once the writer has stored its
terminal record the database is. Both are read into the same `Job`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

import orjson
import structlog
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from common.options import Options

log = structlog.get_logger()

Priority = Literal["high", "normal", "low"]
PRIORITIES: tuple[Priority, ...] = ("high", "normal", "low")

# A job's id names its files, so it must be a plain file name everywhere: no separators, no leading or trailing
# dot, none of the names that Windows keeps for devices.
_DEVICE_NAMES = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\.|$)")
ID_PATTERN = r"^[A-Za-z0-9_]([A-Za-z0-9._-]{0,126}[A-Za-z0-9_-])?$"

Source = Annotated[str, StringConstraints(min_length=1, max_length=4096)]


class State(StrEnum):
    """Where a job is; `docs/how-it-works.md` has the picture."""

    SCHEDULED = "scheduled"
    QUEUED = "queued"
    RUNNING = "running"
    TRANSCRIBED = "transcribed"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL = frozenset({State.COMPLETED, State.FAILED, State.CANCELLED})


class Failure(BaseModel):
    """Why a job failed, or why its last attempt did."""

    model_config = ConfigDict(frozen=True)

    type: str
    """One of `common.errors.ErrorType`; read as any text, since another version may have written it."""
    detail: str

    @field_validator("detail")
    @classmethod
    def _storable(cls, value: str) -> str:
        """Take out NUL, which PostgreSQL cannot store: a failure must not fail to be recorded."""
        return value.replace("\0", "\N{REPLACEMENT CHARACTER}")


class JobSpec(BaseModel):
    """A job as submitted: what stays the same for its whole life."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Source
    priority: Priority = "normal"
    options: Options = Options()
    timeout_s: float | None = Field(None, gt=0, le=7 * 86_400)
    max_attempts: int | None = Field(None, ge=1, le=100)
    retry_delay_s: float | None = Field(None, ge=0, le=86_400)
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=1024)]] = Field(
        default_factory=dict, max_length=32
    )
    batch_id: str | None = None

    @field_validator("source")
    @classmethod
    def _no_control_characters(cls, value: str) -> str:
        if "\0" in value:
            raise ValueError("a source cannot hold a NUL character")
        return value

    def to_json(self) -> str:
        """Return the canonical text: two specs are the same job when their texts are equal."""
        return _canonical(self.model_dump(mode="json", exclude_defaults=True))

    def beside_source(self) -> str:
        """Return the canonical text of all but the source; "" for a job that asks for nothing else, as most do."""
        left = self.model_dump(mode="json", exclude_defaults=True, exclude={"source"})
        return _canonical(left) if left else ""

    @classmethod
    def from_parts(cls, source: str | None, beside: str) -> Self:
        """Read what a hash or an entry holds.

        Args:
            source: None where a version before this one has written it into the rest.
            beside: `beside_source`.

        Raises:
            ValueError: it is no job.
        """
        if source is None:
            return cls.model_validate_json(beside)
        rest = orjson.loads(beside or "{}")
        if not isinstance(rest, dict):
            raise ValueError(  # noqa: TRY004 as the model's own errors are
                f"expected a JSON object beside the source, found {type(rest).__name__}"
            )
        return cls.model_validate({**rest, "source": source})


class Job(BaseModel):
    """A job as it stands. Times are server milliseconds since 1970, or None before they are reached."""

    model_config = ConfigDict(frozen=True)

    id: str
    spec: JobSpec
    state: State
    run: int = 1
    """Which submission of this id: 1, and one more each time the job is revived after its end."""
    attempts: int = 0
    created_ms: int
    queued_ms: int | None = None
    started_ms: int | None = None
    finished_ms: int | None = None
    progress: float = 0.0
    """0 to 1."""
    audio_s: float | None = None
    worker: str | None = None
    error: Failure | None = None
    cancel_requested: bool = False
    entry_id: str | None = None
    """The stream entry that carries the job while it is queued or running."""
    dead_id: str | None = None
    """Its entry in the dead letter stream, while it has one."""

    @classmethod
    def from_hash(cls, job_id: str, fields: Mapping[str, str]) -> Self:
        """Read the fields of a `job:<id>` hash.

        Raises:
            ValueError: another version, or a hand, has written what this one cannot read.
        """
        source = fields.get("source")
        if source is None and "spec" not in fields:
            raise ValueError(f"job {job_id}: field 'source' missing in its hash (found {', '.join(fields)})")
        values: dict[str, Any] = dict(fields)
        spec = JobSpec.from_parts(source, values.pop("spec", ""))
        if source is not None:
            values["queued_ms"] = _queued_ms(fields)
        if "error" in values:
            values["error"] = Failure.model_validate_json(values["error"])
        return cls.model_validate({**values, "id": job_id, "spec": spec})

    @property
    def terminal(self) -> bool:
        """Whether the job has ended."""
        return self.state in TERMINAL


def _queued_ms(fields: Mapping[str, str]) -> str | None:
    """Return when a job was queued: not noted for one that was as it came, noted as 0 for one that came for later."""
    noted = fields.get("queued_ms", fields.get("created_ms"))
    return None if noted == "0" else noted


def _canonical(fields: Mapping[str, Any]) -> str:
    return orjson.dumps(fields, option=orjson.OPT_SORT_KEYS).decode()


def check_id(value: str) -> str:
    """Return a job id that is also a safe file name.

    Raises:
        ValueError: naming what is wrong with it.
    """
    if not re.fullmatch(ID_PATTERN, value):
        raise ValueError(
            f"id {value[:40]!r}: expected 1 to 128 of A-Z a-z 0-9 _ - . with a letter or digit first and no dot last"
        )
    if _DEVICE_NAMES.match(value):
        raise ValueError(f"id {value!r} is the name of a device on some systems; choose another")
    return value


def job_or_none(job_id: str, fields: Mapping[str, str]) -> Job | None:
    """Return the job of a hash, or None for an empty one and for one that cannot be read."""
    if not fields:
        return None
    try:
        return Job.from_hash(job_id, fields)
    except ValueError as exc:
        log.warning(
            "job_unreadable", job_id=job_id, error=what_is_wrong(exc), next="when it runs it becomes a dead letter"
        )
        return None


def what_is_wrong(error: ValueError) -> str:
    """Return an error's message without the values found: a source may be a URL with credentials."""
    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(map(str, line['loc']))}: {line['msg']}" for line in error.errors())
    return str(error)
