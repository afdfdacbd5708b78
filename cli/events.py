"""Follow events over the restarts of a producer."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from cli.http import Refused, Unreachable, path_of
from cli.wait import ENDED

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cli.http import Producer, Record

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 4.0
# As long as a restart of the producer takes, with something to spare.
OUTAGE_S = 20.0


async def follow(producer: Producer, job_id: str | None, *, outage_s: float = OUTAGE_S) -> AsyncIterator[Record]:
    """Yield the events of one job until it has ended, or those of all jobs for ever.

    A stream that breaks off is taken up again behind the last event that came.

    Raises:
        Refused: the job is unknown.
        Unreachable: the producer does not answer at first, or for `outage_s` after the stream broke off.
    """
    path = path_of("events") if job_id is None else path_of("jobs", job_id, "events")
    last_id, give_up, wait_s = "", time.monotonic(), FIRST_WAIT_S
    while True:
        try:
            async for event_id, event in producer.events(path, last_id):
                if not event:  # a reset: what came meanwhile is dropped already
                    continue
                last_id = event_id
                yield event
                if job_id is not None and event.get("state") in ENDED:
                    return
            give_up, wait_s = time.monotonic() + outage_s, FIRST_WAIT_S
            # An end without the last event: the producer stops, or the job ended and its events are dropped already.
            if job_id is not None and (job := await producer.job(job_id))["state"] in ENDED:
                yield {"id": job_id, "at": job["finished_at"], "state": job["state"], "progress": job["progress"]}
                return
        except (Refused, Unreachable) as exc:
            if (isinstance(exc, Refused) and exc.try_again_s is None) or time.monotonic() >= give_up:
                raise
        await asyncio.sleep(wait_s)
        wait_s = min(2 * wait_s, LONGEST_WAIT_S)
