"""streaq: 64 tasks at a time."""

from __future__ import annotations

from stamps import URL, play, stamp
from streaq import Worker

worker = Worker(redis_url=URL, concurrency=64, handle_signals=False)


@worker.task
async def noop() -> None:
    stamp()


async def many(count: int) -> None:
    async with worker:
        for first in range(0, count, 1000):
            await worker.enqueue_many([noop.enqueue() for _ in range(min(1000, count - first))])


async def one() -> None:
    async with worker:
        await noop.enqueue()


async def work() -> None:
    await worker.run_async()


if __name__ == "__main__":
    play(many, one, work)
