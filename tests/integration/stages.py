"""A stage as a test runs it: with a handler of its own, on a real server, over a client that can lose replies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from redis.exceptions import ConnectionError

from common.lease import LeaseKeeper
from common.metrics import ConsumerMetrics
from common.outage import Server
from common.outcomes import Completed, Outcome
from common.records import JobSpec
from common.setup import set_up
from common.stage import Stage, StageSettings
from common.streams import JobStreams

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from common.keys import Keys
    from common.runner import Work
    from common.settings import Settings


SPEC = JobSpec(source="/audio/a.wav", retry_delay_s=0)


class Handler:
    """Work as a test wants it: `do` is what happens to each entry."""

    def __init__(self, do: Callable[[Work], Awaitable[Outcome]]) -> None:
        self.do = do
        self.seen: list[str] = []
        self.appetite = 1_000
        self.welcome = asyncio.Event()
        self.welcome.set()

    async def hungry(self) -> int:
        await self.welcome.wait()
        return self.appetite

    async def handle(self, work: Work) -> Outcome:
        self.seen.append(work.task.id)
        return await self.do(work)


async def done(work: Work) -> Outcome:
    return Completed('"text"', 1.0)


async def never(work: Work) -> Outcome:
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


class Gate:
    """Work that waits until it may end."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def __call__(self, work: Work) -> Outcome:
        await self.open.wait()
        return await done(work)


@asynccontextmanager
async def running_stage(
    redis: Redis,
    keys: Keys,
    settings: Settings,
    handler: Handler,
    *,
    name: str = "host-1-aaa",
    slots: int = 4,
    drain_s: float = 5.0,
    restore: Callable[[], Awaitable[None]] | None = None,
) -> AsyncIterator[tuple[asyncio.Task[None], ConsumerMetrics]]:
    """Run a stage with a handler; the context's end drains it."""
    setup = await set_up(redis, keys)
    stop, metrics = asyncio.Event(), ConsumerMetrics()
    with LeaseKeeper(settings, Server("Redis")) as keeper:
        stage = Stage(
            StageSettings("jobs", slots, settings.lease_ms, drain_s),
            JobStreams(redis, keys, settings, name),
            handler,
            keeper,
            metrics,
            restore=restore or setup.restore,
        )
        running = asyncio.create_task(stage.run(stop))
        try:
            yield running, metrics
        finally:
            stop.set()
            await asyncio.wait({running})


class Lossy:
    """A client that loses the replies of some commands: the server has carried them out, and nobody hears of it."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self.loses = "nothing"
        """Part of the next command whose reply is lost: a function's name."""
        self.lost = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._redis, name)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        reply = await self._redis.execute_command(*args, **options)
        if any(reply or ()):  # of empty streams nothing is lost
            self._lose(str(args))
        return reply

    def pipeline(self, **options: Any) -> Any:
        pipeline = self._redis.pipeline(**options)
        execute = pipeline.execute

        async def lossy(**options: Any) -> Any:
            sent = str(pipeline.command_stack)
            replies = await execute(**options)
            self._lose(sent)
            return replies

        pipeline.execute = lossy
        return pipeline

    def _lose(self, sent: str) -> None:
        if self.loses in sent:
            self.loses = "nothing"
            self.lost += 1
            raise ConnectionError("the reply was lost")
