"""The stage loop when the server fails it: replies that were lost, functions and groups that are gone, no memory."""

from __future__ import annotations

import asyncio
import functools
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from common.errors import DataLost, Unavailable
from common.keys import TRANSCRIBERS
from common.lease import LeaseKeeper
from common.metrics import ConsumerMetrics
from common.outage import Server
from common.outcomes import Outcome
from common.records import State
from common.runner import Work
from common.scripts import library_source
from common.setup import set_up
from common.stage import Stage, StageSettings
from common.streams import JobStreams
from tests.integration.seeds import result
from tests.integration.stages import Gate, Handler, Lossy, done, running_stage
from tests.until import until


@pytest.fixture
def logs():
    with capture_logs() as logs:
        yield logs


def told(logs, *events):
    return [entry["event"] for entry in logs if entry["event"] in events]


@asynccontextmanager
async def refusing(redis):
    """Let the server refuse every write, as one does that has lost its replicas, or its disk."""
    await redis.config_set("min-replicas-to-write", 1)
    try:
        yield
    finally:
        await redis.config_set("min-replicas-to-write", 0)


# -- lost replies ----------------------------------------------------------------------------------------------------


async def test_a_start_whose_reply_was_lost_costs_no_attempt(redis, keys, figures, submit, reaches):
    """A cut connection is not the job's fault, and its entry need not wait for a rescue."""
    client = Lossy(redis)
    client.loses = "_start"
    await submit("a")

    async with running_stage(client, keys, figures, handler := Handler(done)) as (_, metrics):
        job = await reaches("a", State.TRANSCRIBED)

    assert client.lost == 1
    assert (job.attempts, handler.seen) == (1, ["a"])
    assert metrics.deliveries.labels("rescued")._value.get() == 0


async def test_a_start_is_repeated_whatever_the_handler_is_hungry_for(redis, keys, figures, submit, reaches):
    """Nobody renews the entry yet: while it waited for the engine its job would be rescued, and cost an attempt."""
    client = Lossy(redis)
    client.loses = "_start"
    await submit("a")
    handler = Handler(done)

    async def once() -> int:
        await handler.welcome.wait()
        handler.welcome.clear()
        return 1

    handler.hungry = once
    async with running_stage(client, keys, figures, handler):
        job = await reaches("a", State.TRANSCRIBED)

    assert (client.lost, job.attempts) == (1, 1)


async def test_entries_whose_delivery_was_not_heard_of_are_found_again(redis, keys, figures, submit, reaches):
    """The server counts them as this consumer's, which knows nothing of them: the rescue hands them over."""
    client = Lossy(redis)
    client.loses = "_read"
    await submit("a", "b")

    async with running_stage(client, keys, figures, handler := Handler(done)) as (_, metrics):
        jobs = [await reaches(job_id, State.TRANSCRIBED) for job_id in "ab"]

    assert client.lost == 1
    assert [job.attempts for job in jobs] == [1, 1]
    assert handler.seen == ["a", "b"]
    assert metrics.deliveries.labels("rescued")._value.get() == 2


async def test_a_settlement_whose_reply_was_lost_is_not_repeated(redis, keys, figures, submit, reaches):
    """The transcript is published once, and the slot is free for the next job."""
    client = Lossy(redis)
    client.loses = "_complete"
    await submit("a", "b")

    async with running_stage(client, keys, figures, Handler(done), slots=1):
        await reaches("b", State.TRANSCRIBED)

    assert client.lost == 1
    assert [fields["id"] for _, fields in await redis.xrange(keys.results)] == ["a", "b"]


# -- what a server lost ----------------------------------------------------------------------------------------------


@pytest.fixture
def entitled_stage(redis, keys, figures):
    """A stage whose user may make functions and groups again."""
    return functools.partial(running_stage, redis, keys, figures)


