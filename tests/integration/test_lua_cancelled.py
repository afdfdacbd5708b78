"""cancelled: end a running job that its consumer stopped because somebody cancelled it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from common.entries import Settled
from common.outcomes import Cancel
from tests.integration.seeds import (
    PARTS_GONE,
    begun,
    cancelling,
    counted,
    full_memory,
    rescued,
    result,
    running_with_parts,
    settle,
)
from tests.integration.state import ENTRY_ID, NOW, changes, whole_state

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from common.queue import JobQueue
    from common.streams import JobStreams


@pytest.mark.parametrize("batch_id", [None, "b"])
async def test_a_stopped_job_ends_as_cancelled(
    queue: JobQueue, consumer: JobStreams, redis: Redis, batch_id: str | None
) -> None:
    """The request is answered with a terminal state, and the flag does not wait for the job's next run."""
    task = await running_with_parts(queue, consumer, batch_id=batch_id)
    await queue.cancel("a")
    before = await whole_state(redis)

    assert await settle(consumer, task, Cancel()) is Settled.DONE
    assert changes(before, await whole_state(redis)) == {
        "job:a.state": "cancelled",
        "job:a.finished_ms": NOW,
        "job:a.cancel_requested": None,
        "jobs:normal": [],
        "jobs:normal pending": [],
        "results": [(ENTRY_ID, result("a", "cancelled"))],
        "events": ["id=a state=cancelled"],
        **PARTS_GONE,
        **counted(batch_id, running=0, cancelled=1),
    }


async def test_a_consumer_that_lost_its_lease_ends_nothing(
    queue: JobQueue, consumer: JobStreams, rescuer: JobStreams, redis: Redis
) -> None:
    """The rescuer found the request in the hash and has ended the job: there is one outcome, not two."""
    late = await cancelling(queue, consumer)
    assert await rescuer.begin([await rescued(rescuer)]) == []
    before = await whole_state(redis)

    assert await settle(consumer, late, Cancel()) is Settled.GONE
    assert changes(before, await whole_state(redis)) == {}


async def test_a_revived_job_is_not_cancelled_again(queue: JobQueue, consumer: JobStreams, redis: Redis) -> None:
    """A flag left over from the first run would end the second before it began."""
    await settle(consumer, await cancelling(queue, consumer), Cancel())
    await queue.revive("a")
    [entry] = await consumer.read(1, 1)

    assert (await begun(consumer, entry)).attempts == 1
    assert await redis.hget(queue.keys.job("a"), "cancel_requested") is None


async def test_a_full_server_takes_the_end_of_a_job(queue: JobQueue, consumer: JobStreams, redis: Redis) -> None:
    """Cancelling is the operator's way out of a full server."""
    task = await cancelling(queue, consumer)

    async with full_memory(redis):
        assert await settle(consumer, task, Cancel()) is Settled.DONE
    assert await redis.xlen(queue.keys.results) == 1
