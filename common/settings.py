"""The settings of every service: built once from the environment, then handed down frozen.

`docs/settings.md` is the table of these fields; a test compares the two.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from common.errors import SettingsError
from common.topology import parse_url

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

PREFIX = "STTREAM_"
GIB = 1024**3


class Settings(BaseSettings):
    """Everything an operator may set, as `STTREAM_<NAME>`; `STTREAM_<NAME>_FILE` reads the value from a file."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid")

    redis_url: SecretStr = Field(
        SecretStr("redis://localhost:6379/0"),
        description="Redis or Valkey: a server, its sentinels or a cluster; plain `REDIS_URL` is read too.",
    )
    queue: str = Field(
        "sttream",
        pattern=r"^[A-Za-z0-9_.-]{1,64}$",
        description="Name of the queue: the hash tag of every key.",
    )
    database_url: SecretStr = Field(
        SecretStr("sqlite+aiosqlite:///sttream.db"),
        description="SQLAlchemy URL: `sqlite+aiosqlite:///FILE` or `postgresql+asyncpg://…`.",
    )
    results_dir: Path = Field(Path("results"), description="Folder where the writer leaves transcripts as files.")
    audio_roots: tuple[Path, ...] = Field((), description="Folders that file sources may lie in, separated by `:`.")
    upload_dir: Path = Field(Path("uploads"), description="Folder for uploaded recordings; always an allowed root.")
    scratch_dir: Path | None = Field(None, description="Folder for decoded audio while a job runs; default: `$TMPDIR`.")
    lexicons_dir: Path | None = Field(
        None, description="Folder of lexicons, `NAME.txt` with a term a line; producers and consumers read it."
    )
    max_file_bytes: int = Field(GIB, gt=0, description="Largest recording accepted, in bytes.")
    max_audio_s: float = Field(6 * 3600, gt=0, description="Longest recording accepted, in seconds of audio.")
    max_queued: int = Field(100_000, gt=0, description="Jobs waiting, scheduled or running before submits get 429.")
    max_unstored: int = Field(
        10_000, gt=0, description="Results waiting for a writer from which on consumers take no more jobs."
    )
    durable_submit: Literal["memory", "disk", "replica"] = Field(
        "disk",
        description="Where a job is before its 202: the server's `memory`, its `disk`, or also on a `replica`.",
    )
    http_host: str = Field(
        "127.0.0.1", description="Address that the producer, and every service's health and metrics, listen on."
    )
    http_port: int = Field(8010, ge=0, le=65535, description="Port the producer listens on; 0 takes a free one.")
    url: str | None = Field(None, description="Where the command line finds the producer; default: host and port.")
    metrics_port: int = Field(
        0, ge=0, le=65535, description="Port of health and metrics (consumer, writer); 0 takes a free one, logged."
    )
    model: str = Field("large-v3", description="Whisper model: a name, a folder, or `bundled` (tiny.en).")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where the model runs.")
    compute_type: str = Field(
        "default", description="CTranslate2 type: `int8`, `float16`, …; default suits the device."
    )
    window: Literal["auto", "short", "full"] = Field(
        "auto",
        description="What the model looks at: `full` is 30 s of which most may be empty, `short` leaves that out; "
        "auto: short on a CPU.",
    )
    batch_size: int | None = Field(
        None, gt=0, description="Chunks in one call of the model; default: measured at the start."
    )
    slots: int | None = Field(
        None, gt=0, description="Jobs a consumer holds at a time; default: two for each chunk that it reads at a time."
    )
    prepare_processes: int | None = Field(
        None, gt=0, description="Decoder processes; default: half the cores, at most 4, with a GPU 12."
    )
    lease_ms: int = Field(10_000, ge=100, description="What a dead consumer held runs again within this time.")
    renew_ms: int = Field(3_000, ge=10, description="How often leases are renewed; at most a third of the lease.")
    stall_s: float = Field(
        300.0, gt=0, description="A model, disk or event loop that hangs for so long ends the process, not only a job."
    )
    drain_s: float = Field(25.0, ge=0, description="How long SIGTERM waits for running work before handing it back.")
    timeout_s: float = Field(900.0, gt=0, description="Time limit of one attempt, unless the job says otherwise.")
    max_attempts: int = Field(3, ge=1, le=100, description="Attempts before a dead letter, unless the job says so.")
    retry_delay_s: float = Field(5.0, ge=0, description="First wait between attempts; doubles, with jitter.")
    job_ttl_s: int = Field(86_400, ge=1, description="How long a stored job's hash stays in Redis.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="`auto`: console on a terminal, else JSON."
    )

    @field_validator("redis_url")
    @classmethod
    def _redis_topology(cls, value: SecretStr) -> SecretStr:
        parse_url(value.get_secret_value())
        return value

    @field_validator("database_url")
    @classmethod
    def _database_scheme(cls, value: SecretStr) -> SecretStr:
        if not value.get_secret_value().startswith(("sqlite", "postgresql", "postgres")):
            raise ValueError("expected sqlite+aiosqlite:///FILE or postgresql+asyncpg://USER:PASSWORD@HOST/DATABASE")
        return value

    @field_validator("audio_roots", mode="before")
    @classmethod
    def _split_roots(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part for part in value.split(os.pathsep) if part)
        return value

    @field_validator("audio_roots", "results_dir", "upload_dir", "scratch_dir", "lexicons_dir")
    @classmethod
    def _absolute(cls, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(path.expanduser().absolute() for path in value)
        return value.expanduser().absolute() if value is not None else None

    @model_validator(mode="after")
    def _two_renewals_may_fail(self) -> Self:
        if 3 * self.renew_ms > self.lease_ms:
            raise ValueError(
                f"STTREAM_RENEW_MS={self.renew_ms} leaves no room for two failed renewals within "
                f"STTREAM_LEASE_MS={self.lease_ms}; "
                f"use {self.lease_ms // 3} or less"
            )
        return self

    @property
    def roots(self) -> tuple[Path, ...]:
        """Every folder that a file source may lie in: the audio roots and the upload folder."""
        return (*self.audio_roots, self.upload_dir)

    @property
    def producer_url(self) -> str:
        """Where clients find the producer."""
        return self.url or f"http://{self.http_host}:{self.http_port}"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take only what `load_settings` hands over: it knows `_FILE` variables and refuses unknown ones."""
        return (init_settings,)


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Build the settings from the environment.

    Args:
        environ: the variables; the process's own by default. A `STTREAM_` variable that is no setting is an
            error: it is a typing mistake that would otherwise go unseen.

    Raises:
        SettingsError: naming each variable that is unknown, unreadable or wrong.
    """
    found = _find(os.environ if environ is None else environ)
    try:
        return Settings.model_validate({field: value for field, (value, _) in found.items()})
    except ValidationError as exc:
        problems = "; ".join(_describe(error, found) for error in exc.errors())
        raise SettingsError(f"wrong settings: {problems}") from exc


def origins(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return where each setting came from: a variable's name, or `default`."""
    found = _find(os.environ if environ is None else environ)
    return {field: found[field][1] if field in found else "default" for field in Settings.model_fields}


def variable_of(field: str) -> str:
    """Return the environment variable of a settings field."""
    return PREFIX + field.upper()


def _find(environ: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return each setting that the environment gives: its text and the variable it came from."""
    fields = {variable_of(field): field for field in Settings.model_fields}
    found: dict[str, tuple[str, str]] = {}
    if environ.get("REDIS_URL"):
        found["redis_url"] = (environ["REDIS_URL"], "REDIS_URL")
    for variable, value in sorted(environ.items()):
        if not variable.startswith(PREFIX) or not value:
            continue
        if variable in fields:
            found[fields[variable]] = (value, variable)
        elif variable.removesuffix("_FILE") in fields:
            field = fields[variable.removesuffix("_FILE")]
            if environ.get(variable_of(field)):
                raise SettingsError(f"both {variable_of(field)} and {variable} are set; keep one of them")
            found[field] = (_read(variable, value), variable)
        else:
            raise SettingsError(f"unknown variable {variable}{_nearest(variable, fields)}; see docs/settings.md")
    return found


def _read(variable: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{variable}={path} cannot be read: {exc}") from exc


def _nearest(variable: str, fields: Iterable[str]) -> str:
    near = difflib.get_close_matches(variable, fields, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _describe(error: ErrorDetails, found: Mapping[str, tuple[str, str]]) -> str:
    message = error["msg"].removeprefix("Value error, ")
    if not error["loc"]:
        return message
    field = str(error["loc"][0])
    text, variable = found.get(field, ("", variable_of(field)))
    shown = "hidden" if "SecretStr" in str(Settings.model_fields[field].annotation) else repr(text)
    return f"{variable}: {message} (found {shown})"
