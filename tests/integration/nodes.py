"""Several servers together: a primary with a replica and sentinels, or a cluster. A test has its own: it kills them."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import redis.asyncio
from redis.exceptions import ConnectionError, TimeoutError

from common.group import pairs
from tests.integration.servers import BINARIES, CONFIG
from tests.ports import free_port
from tests.until import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

SERVICE = "speech"
SERVER_PASSWORD = "hush-servers"
SENTINEL_PASSWORD = "hush-sentinels"
# What a machine may need that is busy with other tests.
LIMIT_S = 60
SLOTS = 16_384


@dataclass(slots=True)
class Node:
    """One server process of our own, with a client that asks it directly."""

    command: list[str]
    port: int
    folder: Path
    client: redis.asyncio.Redis
    process: subprocess.Popen[bytes] | None = None

    def launch(self) -> None:
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL)

    async def start(self) -> None:
        self.launch()
        await until(self.answers, within_s=LIMIT_S, what=f"the server on port {self.port} answers")

    async def answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the server on port {self.port} ended as it started"
        with contextlib.suppress(ConnectionError, TimeoutError):
            return bool(await self.ask("PING"))
        return False

    async def ask(self, *command: str | int) -> Any:
        return await self.client.execute_command(*command)

    async def role(self) -> str:
        [role, *_] = await self.ask("ROLE")
        return str(role)

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        if number is signal.SIGKILL:
            self.process.wait()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@dataclass(slots=True)
class Nodes:
    """Starts nodes of one kind, and ends them all."""

    kind: str
    folder: Path
    stack: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stack.aclose()

    async def start(self, *arguments: str, password: str | None = None, port: int | None = None) -> Node:
        port = port or free_port()
        folder = self.folder / str(port)
        folder.mkdir()
        client = redis.asyncio.Redis(port=port, password=password, protocol=2, decode_responses=True, socket_timeout=5)
        words = [BINARIES[self.kind](), *arguments, "--port", str(port), "--dir", str(folder)]
        node = Node(words, port, folder, client)
        self.stack.push_async_callback(client.aclose)
        self.stack.callback(_end, node)
        await node.start()
        return node

    async def start_server(self, **options: str) -> Node:
        words = [word for name, value in (CONFIG | options).items() for word in (f"--{name}", *(value.split() or [""]))]
        return await self.start(*words, password=options.get("requirepass"))


def _end(node: Node) -> None:
    if node.process is not None and node.process.poll() is None:
        node.process.kill()
        node.process.wait()


@dataclass(slots=True)
class Watched:
    """A primary and its replica, watched by three sentinels."""

    primary: Node
    replica: Node
    sentinels: list[Node]

    @property
    def url(self) -> str:
        hosts = ",".join(sentinel.address for sentinel in self.sentinels)
        return f"redis+sentinel://:{SERVER_PASSWORD}@{hosts}/{SERVICE}/1?sentinel_password={SENTINEL_PASSWORD}"


@contextlib.asynccontextmanager
async def watched(kind: str, folder: Path) -> AsyncIterator[Watched]:
    async with Nodes(kind, folder) as nodes:
        login = {"requirepass": SERVER_PASSWORD, "masterauth": SERVER_PASSWORD, "repl-diskless-sync-delay": "0"}
        primary = await nodes.start_server(**login)
        replica = await nodes.start_server(**login, replicaof=f"127.0.0.1 {primary.port}")
        await until(lambda: _is_linked(replica), within_s=LIMIT_S, what="the replica follows")
        sentinels = [await _start_sentinel(nodes, primary) for _ in range(3)]
        for sentinel in sentinels:
            await until(lambda s=sentinel: _knows_all(s), within_s=LIMIT_S, what="each sentinel knows the others")
        yield Watched(primary, replica, sentinels)


async def _start_sentinel(nodes: Nodes, primary: Node) -> Node:
    port = free_port()
    config = nodes.folder / f"sentinel-{port}.conf"
    config.write_text(
        f"""\
