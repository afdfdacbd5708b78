"""saq: 20 jobs at a time."""

from __future__ import annotations

from typing import Any

from saq import Queue, Worker
from stamps import URL, play, stamp

queue = Queue.from_url(URL)


async def noop(_: Any) -> None:
    stamp()


async def one() -> None:
    await queue.enqueue("noop", timeout=60)


async def many(count: int) -> None:
    for _ in range(count):
        await one()


async def work() -> None:
    await Worker(queue, functions=[("noop", noop)], concurrency=20).start()


if __name__ == "__main__":
    play(many, one, work)
