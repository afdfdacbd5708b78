"""faststream: a stream with a consumer group, acknowledged after the handler.

The group is made here, at the first entry: the library makes it at the last, and would pass over what waits already.
"""

from __future__ import annotations

import contextlib
import logging

import redis.asyncio
from faststream import FastStream
from faststream.redis import RedisBroker, StreamSub
from stamps import URL, play, stamp

broker = RedisBroker(URL, logger=None, log_level=logging.ERROR)
connected = False


async def noop(_: str) -> None:
    stamp()


async def one() -> None:
    global connected
    if not connected:
        await broker.connect()
        with contextlib.suppress(redis.exceptions.ResponseError):
            await redis.asyncio.Redis.from_url(URL).xgroup_create("jobs", "workers", id="0", mkstream=True)
        connected = True
    await broker.publish("", stream="jobs")


async def many(count: int) -> None:
    for _ in range(count):
        await one()


async def work() -> None:
    broker.subscriber(stream=StreamSub("jobs", group="workers", consumer="one", last_id=">", max_records=100))(noop)
    await FastStream(broker, logger=None).run()


if __name__ == "__main__":
    play(many, one, work)
