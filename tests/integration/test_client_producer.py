"""Producer and SyncProducer: what a Python program does with a queue, on real servers, with the producer's rights."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from common.errors import JobError, SettingsError, Unavailable
from common.options import Options
from common.queue import Cancellation
from common.records import State
from producer.client import IdConflict, JobUnknown, Outcome, Producer, QueueFull, SyncProducer
from tests.integration.seeds import (
    BURY,
    begun,
    cancelled,
    failed,
    queued,
    read_one,
    running,
    settle,
    store_one,
    transcribed,
)
from tests.integration.state import whole_state
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from redis.asyncio import Redis

    from common.keys import Keys
    from common.queue import JobQueue
    from common.streams import JobStreams, ResultStream
    from producer.tail import Event
    from tests.integration.servers import Server

SOURCE = "/audio/a.mp3"
# Shorter than the time after which a job is looked at without an event.
SOON_S = 3


@pytest.fixture
def make(server: Server, redis: Redis) -> Callable[..., Producer]:
    """Make a producer that connects as a producer's user."""

    def make(**settings: str | float) -> Producer:
        return Producer.connect(server.url_of("producer"), **settings)

    return make


@pytest.fixture
async def producer(make: Callable[..., Producer]) -> AsyncIterator[Producer]:
    async with make() as producer:
        yield producer


def described(event: Event) -> str:
    return " ".join((event.job_id, event.fields.get("state") or event.fields["progress"]))


# -- submit ----------------------------------------------------------------------------------------------------------


async def test_a_job_is_queued_as_asked(producer: Producer) -> None:
    """What is asked for by keyword must reach the consumer."""
    job = await producer.submit(
        Path(SOURCE),
        id="a",
        priority="high",
        options=Options(language="en"),
        metadata={"case": "7"},
        timeout_s=60,
        delay_s=None,
    )

    assert (job.id, job.state, job.spec.source, job.spec.priority) == ("a", State.QUEUED, SOURCE, "high")
    assert (job.spec.options.language, job.spec.metadata, job.spec.timeout_s) == ("en", {"case": "7"}, 60)
    assert await producer.status("a") == job
    assert (await producer.stats()).queued == {"high": 1, "normal": 0, "low": 0}


async def test_a_job_may_wait_for_its_time(producer: Producer) -> None:
    """Python has times of its own: nobody should have to write RFC 3339."""
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    jobs = [await producer.submit(SOURCE, delay_s=3600), await producer.submit(SOURCE, run_at=tomorrow)]

    assert [job.state for job in jobs] == [State.SCHEDULED, State.SCHEDULED]
    assert jobs[0].id != jobs[1].id


async def test_the_same_id_twice_is_one_job(producer: Producer, redis: Redis) -> None:
    """A submission whose answer was lost must be repeatable."""
    await producer.submit(SOURCE, id="a", options={"language": "en"})
    await producer.submit(SOURCE, id="a", options={"language": "en", "task": "transcribe"})

    assert (await producer.stats()).queued["normal"] == 1
    before = await whole_state(redis)
    with pytest.raises(IdConflict, match="a belongs to another job"):
        await producer.submit("/audio/b.mp3", id="a")
    assert await whole_state(redis) == before


@pytest.mark.parametrize(
    ("job", "error", "says"),
    [
        ({"id": "../a"}, ValueError, "^id: id '../a'"),
        ({"options": {"langage": "en"}}, ValueError, "^options.langage: unknown field"),
        ({"options": {"language": "xx"}}, ValueError, "^options.language: unknown language"),
        ({"max_attempts": "5"}, ValueError, "^max_attempts: "),
        ({"metadata": {"a": "\0"}}, ValueError, "NUL"),
        ({"metadata": {"a": "\ud800"}}, ValueError, "surrogates not allowed"),
        ({"delay_s": float("nan")}, ValueError, "NaN"),
        ({"run_at": datetime(2026, 3, 1)}, ValueError, "^run_at: expected RFC 3339 with a zone"),  # noqa: DTZ001 the point
        ({"priority": object()}, ValueError, "unknown type"),
        ({"colour": "blue"}, ValueError, "^colour: unknown field"),
        ({"source": "a.mp3"}, JobError, "relative path"),
        ({"source": "ftp://host/a.mp3"}, JobError, "ftp: sources are not supported"),
    ],
)
async def test_what_http_refuses_is_refused(
    producer: Producer, redis: Redis, job: dict[str, Any], error: type[Exception], says: str
) -> None:
    """Else a job would be accepted here that no consumer could run, or mean something else than over HTTP."""
    before = await whole_state(redis)
    with pytest.raises(error, match=says) as caught:
        await producer.submit(**{"source": SOURCE} | job)

    assert type(caught.value).__module__ != "producer.problems"
    assert await whole_state(redis) == before


