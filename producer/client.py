"""Submit jobs and follow them from Python, over Redis alone; `docs/python-client.md` shows how.

What only the producer's process can do stays with HTTP: uploads, transcripts, jobs that Redis has forgotten.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterable, Iterator, Mapping
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypedDict, TypeVar, Unpack

from pydantic_core import to_json

from common.connection import connect, refusal
from common.durability import Durability
from common.errors import SttreamError, Unavailable, Unconfirmed
from common.health import Readiness
from common.keys import Keys
from common.overview import Overview, QueueStats
from common.queue import Cancellation, JobQueue, NewJob, Submitted
from common.records import TERMINAL, Job, Priority
from common.rights import Missing
from common.settings import Settings, load_settings, variable_of
from common.setup import set_up_once
from common.sources import path_of
from producer.ids import new_id
from producer.intake import parse_submission
from producer.problems import problem_of
from producer.submitting import conflict, full, need_everything
from producer.tail import Event, EventTail

if TYPE_CHECKING:
    from types import TracebackType

    from common.options import Options

T = TypeVar("T")

# Jobs checked in one go: some ten milliseconds in which the program's event loop does nothing else.
_PAGE = 500
# Events tell when a job ends. A server that failed over may have lost one: every now and then the job is looked at.
_LOOKED_AGAIN_S = 5.0


class QueueFull(Unavailable):
    """As many jobs as allowed are under way: nothing was written. Submit again later."""


class IdConflict(SttreamError):
    """The id belongs to another job: nothing was written."""


class JobUnknown(SttreamError):
    """Redis does not hold the job: it was never submitted, or it ended so long ago that only the database has it."""


class Fields(TypedDict, total=False):
    """What may be asked for beside the source, as in `POST /v1/jobs`; None is the same as left out."""

    id: str | None
    priority: Priority | None
    options: Options | Mapping[str, Any] | None
    metadata: Mapping[str, str] | None
    timeout_s: float | None
    max_attempts: int | None
    retry_delay_s: float | None
    delay_s: float | None
    run_at: datetime | str | None
    """With a zone."""


class Outcome(NamedTuple):
    """What became of one of many submissions."""

    id: str | None
    """The job's; None where the submission could not be read."""
    error: Exception | None = None
    """What `Producer.submit` would have raised; None when the job was accepted, now or before."""
    new: bool = False
    """Whether this submission queued it."""


