"""The stage loop on a real server: whatever a handler, a consumer or the server does, a job ends once."""

from __future__ import annotations

import asyncio
import time

import pytest
from structlog.testing import capture_logs

from common.dead import DeadLetters
from common.errors import JobError
from common.outcomes import Completed, Outcome
from common.overview import Overview
from common.records import State
from common.runner import Work
from common.streams import JobStreams
from tests.integration.stages import SPEC, Gate, Handler, done, never, running_stage
from tests.until import until


async def test_a_job_goes_through(stage_of, submit, reaches, redis, keys):
    """The one way that everything else is a detour from."""
    await submit("a")

    async with stage_of(Handler(done)):
        job = await reaches("a", State.TRANSCRIBED)

    assert (job.attempts, job.worker, job.audio_s, job.progress) == (1, "host-1-aaa", 1.0, 1.0)
    assert [fields for _, fields in await redis.xrange(keys.results)] == [
        {"id": "a", "outcome": "completed", "run": "1", "body": '"text"'}
    ]
    assert await redis.xlen(keys.lane("normal")) == 0


async def test_a_passing_fault_costs_an_attempt(stage_of, submit, reaches):
    """A retry is what a fault of the moment deserves."""
    await submit("a")
    faults = iter([JobError("engine_failed", "out of memory", retryable=True), None])

    async def do(work: Work) -> Outcome:
        fault = next(faults)
        if fault:
            raise fault
        return await done(work)

    async with stage_of(Handler(do)):
        job = await reaches("a", State.TRANSCRIBED)

    assert job.attempts == 2
    assert job.error is None


@pytest.mark.parametrize(
    "fault", [JobError("engine_failed", "out of memory", retryable=True), ZeroDivisionError("bug")]
)
async def test_spent_attempts_end_in_a_dead_letter(stage_of, submit, reaches, queue, fault):
    """A job that never succeeds must not go round for ever; a bug in the handler is such a fault."""
    await submit("a")

    async def do(work: Work) -> Outcome:
        raise fault

    with capture_logs():  # printing a traceback takes seconds on a busy machine
        async with stage_of(handler := Handler(do)) as (_, metrics):
            job = await reaches("a", State.FAILED)

    assert handler.seen == ["a"] * 3
    [letter], _ = await DeadLetters(queue).page("", 10)
    assert (letter.id, letter.reason) == ("a", "attempts_spent")
    assert job.error == letter.failure
    assert metrics.dead_letters.labels("attempts_spent")._value.get() == 1


async def test_a_final_error_is_not_tried_again(stage_of, submit, reaches):
    """A broken recording is as broken the second time."""
    await submit("a")

    async def do(work: Work) -> Outcome:
        raise JobError("audio_unreadable", "not a recording")

    async with stage_of(handler := Handler(do)):
        job = await reaches("a", State.FAILED)

    assert handler.seen == ["a"]
    assert job.error is not None
    assert job.error.type == "audio_unreadable"


async def test_a_running_job_can_be_cancelled(stage_of, submit, reaches, queue):
    """The most asked-for thing in a transcription queue."""
    await submit("a")

    async with stage_of(Handler(never)):
        await reaches("a", State.RUNNING)
        await queue.cancel("a")
        job = await reaches("a", State.CANCELLED)

    assert not job.cancel_requested


async def test_a_cancellation_does_not_wait_for_the_next_renewal(redis, keys, settings, submit, reaches, queue):
    """Whoever cancels a job watches it; with a long lease its renewals are a minute and more apart."""
    seldom = settings.model_copy(update={"lease_ms": 3_600_000, "renew_ms": 1_200_000})
    await submit("a", "b")

    async with running_stage(redis, keys, seldom, handler := Handler(never), drain_s=0):
        await until(lambda: len(handler.seen) == 2, within_s=10, what="two jobs run")
        await queue.cancel("a")
        await reaches("a", State.CANCELLED)
        assert (await queue.job("b")).state is State.RUNNING


async def test_a_job_over_its_time_limit_is_tried_again_and_then_fails(stage_of, submit, reaches):
    """A hung job must not hold its slot; the limit is the job's own."""
    await submit("a", spec=SPEC.model_copy(update={"timeout_s": 0.1, "max_attempts": 2}))

    async with stage_of(handler := Handler(never)):
        job = await reaches("a", State.FAILED)

    assert handler.seen == ["a", "a"]
    assert job.error is not None
    assert job.error.type == "timed_out"


async def test_a_full_stage_fetches_nothing(stage_of, submit, reaches, queue, figures):
    """What one consumer hoards an idle one could run."""
    await submit(*"abcde")

    async with stage_of(handler := Handler(never), slots=2, drain_s=0):
        await until(lambda: len(handler.seen) == 2, within_s=5, what="two jobs run")
        await asyncio.sleep(2 * figures.lease_ms / 1000)  # the time in which a third would be taken
        stats = await Overview(queue).stats(figures.lease_ms)

        assert handler.seen == ["a", "b"]
        assert stats.queued["normal"] == 3


