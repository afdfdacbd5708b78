"""What the rules of the state machine are made of: one call to the server, and what the model says must come of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hypothesis.stateful import RuleBasedStateMachine
from redis.exceptions import OutOfMemoryError

from common.dead import DeadLetters
from common.keys import TRANSCRIBERS, WRITERS, Keys
from common.outcomes import Cancel, Delay, Release
from common.queue import JobQueue
from common.records import JobSpec
from common.setup import set_up
from common.streams import JobStreams, ResultStream
from tests.integration.seeds import BURY, FAILURE, LATER_MS, PUBLISH
from tests.properties.job_model import Model, is_job
from tests.properties.job_server import check_promises, look

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine

    from redis.asyncio import Redis

    from common.entries import Entry, Task
    from common.outcomes import Verdict
    from common.settings import Settings
    from tests.properties.queue_model import Job

SPECS = {
    "a": JobSpec(source="/audio/a.mp3", batch_id="one"),
    "b": JobSpec(source="/audio/b.mp3", batch_id="one", priority="high"),
    "c": JobSpec(source="/audio/c.mp3", batch_id="two", priority="low"),
    "d": JobSpec(source="/audio/d.mp3"),
    "e": JobSpec(source="/audio/e.mp3", batch_id="two"),
}
BATCHES = ("one", "two")
VERDICTS: dict[str, Verdict] = {
    "publish": PUBLISH,
    "delay": Delay(FAILURE, LATER_MS),
    "bury": BURY,
    "cancel": Cancel(),
    "release": Release(),
}
# What a server at maxmemory says.
REFUSED = "refused"
# A rescue looks at ten entries for each that it may take: a lane stays within that, so the model needs no such limit.
MOST_ENTRIES = 8
MOST_HELD = 6


@dataclass(eq=False)
class Held:
    """A delivery as its consumer knows it, whoever holds it now."""

    worker: str
    streams: JobStreams | ResultStream
    entry: Entry
    task: Task | None = None


@dataclass
class Worker:
    """One start of a process, and what it believes to hold."""

    name: str
    streams: JobStreams | ResultStream
    names: tuple[str, ...]
    """The streams that it reads."""
    held: list[Held] = field(default_factory=list)

    @property
    def begun(self) -> list[Held]:
        return [held for held in self.held if held.task]

    @property
    def begin_later(self) -> list[Held]:
        return [held for held in self.held if held.task is None]


class JobDriver(RuleBasedStateMachine):
    """A server that is empty when it starts, the processes that work on it, and the model that is shown each call."""

    def __init__(self, runner: asyncio.Runner, redis: Redis, settings: Settings) -> None:
        super().__init__()
        self.runner, self.redis, self.settings = runner, redis, settings
        self.keys = Keys(settings.queue)
        self.queue = JobQueue(redis, self.keys)
        self.letters = DeadLetters(self.queue)
        self.model = Model(self.keys)
        self.starts = 0
        self.workers = {name: self._start(name) for name in ("consumer 1", "consumer 2", "writer 1", "writer 2")}
        self.full = self.crashed = False
        self.last_event = "0-0"
        self._ask(self._empty())
        self._expect(None, None)

    async def _empty(self) -> None:
        await self.redis.config_set("maxmemory", 0)
        await self.redis.config_set("appendonly", "no")  # what is tested here is not what survives the server
        await self.redis.flushall()
        await self.redis.set(self.keys.epoch, "of-this-test")
        await set_up(self.redis, self.keys)

    def _start(self, name: str) -> Worker:
        self.starts += 1
        unique = f"{name}, start {self.starts}"
        if name.startswith("writer"):
            writer = ResultStream(self.redis, self.keys, self.settings, unique)
            return Worker(unique, writer, (self.keys.results,))
        return Worker(unique, JobStreams(self.redis, self.keys, self.settings, unique), self.keys.lanes)

    def _ask(self, call: Coroutine[Any, Any, Any]) -> Any:
        """Make one call, look at what it has done, and return the reply."""
        self.sound = False

        async def ask() -> Any:
            try:
                reply = await call
            except OutOfMemoryError:
                reply = REFUSED
            seen = await look(self.redis, self.keys, sorted(SPECS), BATCHES, self.last_event)
            return reply, seen

        reply, self.model.seen = self.runner.run(ask())
        self.model.events = []
        return reply

    def _expect(self, reply: object, predicted: object) -> None:
        """Compare the reply with the model's, and the server with the model."""
        assert reply == predicted
        self.model.compare()
        check_promises(self.model.seen, self.keys, self.model.forgotten)
        self.last_event = self.model.seen.last_event
        self.sound = True

    def _able(self, name: str, able: Callable[[Worker], object]) -> Worker:
        """Return the worker of that name or, where it can do nothing, the next that can."""
        names = sorted(self.workers)
        at = names.index(name)
        of = [self.workers[other] for other in (*names[at:], *names[:at])]
        return next((worker for worker in of if able(worker)), of[0])

    def _which(self, job_id: str, able: Callable[[Job], object]) -> str:
        """The same for jobs."""
        found = [other for other, job in sorted(self.model.jobs.items()) if able(job)]
        return next((other for other in found if other >= job_id), (found or [job_id])[0])

    def _some_to_read(self, worker: Worker) -> bool:
        return any(not held.deliveries for name in worker.names for held in self.model.streams[name].entries.values())

    def _some_to_rescue(self, worker: Worker) -> bool:
        return any(self.model.streams[name].pending for name in worker.names)

    def _ours(self, worker: Worker) -> list[Held]:
        """What a worker has begun and still holds."""
        pending = self.model.seen.pending
        return [
            held
            for held in worker.begun
            if pending[held.entry.stream].get(held.entry.entry_id) == (held.worker, held.entry.deliveries)
        ]

    # Calls

    def _add(self, lane: str, fields: dict[str, str], entry_id: str) -> None:
        if len(self.model.streams[lane].entries) < MOST_ENTRIES:
            reply = self._ask(self.redis.xadd(lane, fields, id=entry_id))
            if not self.full:
                self.model.add_by_hand(lane, fields["id"])
            self._expect(reply == REFUSED, self.full)

    def _read(self, of: Worker, count: int, *, lost: bool) -> None:
        entries = self._ask(of.streams.read(count, 1))
        self._expect([_delivery(entry) for entry in entries], self.model.read(of.names, of.name, count))
        if not lost:
            self._hold(of, entries)

    def _rescue(self, of: Worker, count: int, *, released_only: bool) -> None:
        # Nothing here is idle for an hour but what was released: that counts as idle for a day.
        entries = self._ask(of.streams.rescue(count, LATER_MS if released_only else 0))
        predicted = self.model.rescue(of.names, of.name, count, released_only=released_only)
        self._expect([_delivery(entry) for entry in entries], predicted)
        self._hold(of, entries)

    def _hold(self, of: Worker, entries: list[Entry]) -> None:
        of.held += [Held(of.name, of.streams, entry) for entry in entries]

    def _begin_all(self, of: Worker) -> None:
        for held in of.begin_later:
            self._begin(of, held)
        del of.held[:-MOST_HELD]

    def _begin(self, of: Worker, held: Held) -> None:
        tasks = self._ask(held.streams.begin([held.entry]))
        predicted = self.model.begin(held.worker, held.entry)
        told = [] if predicted is None else [(predicted, self.model.parts(held.entry))]
        self._expect([(task.attempts, task.parts) for task in tasks], told)
        if tasks:
            held.task = tasks[0]
        elif held.task is None and held in of.held:
            of.held.remove(held)

    def _begin_together(self, of: Worker) -> None:
        """Begin all at once, as a stage does. Jobs that are made of entries are made after the others have begun."""
        fresh = [held for held in of.begin_later if is_job(held.entry.fields)]
        by_hand = [held for held in fresh if held.entry.fields["id"] not in self.model.jobs]
        fresh = [held for held in fresh if held not in by_hand[1:]]
        tasks = {_delivery(task.entry): task for task in self._ask(of.streams.begin([held.entry for held in fresh]))}
        begun = {}
        for held in sorted(fresh, key=lambda held: held in by_hand):
            attempts = self.model.begin(held.worker, held.entry)
            if attempts is not None:
                begun[_delivery(held.entry)] = attempts, self.model.parts(held.entry)
        self._expect({which: (task.attempts, task.parts) for which, task in tasks.items()}, begun)
        for held in fresh:
            held.task = tasks.get(_delivery(held.entry))
            if held.task is None:
                of.held.remove(held)

    def _publish_together(self, of: Worker) -> None:
        """Settle all at once, as a stage does."""
        settlements = [(held.task, PUBLISH) for held in of.begun]
        replies = self._ask(of.streams.settle(settlements))
        self._expect(replies, [self.model.settle(held.worker, held.entry, PUBLISH) for held in of.begun])

    def _settle(self, of: Worker, held: Held, verdict: str) -> None:
        of.held.sort(key=lambda other: other is not held)  # what is settled counts as the oldest
        entry, before = held.entry, self.model.seen
        [reply] = self._ask(held.streams.settle([(held.task, VERDICTS[verdict])]))
        if reply.value > 0:
            holder = before.pending[entry.stream].get(entry.entry_id)
            assert holder == (held.worker, entry.deliveries), f"settled by {held.worker}, but {holder} held the lease"
        of_model = self.model.settle_result if entry.stream == self.keys.results else self.model.settle
        self._expect(reply, of_model(held.worker, entry, VERDICTS[verdict]))

    def _restart(self, name: str) -> Worker:
        self.workers[name] = self._start(name)
        return self.workers[name]

    def _make_due(self, job_id: str) -> None:
        self._ask(self.redis.zadd(self.keys.delayed, {job_id: 1}))
        self.model.due[job_id] = True
        self._expect(None, None)

    async def _make_anew(self, stream: str) -> None:
        await self.redis.xgroup_destroy(stream, WRITERS if stream == self.keys.results else TRANSCRIBERS)
        await set_up(self.redis, self.keys)

    def _fill(self, *, full: bool) -> None:
        self.full = full
        self._expect(self._ask(self.redis.config_set("maxmemory", int(full))), True)


def _delivery(entry: Entry) -> tuple[str, str, int]:
    return entry.stream, entry.entry_id, entry.deliveries
