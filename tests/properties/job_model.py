"""What the Lua functions should do, in plain Python: the queue, and what consumers and writers do with its entries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.entries import Settled
from common.keys import RELEASED
from common.outcomes import Bury, Cancel, Delay, Publish, Release
from common.records import JobSpec, State, check_id
from tests.properties.queue_model import Job, Letter, QueueModel
from tests.properties.stream_model import as_number

if TYPE_CHECKING:
    from collections.abc import Mapping

    from common.entries import Entry
    from common.outcomes import Verdict

RENEWED, CANCELLING = 1, -2


class Model(QueueModel):
    """What a state machine predicts."""

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
        if not is_job(entry.fields):
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
        delivery = entry.entry_id, entry.deliveries, consumer
        if job.state is State.QUEUED or job.delivery != delivery:
            job.delivery = delivery
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
        if job:
            job.dead_id = job.dead_id or dead_id
            if job.state is State.TRANSCRIBED:
                self._move(job_id, State.FAILED)


def run_of(entry_id: str) -> int:
    """The run of a job that begins with an entry which a client added, its hash gone or never made."""
    return as_number(entry_id)[0]


def is_job(fields: Mapping[str, str]) -> bool:
    try:
        check_id(fields.get("id", ""))
    except ValueError:
        return False
    return "source" in fields