async def test_an_idle_stage_asks_little(redis, keys, settings):
    """A thousand consumers that wait for work must leave the server in peace."""
    async with running_stage(redis, keys, settings, Handler(done)):
        await redis.config_resetstat()
        await asyncio.sleep(3)
        asked = await redis.info("commandstats")

    # Each second a sweep, a look around, and a wait with its lanes seen to be empty before the first.
    assert asked["cmdstat_fcall"]["calls"] <= 3 * 3


async def test_a_handler_that_is_not_hungry_gets_nothing(stage_of, submit, reaches, figures):
    """A free slot is not enough while the engine has work for long."""
    await submit("a")
    handler = Handler(done)
    handler.welcome.clear()

    async with stage_of(handler):
        await asyncio.sleep(2 * figures.lease_ms / 1000)  # the time in which it would be taken
        assert handler.seen == []
        handler.welcome.set()
        await reaches("a", State.TRANSCRIBED)


async def test_no_more_is_taken_than_the_handler_wants(stage_of, submit, reaches):
    """Its other slots are for when its jobs turn out to be short; till then idle consumers take what waits."""
    await submit("a", "b", "c")
    handler = Handler(never)
    handler.appetite = 2

    async def once() -> int:
        await handler.welcome.wait()
        handler.welcome.clear()
        return handler.appetite

    handler.hungry = once
    async with stage_of(handler, slots=8, drain_s=0.0):
        await reaches("b", State.RUNNING)
        assert handler.seen == ["a", "b"]
        handler.welcome.set()
        await reaches("c", State.RUNNING)


async def test_urgent_jobs_go_first(stage_of, submit, reaches):
    """Lanes are read in order whatever was submitted first."""
    for job_id, priority in (("l", "low"), ("n", "normal"), ("h", "high")):
        await submit(job_id, spec=SPEC.model_copy(update={"priority": priority}))

    async with stage_of(handler := Handler(done), slots=1):
        await reaches("l", State.TRANSCRIBED)

    assert handler.seen == ["h", "n", "l"]


async def test_what_a_dead_consumer_left_is_run_again(stage_of, submit, reaches, redis, keys, figures):
    """SIGKILL of a consumer costs a lease and a sweep, not the job."""
    await submit("a")
    dead = JobStreams(redis, keys, figures, "host-0-dead")
    await dead.begin(await dead.read(1, 10))

    async with stage_of(Handler(done)) as (_, metrics):
        job = await reaches("a", State.TRANSCRIBED)

    assert (job.attempts, job.worker) == (2, "host-1-aaa")
    assert metrics.deliveries.labels("rescued")._value.get() == 1


async def test_a_job_that_kills_its_consumers_ends_in_a_dead_letter(stage_of, submit, reaches, redis, keys, figures):
    """A poison recording must not take down one consumer after another for ever."""
    await submit("a")
    for attempt in range(3):
        dead = JobStreams(redis, keys, figures, f"host-{attempt}-dead")
        await dead.begin(await (dead.read(1, 10) if attempt == 0 else dead.rescue(1, 0)))

    async with stage_of(handler := Handler(done)):
        job = await reaches("a", State.FAILED)

    assert handler.seen == []
    assert job.error is not None
    assert job.error.type == "attempts_spent"


async def test_long_work_keeps_its_lease(stage_of, submit, reaches, redis, keys, figures):
    """A lease is shorter than the work: renewal is what makes that safe."""
    await submit("a")

    async def do(work: Work) -> Outcome:
        await asyncio.sleep(3 * figures.lease_ms / 1000)
        return Completed('"text"')

    async with stage_of(Handler(do)):
        await reaches("a", State.RUNNING)
        rescuer = JobStreams(redis, keys, figures, "host-2-bbb")
        job = await reaches("a", State.TRANSCRIBED)
        assert await rescuer.rescue(10, figures.lease_ms) == []

    assert job.attempts == 1


async def test_work_that_blocks_the_event_loop_keeps_its_lease(stage_of, submit, reaches, redis, keys, figures):
    """Renewal is a thread: a model that holds the loop for longer than the lease must not lose its job."""
    await submit("a")
    taken = []

    async def do(work: Work) -> Outcome:
        time.sleep(3 * figures.lease_ms / 1000)  # noqa: ASYNC251 the fault under test
        taken.extend(await JobStreams(redis, keys, figures, "host-2-bbb").rescue(10, figures.lease_ms))
        return Completed('"text"')

    async with stage_of(Handler(do)):
        await reaches("a", State.TRANSCRIBED)

    assert taken == []


async def test_work_whose_lease_was_lost_is_dropped(stage_of, submit, reaches, redis, keys, figures):
    """Two consumers that both believe in a job must not both publish."""
    await submit("a")

    async with stage_of(handler := Handler(never)) as (_, metrics):
        await reaches("a", State.RUNNING)
        thief = JobStreams(redis, keys, figures, "host-2-bbb")
        [task] = await thief.begin(await thief.rescue(1, 0))
        await until(lambda: metrics.leases_lost._value.get() == 1, within_s=5, what="the loss is noticed")

    assert handler.seen == ["a"]
    assert task.attempts == 2
    assert await redis.xlen(keys.results) == 0


