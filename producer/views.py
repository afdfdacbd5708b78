"""Records as clients see them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

if TYPE_CHECKING:
    from common.dead import DeadLetter
    from common.overview import QueueStats
    from common.records import Job
    from common.search import Hit


def job_view(job: Job) -> dict[str, Any]:
    """Return the public form of a job."""
    return {
        "id": job.id,
        "state": job.state,
        "source": job.spec.source,
        "priority": job.spec.priority,
        "attempts": job.attempts,
        "created_at": rfc3339(job.created_ms),
        "queued_at": rfc3339(job.queued_ms),
        "started_at": rfc3339(job.started_ms),
        "finished_at": rfc3339(job.finished_ms),
        "progress": job.progress,
        "audio_s": job.audio_s,
        "worker": job.worker,
        "error": job.error.model_dump() if job.error else None,
        "cancel_requested": job.cancel_requested,
        "batch_id": job.spec.batch_id,
        "options": job.spec.options.model_dump(),
        "metadata": job.spec.metadata,
        "links": _links(job.id),
    }


def hit_view(hit: Hit) -> dict[str, Any]:
    """Return the public form of a hit of a search."""
    links = _links(hit.job_id)
    return {
        "job_id": hit.job_id,
        "start_s": hit.start_s,
        "end_s": hit.end_s,
        "snippet": hit.snippet,
        "links": {"job": links["self"], "transcript": links["transcript"]},
    }


def queue_view(stats: QueueStats) -> dict[str, Any]:
    """Return the public form of the queue's figures."""
    return {
        "queue": stats.queue,
        "queued": stats.queued,
        "scheduled": stats.scheduled,
        "running": stats.running,
        "dead": stats.dead,
        "unstored": stats.unstored,
        "oldest_queued_s": stats.oldest_queued_s,
        "consumers": [
            {
                "name": consumer.name,
                "host": consumer.host,
                "state": consumer.state,
                "running": consumer.running,
                "idle_s": consumer.idle_s,
            }
            for consumer in stats.consumers
        ],
    }


def dead_view(letter: DeadLetter) -> dict[str, Any]:
    """Return the public form of a dead letter."""
    return {
        "id": letter.id,
        "job_id": letter.job_id or None,
        "reason": letter.reason,
        "error": letter.failure.model_dump(),
        "died_at": rfc3339(entry_ms(letter.dead_id)),
        "stream": letter.stream,
        "fields": dict(zip(letter.fields[::2], letter.fields[1::2], strict=False)),
    }


def rfc3339(ms: int | None) -> str | None:
    """Return a time as clients read it: UTC, to the millisecond."""
    if ms is None:
        return None
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def entry_ms(entry_id: str) -> int:
    """Return the server time at which a stream entry was added."""
    return int(entry_id.partition("-")[0])


def answer(body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return a JSON answer; states change, so nobody may keep it."""
    return web.Response(
        status=status,
        body=orjson.dumps(body),
        content_type="application/json",
        headers={"Cache-Control": "no-store", **(headers or {})},
    )


def _links(job_id: str) -> dict[str, str]:
    own = f"/v1/jobs/{job_id}"
    return {"self": own, "transcript": f"{own}/transcript", "events": f"{own}/events"}
