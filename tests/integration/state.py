"""The whole state of a queue, and how it changes: seed a state, act once, compare everything.

    before = await whole_state(redis)
    ...
    assert changes(before, await whole_state(redis)) == {"job:a.state": "running", ...}

A state is flat: one value for each hash field, member of a sorted set, stream (`(entry id, fields)`) and pending
entries list (`(entry id, consumer, delivery count)`), by its key without the queue's prefix. What is gone appears as
None. What a comparison does not name must not have changed.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis.asyncio import Redis

    from common.keys import Keys

# Of this stream a change shows what was added: nothing is taken out of it, and the whole would repeat the seed.
_GROWING = "events"


class _Now:
    """Equal to a server time in ms, as text or number, of the last minute."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str | int | float) and abs(float(other) - time.time() * 1000) < 60_000

    def __hash__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return "NOW"


NOW = _Now()


class _EntryId:
    """Equal to any stream entry id."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and re.fullmatch(r"\d+-\d+", other) is not None

    def __hash__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return "ENTRY_ID"


ENTRY_ID = _EntryId()


async def whole_state(redis: Redis) -> dict[str, Any]:
    """Return everything the server holds but idle times."""
    state: dict[str, Any] = {}
    for key in sorted(await redis.keys()):
        name = key.partition(":")[2] or key
        if await redis.ttl(key) >= 0:
            state[f"{name} expires"] = True
        state |= await _READERS[await redis.type(key)](redis, key, name)
    return state


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `after` holds where it differs from `before`; for the event stream, what was added."""
    changed = {name: after.get(name) for name in before | after if before.get(name) != after.get(name)}
    return {name: _added(before, value, name) if name == _GROWING else value for name, value in changed.items()}


def _added(before: Mapping[str, Any], now: list[Any], name: str) -> list[Any]:
    then = before.get(name, [])
    assert now[: len(then)] == then, f"{name} has lost entries"
    return now[len(then) :]


async def _string(redis: Redis, key: str, name: str) -> dict[str, Any]:
    return {name: await redis.get(key)}


async def _hash(redis: Redis, key: str, name: str) -> dict[str, Any]:
    return {f"{name}.{field}": value for field, value in (await redis.hgetall(key)).items()}


async def _sorted_set(redis: Redis, key: str, name: str) -> dict[str, Any]:
    return {f"{name}.{member}": score for member, score in await redis.zrange(key, 0, -1, withscores=True)}


async def _stream(redis: Redis, key: str, name: str) -> dict[str, Any]:
    entries = await redis.xrange(key)
    if name == _GROWING:
        return {name: [" ".join(f"{field}={value}" for field, value in fields.items()) for _, fields in entries]}
    state: dict[str, Any] = {name: entries}
    for group in await redis.xinfo_groups(key):
        pending = await redis.xpending_range(key, group["name"], "-", "+", 10_000)
        state[f"{name} pending"] = [
            (entry["message_id"], entry["consumer"], entry["times_delivered"]) for entry in pending
        ]
    return state


_READERS = {"string": _string, "hash": _hash, "zset": _sorted_set, "stream": _stream}


async def undeclared_keys(redis: Redis, keys: Keys) -> list[str]:
    """Return the keys that `common/keys.py` does not declare: what leaks."""
    declared = {*keys.lanes, keys.results, keys.delayed, keys.dead, keys.events, keys.epoch}
    per_id = (keys.job(""), keys.parts(""), keys.batch(""))
    return [key for key in await redis.keys() if key not in declared and not key.startswith(per_id)]
