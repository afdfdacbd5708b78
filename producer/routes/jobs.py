"""Jobs over HTTP: submit, look, list, cancel, run again; and their transcripts."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web

from common.connection import server_is_away
from common.formats import FORMATS, Format, media_type, render
from common.queue import Cancellation, Revival, Submitted
from common.records import Job, State
from producer import queries, submitting
from producer.listing import list_jobs
from producer.parts import PARTS, Parts
from producer.problems import Problem
from producer.views import answer, job_view


def routes() -> Sequence[web.RouteDef]:
    """Return the routes of this module."""
    return [
        web.post("/v1/jobs", submit),
        web.get("/v1/jobs", show_all),
        web.get("/v1/jobs/{id}", show),
        web.delete("/v1/jobs/{id}", cancel),
        web.post("/v1/jobs/{id}/retry", retry),
        web.get("/v1/jobs/{id}/transcript", transcript),
    ]


async def submit(request: web.Request) -> web.Response:
    """Accept a job: 202, or 200 for one that was submitted before."""
    queries.allow(request)
    job, new = await submitting.submit(request.app[PARTS], request)
    return answer(job_view(job), 202 if new else 200, {"Location": f"/v1/jobs/{job.id}"})


async def show(request: web.Request) -> web.Response:
    """Return one job."""
    queries.allow(request)
    return answer(job_view(await find(request.app[PARTS], queries.job_id(request))))


async def show_all(request: web.Request) -> web.Response:
    """Return a page of jobs."""
    queries.allow(request, "state", "batch_id", "limit", "cursor")
    state = queries.one_of(request, "state", State, "")
    jobs, following = await list_jobs(
        request.app[PARTS],
        State(state) if state else None,
        queries.batch_id(request),
        request.query.get("cursor"),
        queries.limit(request),
    )
    return answer({"jobs": [job_view(job) for job in jobs], "next_cursor": following})


async def cancel(request: web.Request) -> web.Response:
    """Cancel a job that has not ended."""
    queries.allow(request)
    parts, job_id = request.app[PARTS], queries.job_id(request)
    cancellation = await parts.queue.cancel(job_id)
    job = await find(parts, job_id)
    if cancellation in {Cancellation.TOO_LATE, Cancellation.UNKNOWN}:
        raise Problem(409, "not_cancellable", f"job {job_id} is {job.state}: there is nothing left to cancel")
    return answer(job_view(job))


async def retry(request: web.Request) -> web.Response:
    """Run a failed or cancelled job again."""
    queries.allow(request)
    parts, job_id = request.app[PARTS], queries.job_id(request)
    revival = await parts.queue.revive(job_id)
    if revival is Revival.UNKNOWN:
        await _submit_again(parts, job_id)
    elif revival is Revival.NOT_ENDED:
        raise _not_retryable(await find(parts, job_id))
    return answer(job_view(await find(parts, job_id)), 202, {"Location": f"/v1/jobs/{job_id}"})


async def _submit_again(parts: Parts, job_id: str) -> None:
    """Run a job again that Redis has forgotten: the record of its last run becomes the next run."""
    stored = await parts.database.job(job_id)
    if stored is None:
        raise queries.no_job(job_id)
    if stored.state not in {State.FAILED, State.CANCELLED}:
        raise _not_retryable(stored)
    submitted = await parts.queue.submit(job_id, stored.spec, max_queued=parts.settings.max_queued, run=stored.run + 1)
    if submitted is Submitted.FULL:
        raise submitting.full(parts.settings.max_queued)


def _not_retryable(job: Job) -> Problem:
    return Problem(
        409, "not_retryable", f"job {job.id} is {job.state}: only failed and cancelled jobs can be run again"
    )


async def transcript(request: web.Request) -> web.Response:
    """Return what was said, in the format asked for."""
    queries.allow(request, "format")
    parts, job_id = request.app[PARTS], queries.job_id(request)
    format_: Format = queries.one_of(request, "format", FORMATS, "json")  # type: ignore[assignment]  # one of FORMATS
    found = await parts.database.transcript(job_id)
    if found is None:
        job = await find(parts, job_id)
        raise Problem(409, "not_completed", f"job {job_id} is {job.state}: it has no transcript")
    return web.Response(
        body=render(found, format_),
        headers={
            "Content-Type": media_type(format_),
            "Content-Disposition": f'inline; filename="{job_id}.{format_}"',
            # A transcript is never written again, and may hold what not everybody should read.
            "Cache-Control": "private, no-cache",
        },
    )


async def find(parts: Parts, job_id: str) -> Job:
    """Return a job from Redis, else from the database, which also answers while Redis is away.

    Raises:
        Problem: 404, neither knows it.
    """
    try:
        job = await parts.queue.job(job_id)
    except Exception as exc:
        stored = await parts.database.job(job_id) if server_is_away(exc) else None
        if stored is None:
            raise
        return stored
    job = job or await parts.database.job(job_id)
    if job is None:
        raise queries.no_job(job_id)
    return job