class Producer:
    """Submits jobs and follows them; an async context manager, to be used within one event loop.

    Every call raises `Unavailable` while Redis cannot be used, and `SettingsError` when it refuses the user.

    Args:
        settings: by default those of the environment. Used are `redis_url`, `queue`, `max_queued`, `durable_submit`
            and `lease_ms`; they should be the producer's.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = settings = settings or load_settings()
        self._redis = connect(settings)
        self._queue = JobQueue(self._redis, Keys(settings.queue), replicated=settings.durable_submit == "replica")
        self._tail = EventTail(self._queue)
        self._readiness = Readiness()
        self._opened = contextlib.AsyncExitStack()

    @classmethod
    def connect(cls, url: str, **settings: str | float) -> Self:
        """Return a producer for a Redis URL; the environment is not read.

        Args:
            url: as in `STTREAM_REDIS_URL`.
            settings: others of docs/settings.md by name, such as `queue="calls"`.

        Raises:
            SettingsError: one is unknown or wrong.
        """
        return cls(_settings(url, settings))

    async def __aenter__(self) -> Self:
        """Connect, and see that everything is there; what is missing is made where the user may.

        Raises:
            Unavailable: no answer, or the function library or the epoch is missing: run `sttream setup`.
        """
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._redis.aclose)
            stack.push_async_callback(self._readiness.aclose)
            with _plainly():
                setup = await set_up_once(self._redis, self._queue.keys)
                newest = await self._tail.newest()
            self._readiness.add("redis", setup.restore)
            self._readiness.add("durability", Durability(self._redis, self._settings.durable_submit).check)
            reader = asyncio.create_task(self._tail.run(newest))
            reader.add_done_callback(lambda _: self._tail.close())
            stack.push_async_callback(_end, reader)
            self._opened = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        await self._opened.aclose()

    async def submit(self, source: str | Path, **fields: Unpack[Fields]) -> Job:
        """Queue a recording; the same job submitted again, with its id, is one job.

        The source is read as the HTTP API reads it, but nobody looks whether the file is there and lies beneath an
        allowed root: that may be another host's. If not, the job fails. An id is known to Redis until
        `STTREAM_JOB_TTL_S` after the job's end; submitted later than that, it runs again, and its first record stays.

        Args:
            source: `file:///…` or an absolute path, as the consumers see it.
            fields: an id (made when left out), options and so on.

        Returns:
            The job as it stands.

        Raises:
            ValueError: a field is wrong.
            JobError: the source is no path, or of a kind that is not read.
            IdConflict: the id belongs to another job.
            QueueFull: as many jobs as allowed are under way.
            Unconfirmed: it may have been accepted (`durable_submit` is `replica`).
            Unavailable: Redis is away, or would not keep the job as `durable_submit` promises. After a lost reply the
                job may have been accepted: submit again with the same id.
        """
        [outcome] = await self.submit_many([{**fields, "source": source}])
        if outcome.error is not None:
            raise outcome.error
        job = await self.status(outcome.id or "")
        if job is None:
            raise Unavailable(f"job {outcome.id} was accepted, but Redis does not hold it any more; was it emptied?")
        return job

    async def submit_many(self, jobs: Iterable[str | Path | Mapping[str, Any]]) -> list[Outcome]:
        """Queue many recordings, each by itself, over a hundred in one call of the server.

        Args:
            jobs: sources, or `source` and what `submit` takes by name.

        Returns:
            What became of each, in their order: one that is refused stops no other.

        Raises:
            Unavailable: Redis went away, or would not keep them; some may have been accepted. Submit all again:
                those that have an id of yours stay one job.
        """
        outcomes: list[Outcome] = []
        left = iter(jobs)
        while page := list(itertools.islice(left, _PAGE)):
            with _plainly():
                await need_everything(self._readiness)
                outcomes += await self._submit(page)
        return outcomes

    async def _submit(self, page: Iterable[str | Path | Mapping[str, Any]]) -> list[Outcome]:
        read = [_read(job) for job in page]
        most = self._settings.max_queued
        answers = iter(await self._queue.submit_many([job for job in read if isinstance(job, NewJob)], max_queued=most))
        return [_outcome(job.id, next(answers), most) if isinstance(job, NewJob) else job for job in read]

    async def status(self, job_id: str) -> Job | None:
        """Return the job as it stands, or None when Redis does not hold it.

        A job that has ended is forgotten `STTREAM_JOB_TTL_S` later: `GET /v1/jobs/{id}` then finds it in the database.
        """
        with _plainly():
            return await self._queue.job(job_id)

    async def wait(self, job_id: str, timeout_s: float | None = None) -> Job:
        """Return the job when it has ended: completed, failed or cancelled.

        The transcript is with `GET /v1/jobs/{id}/transcript`, and in the writer's files.

        Args:
            job_id: as many as you like may be waited for at once.
            timeout_s: None for as long as it takes.

        Raises:
            TimeoutError: it has not ended within that time; it goes on.
            JobUnknown: Redis does not hold it.
        """
        deadline = asyncio.timeout(timeout_s)
        try:
            async with deadline:
                return await self._ended(job_id)
        except TimeoutError:
            if not deadline.expired():
                raise
            raise TimeoutError(f"job {job_id} has not ended within {timeout_s} s") from None

    async def _ended(self, job_id: str) -> Job:
        with self._tail.listen(job_id) as listener:
            while not (job := await self._known(job_id)).terminal:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOKED_AGAIN_S):
                        await listener.get()
            return job

    async def _known(self, job_id: str) -> Job:
        job = await self.status(job_id)
        if job is None:
            raise JobUnknown(
                f"job {job_id[:128]!r} is not in Redis: it was never submitted, or ended long ago; GET /v1/jobs/{{id}} "
                "also asks the database"
            )
        return job

    async def cancel(self, job_id: str) -> Cancellation:
        """Take a job out of the queue; a running one stops at its next chunk."""
        with _plainly():
            return await self._queue.cancel(job_id)

    async def stats(self) -> QueueStats:
        """Count what waits, runs and is dead, and look at each consumer."""
        with _plainly():
            return await Overview(self._queue).stats(self._settings.lease_ms)

    async def events(self, job_id: str | None = None) -> AsyncGenerator[Event]:
        """Yield each change as it happens, from the first `async for` on; docs/events.md has the fields.

        Args:
            job_id: only this job's: first how it stands, and none after its end. None for all jobs, without end.

        Raises:
            JobUnknown: Redis does not hold the job.
            Unavailable: the loop is so slow that 1,000 events wait for it, or the producer was closed.
        """
        with self._tail.listen(job_id) as listener:
            if job_id is not None:
                with _plainly():
                    newest = await self._tail.newest()
                job = await self._known(job_id)
                yield Event(newest, {"id": job.id, "state": job.state, "progress": str(job.progress)})
                if job.terminal:
                    return
            while (event := await listener.get()) is not None:
                yield event
                if job_id is not None and event.fields.get("state") in TERMINAL:
                    return
        raise Unavailable("no more events: they were read too slowly, or the producer was closed; begin again")


class SyncProducer:
    """The same for programs without an event loop: a context manager that runs a `Producer` in a thread of its own.

    For arguments, results and errors see `Producer`. Threads may share it.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self._producer = Producer(settings)
        self._loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread

    @classmethod
    def connect(cls, url: str, **settings: str | float) -> Self:
        """Return a producer for a Redis URL."""
        return cls(_settings(url, settings))

    def __enter__(self) -> Self:
        """Connect, and see that everything is there."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sttream-producer", daemon=True)
        self._thread.start()
        try:
            self._run(self._producer.__aenter__())
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections and end the thread."""
        try:
            self._run(self._producer.__aexit__(kind, error, trace))
        finally:
            self._stop()

    def submit(self, source: str | Path, **fields: Unpack[Fields]) -> Job:
        """Queue a recording."""
        return self._run(self._producer.submit(source, **fields))

    def submit_many(self, jobs: Iterable[str | Path | Mapping[str, Any]]) -> list[Outcome]:
        """Queue many recordings."""
        return self._run(self._producer.submit_many(jobs))

    def status(self, job_id: str) -> Job | None:
        """Return the job as it stands, or None."""
        return self._run(self._producer.status(job_id))

    def wait(self, job_id: str, timeout_s: float | None = None) -> Job:
        """Return the job when it has ended."""
        return self._run(self._producer.wait(job_id, timeout_s))

    def cancel(self, job_id: str) -> Cancellation:
        """Take a job out of the queue, or stop it."""
        return self._run(self._producer.cancel(job_id))

    def stats(self) -> QueueStats:
        """Count what waits, runs and is dead."""
        return self._run(self._producer.stats())

    def events(self, job_id: str | None = None) -> Iterator[Event]:
        """Yield each change as it happens."""
        events = self._producer.events(job_id)
        try:
            while (event := self._run(_next(events))) is not None:
                yield event
        finally:
            if not self._loop.is_closed():
                self._run(events.aclose())

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        """Run a call on the thread's loop; what ends the wait here, such as Ctrl-C, cancels it there."""
        called = asyncio.run_coroutine_threadsafe(call, self._loop)
        try:
            return called.result()
        except BaseException:
            called.cancel()
            raise

    def _stop(self) -> None:
        self._run(self._loop.shutdown_asyncgens())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _settings(url: str, others: Mapping[str, str | float]) -> Settings:
    return load_settings({"STTREAM_REDIS_URL": url} | {variable_of(name): str(value) for name, value in others.items()})


