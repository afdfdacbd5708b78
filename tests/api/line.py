"""The rest of the line, played by hand: a consumer and a writer that do exactly what a test says."""

from __future__ import annotations

from collections.abc import Mapping

from common.database import Database, TerminalRecord
from common.entries import Entry, Settled, Task
from common.keys import TRANSCRIBERS
from common.outcomes import Bury, Publish, Verdict
from common.queue import JobQueue
from common.records import Failure, Job, State
from common.settings import Settings
from common.streams import JobStreams, ResultStream
from common.transcript import Segment, Timings, Transcript

CONSUMER = "host-1-abcd"
WRITER = "host-2-abcd"
UNREADABLE = Failure(type="audio_unreadable", detail="no audio stream was found")


def transcript_of(job: Job, text: str = "No more, said Ivan.") -> Transcript:
    return Transcript(
        job_id=job.id,
        source=job.spec.source,
        language="en",
        language_probability=0.98,
        duration_s=2.5,
        text=text,
        segments=(Segment(id=0, start=0.0, end=2.5, text=text, avg_logprob=-0.2, no_speech_prob=0.01),),
        model="bundled",
        timings=Timings(queued_s=0.1, fetch_s=0.1, prepare_s=0.1, transcribe_s=0.5, realtime_factor=5.0),
    )


class Line:
    """Moves jobs on, state by state, through the streams that the services work on."""

    def __init__(self, queue: JobQueue, database: Database, settings: Settings) -> None:
        self.queue = queue
        self.redis = queue.redis
        self.keys = queue.keys
        self.database = database
        self.jobs = JobStreams(queue.redis, queue.keys, settings, CONSUMER)
        self.results = ResultStream(queue.redis, queue.keys, settings, WRITER)
        self._started: dict[str, Task] = {}

    async def job(self, job_id: str) -> Job:
        job = await self.queue.job(job_id)
        assert job is not None
        return job

    async def start(self, job_id: str) -> None:
        """Deliver the job's entry to a consumer, whatever waits before it, and begin an attempt."""
        job = await self.job(job_id)
        assert job.entry_id is not None
        lane = self.keys.lane(job.spec.priority)
        claim = ("XCLAIM", lane, TRANSCRIBERS, CONSUMER, 0, job.entry_id, "RETRYCOUNT", 1, "FORCE")
        await self.redis.execute_command(*claim)
        fields = {"id": job_id, "source": job.spec.source}
        [self._started[job_id]] = await self.jobs.begin([Entry(lane, job.entry_id, 1, fields)])

    async def renew(self, job_id: str, progress: float) -> int:
        return int(await self.redis.execute_command(*self.jobs.renewal(self._started[job_id], str(progress))))

    async def transcribe(self, job_id: str) -> None:
        await self.start(job_id)
        await self.finish(job_id)

    async def finish(self, job_id: str) -> None:
        """Publish the transcript of a job that was started."""
        body = transcript_of(await self.job(job_id)).to_json().decode()
        await self._settle(job_id, Publish(body, 2.5))

    async def fail(self, job_id: str) -> None:
        await self.start(job_id)
        await self._settle(job_id, Bury(UNREADABLE, UNREADABLE.type))

    async def _settle(self, job_id: str, verdict: Verdict) -> None:
        assert await self.jobs.settle([(self._started.pop(job_id), verdict)]) == [Settled.DONE]

    async def complete(self, job_id: str) -> None:
        await self.transcribe(job_id)
        await self.store_all()

    async def store_all(self) -> None:
        """Be the writer: store every outcome that waits, records first, as one transaction."""
        tasks = await self.results.begin(await self.results.read(1000, 1))
        now_ms = await self.queue.now_ms()
        await self.database.store([await self._record(task.entry.fields, now_ms) for task in tasks])
        await self.results.settle([(task, Publish("", 0.0)) for task in tasks])

    async def _record(self, fields: Mapping[str, str], now_ms: int) -> TerminalRecord:
        job = (await self.job(fields["id"])).model_copy(update={"state": State(fields["outcome"])})
        transcript = Transcript.model_validate_json(fields["body"]) if job.state is State.COMPLETED else None
        return TerminalRecord(job, transcript, now_ms)

    async def forget(self, job_id: str) -> None:
        """Let the job's hash expire, as it does a day after the end."""
        assert await self.redis.delete(self.keys.job(job_id)) == 1