bind 127.0.0.1
requirepass {SENTINEL_PASSWORD}
sentinel monitor {SERVICE} 127.0.0.1 {primary.port} 2
sentinel auth-pass {SERVICE} {SERVER_PASSWORD}
sentinel down-after-milliseconds {SERVICE} 1500
sentinel failover-timeout {SERVICE} 5000
"""
    )
    return await nodes.start(str(config), "--sentinel", password=SENTINEL_PASSWORD, port=port)


async def _is_linked(replica: Node) -> bool:
    [role, *about] = await replica.ask("ROLE")
    return bool(role == "slave" and about[2] == "connected")


async def _knows_all(sentinel: Node) -> bool:
    state = pairs(await sentinel.ask("SENTINEL", "MASTER", SERVICE))
    return int(state["num-slaves"]) == 1 and int(state["num-other-sentinels"]) == 2


@dataclass(slots=True)
class Clustered:
    """Three primaries that share the slots."""

    nodes: list[Node]
    start: Callable[[], Awaitable[Node]]

    def url(self, *seeds: Node) -> str:
        return f"redis+cluster://:{SERVER_PASSWORD}@{','.join(seed.address for seed in seeds)}"

    async def owner(self, slot: int) -> Node:
        """Return the node that believes itself that it owns a slot."""
        for node in self.nodes:
            for first, last, (_, port, *_), *_ in await node.ask("CLUSTER", "SLOTS"):
                if first <= slot <= last and port == node.port:
                    return node
        raise AssertionError(f"nobody owns slot {slot}")

    async def add_replica(self, primary: Node) -> Node:
        replica = await self.start()
        await _meet(primary, replica)
        to = await primary.ask("CLUSTER", "MYID")
        await until(lambda: _knows(replica, to), within_s=LIMIT_S, what="the new node knows the cluster")
        await replica.ask("CLUSTER", "REPLICATE", to)
        await until(lambda: _is_linked(replica), within_s=LIMIT_S, what="the replica follows")
        await until(lambda: _is_complete(replica), within_s=LIMIT_S, what="the replica knows its primary's slots")
        own_id = await replica.ask("CLUSTER", "MYID")
        for node in self.nodes:  # they would not vote for one they do not know
            await until(lambda n=node: _knows(n, own_id, "slave"), within_s=LIMIT_S, what="all know the replica")
        return replica

    async def begin_move(self, slot: int, source: Node, target: Node) -> None:
        """Let a slot be on its way: from now on keys that do not exist are the target's."""
        await target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", await source.ask("CLUSTER", "MYID"))
        await source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", await target.ask("CLUSTER", "MYID"))

    async def end_move(self, slot: int, source: Node, target: Node) -> None:
        while names := await source.ask("CLUSTER", "GETKEYSINSLOT", slot, 100):
            to = ["127.0.0.1", target.port, "", 0, 5000, "AUTH", SERVER_PASSWORD]
            await source.ask("MIGRATE", *to, "KEYS", *names)
        for node in (target, source):
            await node.ask("CLUSTER", "SETSLOT", slot, "NODE", await target.ask("CLUSTER", "MYID"))


@contextlib.asynccontextmanager
async def clustered(kind: str, folder: Path) -> AsyncIterator[Clustered]:
    options = {
        "cluster-enabled": "yes",
        "cluster-node-timeout": "2000",
        "requirepass": SERVER_PASSWORD,
        "masterauth": SERVER_PASSWORD,
        "repl-diskless-sync-delay": "0",
    }
    async with Nodes(kind, folder) as nodes:

        async def start() -> Node:
            return await nodes.start_server(**options, **{"cluster-port": str(free_port())})

        members = [await start() for _ in range(3)]
        for number, node in enumerate(members):
            await node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            share = SLOTS // len(members) + 1
            await node.ask("CLUSTER", "ADDSLOTSRANGE", number * share, min((number + 1) * share, SLOTS) - 1)
        for node in members[1:]:
            await _meet(members[0], node)
        for node in members:
            await until(lambda n=node: _is_complete(n), within_s=LIMIT_S, what="the cluster is complete")
        yield Clustered(members, start)


async def _meet(member: Node, node: Node) -> None:
    bus_port = (await node.client.config_get("cluster-port"))["cluster-port"]
    await member.ask("CLUSTER", "MEET", "127.0.0.1", node.port, bus_port)


async def _knows(node: Node, node_id: str, flag: str = "") -> bool:
    lines = (await node.ask("CLUSTER", "NODES")).splitlines()
    return any(line.startswith(node_id) and flag in line for line in lines)


async def _is_complete(node: Node) -> bool:
    return "cluster_state:ok" in await node.ask("CLUSTER", "INFO") and len(await node.ask("CLUSTER", "SLOTS")) == 3