async def test_progress_reaches_the_job(stage_of, submit, reaches, queue):
    """Long work is watched."""
    await submit("a")

    async def do(work: Work) -> Outcome:
        work.lease.report(0.25)
        return await never(work)

    async def seen() -> bool:
        job = await queue.job("a")
        return job is not None and job.progress == 0.25

    async with stage_of(Handler(do), drain_s=0):
        await until(seen, within_s=5, what="the progress is in Redis")


async def test_draining_lets_running_work_finish(stage_of, submit, reaches, queue):
    """A deploy must not throw away minutes of work."""
    await submit("a", "b")
    gate = Gate()

    async with stage_of(Handler(gate), slots=1):
        await reaches("a", State.RUNNING)
        asyncio.get_running_loop().call_later(0.2, gate.open.set)

    assert (await queue.job("a")).state is State.TRANSCRIBED
    assert (await queue.job("b")).state is State.QUEUED


async def test_what_a_drain_hands_back_is_taken_at_once_and_costs_no_attempt(
    stage_of, submit, reaches, queue, redis, keys, figures
):
    """A deploy is not the job's fault; nobody has to wait for a lease, however long it is."""
    await submit("a")
    async with stage_of(Handler(never), drain_s=0):
        await reaches("a", State.RUNNING)
    handed_back = await queue.job("a")

    other = JobStreams(redis, keys, figures, "host-2-bbb")
    [task] = await other.begin(await other.rescue(1, min_idle_ms=3_600_000))

    assert (handed_back.state, handed_back.attempts) == (State.QUEUED, 0)
    assert (task.attempts, task.job.worker) == (1, "host-2-bbb")


async def test_a_malformed_entry_does_not_stop_the_loop(stage_of, submit, reaches, redis, keys, queue):
    """Anybody can XADD anything."""
    await redis.xadd(keys.lane("normal"), {"hello": "world"})
    await submit("a")

    async with stage_of(Handler(done)):
        await reaches("a", State.TRANSCRIBED)

    [letter], _ = await DeadLetters(queue).page("", 10)
    assert letter.reason == "entry_malformed"
    assert "field id and source missing (found hello)" in letter.failure.detail


async def test_an_entry_added_with_redis_cli_is_a_job(stage_of, reaches, redis, keys):
    """Plain Redis clients can submit: an id and a source are enough."""
    await redis.xadd(keys.lane("high"), {"id": "by-hand", "source": "/audio/a.wav"})

    async with stage_of(Handler(done)):
        job = await reaches("by-hand", State.TRANSCRIBED)

    assert (job.spec.source, job.spec.priority) == ("/audio/a.wav", "high")


async def test_a_delayed_job_runs_when_it_is_due(stage_of, queue, reaches):
    """Schedules are kept by whichever consumer is there."""
    await queue.submit("a", SPEC, max_queued=10, delay_ms=300)
    assert (await queue.job("a")).state is State.SCHEDULED

    async with stage_of(Handler(done)):
        await reaches("a", State.TRANSCRIBED)


@pytest.mark.parametrize("stop", ["drain", "time limit", "cancellation"])
async def test_a_handler_that_stops_by_itself_when_its_lease_ends_is_understood(stage_of, submit, reaches, queue, stop):
    """The engine's thread sees the end of a lease first: a drain must not turn into a cancelled job."""
    limit_s = 0.3 if stop == "time limit" else 60
    await submit("a", spec=SPEC.model_copy(update={"max_attempts": 1, "timeout_s": limit_s}))

    async def do(work: Work) -> Outcome:
        await until(lambda: work.lease.over, within_s=10, what="the lease has ended")
        raise asyncio.CancelledError

    async with stage_of(Handler(do), drain_s=0):
        await reaches("a", State.RUNNING)
        if stop == "cancellation":
            await queue.cancel("a")
        if stop != "drain":
            await until(lambda: _ended(queue, "a"), within_s=5, what="the job has ended")

    job = await queue.job("a")
    ends = {"drain": State.QUEUED, "time limit": State.FAILED, "cancellation": State.CANCELLED}
    assert job.state is ends[stop]


async def _ended(queue, job_id):
    return (await queue.job(job_id)).terminal


async def test_an_entry_that_cannot_be_begun_costs_itself_only(stage_of, submit, reaches, redis, keys, queue):
    """A key of the wrong type must not end one consumer after another."""
    await redis.xadd(keys.lane("normal"), {"id": "odd", "source": "/a.wav"})
    await redis.set(keys.job("odd"), "no hash")
    await submit("a")

    async with stage_of(Handler(done)):
        await reaches("a", State.TRANSCRIBED)

    await redis.delete(keys.job("odd"))
    [letter], _ = await DeadLetters(queue).page("", 10)
    assert (letter.job_id, letter.reason) == ("odd", "entry_malformed")
