"""complete: publish one transcript and retire its entry, only while the lease is still ours."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from redis.exceptions import ResponseError

from common.entries import Settled
from common.keys import TRANSCRIBERS
from common.outcomes import Delay
from common.setup import set_up
from tests.integration.seeds import (
    FAILURE,
    PARTS_GONE,
    PUBLISH,
    RACES,
    begun,
    cancelling,
    counted,
    failed,
    full_memory,
    read_one,
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
async def test_a_completed_job_is_published_and_its_entry_retired(
    queue: JobQueue, consumer: JobStreams, redis: Redis, batch_id: str | None
) -> None:
    """The one step that turns work into a result: all of it or nothing."""
    task = await running(queue, consumer, batch_id=batch_id)
    before = await whole_state(redis)

    assert await settle(consumer, task, PUBLISH) is Settled.DONE
    assert changes(before, await whole_state(redis)) == {
        "job:a.state": "transcribed",
        "job:a.finished_ms": NOW,
        "job:a.audio_s": "61.3",
        "job:a.progress": "1",
        "jobs:normal": [],
        "jobs:normal pending": [],
        "results": [(ENTRY_ID, result("a", "completed", PUBLISH.body))],
        "events": ["id=a state=transcribed"],
        **counted(batch_id, running=0, transcribed=1),
    }


async def test_the_parts_of_a_completed_job_are_gone(queue: JobQueue, consumer: JobStreams, redis: Redis) -> None:
    """The transcript holds them all: kept, they would fill the server's memory."""
    task = await running_with_parts(queue, consumer)
    before = await whole_state(redis)

    assert await settle(consumer, task, PUBLISH) is Settled.DONE
    assert changes(before, await whole_state(redis)).items() >= PARTS_GONE.items()


async def test_the_error_of_an_earlier_attempt_is_forgotten(
    queue: JobQueue, consumer: JobStreams, redis: Redis
) -> None:
    """A job that worked in the end must not look failed."""
    await settle(consumer, await running(queue, consumer), Delay(FAILURE, 0))
    await consumer.keep_house(gone_ms=60_000)
    task = await begun(consumer, await read_one(consumer))
    before = await whole_state(redis)

    assert await settle(consumer, task, PUBLISH) is Settled.DONE
    assert "job:a.error" in before
    assert "job:a.error" not in await whole_state(redis)


async def test_a_revived_job_publishes_as_its_own_run(queue: JobQueue, consumer: JobStreams, redis: Redis) -> None:
    """The writer tells the outcomes of two runs of one id apart by this number."""
    await failed(queue, consumer)
    await queue.revive("a")
    await settle(consumer, await begun(consumer, await read_one(consumer)), PUBLISH)

    assert [fields["run"] for _, fields in await redis.xrange(queue.keys.results)] == ["1", "2"]


@pytest.mark.parametrize("batch_id", [None, "b"])
async def test_a_cancellation_that_came_first_drops_the_transcript(
    queue: JobQueue, consumer: JobStreams, redis: Redis, batch_id: str | None
) -> None:
    """Who was told that the job is being cancelled must not find a transcript."""
    task = await cancelling(queue, consumer, batch_id=batch_id)
    before = await whole_state(redis)

    assert await settle(consumer, task, PUBLISH) is Settled.CANCELLED
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


async def test_a_consumer_that_lost_its_lease_publishes_nothing(
    queue: JobQueue, consumer: JobStreams, rescuer: JobStreams, redis: Redis
) -> None:
    """A transcript finished after its entry was taken over never reaches the writer."""
    late = await running(queue, consumer)
    task = await begun(rescuer, await rescued(rescuer))
    before = await whole_state(redis)

    assert await settle(consumer, late, PUBLISH) is Settled.LOST
    assert changes(before, await whole_state(redis)) == {}
    assert await settle(rescuer, task, PUBLISH) is Settled.DONE
    assert await redis.xlen(queue.keys.results) == 1


async def test_a_job_that_is_completed_and_rescued_at_once_is_published_once(
    queue: JobQueue, consumer: JobStreams, rescuer: JobStreams, redis: Redis
) -> None:
    """The last moment of a lease: whoever is first, there is one result."""
    for number in range(RACES):
        task = await running(queue, consumer, f"job-{number}")
        settled, entries = await asyncio.gather(settle(consumer, task, PUBLISH), rescuer.rescue(1, 0))
        if settled is Settled.LOST:
            assert await settle(rescuer, await begun(rescuer, entries[0]), PUBLISH) is Settled.DONE
        assert await redis.xlen(queue.keys.results) == number + 1


async def test_a_full_server_takes_the_result(queue: JobQueue, consumer: JobStreams, redis: Redis) -> None:
    """Settling is what drains a full server."""
    task = await running(queue, consumer)

    async with full_memory(redis):
        assert await settle(consumer, task, PUBLISH) is Settled.DONE
    assert await redis.xlen(queue.keys.results) == 1


async def test_many_are_completed_in_one_call_each_by_itself(
    queue: JobQueue, consumer: JobStreams, rescuer: JobStreams, redis: Redis
) -> None:
    """A lost lease, a cancellation or a broken hash must not hold up what else is ready, of whatever batch."""
    tasks = {}
    for job_id, batch_id in (("a", "b1"), ("lost", None), ("late", "b2"), ("broken", None), ("e", "b1"), ("f", None)):
        tasks[job_id] = await running(queue, consumer, job_id, batch_id=batch_id)
    await redis.xclaim(tasks["lost"].entry.stream, TRANSCRIBERS, "host-2-bbb", 0, [tasks["lost"].entry.entry_id])
    await queue.cancel("late")
    await redis.rename(queue.keys.job("broken"), "aside")
    await redis.set(queue.keys.job("broken"), "no hash")
    before = await whole_state(redis)

    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await consumer.settle([(task, PUBLISH) for task in tasks.values()])
    after = changes(before, await whole_state(redis))
    assert [(found["id"], found["outcome"]) for _, found in after["results"]] == [
        ("a", "completed"),
        ("late", "cancelled"),
        ("e", "completed"),
        ("f", "completed"),
    ]
    assert [found["id"] for _, found in after["jobs:normal"]] == ["lost", "broken"]
    assert after.items() >= (counted("b1", running=0, transcribed=2) | counted("b2", running=0, cancelled=1)).items()

    await redis.rename("aside", queue.keys.job("broken"))
    replies = await consumer.settle([(task, PUBLISH) for task in tasks.values()])
    assert replies == [Settled.GONE, Settled.LOST, Settled.GONE, Settled.DONE, Settled.GONE, Settled.GONE]


async def test_one_delivery_that_is_settled_twice_in_one_call_is_published_once(
    queue: JobQueue, consumer: JobStreams, redis: Redis
) -> None:
    """After a group was made anew its consumer reads the same entries again, and runs them beside the first time."""
    first = await running(queue, consumer)
    await redis.xgroup_destroy(first.entry.stream, TRANSCRIBERS)
    await set_up(redis, queue.keys)
    again = await begun(consumer, await read_one(consumer))

    assert first.entry == again.entry
    assert await consumer.settle([(first, PUBLISH), (again, PUBLISH)]) == [Settled.DONE, Settled.GONE]
    assert await redis.xlen(queue.keys.results) == 1
