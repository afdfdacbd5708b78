"""Every test here that asks for `redis` runs on both servers, and fails when it leaves a key that is not declared."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest

from common.connection import connect
from common.keys import Keys
from common.queue import JobQueue
from common.settings import load_settings
from common.setup import set_up
from common.streams import JobStreams, ResultStream
from tests.integration.servers import KINDS, Server, Servers
from tests.integration.state import undeclared_keys

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

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
        await set_up(redis, keys)
        yield redis
        assert not await undeclared_keys(redis, keys), "the test left keys that common/keys.py does not declare"


@pytest.fixture
async def other_redis(settings: Settings, redis: Redis) -> AsyncIterator[Redis]:
    """A second client with connections of its own: the other one in a race."""
    async with _client(settings) as other:
        yield other


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