async def test_a_full_queue_says_so(make: Callable[..., Producer]) -> None:
    """A program that fills the queue must be able to tell "later" from "never"."""
    async with make(max_queued=1) as producer:
        await producer.submit(SOURCE)
        with pytest.raises(QueueFull, match="1 jobs are under way"):
            await producer.submit(SOURCE)


async def test_each_of_many_jobs_is_answered_by_itself(producer: Producer) -> None:
    """One wrong line in a list of thousands must not hold up the others."""
    await producer.submit(SOURCE, id="known")

    outcomes = await producer.submit_many(
        [
            {"source": SOURCE, "id": "new"},
            {"source": SOURCE, "id": "known"},
            {"source": "/audio/b.mp3", "id": "known"},
            {"source": SOURCE, "delay": 1},
            "b.mp3",
            SOURCE,
        ]
    )

    assert outcomes[:2] == [Outcome("new", new=True), Outcome("known")]
    assert [type(outcome.error) for outcome in outcomes[2:]] == [IdConflict, ValueError, JobError, type(None)]
    assert [outcome.id is None for outcome in outcomes[2:]] == [False, True, True, False]
    assert (await producer.stats()).queued["normal"] == 3


async def test_many_jobs_go_in_pages_until_the_queue_is_full(make: Callable[..., Producer]) -> None:
    """An iterable of any length is read bit by bit, and what finds no room is told by its id."""
    async with make(max_queued=1_000) as producer:
        outcomes = await producer.submit_many(SOURCE for _ in range(1_200))

    assert [type(outcome.error) for outcome in outcomes] == [type(None)] * 1_000 + [QueueFull] * 200
    assert len({outcome.id for outcome in outcomes}) == 1_200


# -- follow ----------------------------------------------------------------------------------------------------------


async def test_a_wait_ends_when_the_job_is_stored(
    producer: Producer, queue: JobQueue, consumer: JobStreams, writer: ResultStream
) -> None:
    """Only then can its transcript be read; and the event is what ends the wait, not the next look."""
    await queued(queue)
    waiting = asyncio.create_task(producer.wait("a", timeout_s=SOON_S))
    assert await settle(consumer, await begun(consumer, await read_one(consumer)), BURY)
    assert (await waiting).state is State.FAILED

    await transcribed(queue, consumer, "b")
    waiting = asyncio.create_task(producer.wait("b", timeout_s=SOON_S))
    await store_one(writer)
    await store_one(writer)
    assert (await waiting).state is State.COMPLETED


async def test_hundreds_of_jobs_are_waited_for_at_once(producer: Producer, queue: JobQueue) -> None:
    """They share one reader: each with a connection of its own would leave none to submit with."""
    ids = [outcome.id or "" for outcome in await producer.submit_many([SOURCE] * 200)]
    waiting = [asyncio.create_task(producer.wait(job_id, timeout_s=60)) for job_id in ids]
    for job_id in ids:
        await queue.cancel(job_id)

    assert {job.state for job in await asyncio.gather(*waiting)} == {State.CANCELLED}


async def test_a_wait_gives_up_in_time(producer: Producer, queue: JobQueue) -> None:
    """The job goes on; whoever waited decides. A job that nobody knows would be waited for in vain."""
    await queued(queue)

    with pytest.raises(TimeoutError, match=r"job a has not ended within 0\.05 s"):
        await producer.wait("a", timeout_s=0.05)
    with pytest.raises(JobUnknown, match="'nobody' is not in Redis"):
        await producer.wait("nobody")


async def test_a_job_is_cancelled(producer: Producer, queue: JobQueue, consumer: JobStreams) -> None:
    """The four answers are four different things to do next."""
    await running(queue, consumer, "runs")
    await queued(queue, "waits")

    assert await producer.cancel("waits") is Cancellation.CANCELLED
    assert await producer.cancel("runs") is Cancellation.CANCELLING
    assert await producer.cancel("waits") is Cancellation.TOO_LATE
    assert await producer.cancel("nobody") is Cancellation.UNKNOWN
    assert await producer.status("nobody") is None


