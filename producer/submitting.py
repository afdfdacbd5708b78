"""Accepting a job: once, and only while everything that it needs is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from common.errors import JobError, Unavailable
from common.health import OK, STOPPING, Readiness
from common.logs import safe_text
from common.queue import Submitted
from common.records import Job
from common.sources import check_source
from producer.bodies import MAX_JSON_BYTES, PacedBody, read_limited
from producer.ids import new_id
from producer.intake import Submission, check_submission, parse_submission
from producer.problems import UNAVAILABLE, Problem, problem_of
from producer.uploads import Upload, receive_form

if TYPE_CHECKING:
    from aiohttp import web

    from common.options import Options
    from producer.parts import Parts

# A network disk that hangs must not hold the client for ever.
_SOURCE_LIMIT_S = 10.0


async def submit(parts: Parts, request: web.Request) -> tuple[Job, bool]:
    """Read a submission and accept it.

    Returns:
        The job as it stands, and whether it is new: False when the same one was submitted before.

    Raises:
        Problem: why it is refused; an upload is removed then.
    """
    try:
        await need_everything(parts.readiness)
        async with _read(parts, request) as (submission, job_id):
            await _check_source(parts, submission.source)
            await _check_lexicon(parts, submission.options)
            if submission.id is not None and (stored := await _stored(parts, submission)):
                return stored, False
            await need_everything(parts.readiness)  # again: an upload may have taken minutes
            return await _queue(parts, submission, job_id)
    except Exception as exc:
        if problem := problem_of(exc):
            parts.metrics.jobs_refused.labels(problem.code).inc()
        raise


async def need_everything(readiness: Readiness) -> None:
    """Refuse while a part is away that the job will need: a promise must not be given that cannot be kept.

    Raises:
        Problem: 503 saying what is away.
    """
    report = await readiness.report()
    # While the process stops it still does what it is asked to.
    wrong = "; ".join(f"{name}: {told}" for name, told in report.items() if told not in {OK, STOPPING})
    if wrong:
        raise Problem(503, UNAVAILABLE, f"no jobs are accepted now ({wrong}); try again later")


@asynccontextmanager
async def _read(parts: Parts, request: web.Request) -> AsyncIterator[tuple[Submission, str]]:
    """Yield the submission and the job's id; an upload is removed when the job is refused in the block."""
    body = PacedBody(request.content, parts.pace)
    if request.content_type == "multipart/form-data":
        async with receive_form(request, parts.uploads, body) as (job, upload):
            submission = check_submission({**job, "source": upload.source})
            job_id = submission.id or new_id()
            await parts.uploads.keep(upload, job_id)
            async with _refusal_removes(parts, upload, job_id):
                yield submission.model_copy(update={"source": upload.source}), job_id
    elif request.content_type == "application/json":
        submission = parse_submission(await read_limited(body, MAX_JSON_BYTES))
        yield submission, submission.id or new_id()
    else:
        found = safe_text(request.content_type, 60)
        raise Problem(
            415,
            "unsupported_media_type",
            f"expected Content-Type application/json or multipart/form-data, found {found}",
        )


@asynccontextmanager
async def _refusal_removes(parts: Parts, upload: Upload, job_id: str) -> AsyncIterator[None]:
    """Remove the upload of a job that was refused for certain; after a lost reply it may have been accepted."""
    try:
        yield
    except (Problem, JobError):
        job = await parts.queue.job(job_id)
        if job is None or job.spec.source != upload.source:
            await parts.uploads.discard(upload)
        raise


async def _check_source(parts: Parts, source: str) -> None:
    settings = parts.settings
    try:
        async with asyncio.timeout(_SOURCE_LIMIT_S):
            await asyncio.to_thread(check_source, source, settings.roots, settings.max_file_bytes)
    except TimeoutError:
        raise Unavailable(f"the disk of the source gave no answer within {_SOURCE_LIMIT_S:.0f} s") from None


async def _check_lexicon(parts: Parts, options: Options) -> None:
    """Refuse a lexicon that the consumers will not find, or that has more terms than a model takes.

    Raises:
        Problem: 422, or 503 while the disk cannot be read.
    """
    if options.lexicon is None:
        return
    try:
        async with asyncio.timeout(_SOURCE_LIMIT_S):
            await asyncio.to_thread(parts.lexicons.apply, options)
    except TimeoutError:
        raise Unavailable(f"the disk of the lexicons gave no answer within {_SOURCE_LIMIT_S:.0f} s") from None
    except JobError as error:
        raise Problem(503 if error.retryable else 422, error.type, error.detail, param="options.lexicon") from error


async def _stored(parts: Parts, submission: Submission) -> Job | None:
    """Return the job of this id that has ended and is stored, whose hash Redis may have forgotten.

    Raises:
        Problem: 409, it was another job.
    """
    job = await parts.database.job(submission.id or "")
    if job is None:
        return None
    if job.spec.to_json() != submission.spec.to_json():
        raise conflict(job.id)
    return await parts.queue.job(job.id) or job


async def _queue(parts: Parts, submission: Submission, job_id: str) -> tuple[Job, bool]:
    submitted = await parts.queue.submit(
        job_id,
        submission.spec,
        max_queued=parts.settings.max_queued,
        due_ms=submission.due_ms,
        delay_ms=submission.delay_ms,
    )
    if submitted is Submitted.FULL:
        raise full(parts.settings.max_queued)
    if submitted is Submitted.CONFLICT:
        raise conflict(job_id)
    if submitted is not Submitted.KNOWN:
        parts.metrics.jobs_submitted.labels(submission.priority).inc()
    job = await parts.queue.job(job_id)
    if job is None:
        raise Unavailable(f"job {job_id} was accepted, but Redis does not hold it any more; was it emptied?")
    return job, submitted is not Submitted.KNOWN


def full(most: int) -> Problem:
    """Return the refusal of a queue that holds as many jobs as allowed."""
    return Problem(
        429, "queue_full", f"{most} jobs are under way, as many as allowed (STTREAM_MAX_QUEUED); try again later"
    )


def conflict(job_id: str) -> Problem:
    """Return the refusal of an id that another job has."""
    return Problem(409, "id_conflict", f"id: {job_id} belongs to another job; use another id", param="id")
