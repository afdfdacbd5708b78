"""The client as it is set up: with its defaults it would lose cancellations and repeat writes."""

import asyncio

import pytest
import uvloop
from redis.exceptions import ConnectionError

from common.connection import connect, connect_thread, server_is_away
from common.settings import Settings, load_settings


async def test_a_cancellation_is_never_lost(redis):
    """A loop that goes on after it was told to end keeps its process from stopping."""

    async def loop() -> None:
        while True:
            await redis.ping()

    for turns in range(300):
        task = asyncio.create_task(loop())
        for _ in range(turns % 30):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task}, timeout=5)
        assert task.cancelled(), f"still running, cancelled after {turns % 30} turns of the event loop"


async def test_a_write_is_sent_once_even_if_its_answer_is_lost():
    """redis-py repeats a command up to ten times by default: a submission would be queued again and again."""
    received = 0

    async def hang_up_after_a_write(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal received
        while request := await reader.read(65_536):
            if b"XADD" in request:
                received += 1
                break
            answer = b"+PONG\r\n" if b"PING" in request else b"+OK\r\n" * request.count(b"*")
            writer.write(answer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(hang_up_after_a_write, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, connect(load_settings({"STTREAM_REDIS_URL": f"redis://127.0.0.1:{port}"})) as client:
        with pytest.raises(ConnectionError) as caught:
            await client.xadd("stream", {"id": "a"})

    assert server_is_away(caught.value)
    assert received == 1


async def test_bytes_that_are_no_text_come_back_escaped(redis, keys):
    """One careless client must not end everybody's read loop."""
    await redis.xadd(keys.lane("low"), {"id": b"\xff\xfe"})

    [(_, fields)] = await redis.xrange(keys.lane("low"))

    assert fields == {"id": "\\xff\\xfe"}


def test_a_connection_that_was_closed_between_two_commands_is_a_lost_one(settings: Settings) -> None:
    """The event loop of our services has an error of its own for it, which would end them."""

    async def close_and_send() -> Exception | None:
        async with connect(settings) as client:
            await client.ping()
            connection = await client.connection_pool.get_connection()
            connection._writer.transport.abort()
            await asyncio.sleep(0)
            try:
                await connection.send_command("PING", check_health=False)
            except Exception as exc:  # noqa: BLE001 which one it is, is the question
                return exc
            finally:
                await client.connection_pool.release(connection)
        return None

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        error = runner.run(close_and_send())

    assert error is not None
    assert server_is_away(error)


async def test_nothing_is_sent_on_connecting_whose_answer_is_left_unread() -> None:
    """A health check in between takes it for its own: on servers before 7.2 a refused CLIENT SETINFO ended services."""
    received = bytearray()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while request := await reader.read(65_536):
            received.extend(request)
            writer.write(b"+PONG\r\n" * request.count(b"*"))
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    settings = load_settings({"STTREAM_REDIS_URL": url})
    async with server, connect(settings) as client:
        await client.ping()
        in_thread = connect_thread(settings)
        await asyncio.to_thread(in_thread.ping)
        in_thread.close()

    assert received.count(b"PING") >= 2
    assert b"SETINFO" not in received
