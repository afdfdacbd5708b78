"""What the errors of a real server look like to those who decide whether to wait or to stop."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
from typing import TYPE_CHECKING

import pytest
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,
    NoPermissionError,
    ResponseError,
)

from common.connection import connect, connect_thread, group_is_missing, refusal, server_is_away
from common.settings import load_settings
from tests.integration.nodes import LIMIT_S, Node, Nodes
from tests.integration.seeds import full_memory, submit
from tests.ports import free_port
from tests.until import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis

    from common.queue import JobQueue
    from tests.integration.servers import Server


@contextlib.asynccontextmanager
async def too_few_replicas(redis: Redis) -> AsyncIterator[None]:
    await redis.config_set("min-replicas-to-write", 1)
    try:
        yield
    finally:
        await redis.config_set("min-replicas-to-write", 0)


@contextlib.asynccontextmanager
async def demoted(redis: Redis) -> AsyncIterator[None]:
    """Let the server follow one that does not exist: it refuses writes."""
    await redis.execute_command("REPLICAOF", "127.0.0.1", "1")
    try:
        yield
    finally:
        await redis.execute_command("REPLICAOF", "NO", "ONE")


@contextlib.asynccontextmanager
async def cut_off(redis: Redis) -> AsyncIterator[None]:
    """Let the server follow one that does not exist, and not answer with what may be old."""
    await redis.config_set("replica-serve-stale-data", "no")
    try:
        async with demoted(redis):
            yield
    finally:
        await redis.config_set("replica-serve-stale-data", "yes")


@pytest.mark.parametrize(
    "trouble",
    [
        too_few_replicas,
        full_memory,
        demoted,
        cut_off,
    ],
)
async def test_a_server_that_refuses_writes_for_now_is_away(queue: JobQueue, redis: Redis, trouble) -> None:
    """Clients wait it out or answer 503: stopping, or answering 500, would turn a delay into a failure."""
    async with trouble(redis):
        with pytest.raises(ResponseError) as caught:
            await submit(queue)

    assert server_is_away(caught.value)


async def test_a_blocked_reader_of_a_server_that_is_demoted_is_told_so(redis, other_redis, keys) -> None:
    """An operator switches over while consumers wait for jobs: no reason for them to end."""
    reader = asyncio.create_task(other_redis.xread({keys.dead: "$"}, block=30_000))
    await until(lambda: has_blocked_client(redis), within_s=LIMIT_S, what="the reader waits")
    async with demoted(redis):
        with pytest.raises(ResponseError, match=r"^UNBLOCKED") as caught:
            await reader

    assert server_is_away(caught.value)


async def has_blocked_client(redis: Redis) -> bool:
    return bool((await redis.info("clients"))["blocked_clients"])


async def errors_of_both_clients(url: str) -> list[Exception]:
    """What the client of the event loop and that of a thread raise."""
    settings = load_settings({"STTREAM_REDIS_URL": url})
    in_thread = connect_thread(settings)
    async with connect(settings) as redis:
        errors = await asyncio.gather(
            redis.set("x", "y"), asyncio.to_thread(in_thread.set, "x", "y"), return_exceptions=True
        )
    in_thread.close()
    return [error for error in errors if isinstance(error, Exception)]


@contextlib.asynccontextmanager
async def no_password_needed(redis: Redis) -> AsyncIterator[None]:
    yield


@contextlib.asynccontextmanager
async def password_needed(redis: Redis) -> AsyncIterator[None]:
    await redis.config_set("requirepass", "right")
    try:
        yield
    finally:
        await redis.config_set("requirepass", "")


@contextlib.asynccontextmanager
async def user_who_may_only_read(redis: Redis) -> AsyncIterator[None]:
    await redis.execute_command("ACL", "SETUSER", "reader", "on", ">right", "~*", "+@read")
    try:
        yield
    finally:
        await redis.execute_command("ACL", "DELUSER", "reader")


@pytest.mark.parametrize(
    ("arranged", "login", "kind", "says"),
    [
        (password_needed, "", AuthenticationError, "Authentication required"),
        (password_needed, ":hush@", AuthenticationError, "invalid username-password pair"),
        (no_password_needed, "nobody:hush@", AuthenticationError, "invalid username-password pair"),
        (no_password_needed, ":hush@", AuthenticationError, "without any password configured"),
        (user_who_may_only_read, "reader:right@", NoPermissionError, "no permissions"),
    ],
)
async def test_a_server_that_refuses_the_user_is_not_away(server: Server, redis, arranged, login, kind, says) -> None:
    """A service with a wrong password must end and say so: no wait makes it right."""
    async with arranged(redis):
        errors = await errors_of_both_clients(server.url.replace("://", f"://{login}"))

    assert [type(error) for error in errors] == [kind, kind]
    for error in errors:
        assert says in str(refusal(error))
        assert "hush" not in str(error)
        assert not server_is_away(error)


async def test_a_server_that_has_too_many_clients_is_away(server: Server, redis) -> None:
    """Others leave; a service that ended would only come back and ask again."""
    limit = (await redis.config_get("maxclients"))["maxclients"]
    refused = (await redis.info("stats"))["rejected_connections"]
    await redis.config_set("maxclients", 1)
    try:
        errors = await errors_of_both_clients(server.url)
    finally:
        await redis.config_set("maxclients", limit)

    # Not by its text: the server says why and hangs up at once, and what a client sends meanwhile can cut that off.
    assert (await redis.info("stats"))["rejected_connections"] >= refused + 2
    assert [type(error) for error in errors] == [ConnectionError, ConnectionError]
    assert all(server_is_away(error) for error in errors)


@pytest.fixture
async def own(server: Server, tmp_path) -> AsyncIterator[Nodes]:
    """Servers that a test may break for good."""
    async with Nodes(server.kind, tmp_path) as nodes:
        yield nodes


async def test_a_server_that_loads_its_data_is_away(own: Nodes) -> None:
    """After a restart with a large data set it refuses every command for minutes."""
    node = await own.start_server(
        appendonly="no",
        rdbcompression="no",
        **{"key-load-delay": "100000", "loading-process-events-interval-bytes": "1024"},  # 100 ms for each key
    )
    for number in range(20):
        await node.client.set(f"key-{number}", "x" * 5_000)
    await node.ask("SAVE")
    node.send(signal.SIGKILL)
    node.launch()

    errors = await until(lambda: errors_of(node, BusyLoadingError), within_s=LIMIT_S, what="the server loads")

    assert all(server_is_away(error) for error in errors)


async def test_a_server_that_cannot_save_is_away(own: Nodes) -> None:
    """Its disk is full: somebody will make room."""
    node = await own.start_server(appendonly="no", save="3600 1")
    shutil.rmtree(node.folder)
    await node.ask("BGSAVE")

    errors = await until(lambda: errors_of(node, ResponseError), within_s=LIMIT_S, what="saving has failed")

    assert all(str(error).startswith("MISCONF") and server_is_away(error) for error in errors)


async def test_a_server_in_a_long_script_is_away(own: Nodes) -> None:
    """Somebody else's, on a server that is shared: it ends, or is killed."""
    node = await own.start_server(**{"busy-reply-threshold": "10"})
    endless = asyncio.create_task(node.ask("EVAL", "while true do end", 0))

    errors = await until(lambda: errors_of(node, ResponseError), within_s=LIMIT_S, what="the server is busy")

    assert all(str(error).startswith("BUSY ") and server_is_away(error) for error in errors)
    await node.ask("SCRIPT", "KILL")
    with pytest.raises(ResponseError, match="Script killed"):
        await endless


