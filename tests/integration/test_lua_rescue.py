"""rescue: take over entries whose consumer stopped renewing, with the delivery counts that fence them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from structlog.testing import capture_logs

from common.keys import TRANSCRIBERS
from common.scripts import call
from common.streams import JobStreams
from tests.integration.seeds import LATER_MS, RACES, full_memory, queued, rescued, running
from tests.integration.state import changes, whole_state

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from common.queue import JobQueue
    from common.settings import Settings


async def abandon(redis: Redis, stream: str, entry_id: str) -> None:
    """Let an entry look as if its consumer had not renewed it for an hour."""
    await redis.xclaim(stream, TRANSCRIBERS, "host-1-aaa", 0, [entry_id], idle=LATER_MS, justid=True)


async def test_an_abandoned_entry_is_taken_over_with_its_new_delivery_count(
    queue: JobQueue, consumer: JobStreams, rescuer: JobStreams, redis: Redis
) -> None:
    """The count is the fence: from now on the consumer of before is refused."""
    task = await running(queue, consumer)
    await abandon(redis, task.entry.stream, task.entry.entry_id)
    before = await whole_state(redis)

    [entry] = await rescuer.rescue(16, 10_000)
    assert (entry.stream, entry.entry_id, entry.deliveries) == (task.entry.stream, task.entry.entry_id, 2)
    assert entry.fields == task.entry.fields
    assert changes(before, await whole_state(redis)) == {"jobs:normal pending": [(entry.entry_id, "host-2-bbb", 2)]}


async def test_an_entry_that_is_renewed_is_left_alone(
    queue: JobQueue, consumer: JobStreams, rescuer: JobStreams, redis: Redis
) -> None:
    """A slow job is not an abandoned one."""
    await running(queue, consumer)
    before = await whole_state(redis)

    assert await rescuer.rescue(16, 10_000) == []
    assert changes(before, await whole_state(redis)) == {}


async def test_a_rescue_goes_on_behind_many_live_entries(
    queue: JobQueue, consumer: JobStreams, rescuer: JobStreams, redis: Redis
) -> None:
    """The server looks at ten times COUNT entries: starting over each time, abandoned ones behind are never seen."""
    for number in range(205):
        await redis.xadd(queue.keys.lane("normal"), {"id": f"job-{number}", "source": "/audio/a.mp3"})
    entries = await consumer.read(205, 1)
    for entry in entries[200:]:
        await abandon(redis, entry.stream, entry.entry_id)

    found = [entry for _ in range(5) for entry in await rescuer.rescue(10, 10_000)]
    assert [entry.entry_id for entry in found] == [entry.entry_id for entry in entries[200:]]


async def test_an_entry_deleted_while_pending_is_reported(
    queue: JobQueue, consumer: JobStreams, rescuer: JobStreams, redis: Redis
) -> None:
    """Its job can only be cancelled and tried again, and only a person can know that it should be."""
    gone, task = await running(queue, consumer, "a"), await running(queue, consumer, "b")
    await redis.xdel(gone.entry.stream, gone.entry.entry_id)

    with capture_logs() as logs:
        entries = await rescuer.rescue(16, 0)
    assert [entry.entry_id for entry in entries] == [task.entry.entry_id]
    [line] = logs
    assert (line["event"], line["log_level"]) == ("entries_deleted_while_pending", "error")
    assert line["entry_ids"] == [gone.entry.entry_id]
    assert "cancel them" in line["next"]


async def test_lanes_are_rescued_in_their_order_and_no_more_than_asked(
    queue: JobQueue, consumer: JobStreams, rescuer: JobStreams
) -> None:
    """A process takes what it has slots for, the urgent first."""
    for job_id, priority in (("l", "low"), ("n1", "normal"), ("n2", "normal"), ("h", "high")):
        await queued(queue, job_id, priority=priority)
    await consumer.read(4, 1)

    assert [entry.fields["id"] for entry in await rescuer.rescue(2, 0)] == ["h", "n1"]


async def test_the_reply_is_as_its_header_says(queue: JobQueue, consumer: JobStreams, redis: Redis) -> None:
    """Other clients may call the function: a cursor, entries with counts and fields, and what is gone."""
    gone, task = await running(queue, consumer, "a"), await running(queue, consumer, "b")
    await redis.xdel(gone.entry.stream, gone.entry.entry_id)

    streams = [task.entry.stream, queue.keys.lane("low")]
    reply = await call(redis, "rescue", streams, [TRANSCRIBERS, "host-2-bbb", 0, 16, "0-0", "0-0"])
    assert reply == [
        ["0-0", [[task.entry.entry_id, 2, ["id", "b", "source", "/audio/b.mp3"]]], [gone.entry.entry_id]],
        ["0-0", [], []],
    ]


async def test_of_two_rescuers_one_gets_the_entry(
    queue: JobQueue, consumer: JobStreams, rescuer: JobStreams, redis: Redis, settings: Settings
) -> None:
    """A job taken over twice would run twice."""
    third = JobStreams(redis, queue.keys, settings, "host-4-ddd")
    for number in range(RACES):
        task = await running(queue, consumer, f"job-{number}")
        await abandon(redis, task.entry.stream, task.entry.entry_id)

        first, second = await asyncio.gather(rescuer.rescue(16, 10_000), third.rescue(16, 10_000))
        assert len(first) + len(second) == 1


async def test_a_full_server_lets_work_be_taken_over(
    queue: JobQueue, consumer: JobStreams, rescuer: JobStreams, redis: Redis
) -> None:
    """A consumer that died at such a time must not keep its jobs."""
    task = await running(queue, consumer)

    async with full_memory(redis):
        assert (await rescued(rescuer)).entry_id == task.entry.entry_id
