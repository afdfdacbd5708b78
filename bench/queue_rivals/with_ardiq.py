"""ardiq: 128 tasks at a time. Needs Python 3.12."""

from __future__ import annotations

from ardiq import Ardiq
from stamps import URL, play, stamp

app = Ardiq(redis_url=URL, queue_name="bench", concurrency=128)


@app.task()
async def noop() -> None:
    stamp()


async def many(count: int) -> None:
    for first in range(0, count, 1000):
        await app.enqueue_many([noop.prepare() for _ in range(min(1000, count - first))])


async def one() -> None:
    await noop.enqueue()


async def work() -> None:
    await app.run()


if __name__ == "__main__":
    play(many, one, work)