async def test_functions_that_are_gone_come_back_while_all_slots_are_taken(entitled_stage, redis, submit, reaches):
    """FUNCTION FLUSH by mistake: nothing is fetched then, but what runs must be renewed and settled."""
    gate = Gate()
    await submit("a", "b")

    async with entitled_stage(handler := Handler(gate), slots=1) as (running, _):
        await reaches("a", State.RUNNING)
        await redis.function_flush()
        name, _ = library_source()
        await until(lambda: redis.function_list(library=name), within_s=10, what="the library is back")
        gate.open.set()
        jobs = [await reaches(job_id, State.TRANSCRIBED) for job_id in "ab"]
        assert not running.done()

    assert [job.attempts for job in jobs] == [1, 1]
    assert handler.seen == ["a", "b"]


async def test_a_deleted_group_is_made_again(entitled_stage, submit, reaches, redis, keys):
    """XGROUP DESTROY by mistake: entries still in the stream are delivered from the first on."""
    async with entitled_stage(Handler(done)):
        await submit("a")
        await reaches("a", State.TRANSCRIBED)
        await redis.xgroup_destroy(keys.lane("normal"), TRANSCRIBERS)
        await submit("b")
        await reaches("b", State.TRANSCRIBED)


async def test_what_ran_when_its_group_was_deleted_ends_once(entitled_stage, submit, reaches, redis, keys):
    """Its entry is delivered again; whichever of its two runs comes first, there is one result and one attempt."""
    gate = Gate()
    await submit("a", "b")

    async with entitled_stage(handler := Handler(gate), slots=1):
        await reaches("a", State.RUNNING)
        await redis.xgroup_destroy(keys.lane("normal"), TRANSCRIBERS)
        gate.open.set()
        jobs = [await reaches(job_id, State.TRANSCRIBED) for job_id in "ab"]

    assert set(handler.seen) == {"a", "b"}
    assert [job.attempts for job in jobs] == [1, 1]
    assert sorted(fields["id"] for _, fields in await redis.xrange(keys.results)) == ["a", "b"]


async def test_an_emptied_server_stops_the_stage(stage_of, redis, keys):
    """Starting over on an empty server would hide that everything is lost."""
    async with stage_of(Handler(done)) as (running, _):
        await until(lambda: redis.exists(keys.epoch), within_s=5, what="the stage runs")
        await redis.flushall()
        await asyncio.wait({running}, timeout=10)

        with pytest.raises(ExceptionGroup) as caught:
            running.result()
    assert caught.group_contains(DataLost)


async def test_an_emptied_server_stops_a_stage_whose_slots_are_all_taken(stage_of, redis, submit, reaches):
    """It fetches nothing, and would work on for a server that knows nothing of its jobs."""
    await submit("a")

    async with stage_of(Handler(Gate()), slots=1) as (running, _):
        await reaches("a", State.RUNNING)
        await redis.flushall()
        await asyncio.wait({running}, timeout=10)

        with pytest.raises(ExceptionGroup) as caught:
            running.result()
    assert caught.group_contains(DataLost)


async def test_a_stage_waits_for_what_only_others_can_restore(stage_of, redis, keys, submit, reaches):
    """A service whose user may not load functions goes on when an operator has."""
    setup, refusals = await set_up(redis, keys), iter(["run: sttream setup"] * 2)

    async def restore() -> None:
        for refusal in refusals:
            raise Unavailable(refusal)
        await setup.restore()

    async with stage_of(Handler(done), restore=restore) as (running, _):
        await redis.xgroup_destroy(keys.lane("normal"), TRANSCRIBERS)
        await submit("a")
        job = await reaches("a", State.TRANSCRIBED)
        assert not running.done()

    assert job.attempts == 1
    assert list(refusals) == []


# -- outages ---------------------------------------------------------------------------------------------------------


