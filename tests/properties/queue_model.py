"""One queue in plain Python: what clients, operators and time do to its jobs and dead letters, and what must be so.

Ids of new entries are the server's to choose: after each call the model is shown what the streams hold and finds its
new entry there. All else it says by itself.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from common.queue import Cancellation, Revival, Submitted
from common.records import TERMINAL, JobSpec, State
from tests.properties.stream_model import Carried, Stream

if TYPE_CHECKING:
    from collections.abc import Mapping

    from common.dead import DeadLetter
    from common.keys import Keys
    from tests.properties.job_server import Seen

ON_A_LANE = (State.QUEUED, State.RUNNING)
# Fields of a job's hash, noted where they are not what they are for most; what else it holds, nothing here depends on.
MODELLED = frozenset(
    {"source", "spec", "run", "state", "attempts", "entry_id", "dead_id", "cancel_requested", "worker", "progress"}
)


@dataclass
class Job:
    """A job's hash, as far as its life depends on it."""

    spec: JobSpec
    run: int
    state: State
    attempts: int = 0
    delivery: tuple[str, int, str] | None = None
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
            "source": self.spec.source,
            "spec": self.spec.beside_source() or None,
            "run": str(self.run) if self.run > 1 else None,
            "state": self.state.value,
            "attempts": str(self.attempts),
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


class QueueModel:
    """What is on the streams, and what became of each job in each of its runs."""

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

    def waiting(self) -> dict[str, str]:
        """The entry of each job that is on its lane, held or not."""
        return {job_id: job.entry_id for job_id, job in self.jobs.items() if job.entry_id and job.state in ON_A_LANE}

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
        lane = self.streams[self.keys.lane(job.spec.priority)]
        match job.state:
            case State.RUNNING if (job.entry_id or "") in lane.pending:
                job.cancel_requested = True
                return Cancellation.CANCELLING
            case State.QUEUED | State.RUNNING:
                del lane.entries[job.entry_id or ""]
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
        job = self.jobs.get(letter.job_id)
        if job and job.dead_id == letter.dead_id:
            job.dead_id = None
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
        letters = {dead_id: (fields["id"], fields.get("stream")) for dead_id, fields in seen.letters.items()}
        assert letters == {dead_id: (letter.job_id, letter.stream) for dead_id, letter in self.letters.items()}
        assert seen.hashes.keys() == self.jobs.keys()
        for job_id, job in self.jobs.items():
            told = {name: text for name, text in seen.hashes[job_id].items() if name in MODELLED}
            told.setdefault("attempts", "0")
            assert told == job.fields(), f"the hash of {job_id}"
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
            assert job.expires or job.dead_id in self.letters, f"the hash of {job_id} would stay for ever: {job}"

    def batches(self) -> dict[str, dict[str, int]]:
        """The jobs of each batch, counted by state."""
        counted: dict[str, Counter[str]] = defaultdict(Counter)
        for (batch_id, state), count in self.forgotten.items():
            counted[batch_id][state] += count
        for job in self.jobs.values():
            if job.spec.batch_id:
                counted[job.spec.batch_id][job.state.value] += 1
        return {batch_id: dict(counters) for batch_id, counters in counted.items()}
