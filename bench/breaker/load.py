"""The load: jobs at a steady rate in three ways, and people who submit twice, cancel, and run failed ones again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import aiohttp

from bench.breaker.ledger import Asked, Ledger, Submission, Way
from common.connection import connect, library_is_missing, server_is_away
from common.queue import JobQueue, Submitted
from common.settings import load_settings, variable_of

if TYPE_CHECKING:
    from bench.breaker.line import Line

_ANSWER_WITHIN_S = 5.0
_TRIES = 200
_AT_A_TIME = 100
_MOST_QUEUED = 1_000_000
# Of a hundred jobs so many are submitted twice, cancelled, and run again after they failed or were cancelled.
_TWICE, _CANCELLED, _REVIVED = 0.06, 0.1, 0.5


class Load:
    """Whoever submits."""

    def __init__(self, line: Line, ledger: Ledger, seed: int) -> None:
        self.ledger = ledger
        self.submitted = 0
        self._line = line
        self._rng = random.Random(f"load {seed}")
        self._at_a_time = asyncio.Semaphore(_AT_A_TIME)

    async def run(self, jobs: Sequence[Submission], duration_s: float) -> None:
        """Submit jobs at a steady rate; returns when each is accepted or given up."""
        self.ledger.add(jobs)
        settings = load_settings({variable_of("redis_url"): self._line.submitting.url})
        timeout = aiohttp.ClientTimeout(total=_ANSWER_WITHIN_S)
        async with connect(settings) as redis, aiohttp.ClientSession(self._line.url, timeout=timeout) as http:
            self._queue, self._http = JobQueue(redis, self._line.keys), http
            started = asyncio.get_running_loop().time()
            async with asyncio.TaskGroup() as submitting:
                for number, job in enumerate(jobs):
                    due_s = started + number * duration_s / len(jobs)
                    await asyncio.sleep(max(0.0, due_s - asyncio.get_running_loop().time()))
                    submitting.create_task(self._life(job))

    async def _life(self, job: Submission) -> None:
        """Submit one job, and perhaps do what people do with their jobs."""
        chances = [self._rng.random() for _ in range(3)]
        async with self._at_a_time:
            await self._until_answered(job)
        self.submitted += 1
        if chances[0] < _TWICE and job.accepted:
            await self._twice(job)
        if chances[1] < _CANCELLED:
            await asyncio.sleep(self._rng.uniform(0, 0.5))
            await self._cancel(job)
        if chances[2] < _REVIVED and job.accepted and (job.text is None or job.cancelled is not Asked.NO):
            await asyncio.sleep(self._rng.uniform(2, 6))
            await self._revive(job)

    async def _until_answered(self, job: Submission) -> None:
        """Submit until the answer is known: the same id again is the same job."""
        for _ in range(_TRIES):
            job.accepted = await self._submit(job)
            if job.accepted or job.gives_up:
                return
            await asyncio.sleep(self._rng.uniform(0.2, 1))
        self.ledger.complaints.append(f"job {job.id} was not accepted in {_TRIES} tries")

    async def _submit(self, job: Submission) -> bool:
        """Submit once; False when the answer is unknown or says to try again."""
        if job.way is Way.HTTP:
            return await self._post(job)
        try:
            if job.way is Way.XADD:
                return bool(await self._xadd(job))
            delay_ms = round(job.delay_s * 1000)
            submitted = await self._queue.submit(job.id, job.spec, max_queued=_MOST_QUEUED, delay_ms=delay_ms)
        except Exception as exc:
            if not (server_is_away(exc) or library_is_missing(exc)):
                raise
            return False
        if submitted in {Submitted.CONFLICT, Submitted.FULL}:
            self.ledger.complaints.append(f"job {job.id} was refused by the queue: {submitted.name}")
        return submitted in {Submitted.QUEUED, Submitted.SCHEDULED, Submitted.KNOWN}

    async def _xadd(self, job: Submission) -> Any:
        fields = {"id": job.id, "source": job.source} | ({"batch": job.batch_id} if job.batch_id else {})
        return await self._queue.redis.xadd(self._line.keys.lane(job.priority), fields)

    async def _post(self, job: Submission) -> bool:
        body = {**job.spec.model_dump(mode="json", exclude_defaults=True), "id": job.id}
        if job.delay_s:
            body["delay_s"] = job.delay_s
        return await self._ask("POST", "/v1/jobs", body) in {200, 202}

    async def _twice(self, job: Submission) -> None:
        """Submit a job that is known, in a way that must change nothing."""
        if self._rng.random() < 0.5:
            await self._submit(job)
            return
        try:
            await self._xadd(job)
        except Exception as exc:
            if not server_is_away(exc):
                raise

    async def _cancel(self, job: Submission) -> None:
        job.cancelled = Asked.UNKNOWN
        status = await self._ask("DELETE", f"/v1/jobs/{job.id}", None, {404, 409})
        if status == 200:
            job.cancelled = Asked.GRANTED
        elif status in {404, 409}:
            job.cancelled = Asked.NO

    async def _revive(self, job: Submission) -> None:
        job.revived = True
        await self._ask("POST", f"/v1/jobs/{job.id}/retry", None, {404, 409})

    async def _ask(
        self, method: str, path: str, body: dict[str, Any] | None, welcome: set[int] | None = None
    ) -> int | None:
        """Return the status of an answer, or None when it is unknown what became of the request.

        Args:
            welcome: refusals that are no fault of the server here; others than these and 503 are noted as complaints.
        """
        try:
            async with self._http.request(method, path, json=body) as response:
                detail = (await response.text())[:300]
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None
        if response.status not in {200, 202, 503, *(welcome or ())}:
            self.ledger.complaints.append(f"{method} {path} was answered {response.status}: {detail}")
        return response.status
