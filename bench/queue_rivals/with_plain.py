"""No product: plain redis-py with hiredis, batches of 128, a state hash and its expiry for each job."""

from __future__ import annotations

import redis.asyncio
from stamps import URL, play, stamp

client = redis.asyncio.Redis.from_url(URL, decode_responses=True)
KEY, GROUP, AT_ONCE = "jobs", "workers", 128
queued = 0


async def many(count: int) -> None:
    for first in range(0, count, AT_ONCE):
        async with client.pipeline(transaction=False) as pipeline:
            for _ in range(min(AT_ONCE, count - first)):
                add(pipeline)
            await pipeline.execute()


async def one() -> None:
    async with client.pipeline(transaction=False) as pipeline:
        add(pipeline)
        await pipeline.execute()


def add(pipeline: redis.asyncio.client.Pipeline) -> None:
    global queued
    queued += 1
    pipeline.xadd(KEY, {"id": f"0199c5d2-7b6e-7c31-9f5e-{queued:012d}", "payload": ""})


async def work() -> None:
    await client.xgroup_create(KEY, GROUP, id="0", mkstream=True)
    while True:
        reply = await client.xreadgroup(GROUP, "one", {KEY: ">"}, count=AT_ONCE, block=1000)
        for _, entries in reply or ():
            async with client.pipeline(transaction=True) as pipeline:
                for _, fields in entries:
                    stamp()
                    name = f"job:{fields['id']}"
                    pipeline.hset(name, mapping={"state": "done"})
                    pipeline.expire(name, 86_400)
                ids = [entry_id for entry_id, _ in entries]
                pipeline.xack(KEY, GROUP, *ids)
                pipeline.xdel(KEY, *ids)
                await pipeline.execute()


if __name__ == "__main__":
    play(many, one, work)
