"""The handler of the jobs stage: one job from its source to its transcript.

fetch → prepare (decode, find speech) → chunks → engine → transcript
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from common.errors import JobError
from common.outcomes import Completed, Outcome
from common.sources import open_source
from common.transcript import Timings, Transcript
from consumer.chunks import Chunk, chunks_of_everything, chunks_of_speech, total_seconds
from consumer.engine import ChunkAbandoned, ChunkText, renumbered

if TYPE_CHECKING:
    from common.metrics import ConsumerMetrics
    from common.options import Options
    from common.records import Job
    from common.runner import Work
    from common.settings import Settings
    from consumer.engine import Engine
    from consumer.prepare import Prepared, PreparePool

# The tail of the text so far that prompts the next chunk in sequential mode; the model keeps 223 tokens.
_PROMPT_CHARACTERS = 600
# How far a job is when its audio is ready; the rest is the engine's.
_PREPARED = 0.05


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
        self._pool = pool
        self._engine = engine
        self._metrics = metrics
        self._clock = clock
        self._preparing = 0
        self._changed = asyncio.Condition()

    async def hungry(self) -> None:
        """Return when the engine will soon run out of work: what waits is less than it does at a time."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._preparing + self._engine.backlog < self._engine.at_a_time)

    async def handle(self, work: Work) -> Outcome:
        """Transcribe one job.

        Raises:
            JobError: what is wrong with the source, the recording, the options or the engine.
        """
        job = _job_of(work)
        self._engine.check(job.spec.options)
        started = self._clock()
        async with self._prepared(work, job) as (recording, fetch_s, prepare_s):
            work.lease.report(_PREPARED)
            chunks = _chunks(recording, job.spec.options)
            at = self._clock()
            try:
                texts = await self._transcribe(work, chunks, recording)
            except ChunkAbandoned as exc:
                # The engine saw the end of the lease before the stage's cancellation arrived; the stage knows why.
                raise asyncio.CancelledError from exc
            transcribe_s = self._clock() - at
            duration_s = recording.duration_s
        took_s = self._clock() - started
        timings = Timings(
            queued_s=round(_waited_s(job), 3),
            fetch_s=round(fetch_s, 3),
            prepare_s=round(prepare_s, 3),
            transcribe_s=round(transcribe_s, 3),
            realtime_factor=round(duration_s / took_s, 2),
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
        finally:
            self._preparing -= 1
            await self._tell()
        with prepared:
            yield prepared, fetched - at, self._clock() - fetched

    async def _transcribe(self, work: Work, chunks: list[Chunk], recording: Prepared) -> list[ChunkText]:
        """Transcribe all chunks: as many at a time as the engine does, or one after another in sequential mode.

        Without a language the first chunk decides for the whole recording.
        """
        options = _job_of(work).spec.options
        if options.mode == "sequential":
            return await self._one_by_one(work, chunks, recording, options)
        texts: list[ChunkText] = []
        if chunks and options.language is None:
            texts.append(await self._chunk(work, chunks, 0, recording, options))
            options = options.model_copy(update={"language": texts[0].language})
        running = asyncio.Semaphore(self._engine.at_a_time)

        async def transcribe(index: int) -> ChunkText:
            async with running:
                return await self._chunk(work, chunks, index, recording, options)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(transcribe(index)) for index in range(len(texts), len(chunks))]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from failures  # one failed chunk ends the job; the others were cancelled
        return texts + [task.result() for task in tasks]

    async def _one_by_one(
        self, work: Work, chunks: list[Chunk], recording: Prepared, options: Options
    ) -> list[ChunkText]:
        """Transcribe chunks in order, each prompted with the end of the text before it."""
        texts: list[ChunkText] = []
        prompt = options.initial_prompt
        for index in range(len(chunks)):
            asked = options.model_copy(update={"initial_prompt": prompt})
            texts.append(await self._chunk(work, chunks, index, recording, asked))
            options = options.model_copy(update={"language": texts[0].language})
            said = " ".join(segment.text for text in texts[-3:] for segment in text.segments)
            prompt = said[-_PROMPT_CHARACTERS:] or options.initial_prompt
        return texts

    async def _chunk(
        self, work: Work, chunks: list[Chunk], index: int, recording: Prepared, options: Options
    ) -> ChunkText:
        """Transcribe one chunk and report how far the job is."""
        chunk = chunks[index]
        try:
            text = await self._engine.transcribe(chunk, recording.samples, options, lambda: work.lease.over)
        finally:
            await self._tell()
        work.lease.add(chunk.seconds / total_seconds(chunks) * (1 - _PREPARED))
        return text

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


def _chunks(recording: Prepared, options: Options) -> list[Chunk]:
    return chunks_of_speech(recording.spans) if options.vad else chunks_of_everything(recording.samples)


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
