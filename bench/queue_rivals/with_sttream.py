"""sttream: a consumer's stage as the service runs it, with a handler that does nothing but stamp. No writer."""

from __future__ import annotations

import asyncio
import functools
import logging
import sys
import uuid
from pathlib import Path

# This checkout's code, whatever else is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import structlog
import uvloop
from stamps import URL, play, stamp

from common.connection import Client, connect
from common.group import consumer_name
from common.keys import Keys
from common.lease import LeaseKeeper
from common.metrics import ConsumerMetrics
from common.outage import Server
from common.outcomes import Completed, Outcome
from common.process import calm_collector
from common.queue import JobQueue, NewJob
from common.records import JobSpec
from common.runner import Work
from common.settings import load_settings
from common.setup import set_up
from common.stage import Stage, StageSettings
from common.streams import JobStreams

MOST = 10_000_000
SLOTS = 128
SETTINGS = load_settings({"STTREAM_REDIS_URL": URL, "STTREAM_MAX_UNSTORED": str(MOST)})
KEYS = Keys(SETTINGS.queue)
prepared = False


class Noop:
    """Done at once."""

    async def hungry(self) -> int:
        """Return as much as there may be: more work is always welcome."""
        return SLOTS

    async def handle(self, work: Work) -> Outcome:
        """Stamp."""
        stamp()
        return Completed('"text"', 1.0)


@functools.cache
def client() -> Client:
    return connect(SETTINGS)


async def queue() -> JobQueue:
    """Return the queue, on a server that has been set up."""
    global prepared
    if not prepared:
        await client().set(KEYS.epoch, "of-this-run")
        await set_up(client(), KEYS)
        prepared = True
    return JobQueue(client(), KEYS)


def new_job(number: int) -> NewJob:
    """Return a job as most are: default options, no metadata."""
    return NewJob(str(uuid.uuid4()), JobSpec(source=f"file:///srv/audio/2026/11/22/call-{number:06d}.wav"))


async def many(count: int) -> None:
    jobs = await queue()
    await jobs.submit_many([new_job(number) for number in range(count)], max_queued=MOST)


async def one() -> None:
    job, jobs = new_job(1), await queue()
    await jobs.submit(job.id, job.spec, max_queued=MOST)


async def work() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    await queue()
    setup = await set_up(client(), KEYS)
    with LeaseKeeper(SETTINGS, Server("Redis")) as keeper:
        stage = Stage(
            StageSettings("jobs", SLOTS, SETTINGS.lease_ms, SETTINGS.drain_s),
            JobStreams(client(), KEYS, SETTINGS, consumer_name()),
            Noop(),
            keeper,
            ConsumerMetrics(),
            restore=setup.restore,
        )
        calm_collector()
        await stage.run(asyncio.Event())


if __name__ == "__main__":
    play(many, one, work, uvloop.new_event_loop())
