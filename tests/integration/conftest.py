"""Every test here that asks for `redis` runs on both servers, and fails when it leaves a key that is not declared."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr

from common.connection import connect
from common.keys import Keys
from common.queue import JobQueue
from common.settings import load_settings
from common.setup import set_up
from common.streams import JobStreams, ResultStream
from tests.integration.servers import KINDS, Server, Servers
from tests.integration.state import undeclared_keys

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    from redis.asyncio import Redis

    from common.settings import Settings


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
        await redis.set(keys.epoch, "of-this-test")  # who has no database takes the epoch that is there
        await set_up(redis, keys)
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
def queue(redis: Redis, keys: Keys) -> JobQueue:
    return JobQueue(redis, keys)


@pytest.fixture
def consumer(redis: Redis, keys: Keys, settings: Settings) -> JobStreams:
    return JobStreams(redis, keys, settings, "host-1-aaa")


@pytest.fixture
def same_consumer(other_redis: Redis, keys: Keys, settings: Settings) -> JobStreams:
    """The consumer again, over connections of its own: a call repeated after its reply was lost."""
    return JobStreams(other_redis, keys, settings, "host-1-aaa")


@pytest.fixture
def rescuer(other_redis: Redis, keys: Keys, settings: Settings) -> JobStreams:
    """Another consumer."""
    return JobStreams(other_redis, keys, settings, "host-2-bbb")


@pytest.fixture
def writer(redis: Redis, keys: Keys, settings: Settings) -> ResultStream:
    return ResultStream(redis, keys, settings, "host-3-ccc")
