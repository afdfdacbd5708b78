"""The handler of the jobs stage: one job from its source to its transcript.

fetch → prepare (decode, find speech) → chunks → engine → transcript
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from common.errors import JobError
from common.lexicons import Lexicons
from common.outage import Outage
from common.outcomes import Completed, Outcome
from common.sources import open_source
from common.transcript import Timings, Transcript
from consumer.checkpoint import Checkpoint
from consumer.engine import ChunkAbandoned, ChunkText
from consumer.recognition import Recognition
from consumer.segments import renumbered

if TYPE_CHECKING:
    from common.metrics import ConsumerMetrics
    from common.options import Options
    from common.records import Job
    from common.runner import Work
    from common.settings import Settings
    from consumer.engine import Engine
    from consumer.prepare import Prepared, PreparePool

# How far a job is when its audio is ready; the rest is the engine's.
_PREPARED = 0.05
# How fast a consumer learns how many chunks its jobs have: the weight of the latest one.
_LATEST = 0.25
# Failures that may pass and most likely are the host's: no scratch space, no process, a share that is not mounted.
_OF_THE_HOST = frozenset({"internal_error", "source_unreadable"})


class Transcriber:
    """Transcribes jobs; holds no state of a job but what is on the stack of `handle`."""

    def __init__(
        self,
        settings: Settings,
        pool: PreparePool,
        engine: Engine,
        metrics: ConsumerMetrics,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._settings = settings
        self._lexicons = Lexicons(settings.lexicons_dir)
        self._pool = pool
        self._engine = engine
        self._metrics = metrics
        self._clock = clock
        self._preparing = 0
        self._chunks_left = 0
        # Jobs may be long until they are known to be short: two of them are enough to begin with.
        self._usual_chunks = max(1.0, engine.at_a_time / 2)
        self._changed = asyncio.Condition()
        self._trouble = Outage("preparing of recordings")
        self._tried_again_s = -math.inf

    async def hungry(self) -> int:
        """Return how many jobs would keep the engine busy, once what waits for it is less than it does at a time.

        In trouble one, and only when it is time for another try: a host that fails each job at once would take those of
        all.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self._waiting < self._engine.at_a_time)
        await asyncio.sleep(self._tried_again_s - self._clock())
        if self._trouble.failures:
            return 1
        return max(1, round((self._engine.at_a_time - self._waiting) / self._usual_chunks))

    @property
    def _waiting(self) -> float:
        """Chunks that no engine thread can have taken up yet; those of jobs in preparation are guessed."""
        return self._preparing * self._usual_chunks + max(0, self._chunks_left - self._engine.at_a_time)

    async def handle(self, work: Work) -> Outcome:
        """Transcribe one job.

        Raises:
            JobError: what is wrong with the source, the recording, the options or the engine.
        """
        job = _job_of(work)
        options = job.spec.options
        if options.lexicon:
            options = await asyncio.to_thread(self._lexicons.apply, options)
        self._engine.check(options)
        started = self._clock()
        try:
            async with self._prepared(work, job) as (recording, fetch_s, prepare_s):
                work.lease.report(_PREPARED)
                at = self._clock()
                texts, transcribed = await self._recognise(work, options, recording)
                transcribe_s, duration_s = self._clock() - at, recording.duration_s
        except ChunkAbandoned as exc:
            # The engine saw the end of the lease before the stage's cancellation arrived; the stage knows why.
            raise asyncio.CancelledError from exc
        finally:
            await self._tell()
        took_s = self._clock() - started
        timings = Timings(
            queued_s=round(_waited_s(job), 3),
            fetch_s=round(fetch_s, 3),
            prepare_s=round(prepare_s, 3),
            transcribe_s=round(transcribe_s, 3),
            realtime_factor=round(transcribed * duration_s / took_s, 2),
        )
        self._count(timings, duration_s, took_s)
        return Completed(_transcript(job, texts, duration_s, self._engine.name, timings), duration_s)

    def _count(self, timings: Timings, duration_s: float, took_s: float) -> None:
        self._metrics.job_queue_wait_seconds.observe(timings.queued_s)
        self._metrics.job_processing_seconds.observe(took_s)
        self._metrics.audio_seconds.inc(duration_s)
        self._metrics.realtime_factor.observe(timings.realtime_factor)

    @asynccontextmanager
    async def _prepared(self, work: Work, job: Job) -> AsyncIterator[tuple[Prepared, float, float]]:
        """Yield the decoded recording, and the seconds that fetching and preparing took."""
        self._preparing += 1
        settings = self._settings
        try:
            at = self._clock()
            source = await asyncio.to_thread(open_source, job.spec.source, settings.roots, settings.max_file_bytes)
            with source:
                fetched = self._clock()
                limit_s = work.task.timeout_s or settings.timeout_s
                prepared = await self._pool.prepare(source.fd, vad=job.spec.options.vad, timeout_s=limit_s)
        except JobError as exc:
            if exc.retryable and exc.type in _OF_THE_HOST:
                self._tried_again_s = self._clock() + self._trouble.failed(exc)
            raise
        finally:
            self._preparing -= 1
        self._trouble.over()
        with prepared:
            yield prepared, fetched - at, self._clock() - fetched

    async def _recognise(self, work: Work, options: Options, recording: Prepared) -> tuple[list[ChunkText], float]:
        """Transcribe the recording's chunks, counted in `_chunks_left` until each is done.

        Counted before anything is awaited: in between `hungry` would see neither a job in preparation nor its chunks.

        Returns:
            Their texts, and the share of the recording that no earlier attempt had finished.
        """
        chunks = self._engine.chunks(recording.samples, recording.spans, options)
        left = 1 if options.mode == "sequential" and chunks else len(chunks)
        self._chunks_left += left
        self._usual_chunks += (max(1, left) - self._usual_chunks) * _LATEST

        async def done(share: float) -> None:
            nonlocal left
            work.lease.add(share * (1 - _PREPARED))
            if options.mode != "sequential":
                left -= 1
                self._chunks_left -= 1
                await self._tell()

        checkpoint = Checkpoint(work.parts, work.lease.keep)
        recognition = Recognition(self._engine, work.lease, chunks, recording.samples, checkpoint, done)
        try:
            await self._tell()  # what was one job in preparation may be less than the engine wants
            return await recognition.run(options), recognition.transcribed
        finally:
            self._chunks_left -= left

    async def _tell(self) -> None:
        """Wake `hungry`: work has moved on."""
        async with self._changed:
            self._changed.notify_all()


def _job_of(work: Work) -> Job:
    if work.job is None:
        raise JobError("internal_error", f"{work.entry.stream} entry {work.entry.entry_id} has no job")
    return work.job


def _waited_s(job: Job) -> float:
    if job.queued_ms is None or job.started_ms is None:
        return 0.0
    return max(0.0, (job.started_ms - job.queued_ms) / 1000)


def _transcript(job: Job, texts: list[ChunkText], duration_s: float, model: str, timings: Timings) -> str:
    segments = [segment for text in texts for segment in text.segments]
    return (
        Transcript(
            job_id=job.id,
            source=job.spec.source,
            language=texts[0].language if texts else job.spec.options.language,
            language_probability=texts[0].language_probability if texts else None,
            duration_s=round(duration_s, 3),
            text=" ".join(segment.text for segment in segments),
            segments=renumbered(segments),
            model=model,
            timings=timings,
        )
        .to_json()
        .decode()
    )
