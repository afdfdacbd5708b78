"""A TCP proxy in front of the server, one for each client: the line that is cut, slow, or silently dead."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from enum import Enum
from typing import Self

_BLOCK = 65_536


class Direction(Enum):
    """Which way bytes go."""

    REQUESTS = "to the server"
    REPLIES = "to the client"


@dataclass(eq=False, slots=True)
class _Link:
    """One connection of the client, with the one to the server that serves it."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    silent: Direction | None = None

    def close(self) -> None:
        for end in (self.client, self.server):
            # At once, without a last word: what is in flight is lost.
            end.transport.abort()


class Proxy:
    """Passes bytes between one client and the server, until told otherwise."""

    def __init__(self, server_port: int) -> None:
        self.port = 0
        self._server_port = server_port
        self._links: set[_Link] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._delay_s = 0.0
        self._cut_next_reply = False

    async def __aenter__(self) -> Self:
        self._listening = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._listening.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listening.close()
        self.cut()
        await asyncio.gather(*self._serving, return_exceptions=True)

    @property
    def url(self) -> str:
        """Where the client finds the server."""
        return f"redis://127.0.0.1:{self.port}/0"

    def cut(self) -> None:
        """Close every connection of now."""
        for link in list(self._links):
            link.close()

    def delay(self, seconds: float) -> None:
        """Hold back whatever passes, each way, by so long."""
        self._delay_s = seconds

    def silence(self, direction: Direction) -> None:
        """Let the connections of now swallow one direction for ever, as a half-open connection does."""
        for link in self._links:
            link.silent = direction

    def cut_next_reply(self) -> None:
        """Close the connection whose reply comes next in the middle of that reply."""
        self._cut_next_reply = True

    def restore(self) -> None:
        """Pass bytes again; connections that were silenced are closed."""
        self._delay_s, self._cut_next_reply = 0.0, False
        for link in list(self._links):
            if link.silent:
                link.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(serving)
        serving.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self._server_port)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(writer, to_server)
        self._links.add(link)
        requests = asyncio.create_task(self._pump(link, Direction.REQUESTS, reader, to_server))
        replies = asyncio.create_task(self._pump(link, Direction.REPLIES, from_server, writer))
        try:
            await asyncio.wait({requests, replies}, return_when=asyncio.FIRST_COMPLETED)
            if link.silent:
                await requests  # the client is not told that the server is gone
        finally:
            self._links.discard(link)
            link.close()
            for pump in (requests, replies):
                pump.cancel()
            await asyncio.gather(requests, replies, return_exceptions=True)

    async def _pump(
        self, link: _Link, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_BLOCK):
                if self._delay_s:
                    await asyncio.sleep(self._delay_s)
                if link.silent is direction:
                    continue
                if direction is Direction.REPLIES and self._cut_next_reply and len(data) > 1:
                    self._cut_next_reply = False
                    writer.write(data[: len(data) // 2])
                    await writer.drain()
                    return
                writer.write(data)
                await writer.drain()
