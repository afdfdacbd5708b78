"""Wait for jobs to end by asking the producer, more and more seldom."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from cli import parameters
from cli.http import Refused, Unreachable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cli.http import Producer, Record

FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 1.0
# Of many jobs only so many are asked about at a time, the oldest first: they end first.
ASKED_AT_A_TIME = 32
# A producer that restarts meanwhile is waited for.
OUTAGE_S = 30.0
ENDED = frozenset(parameters.ENDED)


async def wait_for_end(producer: Producer, job_ids: Iterable[str], seen: Callable[[Record], None]) -> dict[str, Record]:
    """Return the jobs when all of them have ended.

    Args:
        job_ids: in the order in which they were submitted.
        seen: is given each job each time that it was looked at.

    Raises:
        Refused: a job is unknown.
        Unreachable: the producer does not answer for longer than a restart takes.
    """
    ended: dict[str, Record] = {}
    waiting = list(dict.fromkeys(job_ids))
    wait_s = FIRST_WAIT_S
    while waiting:
        jobs = await asyncio.gather(*(_ask(producer, job_id) for job_id in waiting[:ASKED_AT_A_TIME]))
        for job in jobs:
            seen(job)
        news = {job["id"]: job for job in jobs if job["state"] in ENDED}
        ended |= news
        waiting = [job_id for job_id in waiting if job_id not in ended]
        wait_s = FIRST_WAIT_S if news else min(wait_s * 1.5, LONGEST_WAIT_S)
        if waiting:
            await asyncio.sleep(wait_s)
    return ended


async def _ask(producer: Producer, job_id: str) -> Record:
    give_up = time.monotonic() + OUTAGE_S
    while True:
        try:
            return await producer.job(job_id)
        except Refused as exc:
            if exc.try_again_s is None or time.monotonic() > give_up:
                raise
            await asyncio.sleep(exc.try_again_s)
        except Unreachable:
            if time.monotonic() > give_up:
                raise
            await asyncio.sleep(LONGEST_WAIT_S)
