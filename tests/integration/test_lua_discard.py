"""discard: move an entry that no handler can ever work on to the dead letters, as it was found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
import pytest

from common.dead import DeadLetters
from common.entries import Settled
from common.outcomes import Bury
from common.records import Failure
from tests.integration.seeds import (
    FAILURE,
    PUBLISH,
    add_by_hand,
    begun,
    cancelled,
    failed,
    full_memory,
    read_one,
    result,
    settle,
    store_one,
    transcribed,
)
from tests.integration.state import ENTRY_ID, changes, whole_state

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from common.queue import JobQueue
    from common.streams import JobStreams, ResultStream


async def test_an_entry_that_is_no_job_is_kept_as_it_was_found(
    queue: JobQueue, consumer: JobStreams, redis: Redis
) -> None:
    """Whoever added it can see what arrived, and an operator can put it back."""
    lane = queue.keys.lane("normal")
    entry_id = await add_by_hand(redis, lane, id="a", path="/audio/a.mp3")
    entry = await read_one(consumer)
    before = await whole_state(redis)

    assert await consumer.begin([entry]) == []
    after = changes(before, await whole_state(redis))
    [(_, letter)] = after["dead"]
    assert after == {"jobs:normal": [], "jobs:normal pending": [], "dead": [(ENTRY_ID, letter)]}
    assert letter.items() >= {"id": "a", "reason": "entry_malformed", "stream": lane}.items()
    assert orjson.loads(letter["fields"]) == ["id", "a", "path", "/audio/a.mp3"]
    failure = Failure.model_validate_json(letter["error"])
    assert failure.detail.startswith(f"{lane} entry {entry_id}: field source missing (found id, path)")


async def test_a_result_that_cannot_be_stored_ends_its_job_as_failed(
    queue: JobQueue, consumer: JobStreams, writer: ResultStream, redis: Redis
) -> None:
    """Nobody may wait for ever for a job that stays transcribed; the result itself is the operator's to revive."""
    await transcribed(queue, consumer)
    task = await begun(writer, await read_one(writer))
    failure = Failure(type="result_unstorable", detail="the body is no transcript")
    before = await whole_state(redis)

    assert await settle(writer, task, Bury(failure, "result_unstorable")) is Settled.DONE
    after = changes(before, await whole_state(redis))
    [(_, letter)] = after["dead"]
    assert after == {
        "results": [],
        "results pending": [],
        "dead": [(ENTRY_ID, letter)],
        "job:a.state": "failed",
        "job:a.error": failure.model_dump_json(),
        "job:a.dead_id": ENTRY_ID,
        "events": ["id=a state=failed"],
    }
    found = orjson.loads(letter.pop("fields"))
    assert dict(zip(found[::2], found[1::2], strict=True)) == result("a", "completed", '{"text":"said"}')
    assert letter == {
        "id": "a",
        "reason": "result_unstorable",
        "error": failure.model_dump_json(),
        "stream": queue.keys.results,
    }


async def test_a_full_server_takes_the_dead_letter(queue: JobQueue, consumer: JobStreams, redis: Redis) -> None:
    """An entry that is no job must not stop the loop because memory is short."""
    await add_by_hand(redis, queue.keys.lane("low"), hello="world")
    entry = await read_one(consumer)

    async with full_memory(redis):
        assert await consumer.begin([entry]) == []
    assert await redis.xlen(queue.keys.dead) == 1


async def test_the_unstorable_result_of_an_earlier_run_leaves_the_job_alone(
    queue: JobQueue, consumer: JobStreams, writer: ResultStream, redis: Redis
) -> None:
    """A job that was revived is in another run: what became of the one before cannot end it."""
    await cancelled(queue)
    task = await begun(writer, await read_one(writer))
    await queue.revive("a")
    await settle(consumer, await begun(consumer, await read_one(consumer)), PUBLISH)
    before = await whole_state(redis)

    assert await settle(writer, task, Bury(FAILURE, "result_unstorable")) is Settled.DONE
    after = changes(before, await whole_state(redis))
    assert not [name for name in after if name.startswith("job:a")]


@pytest.mark.parametrize("readded", [False, True])
async def test_the_letter_of_an_unstorable_outcome_is_its_jobs(
    queue: JobQueue, writer: ResultStream, redis: Redis, readded: bool
) -> None:
    """An operator finds it by the job's id, and dropping it lets the job's hash go."""
    await cancelled(queue)
    letters = DeadLetters(queue)
    for _ in range(2 if readded else 1):
        task = await begun(writer, await read_one(writer))
        await settle(writer, task, Bury(FAILURE, "result_unstorable"))
        letter = await letters.find("a")
        assert letter is not None
        if readded:
            readded = False
            assert await letters.revive(letter)

    assert await letters.drop(letter, 60)
    assert 0 < await redis.ttl(queue.keys.job("a")) <= 60
    assert await redis.xlen(queue.keys.dead) == 0


async def test_a_job_keeps_its_first_dead_letter(
    queue: JobQueue, consumer: JobStreams, writer: ResultStream, redis: Redis
) -> None:
    """The letter of its failure needs the hash to be revived: that of an unstorable outcome must not take its place."""
    await failed(queue, consumer)
    letters = DeadLetters(queue)
    of_failure = await letters.find("a")
    assert of_failure is not None
    await settle(writer, await begun(writer, await read_one(writer)), Bury(FAILURE, "result_unstorable"))
    assert await letters.find("a") == of_failure

    [of_outcome, _], _ = await letters.page("", 2)
    assert await letters.revive(of_outcome)
    await store_one(writer)
    assert await redis.ttl(queue.keys.job("a")) == -1
    assert await letters.revive(of_failure)
    assert await redis.xlen(queue.keys.dead) == 0
