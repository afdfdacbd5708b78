"""One consumer a GPU: which GPUs there are, and the processes that keep them busy.

A process uses one GPU: it sees no other, so that a fault or a hang costs one. This process only watches. It never
looks at a GPU itself, which would take memory of each.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from common.errors import SettingsError, Unavailable
from common.settings import variable_of
from deploy.supervisor import Service, Supervised, own_service, stop_in_order

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from common.settings import Settings

log = structlog.get_logger()

ALL = "all"
VISIBLE, ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"
# As `nvidia-smi` numbers them; by itself CUDA begins with the fastest.
PCI_ORDER = "PCI_BUS_ID"
# What CUDA_VISIBLE_DEVICES takes: an index, the UUID of a GPU or of an instance of one, or the beginning of a UUID.
_NAME = re.compile(r"\d{1,4}|(GPU|MIG)-[0-9A-Za-z/-]{1,80}")
# The count of the library that will run the model: a driver may know GPUs that it cannot use.
COUNT = (sys.executable, "-P", "-c", "import ctranslate2; print(ctranslate2.get_cuda_device_count())")
# A driver that sets up many GPUs takes seconds for each.
_COUNT_WITHIN_S = 120.0
# A folder for each GPU that the driver knows.
_DRIVER = Path("/proc/driver/nvidia/gpus")
_HIGHEST_PORT = 65535


def chosen(text: str, environ: Mapping[str, str], count: Sequence[str] = COUNT) -> tuple[str, ...]:
    """Return the names of the GPUs to use, as CUDA_VISIBLE_DEVICES takes them.

    Args:
        text: `all`, or names with commas between. Names are not looked for: a consumer says what is wrong with its GPU.
        environ: where CUDA_VISIBLE_DEVICES is set, only its GPUs are used.
        count: a command that prints how many GPUs can be used.

    Raises:
        SettingsError: there is no GPU, or a name is none, or not among those in CUDA_VISIBLE_DEVICES.
        Unavailable: the driver does not answer.
    """
    allowed = _names(environ[VISIBLE]) if VISIBLE in environ else None
    if text.strip() == ALL:
        return _all(allowed, _counted(environ, count))
    names = _names(text)
    if wrong := [name for name in names if not _NAME.fullmatch(name)]:
        raise SettingsError(f"--gpus {text}: {wrong[0]!r} is no GPU; expected `{ALL}`, or indices or UUIDs: 0,2")
    if not names or len(set(names)) < len(names):
        raise SettingsError(f"--gpus {text!r}: expected each GPU once: one process uses one GPU whole")
    if allowed is not None and not set(names) <= set(allowed):
        raise SettingsError(f"--gpus {text}: expected some of {VISIBLE}={environ[VISIBLE]}, by the same names")
    return names


def _all(allowed: tuple[str, ...] | None, found: int) -> tuple[str, ...]:
    if found == 0:
        raise SettingsError(_none_found(allowed))
    if allowed is None:
        return tuple(map(str, range(found)))
    # Of instances (MIG) a process sees only one, however many are named.
    if found < len(allowed) and not any(name.startswith("MIG-") for name in allowed):
        raise SettingsError(
            f"--gpus {ALL}: {VISIBLE}={','.join(allowed)} names {len(allowed)} GPUs, and CUDA finds {found} of them: "
            "it stops at the first that it does not know; `nvidia-smi -L` lists them"
        )
    return allowed


def _none_found(allowed: tuple[str, ...] | None) -> str:
    """Return what was looked for, and what to do."""
    known = len(list(_DRIVER.iterdir())) if _DRIVER.is_dir() else 0
    visible = "is not set" if allowed is None else f"is {','.join(allowed)!r}"
    return (
        f"--gpus {ALL}: CUDA finds no GPU ({VISIBLE} {visible}; the NVIDIA driver knows {known}). Look at "
        "`nvidia-smi`; a container needs the NVIDIA runtime, and GPUs given to it. Without --gpus a consumer runs on "
        "the CPU"
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _counted(environ: Mapping[str, str], count: Sequence[str]) -> int:
    """Ask how many GPUs can be used, in a process that ends: whoever has asked holds memory of each."""
    try:
        asked = subprocess.run(
            count, env=_in_order(environ), capture_output=True, text=True, timeout=_COUNT_WITHIN_S, check=False
        )
    except subprocess.TimeoutExpired as exc:
        raise Unavailable(
            f"--gpus {ALL}: the driver did not answer within {_COUNT_WITHIN_S:g} s; is a GPU hung?"
        ) from exc
    if asked.returncode != 0 or not asked.stdout.strip().isdigit():
        said = (asked.stderr.strip() or asked.stdout.strip() or "nothing").splitlines()[-1]
        raise SettingsError(
            f"--gpus {ALL}: GPUs cannot be counted (exit {asked.returncode}: {said}); name them: --gpus 0,1"
        )
    return int(asked.stdout)


def _in_order(environ: Mapping[str, str]) -> dict[str, str]:
    return {ORDER: PCI_ORDER, **environ}


def consumers(
    text: str, settings: Settings, environ: Mapping[str, str] | None = None, count: Sequence[str] = COUNT
) -> list[Service]:
    """Return the consumer of each GPU; each writes where this process does.

    Args:
        text: which GPUs, as in `chosen`.
        settings: those of this process.
        environ: the same, as variables, the process's own by default; each consumer gets its own GPU and metrics port.
        count: as in `chosen`.

    Raises:
        SettingsError: there is no such GPU, or the device or the metrics port cannot be those of several GPUs.
        Unavailable: the driver does not answer.
    """
    environ = os.environ if environ is None else environ
    if settings.device == "cpu":
        raise SettingsError("STTREAM_DEVICE=cpu and --gpus exclude each other; leave one of them out")
    gpus, first = chosen(text, environ, count), settings.metrics_port
    if first + len(gpus) - 1 > _HIGHEST_PORT:
        raise SettingsError(
            f"STTREAM_METRICS_PORT={first}: each of {len(gpus)} GPUs takes the next port, and {_HIGHEST_PORT} is the "
            "last; choose a lower one"
        )
    ports = range(first, first + len(gpus)) if first else [0] * len(gpus)
    return [_consumer(gpu, port, settings, environ) for gpu, port in zip(gpus, ports, strict=True)]


def _consumer(gpu: str, metrics_port: int, settings: Settings, environ: Mapping[str, str]) -> Service:
    own = {VISIBLE: gpu, variable_of("device"): "cuda", variable_of("metrics_port"): str(metrics_port)}
    kept = {variable: value for variable, value in environ.items() if variable.removesuffix("_FILE") not in own}
    verb = ("consumer", "--on-gpu", gpu)
    return own_service(f"consumer of GPU {gpu}", verb, _in_order(kept) | own, None, settings.drain_s)


async def keep_running(services: Sequence[Service], stop: asyncio.Event) -> None:
    """Keep services running until `stop` is set, then let them drain; returns when all have ended.

    Raises:
        ExceptionGroup: of a `SettingsError` or `DataLost` for each that starting again cannot help; the others have
            drained.
    """
    supervised = [Supervised(service) for service in services]
    log.info("consumers_started", of=[service.name for service in services])
    running = [one.start() for one in supervised]
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({*running, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        await stop_in_order([supervised])
    failures = [error for task in running if not task.cancelled() and isinstance(error := task.exception(), Exception)]
    if failures:
        raise ExceptionGroup("a consumer cannot go on", failures)
