"""The Lua functions in any order, with crashes, lost replies, lost groups and a full server: no promise breaks.

The short run is part of the suite; the long one, of one's own choice:
`pytest tests/properties/test_job_machine.py --hypothesis-profile=long --hypothesis-seed=N`.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule, run_state_machine_as_test
from redis.exceptions import ResponseError

from common.connection import connect, library_is_missing
from common.queue import NewJob
from common.records import State
from common.scripts import load_library
from common.settings import load_settings
from tests.integration.seeds import LATER_MS
from tests.properties.job_driver import BATCHES, MOST_HELD, REFUSED, SPECS, VERDICTS, JobDriver
from tests.properties.stream_model import as_number

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

    from redis.asyncio import Redis

    from common.settings import Settings
    from tests.integration.servers import Server

LIVE = (State.SCHEDULED, State.QUEUED, State.RUNNING)
REVIVABLE = (State.FAILED, State.CANCELLED)

jobs = st.sampled_from(sorted(SPECS))
lanes = st.sampled_from(["high", "normal", "low"])
counts = st.sampled_from([1, 2, 100])
# Counted from the newest, so that the simplest failing example does the nearest thing.
picks = st.integers(0, MOST_HELD - 1)
# Twice: the reply of the first call was lost.
times = st.sampled_from([1, 1, 1, 2])
parts = st.sampled_from([None, "chunk 1", "chunk 2"])
verdicts = st.sampled_from(["publish", "bury", *VERDICTS])
workers = st.sampled_from(["consumer 1", "consumer 2", "writer 1", "writer 2"])


class JobMachine(JobDriver):
    """Each rule calls one function as the services do; the model says what must come of it."""

    # Clients

    @initialize(job_ids=st.sets(jobs))
    def submit_some(self, job_ids: set[str]) -> None:
        for job_id in sorted(job_ids):
            self.submit(job_id, False, False, False, 1)

    @rule(job_id=jobs, other=st.booleans(), delayed=st.booleans(), full=st.sampled_from([False] * 4 + [True]), n=times)
    def submit(self, job_id: str, other: bool, delayed: bool, full: bool, n: int) -> None:
        spec = SPECS[job_id].model_copy(update={"timeout_s": 9.0} if other else {})
        run = 1 + max((run for of, run in self.model.accepted if of == job_id), default=0)
        for _ in range(n):
            most = self.model.under_way() if full else 1000
            call = self.queue.submit(job_id, spec, max_queued=most, run=run, delay_ms=LATER_MS if delayed else 0)
            reply = self._ask(call)
            predicted = REFUSED if self.full else self.model.submit(job_id, spec, run, most, delayed=delayed)
            self._expect(reply, predicted)

    @rule(job_ids=st.lists(jobs, min_size=2, max_size=6), delayed=st.booleans(), room=st.sampled_from([0, 1, 1000]))
    def submit_together(self, job_ids: list[str], delayed: bool, room: int) -> None:
        """Also some twice: the first counts, the second is known."""
        runs = {
            job_id: 1 + max((run for of, run in self.model.accepted if of == job_id), default=0) for job_id in job_ids
        }
        most = self.model.under_way() + room
        delay_ms = LATER_MS if delayed else 0
        new = [NewJob(job_id, SPECS[job_id], runs[job_id], delay_ms=delay_ms) for job_id in job_ids]
        replies = self._ask(self.queue.submit_many(new, max_queued=most))
        self._expect(
            replies,
            REFUSED
            if self.full
            else [self.model.submit(job.id, job.spec, job.run, most, delayed=delayed) for job in new],
        )

    @rule(
        job_id=jobs, lane=lanes, batch=st.sampled_from([None, *BATCHES]), bad=st.sampled_from([None] * 6 + ["", "../a"])
    )
    def add_by_hand(self, job_id: str, lane: Any, batch: str | None, bad: str | None) -> None:
        fields = {"id": job_id if bad is None else bad, "source": SPECS[job_id].source}
        self._add(self.keys.lane(lane), fields | ({"batch": batch} if batch else {}), "*")

    @precondition(lambda self: self.model.waiting())
    @rule(lane=lanes, pick=picks)
    def add_with_the_same_entry_id(self, lane: Any, pick: int) -> None:
        """Ids are unique in one stream only: two lanes may give the same in the same millisecond."""
        stream = self.keys.lane(lane)
        last = as_number(self.model.seen.last_ids[stream])
        newer = [(job_id, at) for job_id, at in self.model.waiting().items() if as_number(at) > last]
        if newer:
            job_id, entry_id = newer[-1 - pick % len(newer)]
            self._add(stream, {"id": job_id, "source": SPECS[job_id].source}, entry_id)

    @precondition(lambda self: self.model.jobs)
    @rule(job_id=jobs, n=times)
    def cancel(self, job_id: str, n: int) -> None:
        job_id = self._which(job_id, lambda job: job.state in LIVE)
        for _ in range(n):
            reply = self._ask(self.queue.cancel(job_id))
            self._expect(reply, self.model.cancel(job_id))

    @precondition(lambda self: any(job.state in REVIVABLE for job in self.model.jobs.values()))
    @rule(job_id=jobs, n=times)
    def revive(self, job_id: str, n: int) -> None:
        job_id = self._which(job_id, lambda job: job.state in REVIVABLE)
        for _ in range(n):
            reply = self._ask(self.queue.revive(job_id))
            refused = self.full and job_id in self.model.jobs
            self._expect(reply, REFUSED if refused else self.model.revive(job_id))

    # Stages

    @precondition(lambda self: any(self._some_to_read(worker) for worker in self.workers.values()))
    @rule(worker=workers, count=counts, lost=st.sampled_from([False] * 4 + [True]))
    def read(self, worker: str, count: int, lost: bool) -> None:
        self._read(self._able(worker, self._some_to_read), count, lost=lost)

    @precondition(lambda self: any(self._some_to_read(worker) for worker in self.workers.values()))
    @rule(worker=workers, count=counts)
    def take(self, worker: str, count: int) -> None:
        of = self._able(worker, self._some_to_read)
        self._read(of, count, lost=False)
        self._begin_all(of)

    @precondition(lambda self: any(self._some_to_read(worker) for worker in self.workers.values()))
    @rule(worker=workers, verdict=verdicts)
    def work(self, worker: str, verdict: str) -> None:
        of = self._able(worker, self._some_to_read)
        self._read(of, 1, lost=False)
        self._begin_all(of)
        if of.begun:
            self._settle(of, of.begun[-1], verdict)

    @precondition(lambda self: any(self._ours(worker) for worker in self.workers.values()))
    @rule(worker=workers, verdict=verdicts, n=times)
    def finish(self, worker: str, verdict: str, n: int) -> None:
        """Settle what is still ours."""
        of = self._able(worker, self._ours)
        held = self._ours(of)[-1]
        for _ in range(n):
            self._settle(of, held, verdict)

    @precondition(lambda self: any(self._some_to_rescue(worker) for worker in self.workers.values()))
    @rule(worker=workers, count=counts, released_only=st.booleans(), begin=st.booleans())
    def rescue(self, worker: str, count: int, released_only: bool, begin: bool) -> None:
        of = self._able(worker, self._some_to_rescue)
        self._rescue(of, count, released_only=released_only)
        if begin:
            self._begin_all(of)

    @precondition(lambda self: any(worker.held for worker in self.workers.values()))
    @rule(worker=workers, pick=picks, n=times)
    def begin(self, worker: str, pick: int, n: int) -> None:
        """Also what has begun, and what is another's by now."""
        of = self._able(worker, lambda worker: worker.held)
        held = of.held[-1 - pick % len(of.held)]
        for _ in range(n):
            self._begin(of, held)

    @precondition(lambda self: any(worker.begin_later for worker in self.workers.values()))
    @rule(worker=workers)
    def begin_together(self, worker: str) -> None:
        of = self._able(worker, lambda worker: worker.begin_later)
        if of.names == self.keys.lanes:
            self._begin_together(of)

    @precondition(lambda self: any(worker.begun for worker in self.workers.values()))
    @rule(worker=workers)
    def publish_together(self, worker: str) -> None:
        of = self._able(worker, lambda worker: worker.begun)
        if of.names == self.keys.lanes:
            self._publish_together(of)

    @precondition(lambda self: any(worker.begun for worker in self.workers.values()))
    @rule(worker=workers, pick=picks, progress=st.sampled_from(["", "0.250", "0.500"]), part=parts, n=times)
    def renew(self, worker: str, pick: int, progress: str, part: str | None, n: int) -> None:
        begun = self._able(worker, lambda worker: worker.begun).begun
        held = begun[-1 - pick % len(begun)]
        done = {part: f"{part} by {held.worker}"} if part else {}
        for _ in range(n):
            reply = self._ask(
                self.redis.execute_command(*held.streams.renewal(held.task, progress, list(done.items())))
            )
            self._expect(reply, self.model.renew(held.worker, held.entry, progress, done))

    @precondition(lambda self: any(worker.begun for worker in self.workers.values()))
    @rule(worker=workers, pick=picks, verdict=verdicts, n=times)
    def settle(self, worker: str, pick: int, verdict: str, n: int) -> None:
        """Also late, and again: what was settled or rescued stays among what its consumer believes to hold."""
        of = self._able(worker, lambda worker: worker.begun)
        held = of.begun[-1 - pick % len(of.begun)]
        for _ in range(n):
            self._settle(of, held, verdict)

    @precondition(lambda self: any(worker.held for worker in self.workers.values()))
    @rule(worker=workers)
    def crash(self, worker: str) -> None:
        """Another process starts in its place, and nobody knows any more what it held."""
        of = self._able(worker, lambda worker: worker.held)
        self.crashed = True
        self._restart(next(name for name, worker in self.workers.items() if worker is of))

    @precondition(lambda self: any(self.model.due.values()) or self.crashed)
    @rule(worker=workers, gone_ms=st.sampled_from([LATER_MS, -1]))
    def keep_house(self, worker: str, gone_ms: int) -> None:
        """With -1 every consumer that holds nothing counts as gone."""
        of, self.crashed = self.workers[worker], False
        reply = self._ask(of.streams.keep_house(gone_ms))
        if of.names == self.keys.lanes:
            self.model.promote()
        self._expect(reply, None)

    # Operators

    @precondition(lambda self: self.model.letters)
    @rule(pick=picks, again=st.booleans(), n=times)
    def deal_with_a_dead_letter(self, pick: int, again: bool, n: int) -> None:
        letters, _ = self.runner.run(self.letters.page("", 100))
        of_jobs = [letter for letter in letters if letter.job_id in self.model.jobs] or letters
        letter = of_jobs[pick % len(of_jobs)]
        for _ in range(n):
            if not again:
                reply = self._ask(self.letters.drop(letter, self.settings.job_ttl_s))
                self._expect(reply, self.model.drop(letter.dead_id))
            else:
                reply = self._ask(self.letters.revive(letter))
                self._expect(reply, REFUSED if self.full else self.model.revive_letter(letter))

    # Time and trouble

    @precondition(lambda self: self.model.due and not self.full)
    @rule(pick=picks)
    def let_time_pass(self, pick: int) -> None:
        waiting = sorted(self.model.due)
        self._make_due(waiting[pick % len(waiting)])

    @precondition(lambda self: self.model.expiring())
    @rule(pick=picks)
    def let_a_hash_expire(self, pick: int) -> None:
        expiring = self.model.expiring()
        job_id = expiring[pick % len(expiring)]
        self._ask(self.redis.delete(self.keys.job(job_id)))
        self.model.expire(job_id)
        self._expect(None, None)

    @precondition(lambda self: not self.full and any(stream.pending for stream in self.model.streams.values()))
    @rule(pick=picks)
    def lose_a_group(self, pick: int) -> None:
        """Somebody destroys it; the next process that looks makes it again, at the first entry."""
        pending = [name for name, stream in self.model.streams.items() if stream.pending]
        name = pending[pick % len(pending)]
        self._ask(self._make_anew(name))
        self.model.streams[name].lose_group()
        self._expect(None, None)

    @precondition(lambda self: self.model.jobs)
    @rule(memory=st.sampled_from([True, True, False]))
    def meet_trouble(self, memory: bool) -> None:
        """The server reaches its limit of memory, or has room again; or it loses the library."""
        if memory or self.full:
            self._fill(full=not self.full)
            return
        self._ask(self.redis.function_flush())
        with pytest.raises(ResponseError) as raised:
            self._ask(self.queue.submit("a", SPECS["a"], max_queued=1000))
        assert library_is_missing(raised.value)
        self._expect(self._ask(load_library(self.redis)), None)

    @precondition(lambda self: self.full)
    @rule()
    def free_the_memory(self) -> None:
        self._fill(full=False)

    # The end: whatever happened, everything can be brought to its end.

    def teardown(self) -> None:
        if self.sound:
            self._drain()
        self.sound = False

    def _drain(self) -> None:
        self._fill(full=False)
        for job_id in sorted(self.model.due):
            self._make_due(job_id)
        self.keep_house("consumer 1", LATER_MS)
        self._finish("consumer 1")
        letters, _ = self.runner.run(self.letters.page("", 100))
        for letter in letters:
            if letter.stream == self.keys.results:
                self._expect(self._ask(self.letters.revive(letter)), self.model.revive_letter(letter))
        self._finish("writer 1")
        self.model.check_the_end()

    def _finish(self, worker: str) -> None:
        """Bring all to an end that others have left, as a process does that has just started."""
        of = self._restart(worker)
        self._rescue(of, 100, released_only=False)
        self._read(of, 100, lost=False)
        for held in list(of.held):
            self._begin(of, held)
            if held.task:
                self._settle(of, held, "publish")


# Not derandomized: each run of the suite tries other orders, and `--hypothesis-seed` chooses them; a failing one is
# printed with what repeats it, and tried again first by the next run on this machine.
SHORT = hypothesis_settings(max_examples=50, stateful_step_count=50, deadline=None, print_blob=True, derandomize=False)


@pytest.fixture
def redis(runner: asyncio.Runner, settings: Settings) -> Iterator[Redis]:
    redis = connect(settings)
    yield redis
    runner.run(redis.aclose(close_connection_pool=True))


@pytest.fixture
def settings(server: Server) -> Settings:
    return load_settings({"STTREAM_REDIS_URL": server.url})


@pytest.mark.timeout(7200)
def test_no_order_of_calls_breaks_a_promise(runner: asyncio.Runner, redis: Redis, settings: Settings) -> None:
    """Counters, places, leases and outcomes are exact after every call, and every job ends once in each run."""
    long = hypothesis_settings.get_current_profile_name() == "long"
    machine = functools.partial(JobMachine, runner, redis, settings)
    run_state_machine_as_test(machine, settings=hypothesis_settings() if long else SHORT)
