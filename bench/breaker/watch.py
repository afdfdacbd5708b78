"""What is seen from outside while a run goes on: starts and publications of each job, and how long rescues take."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Container
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.connection import server_is_away, server_now_ms
from common.keys import TRANSCRIBERS

if TYPE_CHECKING:
    from bench.breaker.line import Line

_AT_ONCE = 5000


@dataclass(frozen=True, slots=True)
class Death:
    """A consumer that was killed, and the jobs that it had in hand."""

    at_ms: int
    job_ids: tuple[str, ...]


class Watch:
    """Follows the event stream, straight from the server, from its beginning."""

    def __init__(self, line: Line) -> None:
        self.published: Counter[str] = Counter()
        """How often a transcript of each job was passed to the writers."""
        self.started_ms: dict[str, list[int]] = defaultdict(list)
        """When each job was begun, server time."""
        self.deaths: list[Death] = []
        self.seen = 0
        """How many events there were."""
        self._line = line
        self._last = "0-0"

    async def run(self) -> None:
        """Follow until cancelled; the server may go away meanwhile."""
        while True:
            try:
                reply = await self._line.redis.xread({self._line.keys.events: self._last}, count=_AT_ONCE, block=500)
            except Exception:  # noqa: BLE001 - the server is killed and paused here; it comes back
                await asyncio.sleep(0.1)
                continue
            for _, events in reply:
                for event_id, fields in events:
                    self._note(event_id, fields)

    def _note(self, event_id: str, fields: dict[str, str]) -> None:
        self._last = event_id
        self.seen += 1
        state, job_id = fields.get("state"), fields["id"]
        if state == "transcribed":
            self.published[job_id] += 1
        elif state == "running":
            self.started_ms[job_id].append(int(event_id.partition("-")[0]))

    async def consumer_died(self, pid: int) -> None:
        """Note which jobs a consumer had in hand that is dead now; while the server is away nobody can tell."""
        try:
            at_ms = await server_now_ms(self._line.redis)
            self.deaths.append(Death(at_ms, tuple(await self._held_by(pid))))
        except Exception as exc:
            if not server_is_away(exc):
                raise

    async def _held_by(self, pid: int) -> list[str]:
        redis, held = self._line.redis, []
        for lane in self._line.keys.lanes:
            for entry in await redis.xpending_range(lane, TRANSCRIBERS, "-", "+", 1000):
                # The name of a consumer holds its process id: host-pid-random.
                if entry["consumer"].split("-")[-2:-1] == [str(pid)]:
                    page = await redis.xrange(lane, entry["message_id"], entry["message_id"])
                    held += [fields["id"] for _, fields in page if "id" in fields]
        return held

    def rescues_s(self, without: Container[str]) -> list[float]:
        """Return how long each job of a killed consumer waited until it was begun again.

        Args:
            without: jobs that were cancelled, which need not begin again.
        """
        waits = []
        for death in self.deaths:
            for job_id in death.job_ids:
                if job_id in without:
                    continue
                again = [at for at in self.started_ms[job_id] if at > death.at_ms]
                waits += [(again[0] - death.at_ms) / 1000] if again else []
        return sorted(waits)
