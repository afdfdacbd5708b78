"""Jobs for programs that run a handler without its streams."""

from __future__ import annotations

import time

from common.entries import Entry, Task
from common.lease import Lease
from common.options import Options
from common.outcomes import RetryPolicy
from common.records import Job, JobSpec, State
from common.runner import Work


def work(source: str, beam_size: int) -> Work:
    """Return a job as the stage hands it to its handler; nobody renews its lease or cancels it."""
    spec = JobSpec(source=source, options=Options(beam_size=beam_size))
    job = Job(id="bench", spec=spec, state=State.RUNNING, created_ms=0)
    task = Task(Entry("bench", "0-1", 1, {}), job.id, job, 1, RetryPolicy(1, 0.0), 86_400.0)
    return Work(task, Lease(lambda _progress, _parts: (), clock=time.monotonic))
