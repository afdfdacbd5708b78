"""What the Lua functions should do, in plain Python: streams, jobs and dead letters as a state machine predicts them.

Ids of new entries are the server's to choose: after each call the model is shown what the streams hold and finds its
new entry there. All else it says by itself.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from common.entries import Settled
from common.keys import RELEASED
from common.outcomes import Bury, Cancel, Delay, Publish, Release
from common.queue import Cancellation, Revival, Submitted
from common.records import TERMINAL, JobSpec, State, check_id
from tests.properties.stream_model import Carried, Stream, as_number

if TYPE_CHECKING:
    from collections.abc import Mapping

    from common.dead import DeadLetter
    from common.entries import Entry
    from common.keys import Keys
    from common.outcomes import Verdict
    from tests.properties.job_server import Seen

RENEWED, CANCELLING = 1, -2
# Fields that a job's hash holds only at times.
OPTIONAL = frozenset({"entry_id", "dead_id", "cancel_requested", "worker", "progress"})


@dataclass
class Job:
    """A job's hash, as far as its life depends on it."""

    spec: JobSpec
    run: int
    state: State
    attempts: int = 0
    delivery: tuple[str, int] | None = None
    """The one that the last attempt began with: begun again, it is the same attempt."""
    parts: dict[str, str] = field(default_factory=dict)
    """What is done of it, while it is under way."""
    entry_id: str | None = None
    dead_id: str | None = None
    cancel_requested: bool = False
    worker: str | None = None
    progress: str | None = None
    expires: bool = False

    def fields(self) -> dict[str, str]:
        """What its hash must hold."""
        told = {
            "spec": self.spec.to_json(),
            "run": str(self.run),
            "state": self.state.value,
            "attempts": str(self.attempts) if self.attempts else None,
            "entry_id": self.entry_id,
            "dead_id": self.dead_id,
            "cancel_requested": "1" if self.cancel_requested else None,
            "worker": self.worker,
            "progress": self.progress,
        }
        return {name: value for name, value in told.items() if value is not None}


@dataclass
class Letter:
    """A dead letter."""

    job_id: str
    stream: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)


