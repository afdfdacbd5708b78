"""arq: 100 jobs at a time, polling each 10 ms."""

from __future__ import annotations

from typing import Any

from arq import Worker, create_pool
from arq.connections import RedisSettings
from stamps import PORT, play, stamp

SETTINGS = RedisSettings(port=PORT)


async def noop(_: Any) -> None:
    stamp()


pool = None


async def one() -> None:
    global pool
    pool = pool or await create_pool(SETTINGS)
    await pool.enqueue_job("noop")


async def many(count: int) -> None:
    for _ in range(count):
        await one()


async def work() -> None:
    worker = Worker(
        [noop], redis_settings=SETTINGS, max_jobs=100, poll_delay=0.01, queue_read_limit=5000, handle_signals=False
    )
    await worker.async_run()


if __name__ == "__main__":
    play(many, one, work)