async def test_seeds_that_are_the_wrong_kind_of_server_are_not_away(server: Server, redis) -> None:
    """The URL is wrong: it would be asked for ever."""
    for kind, path in (("sentinel", "/main"), ("cluster", "")):
        errors = await errors_of_both_clients(server.url.removesuffix("/0").replace("redis:", f"redis+{kind}:") + path)

        assert len(errors) == 2
        assert all("nobody names" in str(error) and not server_is_away(error) for error in errors)


async def test_a_cluster_that_misses_slots_is_away(own: Nodes) -> None:
    """A node is being replaced."""
    node = await own.start_server(**{"cluster-enabled": "yes", "cluster-port": str(free_port())})

    [error, other] = await errors_of_both_clients(f"redis://{node.address}")

    assert type(error) is type(other) is ClusterDownError
    assert server_is_away(error)


async def errors_of(node: Node, kind: type[Exception]) -> list[Exception]:
    """Return what both clients raise when it is of this kind."""
    errors = await errors_of_both_clients(f"redis://{node.address}")
    return errors if len(errors) == 2 and all(type(error) is kind for error in errors) else []


async def test_a_wrong_call_is_no_outage(redis: Redis) -> None:
    """Waiting for a bug to pass would hide it."""
    with pytest.raises(ResponseError) as caught:
        await redis.execute_command("XADD", "nothing")

    assert not server_is_away(caught.value)
    assert not group_is_missing(caught.value)


async def test_a_connection_that_is_refused_is_an_outage(settings) -> None:
    """The commonest of all: the server restarts."""
    nobody = connect(settings.model_copy(update={"redis_url": type(settings.redis_url)("redis://127.0.0.1:1/0")}))
    with pytest.raises(Exception, match="onnect") as caught:
        await nobody.ping()

    assert server_is_away(caught.value)
    await nobody.aclose(close_connection_pool=True)
