"""Connections that look for the queue's primary whenever they connect, and leave a server that is not it any more.

Mixed into the client library's own connections, so that everything above them stays as with a single server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import redis
import redis.asyncio
from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    ClusterDownError,
    ConnectionError,
    MovedError,
    NoPermissionError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from common.topology import Address, ServerUrl, Topology

# Long enough for a sentinel or a node, which answers from memory; so short that asking past one that is silent leaves
# time to renew a lease.
ASK_TIMEOUT_S = 1.0

# The client counts these among its ConnectionErrors, but no wait makes a password right.
REFUSED = (AuthenticationError, AuthorizationError)
# What a server answers that is no sentinel or no node of a cluster.
_WRONG_SEED_REPLIES = ("unknown command", "This instance has cluster support disabled")
# MOVED is an AskError, and MASTERDOWN a ClusterDownError.
_ELSEWHERE = (ReadOnlyError, ClusterDownError, AskError, TryAgainError)
_ELSEWHERE_REPLIES = ("UNBLOCKED", "NOREPLICAS")


def primary_is_elsewhere(error: Exception) -> bool:
    """Return whether a server says that another one holds the queue, or soon may."""
    if isinstance(error, _ELSEWHERE):
        return True
    return isinstance(error, ResponseError) and str(error).startswith(_ELSEWHERE_REPLIES)


def follow(pool: Any, url: ServerUrl, queue: str) -> None:
    """Let a pool's connections go to the queue's primary; changes nothing where the URL names the server itself."""
    topology = url.topology(queue)
    if topology is None:
        return
    plain = pool.connection_class
    following = _Following if issubclass(plain, redis.asyncio.Connection) else _FollowingInThread
    timeouts = {"socket_timeout": ASK_TIMEOUT_S, "socket_connect_timeout": ASK_TIMEOUT_S}
    options = pool.connection_kwargs | timeouts | {"db": 0} | url.seed_login

    def to_seed(seed: Address) -> Any:
        return plain(**options | {"host": seed[0], "port": seed[1]})

    members = {"topology": topology, "to_seed": staticmethod(to_seed)}
    pool.connection_class = type("Connection", (following, plain), members)


class _Follower:
    """What the connections of both kinds of client have in common."""

    topology: Topology
    to_seed: Callable[[Address], Any]
    """Make a connection to one who knows the primary."""
    host: str
    port: int
    _view = 0

    def _outdated(self) -> bool:
        return self._view != self.topology.view

    def _turn_to(self, primary: Address) -> None:
        self.host, self.port = primary
        self._view = self.topology.view

    def _hear(self, error: ResponseError) -> None:
        """Take note of an error reply: no connection that was opened before it is used again if it says so."""
        if primary_is_elsewhere(error):
            ask_first = [(error.host or self.host, error.port)] if isinstance(error, MovedError) else []
            self.topology.doubt(self._view, ask_first)

    def _check_role(self, role: Any) -> None:
        if role[0] != "master":
            raise ConnectionError(
                f"{self.host}:{self.port} was named as {self.topology.sought}, but its role is {role[0]!r}: "
                "a failover is under way, or whoever named it is out of date"
            )

    def _nobody_knows(self, failures: dict[Address, Exception]) -> Exception:
        """Return the error that nobody names the primary: one that no wait mends if there was one among the answers."""
        asked = "; ".join(f"{host}:{port}: {str(exc) or type(exc).__name__}" for (host, port), exc in failures.items())
        kind = next((type(exc) for exc in failures.values() if _is_hopeless(exc)), ConnectionError)
        return kind(f"nobody names {self.topology.sought}; asked {asked}")


def _is_hopeless(error: Exception) -> bool:
    return isinstance(error, (*REFUSED, NoPermissionError)) or str(error).startswith(_WRONG_SEED_REPLIES)


class _Following(_Follower, redis.asyncio.Connection):
    """Follows the primary with the asyncio client."""

    async def connect(self) -> None:
        """Connect, and anew where the primary is believed to be another since."""
        if self._outdated():
            await self.disconnect(nowait=True)
        await super().connect()  # type: ignore[no-untyped-call]

    async def connect_check_health(self, *args: Any, **kwargs: Any) -> None:
        """Unless connected: look for the primary, connect to it, and see that it is one."""
        if self.is_connected:
            return
        self._turn_to(await self._find())
        try:
            await super().connect_check_health(*args, **kwargs)
            self._check_role(await _ask(self, "ROLE"))
        except RedisError:
            self.topology.distrust()
            await self.disconnect(nowait=True)
            raise

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """Read a reply, and take note when it says that the primary is elsewhere."""
        try:
            return await super().read_response(*args, **kwargs)
        except ResponseError as exc:
            self._hear(exc)
            raise

    async def _find(self) -> Address:
        failures: dict[Address, Exception] = {}
        for seed in tuple(self.topology.order):
            connection = self.to_seed(seed)
            try:
                await connection.connect()
                primary = self.topology.learn(seed, await _ask(connection, *self.topology.question))
            except (RedisError, OSError) as exc:
                failures[seed] = exc
            else:
                if primary is not None:
                    return primary
                failures[seed] = ConnectionError("does not know it")
            finally:
                await connection.disconnect(nowait=True)
        raise self._nobody_knows(failures)


async def _ask(connection: redis.asyncio.Connection, *command: str) -> Any:
    await connection.send_command(*command, check_health=False)
    return await connection.read_response()


class _FollowingInThread(_Follower, redis.Connection):
    """Follows the primary with the blocking client; each method is its asyncio twin's, which says what it does."""

    def connect(self) -> None:
        if self._outdated():
            self.disconnect()  # type: ignore[no-untyped-call]
        super().connect()  # type: ignore[no-untyped-call]

    def connect_check_health(self, *args: Any, **kwargs: Any) -> None:
        if self.is_connected:
            return
        self._turn_to(self._find())
        try:
            super().connect_check_health(*args, **kwargs)
            self._check_role(_ask_in_thread(self, "ROLE"))
        except RedisError:
            self.topology.distrust()
            self.disconnect()  # type: ignore[no-untyped-call]
            raise

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().read_response(*args, **kwargs)
        except ResponseError as exc:
            self._hear(exc)
            raise

    def _find(self) -> Address:
        failures: dict[Address, Exception] = {}
        for seed in tuple(self.topology.order):
            connection = self.to_seed(seed)
            try:
                connection.connect()
                primary = self.topology.learn(seed, _ask_in_thread(connection, *self.topology.question))
            except (RedisError, OSError) as exc:
                failures[seed] = exc
            else:
                if primary is not None:
                    return primary
                failures[seed] = ConnectionError("does not know it")
            finally:
                connection.disconnect()
        raise self._nobody_knows(failures)


def _ask_in_thread(connection: Any, *command: str) -> Any:
    connection.send_command(*command, check_health=False)
    return connection.read_response()
