"""What accepting a job promises (`STTREAM_DURABLE_SUBMIT`), and whether the server can keep it.

- `memory`: the server has it; what a crash takes depends on the server.
- `disk`: its append-only file has it, synced before the answer.
- `replica`: and a replica has it in memory.

WAITAOF is not used: Valkey 9.1 confirms what it has not synced.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog

from common.connection import is_error_reply, server_is_away
from common.errors import Unavailable
from common.scripts import fcall

if TYPE_CHECKING:
    from collections.abc import Sequence

    from common.connection import Client

log = structlog.get_logger()

# With these the server syncs its append-only file before it answers; the last one stops that during rewrites.
_SYNCED = {"appendonly": "yes", "appendfsync": "always", "no-appendfsync-on-rewrite": "no"}
# A replica answers within a round trip. Whoever submits waits for it, so one that hangs is not waited for longer.
CONFIRM_MS = 1_000


class Durability:
    """Sees whether the server keeps what a level promises; an operator or a failover may change it at any time."""

    def __init__(self, redis: Client, level: str) -> None:
        self._redis = redis
        self._level = level
        self._told = ""

    async def check(self) -> None:
        """Compare the server with the level; tell the log once about each finding.

        Raises:
            Unavailable: the server falls short of it, or will not say; with what was found, and both ways out.
        """
        try:
            if self._level != "memory":
                await _check_synced(self._redis)
            if self._level == "replica":
                await _check_replica(self._redis)
        except Unavailable as exc:
            if self._told != str(exc):
                log.error("server_not_durable", level=self._level, error=str(exc), next="no jobs are accepted")
            self._told = str(exc)
            raise
        if self._told:
            log.info("server_durable_again", level=self._level)
        self._told = ""


async def _check_synced(redis: Client) -> None:
    try:
        found = await redis.config_get(*_SYNCED)
    except Exception as exc:
        raise _unanswered(exc, "config|get", "memory") from exc
    wrong = {name: found.get(name, "nothing") for name, value in _SYNCED.items() if found.get(name) != value}
    if wrong:
        raise Unavailable(
            f"the server may lose accepted jobs: found {_listed(wrong)}, expected "
            f"{_listed({name: _SYNCED[name] for name in wrong})}; set that on the server, "
            "or accept the loss (STTREAM_DURABLE_SUBMIT=memory)"
        )


async def _check_replica(redis: Client) -> None:
    try:
        confirmed = await redis.execute_command("WAIT", 1, CONFIRM_MS)
    except Exception as exc:
        raise _unanswered(exc, "wait", "disk") from exc
    if confirmed < 1:
        raise Unavailable(
            f"found no replica that confirms writes within {CONFIRM_MS} ms, expected 1; attach or mend one, "
            "or do without (STTREAM_DURABLE_SUBMIT=disk)"
        )


def _unanswered(error: Exception, command: str, lower: str) -> Exception:
    """Return what to raise when the server did not answer a question."""
    if server_is_away(error) or not is_error_reply(error):
        return error
    return Unavailable(
        f"the server does not say whether it keeps accepted jobs ({error}), expected an answer; "
        f"allow it (ACL +{command}), or promise less (STTREAM_DURABLE_SUBMIT={lower})"
    )


def _listed(options: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items())


async def call_and_wait(
    redis: Client, name: str, keys: Sequence[str], args: Sequence[str | int | float]
) -> tuple[Any, bool]:
    """Call one function, then wait until a replica has what it wrote.

    WAIT speaks of the last write of its own connection: both go together, and for a function that writes nothing it
    confirms nothing (Valkey 9.1), or more than was asked for (Redis 7.0).

    Returns:
        The reply, and whether a replica confirmed it in time. If not, it may still reach one.
    """
    pipeline = redis.pipeline(transaction=False)
    pipeline.execute_command(*fcall(name, keys, args))
    pipeline.execute_command("WAIT", 1, CONFIRM_MS)
    # The client would put the command, with the job in it, before the server's words: errors are told by these.
    replies = await pipeline.execute(raise_on_error=False)
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies[0], replies[1] >= 1
