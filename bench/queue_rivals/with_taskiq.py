"""taskiq with taskiq-redis: a stream, one worker process, 100 tasks at a time, no results."""

from __future__ import annotations

from stamps import URL, become, play, stamp
from taskiq_redis import RedisStreamBroker

broker = RedisStreamBroker(url=URL)
started = False


@broker.task(task_name="noop")
async def noop() -> None:
    stamp()


async def one() -> None:
    global started
    if not started:
        await broker.startup()
        started = True
    await noop.kiq()


async def many(count: int) -> None:
    for _ in range(count):
        await one()


def work() -> None:
    become(
        "taskiq", "worker", "with_taskiq:broker", "--workers", "1", "--max-async-tasks", "100", "--log-level", "ERROR"
    )


if __name__ == "__main__":
    play(many, one, work)
