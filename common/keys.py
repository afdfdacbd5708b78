"""The names of all keys. They share the hash tag `{<queue>}`, so one server function may touch any of them."""

from __future__ import annotations

from dataclasses import dataclass

from common.records import PRIORITIES, Priority

TRANSCRIBERS = "transcribers"
WRITERS = "writers"
# The consumer name under which a draining process leaves entries for the next one to take.
RELEASED = "released"


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one queue."""

    queue: str

    def _key(self, name: str) -> str:
        return f"{{{self.queue}}}:{name}"

    def lane(self, priority: Priority) -> str:
        """Stream of the jobs of one priority: waiting and running."""
        return self._key(f"jobs:{priority}")

    @property
    def lanes(self) -> tuple[str, ...]:
        """The job streams, most urgent first."""
        return tuple(self.lane(priority) for priority in PRIORITIES)

    @property
    def results(self) -> str:
        """Stream of outcomes that the writer has not stored yet."""
        return self._key("results")

    @property
    def delayed(self) -> str:
        """Sorted set of job ids by the server time in ms at which they are due."""
        return self._key("delayed")

    @property
    def dead(self) -> str:
        """Stream of dead letters."""
        return self._key("dead")

    @property
    def events(self) -> str:
        """Capped stream of changes of state."""
        return self._key("events")

    @property
    def epoch(self) -> str:
        """A random text written once: tells this data set from an emptied or replaced one."""
        return self._key("epoch")

    def job(self, job_id: str) -> str:
        """Hash of one job."""
        return self._key(f"job:{job_id}")

    def parts(self, job_id: str) -> str:
        """Hash of the finished parts of a job under way: where the next attempt goes on."""
        return self._key(f"parts:{job_id}")

    def batch(self, batch_id: str) -> str:
        """Hash of one batch: its counters by state."""
        return self._key(f"batch:{batch_id}")
