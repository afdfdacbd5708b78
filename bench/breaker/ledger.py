"""What was submitted, in which way, what was answered, and how each job may therefore end."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from bench.breaker.standin import Orders
from common.options import Options
from common.records import PRIORITIES, JobSpec, Priority

if TYPE_CHECKING:
    from bench.breaker.recordings import Recording, Recordings


class Way(StrEnum):
    """How a job is submitted."""

    HTTP = "http"
    QUEUE = "queue"
    """By `JobQueue`, as part of a batch."""
    XADD = "xadd"
    """By a client that only speaks Redis: an id and a source, no options."""


class Asked(StrEnum):
    """Whether somebody asked for something, and whether it was granted."""

    NO = "no"
    UNKNOWN = "unknown"
    GRANTED = "granted"


@dataclass(slots=True)
class Submission:
    """A job of this run."""

    id: str
    way: Way
    source: str
    text: str | None
    """What its transcript must say; None for a job that cannot succeed."""
    orders: Orders = Orders.NONE
    priority: Priority = "normal"
    batch_id: str | None = None
    delay_s: float = 0.0
    gives_up: bool = False
    """Whether it is not submitted again when the answer is unknown."""
    accepted: bool = False
    cancelled: Asked = Asked.NO
    revived: bool = False

    @property
    def spec(self) -> JobSpec:
        """The job itself."""
        doomed = self.text is None
        return JobSpec(
            source=self.source,
            priority=self.priority,
            options=Options(vad=False, language="en", hotwords=self.orders.value or None),
            timeout_s=1.5 if self.orders is Orders.HANG else None,
            # Good jobs have all the attempts that they need: whatever they meet, they must be completed.
            max_attempts=3 if doomed else None,
            batch_id=self.batch_id,
        )

    @property
    def may_end_as(self) -> frozenset[str]:
        """The states in which it may end."""
        own = "completed" if self.text is not None else "failed"
        if self.cancelled is Asked.NO:
            return frozenset({own})
        if self.cancelled is Asked.GRANTED and not self.revived:
            return frozenset({"cancelled"})
        return frozenset({own, "cancelled"})


@dataclass(slots=True)
class Ledger:
    """All submissions of a run, and what was answered that never should be."""

    submissions: dict[str, Submission] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)

    @property
    def accepted(self) -> list[Submission]:
        """The jobs that somebody was promised."""
        return [submission for submission in self.submissions.values() if submission.accepted]

    def add(self, submissions: Iterable[Submission]) -> None:
        """Enter jobs before they are submitted: from then on they may be there."""
        self.submissions |= {submission.id: submission for submission in submissions}


_JOBS_A_BATCH = 60
_WAYS = {Way.HTTP: 50, Way.QUEUE: 44, Way.XADD: 6}
# Shares of all jobs; at least one of each in any run.
_POISON, _HANGING, _BROKEN, _LONG = 1 / 1500, 1 / 400, 1 / 80, 1 / 80


def plan_jobs(count: int, seed: int, recordings: Recordings, spoken: list[Recording]) -> list[Submission]:
    """Decide about all jobs of a run.

    Args:
        count: how many.
        seed: the same seed plans the same jobs.
        recordings: melodies.
        spoken: recordings in which the speech detection finds speech, for jobs that cannot turn it off.
    """
    rng = random.Random(f"jobs {seed}")
    ways = rng.choices(list(_WAYS), weights=list(_WAYS.values()), k=count)
    jobs = [_good(f"{seed}-{number:05}", way, rng, recordings, spoken) for number, way in enumerate(ways)]
    able = [job for job in jobs if job.way is not Way.XADD]
    rng.shuffle(able)
    for share, orders, recording in (
        (_POISON, Orders.DIE, None),
        (_HANGING, Orders.HANG, None),
        (_BROKEN, Orders.NONE, recordings.broken),
        (_LONG, Orders.NONE, recordings.long),
        (_BROKEN, Orders.STUMBLE, recordings.short[0]),
    ):
        for _ in range(max(1, round(count * share))):
            job = able.pop()
            job.orders = orders
            job.text = recording.text if recording else None
            job.source = str(recording.path) if recording else job.source
    return jobs


def _good(job_id: str, way: Way, rng: random.Random, recordings: Recordings, spoken: list[Recording]) -> Submission:
    recording = rng.choice(spoken if way is Way.XADD else recordings.short)
    batched = way is Way.QUEUE or (way is Way.XADD and rng.random() < 0.5)
    return Submission(
        id=job_id,
        way=way,
        source=str(recording.path),
        text=recording.text,
        priority=rng.choices(PRIORITIES, weights=(1, 4, 2))[0],
        batch_id=f"batch-{int(job_id.rpartition('-')[2]) // _JOBS_A_BATCH}" if batched else None,
        delay_s=rng.uniform(0.2, 5) if way is not Way.XADD and rng.random() < 0.07 else 0.0,
        gives_up=rng.random() < 0.1,
    )
