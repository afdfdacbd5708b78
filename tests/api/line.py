"""The rest of the line, played by hand: a consumer and a writer that do exactly what a test says."""

from __future__ import annotations

from common.database import Database, TerminalRecord
from common.keys import TRANSCRIBERS, WRITERS
from common.queue import JobQueue
from common.records import Failure, Job, State
from common.scripts import call
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
    """Moves jobs on, state by state, through the functions that the services call."""

    def __init__(self, queue: JobQueue, database: Database) -> None:
        self.queue = queue
        self.redis = queue.redis
        self.keys = queue.keys
        self.database = database

    async def job(self, job_id: str) -> Job:
        job = await self.queue.job(job_id)
        assert job is not None
        return job

    async def start(self, job_id: str) -> None:
        """Deliver the job's entry to a consumer, which begins an attempt."""
        job = await self.job(job_id)
        keys, lane = self.keys, self.keys.lane(job.spec.priority)
        await self.redis.execute_command(
            "XCLAIM", lane, TRANSCRIBERS, CONSUMER, 0, job.entry_id, "RETRYCOUNT", 1, "FORCE"
        )
        started = await call(
            self.redis,
            "start",
            [lane, keys.job(job_id), keys.events, keys.results],
            [TRANSCRIBERS, CONSUMER, job.entry_id, 1, job_id, ""],
        )
        assert started[0] == 1

    async def renew(self, job_id: str, progress: float) -> int:
        job = await self.job(job_id)
        return int(
            await call(
                self.redis,
                "renew",
                [self.keys.lane(job.spec.priority), self.keys.job(job_id), self.keys.events],
                [TRANSCRIBERS, CONSUMER, job.entry_id, 1, job_id, progress],
            )
        )

    async def transcribe(self, job_id: str) -> None:
        await self.start(job_id)
        await self.finish(job_id)

    async def finish(self, job_id: str) -> None:
        """Publish the transcript of a job that was started."""
        job = await self.job(job_id)
        body = transcript_of(job).to_json().decode()
        await self._settle("complete", job, [], [body, 2.5])

    async def fail(self, job_id: str) -> None:
        await self.start(job_id)
        job = await self.job(job_id)
        await self._settle("bury", job, [self.keys.dead], [UNREADABLE.model_dump_json(), UNREADABLE.type])

    async def _settle(self, name: str, job: Job, more_keys: list[str], more: list[str | float]) -> None:
        keys = self.keys
        settled = await call(
            self.redis,
            name,
            [keys.lane(job.spec.priority), keys.job(job.id), keys.events, keys.results, *more_keys],
            [TRANSCRIBERS, CONSUMER, job.entry_id, 1, job.id, *more],
        )
        assert settled == 1

    async def complete(self, job_id: str) -> None:
        await self.transcribe(job_id)
        await self.store_all()

    async def store_all(self) -> None:
        """Be the writer: store every outcome that waits, records first, as one transaction."""
        reply = await self.redis.xreadgroup(WRITERS, WRITER, {self.keys.results: ">"}, count=1000)
        entries = reply[0][1] if reply else []
        now_ms = await self.queue.now_ms()
        await self.database.store([await self._record(fields, now_ms) for _, fields in entries])
        for entry_id, fields in entries:
            job_id = fields["id"]
            await call(
                self.redis,
                "store",
                [self.keys.results, self.keys.job(job_id), self.keys.events],
                [WRITERS, WRITER, entry_id, 1, job_id, fields["run"], fields["outcome"], 3600],
            )

    async def _record(self, fields: dict[str, str], now_ms: int) -> TerminalRecord:
        job = (await self.job(fields["id"])).model_copy(update={"state": State(fields["outcome"])})
        transcript = Transcript.model_validate_json(fields["body"]) if job.state is State.COMPLETED else None
        return TerminalRecord(job, transcript, now_ms)

    async def forget(self, job_id: str) -> None:
        """Let the job's hash expire, as it does a day after the end."""
        assert await self.redis.delete(self.keys.job(job_id)) == 1
