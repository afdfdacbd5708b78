"""Errors as clients see them: problem+json, with the `error` object that OpenAI clients read.

Source: RFC 9457; the OpenAI API reference, "Error codes".
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING

import orjson
import structlog
from aiohttp import web

from common.connection import library_is_missing, server_is_away
from common.errors import JobError, Unavailable, Unconfirmed
from common.logs import safe_text

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler

log = structlog.get_logger()

RETRY_AFTER_S = 5
UNAVAILABLE = "unavailable"
REQUEST_ID = web.RequestKey("request_id", str)


class Problem(Exception):
    """A request that is answered with an error.

    Args:
        status: the HTTP status.
        code: for programs; one of a small closed set.
        detail: for people: what, expected against found, what to do.
        param: the field at fault, as a dotted path.
        headers: more headers of the answer.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.param = param
        self.headers = dict(headers or {})
        if status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}:
            self.headers.setdefault("Retry-After", str(RETRY_AFTER_S))


@web.middleware
async def answer_with_problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever a handler raises into a problem."""
    try:
        return await handler(request)
    except web.HTTPException as exc:
        if exc.status < HTTPStatus.BAD_REQUEST:
            raise
        return problem_response(_of_http(exc, request), request)
    except Exception as exc:
        problem = problem_of(exc)
        if problem is None:
            log.exception("request_failed", method=request.method, path=request.path)
            problem = _unexpected(request)
        elif problem.status == HTTPStatus.SERVICE_UNAVAILABLE:
            # Not louder: in an outage there are thousands, and the outage itself is told once.
            log.debug("request_refused", why=problem.code, error=str(exc) or type(exc).__name__)
        return problem_response(problem, request)


def problem_of(error: Exception) -> Problem | None:
    """Return the problem that an error means for the client, or None when it is a fault of this program.

    A ValidationError is not among them: where it is the client's, intake has named the field; elsewhere it is a
    record of ours that cannot be read.
    """
    if isinstance(error, Problem):
        return error
    if isinstance(error, JobError):
        if error.retryable:
            return Problem(503, error.type, error.detail, param="source")
        return Problem(422, error.type, error.detail, param="source")
    if isinstance(error, Unconfirmed):
        return Problem(503, "not_confirmed", str(error), headers={"Location": f"/v1/jobs/{error.job_id}"})
    if isinstance(error, Unavailable):
        return Problem(503, UNAVAILABLE, safe_text(str(error)))
    if library_is_missing(error):
        return Problem(503, UNAVAILABLE, "Redis lacks sttream's function library; run `sttream setup`, then try again")
    if server_is_away(error):
        return Problem(503, UNAVAILABLE, "Redis cannot be used now; try again later")
    return None


def problem_response(problem: Problem, request: web.Request) -> web.Response:
    """Return the answer that says what is wrong."""
    return web.Response(
        status=problem.status,
        body=orjson.dumps(_body(problem, request)),
        headers={"Cache-Control": "no-store", **problem.headers},
        content_type="application/problem+json",
    )


def _body(problem: Problem, request: web.Request) -> dict[str, object]:
    return {
        "type": f"urn:sttream:problem:{problem.code}",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
        "instance": safe_text(request.path, 300),
        "code": problem.code,
        "error": {
            "message": problem.detail,
            "type": _openai_type(problem.status),
            "param": problem.param,
            "code": problem.code,
        },
    }


def _openai_type(status: int) -> str:
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return "rate_limit_error"
    return "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"


def _of_http(error: web.HTTPException, request: web.Request) -> Problem:
    """Return the problem of an error that aiohttp raised: no such route, wrong method, too large."""
    phrase = HTTPStatus(error.status).phrase
    code = phrase.lower().replace(" ", "_").replace("-", "_")
    headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
    details = {
        404: "no such route; docs/http-api.md lists them",
        405: f"{request.method} is not possible here; allowed: {headers.get('Allow', 'nothing')}",
    }
    return Problem(error.status, code, details.get(error.status, error.reason or phrase), headers=headers)


def _unexpected(request: web.Request) -> Problem:
    reference = request.get(REQUEST_ID, "unknown")
    return Problem(500, "internal_error", f"this is a fault of the server; its log has more under {reference}")
