"""What an embedded stack will be: its ports, its folders, the environment of each service."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.settings import load_settings, variable_of
from deploy.datadir import DataDir
from deploy.errors import StackRefused
from deploy.paths import plain_path

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from common.settings import Settings

DEFAULT_PORT = 8010
# What the stack decides itself; the caller's values would point its services at something else.
OWNED = (
    *("redis_url", "database_url", "results_dir", "upload_dir", "scratch_dir"),
    *("http_host", "http_port", "metrics_port", "url"),
)
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - listening everywhere is the user's choice


@dataclass(frozen=True, slots=True)
class Plan:
    """One stack, decided before anything starts.

    Args:
        port: of the producer.
        metrics_ports: of the writer and of each consumer, in this order.
        environ: what every service finds in its environment.
    """

    data: DataDir
    host: str
    port: int
    redis_port: int
    metrics_ports: tuple[int, ...]
    environ: Mapping[str, str]

    @property
    def url(self) -> str:
        """Where clients on this machine find the producer."""
        return f"http://{_in_url(_ANYWHERE.get(self.host, self.host))}:{self.port}"

    @property
    def services(self) -> tuple[str, ...]:
        """Names of the services, in starting order."""
        consumers = range(1, len(self.metrics_ports))
        return ("producer", *(f"consumer-{number}" for number in consumers), "writer")

    @property
    def settings(self) -> Settings:
        """The settings that the services have in common."""
        return load_settings(self.environ)


def make_plan(
    *,
    host: str,
    port: int | None,
    data_dir: Path,
    consumers: int,
    audio: Sequence[Path],
    environ: Mapping[str, str] | None = None,
) -> Plan:
    """Decide everything about a stack.

    Args:
        port: of the producer, the server takes the next one; None takes any two that are free.
        audio: folders that file sources may lie in; none means the caller's `STTREAM_AUDIO_ROOTS`, or else the
            current folder.
        environ: the caller's environment, the process's own by default: settings that the stack does not own are kept.

    Raises:
        StackRefused: a port is taken, or the data folder.
        SettingsError: a setting that is kept is wrong.
    """
    environ = os.environ if environ is None else environ
    data = DataDir(plain_path(data_dir))
    data.require_free()  # before the ports: the stack that runs there holds those, too
    port = _free_pair(host) if port is None else port
    other = port + 1000 if port <= 60_000 else DEFAULT_PORT
    then = f"choose another (--port {other}, or: make serve ARGS='--port {other}')"
    _require_free(host, port, "the producer", then)
    _require_free("127.0.0.1", port + 1, "the embedded server", f"it takes the next port; {then}")
    plan = Plan(
        data=data,
        host=host,
        port=port,
        redis_port=port + 1,
        metrics_ports=_metrics_ports(port + 2, 1 + consumers),
        environ=_environment(data, host, port, audio, environ),
    )
    _ = plan.settings  # a wrong setting is better said once, now, than by each service in its log
    return plan


def settings_of_stack(data_dir: Path, environ: Mapping[str, str] | None = None) -> Settings:
    """Return the settings of the stack that runs on a data folder, at the port that the environment gives.

    Raises:
        SettingsError: a setting is wrong.
    """
    environ = os.environ if environ is None else environ
    port = load_settings(environ).http_port or DEFAULT_PORT
    return load_settings(_environment(DataDir(plain_path(data_dir)), "127.0.0.1", port, (), environ))


def ignored(environ: Mapping[str, str] | None = None) -> list[str]:
    """Return the caller's variables that the stack replaces by its own."""
    environ = os.environ if environ is None else environ
    return sorted(variable for variable, value in environ.items() if value and _is_owned(variable))


def _environment(
    data: DataDir, host: str, port: int, audio: Sequence[Path], environ: Mapping[str, str]
) -> dict[str, str]:
    kept = {variable: value for variable, value in environ.items() if not _is_owned(variable)}
    if audio:
        kept.pop(f"{variable_of('audio_roots')}_FILE", None)
        kept[variable_of("audio_roots")] = _folder_list(audio)
    for field, value in {"model": "bundled", "device": "cpu", "audio_roots": _folder_list([Path.cwd()])}.items():
        if not environ.get(f"{variable_of(field)}_FILE"):
            kept[variable_of(field)] = kept.get(variable_of(field)) or value
    own = {
        "redis_url": f"redis://127.0.0.1:{port + 1}/0",
        "database_url": data.database_url,
        "results_dir": str(data.results),
        "upload_dir": str(data.uploads),
        "scratch_dir": str(data.scratch),
        "http_host": host,
        "http_port": str(port),
    }
    return kept | {variable_of(field): value for field, value in own.items()}


def _is_owned(variable: str) -> bool:
    return variable == "REDIS_URL" or variable.removesuffix("_FILE") in {variable_of(field) for field in OWNED}


def _folder_list(folders: Sequence[Path]) -> str:
    for folder in folders:
        if ":" in str(folder):
            raise StackRefused(
                f"audio folder {folder}: a path with ':' cannot be in a list of folders; rename or link it"
            )
    return ":".join(str(plain_path(folder)) for folder in folders)


def _metrics_ports(first: int, count: int) -> tuple[int, ...]:
    """Return ports for health and metrics: from `first` upwards, so that they stay the same from start to start."""
    found = [port for port in range(first, min(first + 100, 65536)) if _is_free("127.0.0.1", port)]
    if len(found) < count:
        raise StackRefused(f"no {count} free ports between {first} and {first + 99} for health and metrics")
    return tuple(found[:count])


def _require_free(host: str, port: int, whose: str, then: str) -> None:
    try:
        _bind(host, port)
    except OSError as exc:
        raise StackRefused(f"{whose} cannot listen on {host} port {port}: {exc.strerror}; {then}") from exc


def _is_free(host: str, port: int) -> bool:
    try:
        _bind(host, port)
    except OSError:
        return False
    return True


def _free_pair(host: str) -> int:
    """Return a port that is free together with the next: the usual one if possible."""
    for port in range(DEFAULT_PORT, DEFAULT_PORT + 1000, 10):
        if _is_free(host, port) and _is_free("127.0.0.1", port + 1):
            return port
    raise StackRefused(f"no two free ports side by side from {DEFAULT_PORT} to {DEFAULT_PORT + 1000}")


def _bind(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do: a port whose last connections are still fading is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