async def test_events_come_in_order(producer: Producer, queue: JobQueue, consumer: JobStreams) -> None:
    """All from now on; of one job first how it stands, and then no more than its end."""

    async def all_of_them() -> list[str]:
        seen: list[str] = []
        async for event in producer.events():
            seen.append(described(event))
            if len(seen) == 5:
                break
        return seen

    following = asyncio.create_task(all_of_them())
    await asyncio.sleep(0)
    await failed(queue, consumer, "a")
    await queued(queue, "b")
    of_b = producer.events("b")
    assert described(await anext(of_b)) == "b queued"
    await producer.cancel("b")

    assert [described(event) async for event in of_b] == ["b cancelled"]
    assert await following == ["a queued", "a running", "a failed", "b queued", "b cancelled"]
    assert [described(event) async for event in producer.events("a")] == ["a failed"]
    with pytest.raises(JobUnknown):
        await anext(producer.events("nobody"))


async def test_a_closed_producer_leaves_nobody_waiting_for_events(make: Callable[..., Producer]) -> None:
    """A loop over events must not hang when the reader behind it has ended."""
    async with make() as producer:
        following = asyncio.ensure_future(anext(producer.events()))
        await asyncio.sleep(0)

    with pytest.raises(Unavailable, match="no more events"):
        await following


# -- trouble ---------------------------------------------------------------------------------------------------------


async def test_a_server_without_the_library_is_told(make: Callable[..., Producer], redis: Redis) -> None:
    """The first thing that goes wrong with a new server; the message must say what to run."""
    await redis.function_flush()

    with pytest.raises(Unavailable, match=r"the function library is not on the server.*run `sttream setup`"):
        async with make():
            pass


async def test_a_server_that_is_away_or_refuses_is_told() -> None:
    """In errors of this project: a program need not import the client library to catch them."""
    with pytest.raises(Unavailable, match="Redis cannot be used now"):
        async with Producer.connect(f"redis://127.0.0.1:{free_port()}"):
            pass
    with pytest.raises(SettingsError, match="unknown variable STTREAM_QUEU "):
        Producer.connect("redis://127.0.0.1", queu="calls")


async def test_a_wrong_password_is_told(server: Server, redis: Redis) -> None:
    """No wait makes a password right: it is another error than a server that is away."""
    with pytest.raises(SettingsError, match="refuses the user"):
        async with Producer.connect(server.url_of("producer").replace(":producer@", ":wrong@")):
            pass


async def test_nothing_is_queued_on_a_server_that_was_emptied(producer: Producer, redis: Redis, keys: Keys) -> None:
    """Services stop there until an operator decides; a job accepted meanwhile would lie about it."""
    await redis.delete(keys.epoch)
    before = await whole_state(redis)

    with pytest.raises(Unavailable, match=re.escape(keys.epoch)):
        await producer.submit(SOURCE)
    assert await whole_state(redis) == before


# -- without an event loop -------------------------------------------------------------------------------------------


async def test_a_script_without_an_event_loop_does_the_same(server: Server, queue: JobQueue) -> None:
    """Each call of the twin, from a thread that has no loop."""

    def script() -> None:
        with SyncProducer.connect(server.url_of("producer")) as producer:
            assert producer.submit(SOURCE, id="a").state is State.QUEUED
            outcomes = producer.submit_many([{"source": SOURCE, "id": "a"}, SOURCE])
            assert [outcome.new for outcome in outcomes] == [False, True]
            with pytest.raises(JobError):
                producer.submit("a.mp3")
            with pytest.raises(TimeoutError):
                producer.wait("a", timeout_s=0.05)
            for event in producer.events("a"):
                if event.fields["state"] == "queued":
                    assert producer.cancel("a") is Cancellation.CANCELLED
            assert event.fields["state"] == "cancelled"
            assert producer.wait("a").state is State.CANCELLED
            left = producer.events("a")
            assert next(left).fields["state"] == "cancelled"
            assert producer.status("nobody") is None
            assert producer.stats().queued["normal"] == 1

    await asyncio.to_thread(script)


async def test_a_twin_that_cannot_connect_leaves_no_thread(server: Server, redis: Redis) -> None:
    """A program that tries again every minute must not fill up."""

    def script() -> SyncProducer:
        producer = SyncProducer.connect(f"redis://127.0.0.1:{free_port()}")
        with pytest.raises(Unavailable):
            producer.__enter__()
        return producer

    producer = await asyncio.to_thread(script)
    assert not producer._thread.is_alive()
    assert producer._loop.is_closed()


async def test_an_ended_job_is_returned_at_once(producer: Producer, queue: JobQueue) -> None:
    """Its last event has passed: waiting for another one would never end."""
    await cancelled(queue)

    assert (await producer.wait("a", timeout_s=SOON_S)).state is State.CANCELLED
