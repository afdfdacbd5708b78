"""Services as processes: started, started again when they die, stopped in order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

import structlog

from common.errors import DataLost, SettingsError
from deploy.follow import last_words

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

log = structlog.get_logger()

FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 30.0
# A service that ran for so long was well: its next restart does not wait for the ones before.
STEADY_S = 60.0
# One end may be an accident. From the third in a row on, an operator has to look.
TROUBLE_FROM = 3
# Beyond the drain limit, for closing files and connections.
STOP_MARGIN_S = 5.0
# The exit code of "wrong use, wrong settings": starting again would say the same.
WRONG_USE = 2
# The exit code of "data were lost": only an operator can say how to go on.
DATA_LOST = 4
_TIED = Path(__file__).with_name("tied.py")
_CODE = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Service:
    """One process that shall run.

    Args:
        log: the file that its output is appended to; None: it writes where this process does. Not a pipe: its last
            words survive every kind of end, and a terminal that is paused stops no service.
        stop_s: how long it may take to stop, in seconds, before it is killed.
        if_data_lost: what an operator can type when it ends because data were lost.
    """

    name: str
    command: tuple[str, ...]
    environ: Mapping[str, str]
    log: Path | None
    stop_s: float
    folder: Path = field(default_factory=Path.cwd)
    if_data_lost: str = ""


def own_service(
    name: str,
    verb: Sequence[str],
    environ: Mapping[str, str],
    log: Path | None,
    drain_s: float,
    *,
    if_data_lost: str = "",
) -> Service:
    """Return one of our own services, as the command line runs it.

    Args:
        verb: what comes after `sttream`.
        environ: the service's environment, but for where the code lies.
        log: as of `Service`, and so is `if_data_lost`.
        drain_s: how long its running work may take when it stops.
    """
    # -P: a folder named `common` where the user happens to be must not be taken for ours.
    command = (sys.executable, "-P", "-m", "cli.main", *verb)
    path = os.pathsep.join(filter(None, (str(_CODE), environ.get("PYTHONPATH"))))
    own = {**environ, "PYTHONPATH": path}
    return Service(name, command, own, log, drain_s + STOP_MARGIN_S, if_data_lost=if_data_lost)


class Supervised:
    """Keeps one service running until told to stop."""

    def __init__(
        self,
        service: Service,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.service = service
        self._clock, self._sleep = clock, sleep
        self._process: asyncio.subprocess.Process | None = None
        self._running: asyncio.Task[None] | None = None
        self._stopping = False
        self._log_began = 0
        self.last_exit: str | None = None
        """How the service ended the last time that nobody had asked for it."""

    def start(self) -> asyncio.Task[None]:
        """Start the service; the task ends with `SettingsError` or `DataLost` when starting it again cannot help."""
        self._running = asyncio.create_task(self._keep_running(), name=self.service.name)
        return self._running

    @property
    def pid(self) -> int | None:
        """Process id while the service runs."""
        return self._process.pid if self._process else None

    def last_words(self) -> str:
        """Return what the service's log says at its end, as people read it; lines of earlier runs do not count."""
        return "" if self.service.log is None else last_words(self.service.log, self._log_began)

    async def _keep_running(self) -> None:
        wait_s, in_a_row = FIRST_WAIT_S, 0
        while True:
            started = self._clock()
            code = await self._run_once()
            if self._stopping:
                return
            self._give_up_on(code)
            self.last_exit = how(code)
            if self._clock() - started > STEADY_S:
                wait_s, in_a_row = FIRST_WAIT_S, 0
            in_a_row += 1
            tell = log.warning if in_a_row < TROUBLE_FROM else log.error
            tell("service_exited", name=self.service.name, how=self.last_exit, in_a_row=in_a_row, again_in_s=wait_s)
            await self._sleep(wait_s)  # `stop` and `kill` end it
            wait_s = min(wait_s * 2, LONGEST_WAIT_S)
            log.info("service_restarted", name=self.service.name)

    def _give_up_on(self, code: int) -> None:
        """Raise where starting again cannot help."""
        if code == WRONG_USE:
            raise SettingsError(f"{self.service.name} refuses to start{self._why()}")
        if code == DATA_LOST:
            told = f"{self.service.name} has stopped, and all else with it{self._why()}"
            raise DataLost("\n".join(filter(None, (told, self.service.if_data_lost))))

    def _why(self) -> str:
        return "; its own log line says why" if self.service.log is None else f":\n{self.last_words()}"

    async def _run_once(self) -> int:
        if self.service.log is None:
            self._process = await _spawn(self.service, None)
        else:
            with self.service.log.open("ab") as output:
                self._log_began = output.tell()
                self._process = await _spawn(self.service, output)
        try:
            return await self._process.wait()
        finally:
            # Whatever it had started itself (decoder processes) is in its process group.
            _signal_group(self._process.pid, signal.SIGKILL)
            self._process = None

    async def stop(self) -> None:
        """Stop by SIGTERM, by SIGKILL after the service's limit; returns when it has ended."""
        self._end(signal.SIGTERM)
        if self._running is None:
            return
        done, _ = await asyncio.wait({self._running}, timeout=self.service.stop_s)
        if not done:
            log.warning("service_killed", name=self.service.name, after_s=self.service.stop_s)
            self.kill()
            await asyncio.wait({self._running})

    def kill(self) -> None:
        """Kill the service and everything that it started, at once."""
        self._end(signal.SIGKILL)

    def _end(self, signal_: signal.Signals) -> None:
        self._stopping = True
        if self._process is None:
            if self._running is not None:
                self._running.cancel()  # it waits to be started again
        elif signal_ is signal.SIGKILL:
            _signal_group(self._process.pid, signal_)
        else:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal_)


async def stop_in_order(steps: Sequence[Sequence[Supervised]]) -> None:
    """Stop services step by step; those of one step together."""
    for step in steps:
        await asyncio.gather(*(supervised.stop() for supervised in step))


async def _spawn(service: Service, output: IO[bytes] | None) -> asyncio.subprocess.Process:
    """Start a service in a session of its own (Ctrl-C reaches the supervisor only), tied to this process.

    It is spawned, never forked: what this process holds, a connection or a library's state, is not the service's.
    """
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", str(_TIED), str(os.getpid()), *service.command),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        cwd=service.folder,
        env=dict(service.environ),
        start_new_session=True,
    )


def _signal_group(group: int, signal_: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal_)


def how(code: int) -> str:
    """Return how a process ended, in words."""
    if code >= 0:
        return f"exit {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