class Model:
    """One queue."""

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self.streams = {stream: Stream() for stream in (*keys.lanes, keys.results)}
        self.jobs: dict[str, Job] = {}
        self.due: dict[str, bool] = {}
        """The delayed set: whether a job's time has come."""
        self.letters: dict[str, Letter] = {}
        self.accepted: set[tuple[str, int]] = set()
        """Each job in each of its runs."""
        self.outcomes: dict[tuple[str, int], str] = {}
        """What was published of it: once."""
        self.stored: set[tuple[str, int]] = set()
        """What the writer has put into the database."""
        self.given_up: set[tuple[str, int]] = set()
        """Runs whose result an operator threw away."""
        self.forgotten: Counter[tuple[str, str]] = Counter()
        """Jobs without a hash which their batch still counts, by batch and state."""
        self.events: list[tuple[str, str]] = []
        """What the last call should have emitted."""
        self.seen: Seen

    # What was added by the call that `seen` shows.

    def _added(self, stream: str, job_id: str) -> str:
        """Note the one entry of a job that a stream should have gained, and return its id."""
        entries = self.streams[stream].entries
        gained = {key: fields for key, fields in self.seen.streams[stream].items() if key not in entries}
        found = [key for key, fields in gained.items() if fields.get("id", "") == job_id]
        assert len(found) == 1, f"{stream} should have gained one entry of job {job_id!r}; it gained {gained}"
        entries[found[0]] = Carried(gained[found[0]])
        self.streams[stream].added += 1
        return found[0]

    def _buried(self, letter: Letter) -> str:
        found = [key for key in self.seen.letters if key not in self.letters]
        assert len(found) == 1, f"the dead letters should have gained one, of job {letter.job_id!r}; gained {found}"
        self.letters[found[0]] = letter
        return found[0]

    def _move(self, job_id: str, state: State) -> None:
        self.jobs[job_id].state = state
        self.events.append((job_id, state.value))

    def _publish(self, job_id: str, outcome: str) -> None:
        run = self.jobs[job_id].run
        assert (job_id, run) in self.accepted, f"an outcome of {job_id} run {run}, which nobody asked for"
        assert (job_id, run) not in self.outcomes, f"a second outcome of {job_id} run {run}"
        self.outcomes[job_id, run] = outcome
        self.jobs[job_id].parts = {}
        entry_id = self._added(self.keys.results, job_id)
        fields = self.streams[self.keys.results].entries[entry_id].fields
        assert (fields["outcome"], fields["run"]) == (outcome, str(run))

    def _end_cancelled(self, job_id: str) -> None:
        self._publish(job_id, "cancelled")
        self.jobs[job_id].cancel_requested = False
        self._move(job_id, State.CANCELLED)

    def _enqueue(self, job_id: str) -> None:
        job = self.jobs[job_id]
        job.entry_id = self._added(self.keys.lane(job.spec.priority), job_id)
        self._move(job_id, State.QUEUED)

    def _accept(self, job_id: str, spec: JobSpec, run: int) -> Job:
        assert (job_id, run) not in self.accepted, f"{job_id} is accepted twice as run {run}"
        self.accepted.add((job_id, run))
        self.jobs[job_id] = Job(spec, run, State.QUEUED)
        return self.jobs[job_id]

    # Clients

    def under_way(self) -> int:
        return len(self.due) + sum(len(self.streams[lane].entries) for lane in self.keys.lanes)

    def submit(self, job_id: str, spec: JobSpec, run: int, most: int, *, delayed: bool) -> Submitted:
        if job_id in self.jobs:
            same = self.jobs[job_id].spec.to_json() == spec.to_json()
            return Submitted.KNOWN if same else Submitted.CONFLICT
        if self.under_way() >= most:
            return Submitted.FULL
        self._accept(job_id, spec, run)
        if delayed:
            self.due[job_id] = False
            self._move(job_id, State.SCHEDULED)
            return Submitted.SCHEDULED
        self._enqueue(job_id)
        return Submitted.QUEUED

    def add_by_hand(self, lane: str, job_id: str) -> None:
        self._added(lane, job_id)

    def cancel(self, job_id: str) -> Cancellation:
        job = self.jobs.get(job_id)
        if job is None:
            return Cancellation.UNKNOWN
        match job.state:
            case State.RUNNING:
                job.cancel_requested = True
                return Cancellation.CANCELLING
            case State.QUEUED:
                del self.streams[self.keys.lane(job.spec.priority)].entries[job.entry_id or ""]
            case State.SCHEDULED:
                del self.due[job_id]
            case _:
                return Cancellation.TOO_LATE
        self._end_cancelled(job_id)
        return Cancellation.CANCELLED

    def revive(self, job_id: str) -> Revival:
        job = self.jobs.get(job_id)
        if job is None:
            return Revival.UNKNOWN
        if job.state not in (State.FAILED, State.CANCELLED):
            return Revival.NOT_ENDED
        if job.dead_id in self.letters:
            self._throw_away(job.dead_id)
        self._accept(job_id, job.spec, job.run + 1)
        self._enqueue(job_id)
        return Revival.QUEUED

    # Stages

    def read(self, names: tuple[str, ...], consumer: str, count: int) -> list[tuple[str, str, int]]:
        taken: list[tuple[str, str, int]] = []
        for name in names:
            left = count - len(taken)
            taken += [(name, *delivery) for delivery in self.streams[name].read(consumer, left)]
        return taken

    def rescue(
        self, names: tuple[str, ...], consumer: str, count: int, *, released_only: bool
    ) -> list[tuple[str, str, int]]:
        taken: list[tuple[str, str, int]] = []
        for name in names:
            if (left := count - len(taken)) > 0:
                page = self.streams[name].rescue(consumer, left, released_only=released_only)
                taken += [(name, *delivery) for delivery in page]
        return taken

    def begin(self, consumer: str, entry: Entry) -> int | None:
        """The number of the attempt that begins, None if none does."""
        if entry.stream == self.keys.results:
            return entry.deliveries
        stream, job_id = self.streams[entry.stream], entry.fields.get("id", "")
        if stream.held(consumer, entry) is not Settled.DONE:
            return None
        if not _is_job(entry.fields):
            self._buried(Letter(job_id, entry.stream, entry.fields))
            del stream.entries[entry.entry_id]
            return None
        if job_id not in self.jobs:
            self._accept(job_id, self._spec_of(entry), run_of(entry.entry_id)).entry_id = entry.entry_id
            self._move(job_id, State.QUEUED)
        return self._start(consumer, entry, job_id)

    def _start(self, consumer: str, entry: Entry, job_id: str) -> int | None:
        job = self.jobs[job_id]
        carries = (self.keys.lane(job.spec.priority), job.entry_id) == (entry.stream, entry.entry_id)
        if not carries or job.state not in (State.QUEUED, State.RUNNING):
            del self.streams[entry.stream].entries[entry.entry_id]
            return None
        if job.cancel_requested:
            del self.streams[entry.stream].entries[entry.entry_id]
            self._end_cancelled(job_id)
            return None
        if job.delivery != (entry.entry_id, entry.deliveries):
            job.delivery = entry.entry_id, entry.deliveries
            job.attempts += 1
            job.worker, job.progress = consumer, "0"
            self._move(job_id, State.RUNNING)
        return job.attempts

    def _spec_of(self, entry: Entry) -> JobSpec:
        lanes = {self.keys.lane(priority): priority for priority in ("high", "normal", "low")}
        fields = entry.fields
        return JobSpec(source=fields["source"], priority=lanes[entry.stream], batch_id=fields.get("batch"))

    def parts(self, entry: Entry) -> dict[str, str]:
        """What an attempt that begins with this entry is told of the ones before."""
        return {} if entry.stream == self.keys.results else self.jobs[entry.fields["id"]].parts

    def renew(self, consumer: str, entry: Entry, progress: str, parts: Mapping[str, str]) -> int:
        held = self.streams[entry.stream].held(consumer, entry)
        if held is not Settled.DONE:
            return held.value
        if entry.stream == self.keys.results:
            return RENEWED
        job = self.jobs[entry.fields["id"]]
        if progress:
            job.progress = progress
            self.events.append((entry.fields["id"], progress))
        job.parts |= parts
        return CANCELLING if job.cancel_requested else RENEWED

    def settle(self, consumer: str, entry: Entry, verdict: Verdict) -> Settled:
        held = self.streams[entry.stream].held(consumer, entry)
        if held is not Settled.DONE:
            return held
        if isinstance(verdict, Release):
            self._release(entry)
            return Settled.DONE
        del self.streams[entry.stream].entries[entry.entry_id]
        job_id = entry.fields["id"]
        job = self.jobs[job_id]
        if job.cancel_requested:
            self._end_cancelled(job_id)
            return Settled.DONE if isinstance(verdict, Cancel) else Settled.CANCELLED
        match verdict:
            case Publish():
                self._publish(job_id, "completed")
                job.progress = "1"
                self._move(job_id, State.TRANSCRIBED)
            case Delay():
                self.due[job_id], job.entry_id = False, None
                self._move(job_id, State.SCHEDULED)
            case Bury():
                self._publish(job_id, "failed")
                job.dead_id = self._buried(Letter(job_id))
                self._move(job_id, State.FAILED)
            case Cancel():
                self._end_cancelled(job_id)
        return Settled.DONE

    def _release(self, entry: Entry) -> None:
        self.streams[entry.stream].entries[entry.entry_id].consumer = RELEASED
        if entry.stream != self.keys.results:
            self.jobs[entry.fields["id"]].attempts -= 1
            self._move(entry.fields["id"], State.QUEUED)

    def promote(self) -> None:
        """Queue all that is due."""
        for job_id in sorted(job_id for job_id, due in self.due.items() if due):
            del self.due[job_id]
            self._enqueue(job_id)

    # The writer

    def settle_result(self, consumer: str, entry: Entry, verdict: Verdict) -> Settled:
        job_id, run = entry.fields["id"], int(entry.fields["run"])
        if isinstance(verdict, Publish):
            self.stored.add((job_id, run))  # before it settles, whether or not it still holds the entry
        held = self.streams[self.keys.results].held(consumer, entry)
        if held is not Settled.DONE or isinstance(verdict, Delay):
            return held
        if isinstance(verdict, Release | Cancel):
            self._release(entry)
            return Settled.DONE
        del self.streams[self.keys.results].entries[entry.entry_id]
        job = self.jobs.get(job_id)
        now = job if job and job.run == run else None
        if isinstance(verdict, Publish):
            self._stored(job_id, now, entry.fields["outcome"])
        else:
            self._discarded(job_id, now, entry)
        return Settled.DONE

    def _stored(self, job_id: str, job: Job | None, outcome: str) -> None:
        if job is None:
            return
        if outcome == "completed":
            job.dead_id = None
            self._move(job_id, State.COMPLETED)
        if job.dead_id is None:
            job.expires = True

    def _discarded(self, job_id: str, job: Job | None, entry: Entry) -> None:
        dead_id = self._buried(Letter(job_id, entry.stream, entry.fields))
        if job and job.state is State.TRANSCRIBED:
            job.dead_id = dead_id
            self._move(job_id, State.FAILED)

    # Operators, and time

    def drop(self, dead_id: str) -> bool:
        if dead_id not in self.letters:
            return False
        letter = self._throw_away(dead_id)
        job = self.jobs.get(letter.job_id)
        if job and job.dead_id == dead_id:
            job.dead_id, job.expires = None, True
        return True

    def _throw_away(self, dead_id: str) -> Letter:
        letter = self.letters.pop(dead_id)
        if letter.stream == self.keys.results:
            self.given_up.add((letter.job_id, int(letter.fields["run"])))
        return letter

    def revive_letter(self, letter: DeadLetter) -> bool:
        """Also one that was revived or dropped before: then its job decides, or there is nothing to put back."""
        if letter.stream is None:
            return self.revive(letter.job_id) is Revival.QUEUED
        if self.letters.pop(letter.dead_id, None) is None:
            return False
        self._added(letter.stream, letter.job_id)
        return True

    def expire(self, job_id: str) -> None:
        """Forget the hash of a job whose record is stored."""
        job = self.jobs.pop(job_id)
        assert job.expires
        assert job.state in TERMINAL
        if job.spec.batch_id:
            self.forgotten[job.spec.batch_id, job.state.value] += 1

    def expiring(self) -> list[str]:
        """Jobs whose hash may go: a time to live of a day outlasts what the writer still has to store."""
        return [job_id for job_id, job in self.jobs.items() if job.expires and (job_id, job.run) in self.stored]

    # What must be so

    def compare(self) -> None:
        """Compare the server with the model."""
        seen = self.seen
        for name, stream in self.streams.items():
            assert list(seen.streams[name]) == list(stream.entries), f"entries of {name}"
            assert seen.pending[name] == stream.pending, f"pending entries of {name}"
            assert seen.added[name] == stream.added, f"entries that {name} has had"
        assert seen.delayed == self.due.keys()
        found = {dead_id: (fields["id"], fields.get("stream")) for dead_id, fields in seen.letters.items()}
        assert found == {dead_id: (letter.job_id, letter.stream) for dead_id, letter in self.letters.items()}
        assert seen.hashes.keys() == self.jobs.keys()
        for job_id, job in self.jobs.items():
            assert seen.hashes[job_id].items() >= job.fields().items(), f"the hash of {job_id}"
            assert not (OPTIONAL - job.fields().keys()) & seen.hashes[job_id].keys(), f"the hash of {job_id}"
        assert seen.parts == {job_id: job.parts for job_id, job in self.jobs.items() if job.parts}
        assert seen.expiring == {job_id for job_id, job in self.jobs.items() if job.expires}
        assert seen.batches == {batch_id: {} for batch_id in seen.batches} | self.batches()
        assert seen.events == self.events

    def check_the_end(self) -> None:
        """Check that every job has ended, once in each run, and left nothing but dead letters."""
        assert not any(stream.entries for stream in self.streams.values())
        assert not self.due
        unended = self.accepted - self.outcomes.keys()
        assert not unended, f"accepted, but without an outcome: {unended}"
        unstored = self.accepted - self.stored - self.given_up
        assert not unstored, f"ended, but not stored: {unstored}"
        for job_id, job in self.jobs.items():
            assert job.state in TERMINAL, f"{job_id}: {job}"
            # Known, and left out until it is mended: who drops a result that was given up keeps its job's hash.
            kept = job.dead_id in self.letters or (job_id, job.run) in self.given_up
            assert job.expires or kept, f"the hash of {job_id} would stay for ever: {job}"

    def is_latest(self, result: Entry) -> bool:
        """Whether a result is of its job's latest run."""
        job = self.jobs.get(result.fields["id"])
        return job is None or job.run == int(result.fields["run"])

    def batches(self) -> dict[str, dict[str, int]]:
        """The jobs of each batch, counted by state."""
        counted: dict[str, Counter[str]] = defaultdict(Counter)
        for (batch_id, state), count in self.forgotten.items():
            counted[batch_id][state] += count
        for job in self.jobs.values():
            if job.spec.batch_id:
                counted[job.spec.batch_id][job.state.value] += 1
        return {batch_id: dict(counters) for batch_id, counters in counted.items()}


def run_of(entry_id: str) -> int:
    """The run of a job that begins with an entry which a client added, its hash gone or never made."""
    return as_number(entry_id)[0]


def _is_job(fields: Mapping[str, str]) -> bool:
    try:
        check_id(fields.get("id", ""))
    except ValueError:
        return False
    return "source" in fields
