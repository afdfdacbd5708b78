"""The counter-check of a whole run: harm done by hand to a line that is well, which its verdict must name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.breaker.ledger import Ledger, Submission, Way
from common.queue import JobQueue

if TYPE_CHECKING:
    from bench.breaker.line import Line
    from bench.breaker.recordings import Recordings

LOST = "lost-by-sabotage"
LEAKED = "leaked-by-sabotage"
_NOT_SOON_MS = 3_600_000


async def sabotage(line: Line, ledger: Ledger, recordings: Recordings) -> None:
    """Accept a job and lose it; leave a key behind."""
    recording = recordings.short[0]
    job = Submission(LOST, Way.QUEUE, str(recording.path), recording.text, accepted=True)
    ledger.add([job])
    await JobQueue(line.redis, line.keys).submit(LOST, job.spec, max_queued=10, delay_ms=_NOT_SOON_MS)
    await line.redis.zrem(line.keys.delayed, LOST)
    await line.redis.set(LEAKED, "1")
