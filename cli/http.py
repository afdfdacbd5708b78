"""The producer's API as the command line uses it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aiohttp
import orjson

from cli.reasons import reason_of
from common.errors import SttreamError
from common.logs import safe_text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    # A JSON object of the API: the API's own documents describe it.
    Record = dict[str, Any]

CONNECT_S = 5.0
ANSWER_S = 60.0
RETRY_AFTER_S = 1.0
# The producer says something every 15 s; who is silent for longer than three of these is gone.
_LISTENING = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=60.0)


class Refused(SttreamError):
    """The producer refused a request; asking again in the same way does not help unless `try_again_s` is set."""

    def __init__(self, status: int, detail: str, try_again_s: float | None = None, code: str = "refused") -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.try_again_s = try_again_s


class Unreachable(SttreamError):
    """Nothing answers where the producer should be."""


class Producer:
    """One producer.

    Every call raises `Refused` with the producer's own words, or `Unreachable`.
    """

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url.rstrip("/")
        self._session = session

    async def submit(self, body: Mapping[str, object]) -> tuple[Record, bool]:
        """Submit a job; return it and whether it is new."""
        status, content = await self._request("POST", "/v1/jobs", json=body)
        return _record(content), status != 200

    async def upload(self, file: Path, body: Mapping[str, object]) -> tuple[Record, bool]:
        """Submit a job together with its recording, read while it is sent."""
        with file.open("rb") as content:
            form = aiohttp.FormData()
            form.add_field("job", orjson.dumps(body).decode(), content_type="application/json")
            form.add_field("file", content, filename=file.name)
            # No limit on the whole: it is as long as the file is large.
            status, answer = await self._request("POST", "/v1/jobs", data=form, timeout=_timeout(None))
        return _record(answer), status != 200

    async def job(self, job_id: str) -> Record:
        """Return a job."""
        return await self.get(path_of("jobs", job_id))

    async def cancel(self, job_id: str) -> Record:
        """Cancel a job; return it, cancelled or cancelling."""
        return _record((await self._request("DELETE", path_of("jobs", job_id)))[1])

    async def transcript(self, job_id: str, format_: str) -> bytes:
        """Return a transcript as a file."""
        return (await self._request("GET", path_of("jobs", job_id, "transcript"), params={"format": format_}))[1]

    async def get(self, path: str, **params: str) -> Record:
        """Return what lies at a path."""
        return _record((await self._request("GET", path, params=params))[1])

    async def post(self, path: str) -> Record:
        """Ask for a change that needs no words."""
        return _record((await self._request("POST", path))[1])

    async def delete(self, path: str) -> None:
        """Remove what lies at a path."""
        await self._request("DELETE", path)

    async def events(self, path: str, after: str = "") -> AsyncIterator[tuple[str, Record]]:
        """Yield the id and the data of server-sent events until the stream ends or breaks off.

        Args:
            after: the id of the last event that is known; "" starts as the producer chooses.
        """
        event_id, headers = "", {"Last-Event-ID": after} if after else {}
        with _unreachable(self.url):
            async with self._session.get(self.url + path, timeout=_LISTENING, headers=headers) as response:
                if response.status >= 400:
                    raise await _refusal(response)
                with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                    async for line in response.content:
                        if line.startswith(b"id:"):
                            event_id = line.removeprefix(b"id:").strip().decode()
                        elif line.startswith(b"data:"):
                            yield event_id, _record(line.removeprefix(b"data:"))

    async def _request(self, method: str, path: str, **options: Any) -> tuple[int, bytes]:
        with _unreachable(self.url):
            async with self._session.request(method, self.url + path, **options) as response:
                if response.status >= 400:
                    raise await _refusal(response)
                return response.status, await response.read()


@contextlib.asynccontextmanager
async def open_producer(url: str) -> AsyncIterator[Producer]:
    """Open connections to a producer as they are needed, and close them with the block."""
    async with aiohttp.ClientSession(timeout=_timeout(ANSWER_S)) as session:
        yield Producer(url, session)


def _timeout(total_s: float | None) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=total_s, sock_connect=CONNECT_S)


@contextlib.contextmanager
def _unreachable(url: str) -> Any:
    try:
        yield
    except aiohttp.InvalidURL as exc:
        raise Refused(0, f"{safe_text(url)!r} is no URL of a producer; expected http://HOST:PORT (--url)") from exc
    except (aiohttp.ClientError, TimeoutError) as exc:
        raise Unreachable(
            f"no producer answers at {safe_text(url)}: {safe_text(reason_of(exc))}. Is `sttream up` running? "
            "Another address: --url or STTREAM_URL."
        ) from exc


async def _refusal(response: aiohttp.ClientResponse) -> Refused:
    """Read problem+json; anything else answered by something that is not our producer."""
    status, text = response.status, await response.text(errors="replace")
    try:
        problem = orjson.loads(text)
        detail, code = problem.get("detail") or problem["title"], problem.get("code") or "refused"
    except (ValueError, KeyError, AttributeError):
        return Refused(
            status,
            f"{response.url.with_user(None)} answered {status}, and not as a producer does: "
            f"{safe_text(text[:200]) or 'nothing'}. Is the address right (--url)?",
        )
    wait_s = _retry_after_s(response) if status in {429, 503} else None
    return Refused(status, str(detail), wait_s, str(code))


def _retry_after_s(response: aiohttp.ClientResponse) -> float:
    try:
        return max(0.1, float(response.headers["Retry-After"]))
    except (KeyError, ValueError):
        return RETRY_AFTER_S


def _record(content: bytes) -> Record:
    record: Record = orjson.loads(content)
    return record


def path_of(*parts: str) -> str:
    """Return a path of the API; ids may hold anything."""
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)
