"""A consumer group: read new entries, take over abandoned ones, fence. All parsing of stream replies is here."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import orjson
import structlog

from common.connection import Client, blames_the_server, group_is_missing, refusal
from common.entries import Entry
from common.scripts import call, fcall

if TYPE_CHECKING:
    from common.records import Failure

log = structlog.get_logger()


def consumer_name() -> str:
    """Return a name that no other process, and no other start of this one, has."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


class Group:
    """One consumer group over some streams, read by one consumer."""

    def __init__(self, redis: Client, streams: Sequence[str], group: str, consumer: str) -> None:
        self.redis = redis
        self.streams = streams
        self.group = group
        self.consumer = consumer
        self._cursors = ["0-0"] * len(streams)
        self._waited_in_vain = False

    async def create(self) -> None:
        """Create the group at the first entry of each stream, so that none added before is left out."""
        for stream in await self.missing():
            try:
                await self.redis.xgroup_create(stream, self.group, id="0", mkstream=True)
            except Exception as exc:
                if "BUSYGROUP" not in str(exc):  # another process was faster
                    raise

    async def missing(self) -> list[str]:
        """Return the streams that do not have the group."""
        return [stream for stream in self.streams if not await self._exists(stream)]

    async def _exists(self, stream: str) -> bool:
        """Look before creating: a server at maxmemory refuses the creation even of what is there."""
        try:
            groups = await self.redis.xinfo_groups(stream)
        except Exception as exc:
            if group_is_missing(exc):
                return False
            raise
        return any(group["name"] == self.group for group in groups)

    async def read(self, count: int, block_ms: int) -> list[Entry]:
        """Return new entries: from the streams in order, and if all are empty from the first that gets one.

        Args:
            count: most entries.
            block_ms: how long to wait.
        """
        # After a wait in vain all were empty a moment ago: that is not asked again. Each stream may give one then.
        if self._waited_in_vain and count >= len(self.streams):
            entries = []
        else:
            entries = await self._read(count)
        return entries or await self._wait(block_ms)

    async def _read(self, count: int) -> list[Entry]:
        pages = await call(self.redis, "read", self.streams, [self.group, self.consumer, count])
        return [
            Entry(stream, entry_id, 1, pairs(fields))
            for stream, page in zip(self.streams, pages, strict=True)
            for entry_id, fields in page
        ]

    async def _wait(self, block_ms: int) -> list[Entry]:
        """Return the first entry that arrives, and of streams that have got some meanwhile the first of each.

        Source: XREADGROUP command page: COUNT counts for each stream.
        """
        streams = dict.fromkeys(self.streams, ">")
        reply = await self.redis.xreadgroup(self.group, self.consumer, streams, count=1, block=block_ms)
        self._waited_in_vain = not reply
        return [Entry(stream, entry_id, 1, fields) for stream, page in reply for entry_id, fields in page]

    async def rescue(self, count: int, min_idle_ms: int) -> list[Entry]:
        """Take over entries idle for `min_idle_ms`, a page of each stream, going on where the last call stopped.

        Source: XAUTOCLAIM command page; t_stream.c, xautoclaimCommand (7.0): it looks at 10 x COUNT entries and
        stops, so starting over each time would see the same live entries for ever.
        """
        args: list[str | int] = [self.group, self.consumer, min_idle_ms, count, *self._cursors]
        pages = await call(self.redis, "rescue", self.streams, args)
        self._cursors = [cursor for cursor, _, _ in pages]
        entries: list[Entry] = []
        for stream, (_, page, deleted) in zip(self.streams, pages, strict=True):
            entries += [Entry(stream, entry_id, deliveries, pairs(fields)) for entry_id, deliveries, fields in page]
            if deleted:
                log.error(
                    "entries_deleted_while_pending",
                    stream=stream,
                    entry_ids=deleted,
                    next="their jobs run for ever: cancel them, then retry them",
                )
        return entries

    async def look_around(self, gone_ms: int, *more_keys: str, most_due: int = 0) -> tuple[list[str], int]:
        """Remove consumers that have been silent for `gone_ms` and hold nothing.

        Args:
            gone_ms: in milliseconds.
            more_keys: the delayed set and the results stream, where they are looked at too.
            most_due: most ids.

        Returns:
            Ids of delayed jobs that are due, longest first, and how many results wait for the writer.
        """
        args: list[str | int] = [self.group, gone_ms, len(self.streams), most_due]
        _, due, unstored = await call(self.redis, "house", [*self.streams, *more_keys], args)
        return due, unstored

    @property
    def member(self) -> tuple[str, str]:
        """The group and this consumer, as functions take them."""
        return self.group, self.consumer

    def fence(self, entry: Entry) -> list[str | int | float]:
        """Return the arguments with which a function checks that the entry is still ours."""
        return [self.group, self.consumer, entry.entry_id, entry.deliveries]

    def discard(self, dead: str, entry: Entry, failure: Failure, *job_keys: str) -> tuple[Any, ...]:
        """Return the command that moves an entry to the stream of dead letters as it was found.

        Args:
            dead: the stream of dead letters.
            entry: what nobody can work on.
            failure: why.
            job_keys: hash, events and, if any, batch of the job that the entry is the result of.
        """
        fields = orjson.dumps([part for pair in entry.fields.items() for part in pair]).decode()
        told = [failure.model_dump_json(), failure.type, fields, entry.fields.get("run", "1")]
        args = [*self.fence(entry), entry.fields.get("id", ""), *told]
        return fcall("discard", [entry.stream, dead, *job_keys], args)

    async def call_all(self, commands: Iterable[tuple[Any, ...]]) -> list[Any]:
        """Send many commands in one round trip, each atomic by itself; the first error is raised after all ran."""
        return first_error_raised(await self.call_each(commands))

    async def call_each(self, commands: Iterable[tuple[Any, ...]]) -> list[Any]:
        """Send many commands in one round trip; an error that blames one of them is its reply.

        Raises:
            Exception: the server is away, refuses this user, or does not hold the group or the library: that blames
                none of them.
        """
        pipeline = self.redis.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        # Raised here, not by the pipeline: it would wrap the text, and `server_is_away` reads its first word.
        replies: list[Any] = await pipeline.execute(raise_on_error=False)
        _raise_blame(replies)
        return replies

    async def call_for_each(self, commands: Iterable[tuple[Any, ...]]) -> list[Any]:
        """Send functions that do one thing for one, or for each of many; the reply to each of those, or its error."""
        replies: list[Any] = []
        for reply in await self.call_all(commands):
            replies += reply if isinstance(reply, list) else [reply]
        _raise_blame(replies)
        return replies


def first_error_raised(replies: list[Any]) -> list[Any]:
    """Return replies without an error among them."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies


def _raise_blame(replies: Iterable[Any]) -> None:
    for reply in replies:
        if isinstance(reply, Exception) and (blames_the_server(reply) or refusal(reply)):
            raise reply


def pairs(flat: Sequence[str]) -> dict[str, str]:
    """Return the fields of a flat list, as functions and RESP2 give them."""
    return dict(zip(flat[::2], flat[1::2], strict=True))
