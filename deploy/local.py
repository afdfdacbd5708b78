"""All of sttream on one machine: an embedded server, a producer, consumers and a writer, as processes of their own.

Start: the server, then the services together; they create the function library, the groups and the tables. Stop, in
the order in which work flows: producer, consumers, writer, server.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING

import structlog

from deploy.datadir import hold
from deploy.embedded import server_command
from deploy.follow import Follower
from deploy.ready import server_answers, service_is_ready, until_ready
from deploy.supervisor import Service, Supervised, own_service, stop_in_order

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from deploy.plan import Plan

# A large append-only file is read before the server answers.
SERVER_WITHIN_S = 300.0
# The bundled model loads in about a second; another one may have to be downloaded first.
READY_WITHIN_S = 120.0
READY_AFTER_DOWNLOAD_S = 3600.0
SERVER_STOP_S = 30.0
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_BEGIN_ANEW = "Here, to begin anew is: `sttream up --accept-data-loss`, with the same --data-dir"

log = structlog.get_logger()


class Stack:
    """The processes of one stack."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.server = Supervised(_server(plan))
        self.producer = Supervised(_service(plan, "producer", "producer"))
        writer_port, *consumer_ports = plan.metrics_ports
        self.writer = Supervised(_service(plan, "writer", "writer", writer_port))
        self.consumers = [
            Supervised(_service(plan, f"consumer-{number}", "consumer", port))
            for number, port in enumerate(consumer_ports, start=1)
        ]
        self.failure: BaseException | None = None
        """Why the stack cannot go on."""
        self.stopping = False
        self._body = asyncio.current_task()

    @property
    def drain_s(self) -> float:
        """How long running work may take when the stack stops."""
        return self._plan.settings.drain_s

    @property
    def everything(self) -> list[Supervised]:
        """Every process, in starting order."""
        return [self.server, self.producer, *self.consumers, self.writer]

    async def start(self, prepare: Callable[[], Awaitable[None]] | None = None) -> None:
        """Start everything; returns when all of it is ready.

        Args:
            prepare: awaited when the server answers, before the services start.

        Raises:
            ServiceFailed: something does not come up.
        """
        from common.connection import connect

        self._start(self.server)
        async with connect(self._plan.settings) as redis:
            await until_ready(self.server, lambda: server_answers(redis), SERVER_WITHIN_S)
        if prepare is not None:
            await prepare()
        for supervised in self.everything[1:]:
            self._start(supervised)
        await asyncio.gather(*(self._ready(*checked) for checked in self._health()))

    def _start(self, supervised: Supervised) -> None:
        self._plan.data.put_log_aside(supervised.service.name)
        supervised.start().add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """End the stack's body when a service cannot go on."""
        if task.cancelled() or task.exception() is None or self.stopping:
            return
        self.failure, self.stopping = task.exception(), True
        if self._body is not None:
            self._body.cancel()

    def _health(self) -> Iterator[tuple[Supervised, str]]:
        yield self.producer, f"{self._plan.url}/readyz"
        for supervised, port in zip([self.writer, *self.consumers], self._plan.metrics_ports, strict=True):
            yield supervised, f"http://127.0.0.1:{port}/readyz"

    async def _ready(self, supervised: Supervised, url: str) -> None:
        bundled = self._plan.settings.model == "bundled"
        within_s = READY_WITHIN_S if bundled else READY_AFTER_DOWNLOAD_S
        await until_ready(supervised, lambda: service_is_ready(url), within_s)

    async def stop(self) -> None:
        """Stop everything; returns when nothing is left."""
        self.stopping = True
        await stop_in_order([[self.producer], self.consumers, [self.writer], [self.server]])

    def kill(self) -> None:
        """Kill everything at once."""
        for supervised in self.everything:
            supervised.kill()


@contextlib.asynccontextmanager
async def running_stack(
    plan: Plan, show: Callable[[str], None] | None = None, prepare: Callable[[], Awaitable[None]] | None = None
) -> AsyncIterator[Stack]:
    """Run a stack while the block runs.

    SIGINT, SIGTERM and SIGHUP cancel the block; one that comes while the services stop kills them.

    Args:
        show: takes each line of the logs, dressed for a terminal; by default they are only kept.
        prepare: awaited when the server answers, before the services start.

    Raises:
        DataLost: the server does not hold what the database remembers.
        StackRefused: it cannot start as asked.
        ServiceFailed: a service does not come up or cannot go on.
    """
    plan.data.make()
    with hold(plan.data), _own_log(plan):
        stack = Stack(plan)
        async with _following(plan, show), _signals(stack, show):
            try:
                await stack.start(prepare)
                yield stack
            except asyncio.CancelledError:
                if stack.failure is not None:
                    raise stack.failure from None
                raise
            finally:
                await stack.stop()


def _server(plan: Plan) -> Service:
    command = server_command(plan.data.redis, plan.redis_port)
    return Service("server", command, {}, plan.data.log_of("server"), SERVER_STOP_S, plan.data.redis)


def _service(plan: Plan, name: str, verb: str, metrics_port: int = 0) -> Service:
    environ = {**plan.environ, "STTREAM_METRICS_PORT": str(metrics_port)}
    log_file = plan.data.log_of(name)
    return own_service(name, (verb,), environ, log_file, plan.settings.drain_s, if_data_lost=_BEGIN_ANEW)


@contextlib.contextmanager
def _own_log(plan: Plan) -> Iterator[None]:
    """Send this process's log where the services' logs are."""
    from common.logs import configure_logs

    plan.data.put_log_aside("supervisor")
    with plan.data.log_of("supervisor").open("a", encoding="utf-8", buffering=1) as file:
        with contextlib.redirect_stderr(file):
            configure_logs(plan.settings, "supervisor")
        yield


@contextlib.asynccontextmanager
async def _following(plan: Plan, show: Callable[[str], None] | None) -> AsyncIterator[None]:
    """Show the logs, to their last lines."""
    if show is None:
        yield
        return
    # Not the server: what it says is for its file, and is shown when it does not start.
    names = ("supervisor", *plan.services)
    follower = Follower({name: plan.data.log_of(name) for name in names}, show)
    following = asyncio.create_task(follower.follow())
    try:
        yield
    finally:
        following.cancel()
        follower.look()


@contextlib.asynccontextmanager
async def _signals(stack: Stack, show: Callable[[str], None] | None) -> AsyncIterator[None]:
    """Cancel the task that runs the stack at the first signal; kill the processes at one that comes while they stop."""
    loop, body = asyncio.get_running_loop(), asyncio.current_task()

    def on_signal(number: signal.Signals) -> None:
        log.info("signal_received", signal=number.name, next="killing" if stack.stopping else "stopping")
        if stack.stopping:
            stack.kill()
        elif body is not None:
            stack.stopping = True
            if show is not None:
                # On a line of its own: the terminal has written ^C.
                show(f"\nstopping; running work gets up to {stack.drain_s:g} s, Ctrl-C again ends at once")
            body.cancel()

    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield
    finally:
        for number in _STOP_SIGNALS:
            loop.remove_signal_handler(number)