def _read(job: str | Path | Mapping[str, Any]) -> NewJob | Outcome:
    """Return a submission as the HTTP API would read it, or why it is refused."""
    body = job if isinstance(job, Mapping) else {"source": job}
    try:
        with _plainly():
            given = {name: value for name, value in body.items() if value is not None}
            submission = parse_submission(to_json(given, inf_nan_mode="constants"))
            path_of(submission.source)
    except (ValueError, SttreamError) as exc:
        return Outcome(None, exc)
    job_id = submission.id or new_id()
    return NewJob(job_id, submission.spec, due_ms=submission.due_ms, delay_ms=submission.delay_ms)


def _outcome(job_id: str, answer: Submitted | Unconfirmed, most: int) -> Outcome:
    if isinstance(answer, Unconfirmed):
        return Outcome(job_id, answer)
    if answer is Submitted.FULL:
        return Outcome(job_id, QueueFull(full(most).detail))
    if answer is Submitted.CONFLICT:
        return Outcome(job_id, IdConflict(conflict(job_id).detail))
    return Outcome(job_id, new=answer is not Submitted.KNOWN)


@contextlib.contextmanager
def _plainly() -> Iterator[None]:
    """Raise what a program can be expected to know, in place of HTTP's problems and the client library's errors."""
    try:
        yield
    except Missing as exc:
        raise Unavailable(str(exc)) from exc
    except SttreamError:
        raise
    except Exception as exc:
        if refused := refusal(exc):
            raise refused from exc
        problem = problem_of(exc)
        if problem is None:
            raise
        kind = Unavailable if problem.status == HTTPStatus.SERVICE_UNAVAILABLE else ValueError
        raise kind(problem.detail) from exc


async def _next(events: AsyncGenerator[Event]) -> Event | None:
    return await anext(events, None)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
