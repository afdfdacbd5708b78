"""bury: end a job as failed: a dead letter for the operator, an outcome for the writer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from common.entries import Settled
from tests.integration.seeds import (
    BURY,
    FAILURE_JSON,
    PARTS_GONE,
    begun,
    cancelling,
    counted,
    full_memory,
    rescued,
    result,
    running,
    running_with_parts,
    settle,
)
from tests.integration.state import ENTRY_ID, NOW, changes, whole_state

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from common.queue import JobQueue
    from common.streams import JobStreams


@pytest.mark.parametrize("batch_id", [None, "b"])
async def test_a_failed_job_becomes_a_dead_letter_and_an_outcome(
    queue: JobQueue, consumer: JobStreams, redis: Redis, batch_id: str | None
) -> None:
    """The operator and the database must both learn of it, or neither."""
    task = await running(queue, consumer, batch_id=batch_id)
    before = await whole_state(redis)

    assert await settle(consumer, task, BURY) is Settled.DONE
    assert changes(before, await whole_state(redis)) == {
        "job:a.state": "failed",
        "job:a.finished_ms": NOW,
        "job:a.error": FAILURE_JSON,
        "job:a.dead_id": ENTRY_ID,
        "jobs:normal": [],
        "jobs:normal pending": [],
        "dead": [(ENTRY_ID, {"id": "a", "reason": "engine_failed", "error": FAILURE_JSON})],
        "results": [(ENTRY_ID, result("a", "failed", FAILURE_JSON))],
        "events": ["id=a state=failed"],
        **counted(batch_id, running=0, failed=1),
    }


async def test_the_parts_of_a_failed_job_are_gone(queue: JobQueue, consumer: JobStreams, redis: Redis) -> None:
    """A dead letter waits for weeks: revived, it begins anew rather than from what may be the cause."""
    task = await running_with_parts(queue, consumer)
    before = await whole_state(redis)

    assert await settle(consumer, task, BURY) is Settled.DONE
    assert changes(before, await whole_state(redis)).items() >= PARTS_GONE.items()


async def test_the_hash_knows_its_dead_letter(queue: JobQueue, consumer: JobStreams, redis: Redis) -> None:
    """Reviving by job id takes back exactly this letter."""
    await settle(consumer, await running(queue, consumer), BURY)

    [(dead_id, _)] = await redis.xrange(queue.keys.dead)
    assert await redis.hget(queue.keys.job("a"), "dead_id") == dead_id


@pytest.mark.parametrize("batch_id", [None, "b"])
async def test_a_job_that_is_being_cancelled_becomes_no_dead_letter(
    queue: JobQueue, consumer: JobStreams, redis: Redis, batch_id: str | None
) -> None:
    """Reviving all dead letters must not bring back what somebody cancelled."""
    task = await cancelling(queue, consumer, batch_id=batch_id)
    before = await whole_state(redis)

    assert await settle(consumer, task, BURY) is Settled.CANCELLED
    assert changes(before, await whole_state(redis)) == {
        "job:a.state": "cancelled",
        "job:a.finished_ms": NOW,
        "job:a.cancel_requested": None,
        "jobs:normal": [],
        "jobs:normal pending": [],
        "results": [(ENTRY_ID, result("a", "cancelled"))],
        "events": ["id=a state=cancelled"],
        **counted(batch_id, running=0, cancelled=1),
    }


async def test_an_attempt_that_lost_its_lease_buries_nothing(
    queue: JobQueue, consumer: JobStreams, rescuer: JobStreams, redis: Redis
) -> None:
    """A consumer that went astray must not fail a job that another one is about to finish."""
    late = await running(queue, consumer)
    await begun(rescuer, await rescued(rescuer))
    before = await whole_state(redis)

    assert await settle(consumer, late, BURY) is Settled.LOST
    assert changes(before, await whole_state(redis)) == {}


async def test_a_full_server_takes_the_dead_letter(queue: JobQueue, consumer: JobStreams, redis: Redis) -> None:
    """Failing is settling too: it drains a full server."""
    task = await running(queue, consumer)

    async with full_memory(redis):
        assert await settle(consumer, task, BURY) is Settled.DONE
    assert await redis.xlen(queue.keys.dead) == 1
