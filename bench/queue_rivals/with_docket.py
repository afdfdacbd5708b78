"""pydocket: 64 tasks at a time, looking each 5 ms."""

from __future__ import annotations

from datetime import timedelta

from docket import Docket, Worker
from stamps import URL, play, stamp

docket = Docket(name="bench", url=URL)


async def noop() -> None:
    stamp()


async def many(count: int) -> None:
    async with Docket(name="bench", url=URL) as docket:
        for _ in range(count):
            await docket.add(noop)()


entered = None


async def one() -> None:
    global entered
    entered = entered or await docket.__aenter__()
    await docket.add(noop)()


async def work() -> None:
    async with Docket(name="bench", url=URL) as docket:
        docket.register(noop)
        soon = timedelta(milliseconds=5)
        async with Worker(docket, concurrency=64, minimum_check_interval=soon, scheduling_resolution=soon) as worker:
            await worker.run_forever()


if __name__ == "__main__":
    play(many, one, work)
