"""Every test here that asks for `redis` runs on both servers, and fails when it leaves a key that is not declared."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr

from common.connection import connect
from common.keys import Keys
from common.queue import JobQueue
from common.records import Job, JobSpec, State
from common.settings import load_settings
from common.streams import JobStreams, ResultStream
from tests.integration.seeds import new_server
from tests.integration.servers import KINDS, Server, Servers
from tests.integration.stages import SPEC, running_stage
from tests.integration.state import undeclared_keys
from tests.until import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    from redis.asyncio import Redis

    from common.settings import Settings


ClientOf = Callable[[str], Awaitable[Any]]


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with Servers(tmp_path_factory.mktemp) as servers:
        yield servers


@pytest.fixture(params=KINDS)
async def server(request: pytest.FixtureRequest, servers: Servers) -> Server:
    return await servers.get(request.param)


@pytest.fixture
def settings(server: Server) -> Settings:
    return load_settings({"STTREAM_REDIS_URL": server.url})


@pytest.fixture
def keys(settings: Settings) -> Keys:
    return Keys(settings.queue)


@pytest.fixture
async def redis(settings: Settings, keys: Keys) -> AsyncIterator[Redis]:
    """A client of an emptied server with library, groups and epoch."""
    async with _client(settings) as redis:
        await redis.flushall()
        await new_server(redis, keys)
        yield redis
        assert not await undeclared_keys(redis, keys), "the test left keys that common/keys.py does not declare"


@pytest.fixture
async def other_redis(settings: Settings, redis: Redis) -> AsyncIterator[Redis]:
    """A second client with connections of its own: the other one in a race."""
    async with _client(settings) as other:
        yield other


@pytest.fixture
def user(redis: Redis, settings: Settings, keys: Keys) -> Callable[..., AbstractAsyncContextManager[Redis]]:
    """A client whose user has only these rights, on the queue's keys."""

    @contextlib.asynccontextmanager
    async def user(*rights: str) -> AsyncIterator[Redis]:
        await redis.execute_command(
            "ACL", "SETUSER", "limited", "reset", "on", ">pass", f"~{{{keys.queue}}}:*", *rights
        )
        url = settings.redis_url.get_secret_value().replace("://", "://limited:pass@")
        try:
            async with _client(settings.model_copy(update={"redis_url": SecretStr(url)})) as limited:
                yield limited
        finally:
            await redis.execute_command("ACL", "DELUSER", "limited")

    return user


@contextlib.asynccontextmanager
async def _client(settings: Settings) -> AsyncIterator[Redis]:
    redis = connect(settings)
    try:
        yield redis
    finally:
        await redis.aclose(close_connection_pool=True)


@pytest.fixture
async def client_of(server: Server, redis: Redis) -> AsyncIterator[ClientOf]:
    """Make clients with connections of their own and the rights of one of the users that we ship."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(user: str) -> Redis:
            return await stack.enter_async_context(_client(load_settings({"STTREAM_REDIS_URL": server.url_of(user)})))

        yield make


@pytest.fixture
async def queue(client_of: ClientOf, keys: Keys) -> JobQueue:
    """What a producer works with."""
    return JobQueue(await client_of("producer"), keys)


@pytest.fixture
async def consumer(client_of: ClientOf, keys: Keys, settings: Settings) -> JobStreams:
    return JobStreams(await client_of("consumer"), keys, settings, "host-1-aaa")


@pytest.fixture
async def same_consumer(client_of: ClientOf, keys: Keys, settings: Settings) -> JobStreams:
    """The consumer again, over connections of its own: a call repeated after its reply was lost."""
    return JobStreams(await client_of("consumer"), keys, settings, "host-1-aaa")


@pytest.fixture
async def rescuer(client_of: ClientOf, keys: Keys, settings: Settings) -> JobStreams:
    """Another consumer."""
    return JobStreams(await client_of("consumer"), keys, settings, "host-2-bbb")


@pytest.fixture
async def writer(client_of: ClientOf, keys: Keys, settings: Settings) -> ResultStream:
    return ResultStream(await client_of("writer"), keys, settings, "host-3-ccc")


@pytest.fixture
def figures(server: Server) -> Settings:
    """The settings of a consumer's stage under test: short leases, so that a rescue takes a moment."""
    settings = load_settings({"STTREAM_REDIS_URL": server.url_of("consumer")})
    return settings.model_copy(update={"lease_ms": 600, "renew_ms": 150, "max_attempts": 3})


@pytest.fixture
async def stage_of(client_of: ClientOf, keys: Keys, figures: Settings) -> Callable[..., Any]:
    """Run a stage with a handler; the context's end drains it."""
    return functools.partial(running_stage, await client_of("consumer"), keys, figures)


@pytest.fixture
def submit(queue: JobQueue) -> Callable[..., Awaitable[None]]:
    async def submit(*job_ids: str, spec: JobSpec = SPEC) -> None:
        for job_id in job_ids:
            await queue.submit(job_id, spec, max_queued=1000)

    return submit


@pytest.fixture
def reaches(queue: JobQueue) -> Callable[..., Awaitable[Job]]:
    """Wait for a job's state."""

    async def reaches(job_id: str, state: State, within_s: float = 10) -> Job:
        async def there() -> Job | None:
            job = await queue.job(job_id)
            return job if job is not None and job.state is state else None

        job: Job = await until(there, within_s=within_s, what=f"job {job_id} is {state}")
        return job

    return reaches
