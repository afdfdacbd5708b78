"""The fence (`_prelude.lua`), for every function that settles, starts or renews: ownership first, else nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import common
from common.entries import Entry, Settled
from common.keys import RELEASED, TRANSCRIBERS, WRITERS
from common.outcomes import Cancel, Delay
from common.scripts import call, library_source, load_library
from tests.integration.seeds import (
    BURY,
    FAILURE,
    FAILURE_JSON,
    PARTS_GONE,
    PUBLISH,
    RACES,
    begun,
    both,
    full_memory,
    queued,
    read_one,
    running,
    running_with_parts,
    settle,
    transcribed,
)
from tests.integration.state import changes, whole_state

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from common.keys import Keys
    from common.outcomes import Verdict
    from common.queue import JobQueue
    from common.streams import JobStreams, ResultStream

LUA = Path(common.__file__).parent / "lua"


@dataclass(frozen=True)
class Fenced:
    """How one function is called: its keys after the stream, and its arguments after the fence."""

    name: str
    keys: tuple[str, ...]
    args: tuple[str | int, ...]
    loser: int = -1
    """What the later of two equal callers is told."""
    of_results: bool = False
    of_many: bool = False
    """Whether it does one thing for each of many entries: here one."""

    async def __call__(self, redis: Redis, keys: Keys, entry: Entry, deliveries: int = 1) -> int:
        of_job = {"job": keys.job(entry.fields["id"]), "parts": keys.parts(entry.fields["id"])}
        names = [of_job.get(name) or getattr(keys, name) for name in self.keys]
        group, consumer = (WRITERS, "host-3-ccc") if self.of_results else (TRANSCRIBERS, "host-1-aaa")
        fence: list[Any] = [entry.entry_id, deliveries, entry.fields["id"]]
        if not self.of_many:
            told: int = await call(redis, self.name, [entry.stream, *names], [group, consumer, *fence, *self.args])
            return told
        [reply] = await call(redis, self.name, [entry.stream, *names], [group, consumer, 1, *fence, 0, *self.args])
        return 1 if isinstance(reply, list) else reply


# What functions share that may end a job, and those that take many entries.
SETTLING = ("job", "events", "results", "parts")
OF_MANY = ("events", "results", "job", "parts")
FENCED = [
    Fenced("adopt", ("job", "events"), ("/audio/a.mp3", ""), loser=1),
    Fenced("start", OF_MANY, (), loser=1, of_many=True),
    Fenced("renew", ("job", "events", "parts"), ("0.5", 60, "chunk-0", "{}"), loser=1),
    Fenced("complete", OF_MANY, ("{}", "61.3"), of_many=True),
    Fenced("delay", (*SETTLING, "delayed"), (FAILURE_JSON, 5000)),
    Fenced("bury", (*SETTLING, "dead"), (FAILURE_JSON, "engine_failed")),
    Fenced("cancelled", SETTLING, ()),
    Fenced("discard", ("dead",), (FAILURE_JSON, "entry_malformed", "[]")),
    Fenced("release", ("job", "events"), (RELEASED,), loser=0),
    Fenced("store", ("job", "events"), ("1", "completed", 60), of_results=True),
]


@pytest.fixture(params=FENCED, ids=lambda function: function.name)
def function(request: pytest.FixtureRequest) -> Fenced:
    return request.param


class Holder:
    """Brings entries to the consumer that calls the function under test."""

    def __init__(self, queue: JobQueue, consumer: JobStreams, writer: ResultStream | None) -> None:
        self._queue = queue
        self._consumer = consumer
        self._writer = writer
        self.streams: JobStreams | ResultStream = writer or consumer

    async def untaken(self) -> Entry:
        """An entry that nobody has read yet."""
        if self._writer is None:
            await queued(self._queue)
        else:
            await transcribed(self._queue, self._consumer)
        keys = self._queue.keys
        stream = keys.results if self._writer else keys.lane("normal")
        [(entry_id, fields)] = await self._queue.redis.xrange(stream)
        return Entry(stream, entry_id, 1, fields)

    async def taken(self, job_id: str = "a") -> Entry:
        """An entry in its first delivery, of a job that has begun."""
        if self._writer is None:
            return (await running(self._queue, self._consumer, job_id)).entry
        await transcribed(self._queue, self._consumer, job_id)
        return await read_one(self._writer)

    async def retire(self, entry: Entry) -> None:
        """Settle an entry for good."""
        assert await settle(self.streams, await begun(self.streams, entry), PUBLISH) is Settled.DONE


@pytest.fixture
def holder(function: Fenced, queue: JobQueue, consumer: JobStreams, writer: ResultStream) -> Holder:
    return Holder(queue, consumer, writer if function.of_results else None)


def test_every_function_with_a_fence_is_tested_here() -> None:
    """A new function that settles must not come without the proofs below."""
    texts = {path.stem: path.read_text(encoding="utf-8") for path in LUA.glob("[a-z]*.lua")}
    fenced = {name for name, text in texts.items() if re.search(r"\b(fence|may_settle|each_entry)\(", text)}

    assert fenced == {function.name for function in FENCED}


async def test_an_entry_that_another_consumer_took_over_is_left_alone(
    function: Fenced, holder: Holder, redis: Redis, keys: Keys
) -> None:
    """A consumer that lost its lease must not settle work that is somebody else's now."""
    entry = await holder.taken()
    group = WRITERS if function.of_results else TRANSCRIBERS
    await redis.xautoclaim(entry.stream, group, "host-9-zzz", 0)
    before = await whole_state(redis)

    assert await function(redis, keys, entry) == 0
    assert changes(before, await whole_state(redis)) == {}


