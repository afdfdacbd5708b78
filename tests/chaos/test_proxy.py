"""The proxy's faults are what they say: a run must not pass because nothing was broken."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from bench.breaker.proxy import Direction, Proxy
from tests.until import until

WITHIN_S = 10.0
# Long beside a reply that comes, short beside a test.
SILENCE_S = 0.3


class Line:
    """A server behind a proxy, which answers what it hears and remembers it; and clients of the proxy."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self.heard = bytearray()
        self._stack = stack

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1000):
                self.heard += data
                writer.write(data)
        writer.close()

    async def start(self) -> None:
        server = await self._stack.enter_async_context(await asyncio.start_server(self.serve, "127.0.0.1", 0))
        self.proxy = await self._stack.enter_async_context(Proxy(server.sockets[0].getsockname()[1]))

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.proxy.port)
        self._stack.callback(writer.close)
        return reader, writer


@pytest.fixture
async def line() -> AsyncIterator[Line]:
    async with AsyncExitStack() as stack:
        line = Line(stack)
        await line.start()
        yield line


async def ask(link: tuple[asyncio.StreamReader, asyncio.StreamWriter], text: bytes) -> bytes:
    """Send, and return what comes back until it is all there or the connection ends."""
    reader, writer = link
    writer.write(text)
    answer = b""
    async with asyncio.timeout(WITHIN_S):
        with contextlib.suppress(ConnectionError):
            while len(answer) < len(text) and (data := await reader.read(1000)):
                answer += data
    return answer


async def test_bytes_pass_both_ways(line):
    """Without a fault the proxy is not there."""
    assert await ask(await line.connect(), b"hello") == b"hello"


async def test_a_cut_ends_connections_and_lets_new_ones_in(line):
    """A cut is over at once: what is tried again gets through."""
    link = await line.connect()
    await ask(link, b"hello")
    line.proxy.cut()
    assert await ask(link, b"again") == b""
    assert await ask(await line.connect(), b"again") == b"again"


async def test_a_reply_is_cut_in_its_middle(line):
    """The command was carried out, and the client cannot know."""
    line.proxy.cut_next_reply()
    assert await ask(await line.connect(), b"12345678") in (b"", b"1234")
    assert line.heard == b"12345678"


@pytest.mark.parametrize(("direction", "heard"), [(Direction.REQUESTS, b""), (Direction.REPLIES, b"hello")])
async def test_a_silent_connection_stays_open_and_swallows_one_direction(line, direction, heard):
    """Nothing tells the client: only its own time limit does."""
    reader, writer = link = await line.connect()
    await ask(link, b"1")
    line.heard.clear()
    line.proxy.silence(direction)
    writer.write(b"hello")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(SILENCE_S):
            await reader.read(1)
    await until(lambda: line.heard == heard, within_s=WITHIN_S, what="the server hears what is not swallowed")