async def test_an_outage_is_told_once_for_all_loops(stage_of, redis, submit, reaches, logs):
    """An operator reads one line when it begins and one when it is over, not a thousand."""
    gates = {"a": Gate(), "b": Gate(), "c": Gate()}
    gates["c"].open.set()

    async def do(work: Work) -> Outcome:
        return await gates[work.task.id](work)

    async with stage_of(Handler(do), slots=3):
        await submit("a", "b")
        for job_id in "ab":
            await reaches(job_id, State.RUNNING)
        await submit("c")
        async with refusing(redis):
            gates["a"].open.set()
            await until(lambda: told(logs, "server_unreachable"), within_s=10, what="the outage is told")
            await asyncio.sleep(1)  # the time in which each loop meets it a few times
        gates["b"].open.set()
        jobs = [await reaches(job_id, State.TRANSCRIBED) for job_id in "abc"]
        await until(lambda: told(logs, "server_reached_again"), within_s=10, what="its end is told")

    assert told(logs, "server_unreachable", "server_reached_again") == ["server_unreachable", "server_reached_again"]
    assert [job.attempts for job in jobs] == [1, 1, 1]


async def test_a_server_that_can_be_read_but_not_written_is_not_back(stage_of, redis, logs, monkeypatch):
    """Without replicas or disk it still answers questions: that is no end of the outage, to be told again and again."""

    async def nothing(*_: object) -> None:
        pass

    monkeypatch.setattr(JobStreams, "keep_house", nothing)  # it fails too, and would hide what the fetching tells
    async with stage_of(Handler(done)):
        async with refusing(redis):
            await until(lambda: told(logs, "server_unreachable"), within_s=10, what="the outage is told")
            await asyncio.sleep(1)  # the time in which the loop tries a few times
        await until(lambda: told(logs, "server_reached_again"), within_s=10, what="its end is told")

    assert told(logs, "server_unreachable", "server_reached_again") == ["server_unreachable", "server_reached_again"]


async def test_after_a_silence_nothing_is_rescued_before_the_others_could_renew(redis, keys, figures, submit):
    """Idle time counts an outage, or a stalled server, too: every live job of every consumer looks abandoned then."""
    await submit("a")
    other = JobStreams(redis, keys, figures, "host-0-alive")
    await other.begin(await other.read(1, 1))
    setup = await set_up(redis, keys)
    lease_s = figures.lease_ms / 1000
    with LeaseKeeper(figures, Server("Redis")) as keeper:
        now_s = 1e6
        keeper.idle_clock = lambda: now_s
        mine = JobStreams(redis, keys, figures, "host-1-aaa")
        figures_of_stage = StageSettings("jobs", 4, 1, 1.0)
        stage = Stage(figures_of_stage, mine, Handler(done), keeper, ConsumerMetrics(), restore=setup.restore)
        unheard = await stage._rescue(1)
        keeper.heard()
        at_once = await stage._rescue(1)
        now_s += lease_s
        in_a_silence = await stage._rescue(1)
        keeper.heard()
        after_a_silence = await stage._rescue(1)
        for _ in range(6):
            now_s += lease_s / 10
            keeper.heard()
        later = await stage._rescue(1)

    assert (unheard, at_once, in_a_silence, after_a_silence) == ([], [], [], [])
    assert [entry.fields["id"] for entry in later] == ["a"]


# -- back-pressure ---------------------------------------------------------------------------------------------------


async def test_no_job_is_taken_while_too_many_results_wait_for_a_writer(redis, keys, figures, submit, reaches, logs):
    """A writer that is down must cost time, not the server's memory; one line tells of it, and one of its end."""
    for job_id in ("a", "b"):
        await redis.xadd(keys.results, result(job_id, "cancelled"))
    handler = Handler(done)
    handler.welcome.clear()

    async with running_stage(redis, keys, figures.model_copy(update={"max_unstored": 2}), handler):
        await until(lambda: told(logs, "results_not_stored"), within_s=10, what="the stage has seen it")
        handler.welcome.set()
        await submit("c")
        await asyncio.sleep(2 * figures.lease_ms / 1000)  # the time in which it would be taken
        assert handler.seen == []
        await redis.xtrim(keys.results, maxlen=1, approximate=False)
        await reaches("c", State.TRANSCRIBED)

    assert told(logs, "results_not_stored", "results_stored_again")[:2] == [
        "results_not_stored",
        "results_stored_again",
    ]