async def test_a_second_delivery_to_the_same_consumer_fences_out_the_first(
    function: Fenced, holder: Holder, redis: Redis, keys: Keys
) -> None:
    """A stalled attempt and the rescue of it by its own process are told apart by the delivery count alone."""
    entry = await holder.taken()
    [again] = await holder.streams.rescue(1, 0)
    before = await whole_state(redis)

    assert again.deliveries == 2
    assert await function(redis, keys, entry) == 0
    assert changes(before, await whole_state(redis)) == {}
    assert await function(redis, keys, again, deliveries=2) == 1


async def test_a_retired_entry_is_left_alone(function: Fenced, holder: Holder, redis: Redis, keys: Keys) -> None:
    """A call repeated after its reply was lost must not act twice."""
    entry = await holder.taken()
    await holder.retire(entry)
    before = await whole_state(redis)

    assert await function(redis, keys, entry) == -1
    assert changes(before, await whole_state(redis)) == {}


async def test_an_entry_that_nobody_has_read_is_left_alone(
    function: Fenced, holder: Holder, redis: Redis, keys: Keys
) -> None:
    """After a group was made anew its entries are pending for nobody: who held them before must not settle them."""
    entry = await holder.untaken()
    before = await whole_state(redis)

    assert await function(redis, keys, entry) == -1
    assert changes(before, await whole_state(redis)) == {}


async def test_of_two_equal_callers_one_acts(
    function: Fenced, holder: Holder, redis: Redis, other_redis: Redis, keys: Keys
) -> None:
    """A client that repeats a call while the first is still on its way settles once; renewing may repeat."""
    for number in range(RACES):
        entry = await holder.taken(f"job-{number}")
        answers = await both(function(redis, keys, entry), function(other_redis, keys, entry))

        assert answers == {1, function.loser}
        await redis.xack(entry.stream, TRANSCRIBERS, entry.entry_id)
        await redis.xdel(entry.stream, entry.entry_id)


async def test_it_works_when_the_server_is_at_maxmemory(
    function: Fenced, holder: Holder, redis: Redis, keys: Keys
) -> None:
    """Settling is what drains a full server; if it were refused, the server would stay full."""
    entry = await holder.taken()

    async with full_memory(redis):
        assert await function(redis, keys, entry) == 1


@pytest.mark.parametrize("verdict", [PUBLISH, BURY, Delay(FAILURE, 0), Cancel()], ids=lambda verdict: verdict.NAME)
async def test_a_cancellation_that_came_first_takes_the_parts_too(
    queue: JobQueue, consumer: JobStreams, redis: Redis, verdict: Verdict
) -> None:
    """However a job ends, nothing of it is left in the server's memory."""
    task = await running_with_parts(queue, consumer)
    await queue.cancel("a")
    before = await whole_state(redis)

    assert await settle(consumer, task, verdict) in {Settled.CANCELLED, Settled.DONE}
    assert changes(before, await whole_state(redis)).items() >= ({"job:a.state": "cancelled"} | PARTS_GONE).items()


async def test_only_what_adds_work_is_refused_at_maxmemory(redis: Redis) -> None:
    """A function without the flag `allow-oom` is back-pressure; one that lacks it by mistake is a jam."""
    name, _ = library_source()
    [library] = await redis.function_list(library=name)
    functions = [dict(zip(flat[::2], flat[1::2], strict=True)) for flat in _reply(library)["functions"]]

    assert {function["name"].removeprefix(f"{name}_") for function in functions if not function["flags"]} == {
        "readd",
        "revive",
        "submit",
    }


async def test_loading_the_library_again_changes_nothing(redis: Redis) -> None:
    """Every process loads it at its start, many at a time."""
    before = await redis.function_list()
    await load_library(redis)

    assert await redis.function_list() == before


def _reply(library: Any) -> dict[str, Any]:
    return library if isinstance(library, dict) else dict(zip(library[::2], library[1::2], strict=True))
