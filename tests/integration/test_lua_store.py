"""store: retire a result whose record and files are stored; the job is now what its outcome says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from common.dead import DeadLetters
from common.entries import Settled
from common.outcomes import Publish
from tests.integration.seeds import (
    begun,
    cancelled,
    counted,
    failed,
    full_memory,
    queued,
    read_one,
    settle,
    store_one,
    transcribed,
)
from tests.integration.state import changes, whole_state

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from common.queue import JobQueue
    from common.settings import Settings
    from common.streams import JobStreams, ResultStream

STORED = {"results": [], "results pending": []}


@pytest.mark.parametrize("batch_id", [None, "b"])
async def test_a_stored_transcript_completes_its_job(
    queue: JobQueue, consumer: JobStreams, writer: ResultStream, redis: Redis, batch_id: str | None
) -> None:
    """`completed` means stored and readable; from here on the database has the history."""
    await transcribed(queue, consumer, batch_id=batch_id)
    task = await begun(writer, await read_one(writer))
    before = await whole_state(redis)

    assert await settle(writer, task, Publish("", 0.0)) is Settled.DONE
    assert changes(before, await whole_state(redis)) == {
        **STORED,
        "job:a.state": "completed",
        "job:a expires": True,
        "events": ["id=a state=completed"],
        **counted(batch_id, transcribed=0, completed=1),
    }


async def test_the_hash_lives_as_long_as_the_settings_say(
    queue: JobQueue, consumer: JobStreams, writer: ResultStream, redis: Redis, settings: Settings
) -> None:
    """So long a job can be asked for without the database, and its id be submitted again in vain."""
    await transcribed(queue, consumer)
    await store_one(writer)

    assert settings.job_ttl_s - 60 <= await redis.ttl(queue.keys.job("a")) <= settings.job_ttl_s


@pytest.mark.parametrize("batch_id", [None, "b"])
async def test_a_stored_cancellation_only_lets_the_hash_expire(
    queue: JobQueue, writer: ResultStream, redis: Redis, batch_id: str | None
) -> None:
    """The job was cancelled before: neither its state nor its batch changes again."""
    await cancelled(queue, batch_id=batch_id)
    task = await begun(writer, await read_one(writer))
    before = await whole_state(redis)

    assert await settle(writer, task, Publish("", 0.0)) is Settled.DONE
    assert changes(before, await whole_state(redis)) == {**STORED, "job:a expires": True}


async def test_a_dead_letter_keeps_the_hash_from_expiring(
    queue: JobQueue, consumer: JobStreams, writer: ResultStream, redis: Redis
) -> None:
    """Reviving it needs the job as it was submitted, however late."""
    await failed(queue, consumer)
    task = await begun(writer, await read_one(writer))
    before = await whole_state(redis)

    assert await settle(writer, task, Publish("", 0.0)) is Settled.DONE
    assert changes(before, await whole_state(redis)) == STORED


async def test_a_failure_whose_letter_was_dropped_lets_the_hash_expire(
    queue: JobQueue, consumer: JobStreams, writer: ResultStream, redis: Redis
) -> None:
    """An operator may be faster than the writer."""
    await failed(queue, consumer)
    letter = await DeadLetters(queue).find("a")
    assert letter is not None
    await DeadLetters(queue).drop(letter, 60)

    assert await store_one(writer) is Settled.DONE
    assert (await whole_state(redis))["job:a expires"] is True


async def test_a_result_of_an_earlier_run_leaves_the_job_alone(
    queue: JobQueue, writer: ResultStream, redis: Redis
) -> None:
    """The job was revived meanwhile and waits: it must neither end nor expire."""
    await cancelled(queue)
    task = await begun(writer, await read_one(writer))
    await queue.revive("a")
    before = await whole_state(redis)

    assert await settle(writer, task, Publish("", 0.0)) is Settled.DONE
    assert changes(before, await whole_state(redis)) == STORED


async def test_a_result_whose_job_is_gone_makes_none(
    queue: JobQueue, consumer: JobStreams, writer: ResultStream, redis: Redis
) -> None:
    """A hash written here would have no spec and no end."""
    await transcribed(queue, consumer)
    task = await begun(writer, await read_one(writer))
    await redis.delete(queue.keys.job("a"))
    before = await whole_state(redis)

    assert await settle(writer, task, Publish("", 0.0)) is Settled.DONE
    assert changes(before, await whole_state(redis)) == STORED


async def test_other_jobs_are_left_alone(
    queue: JobQueue, consumer: JobStreams, writer: ResultStream, redis: Redis
) -> None:
    """One result is one job's."""
    await transcribed(queue, consumer, "a")
    await queued(queue, "b")
    await store_one(writer)

    state = await whole_state(redis)
    assert state["job:b.state"] == "queued"
    assert "job:b expires" not in state


async def test_a_full_server_is_drained_by_storing(
    queue: JobQueue, consumer: JobStreams, writer: ResultStream, redis: Redis
) -> None:
    """Transcripts are the largest thing that a server holds."""
    await transcribed(queue, consumer)

    async with full_memory(redis):
        assert await store_one(writer) is Settled.DONE
    assert await redis.xlen(queue.keys.results) == 0
