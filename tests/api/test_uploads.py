"""POST /v1/jobs with a recording: on disk whole or not at all, and never more than allowed."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from common.settings import Settings
from producer.bodies import Pace
from tests.api.conftest import Api, Maker, form
from tests.until import until

BOUNDARY = "--b"
FORM = {"Content-Type": "multipart/form-data; boundary=b"}


def _file_part(data: bytes) -> bytes:
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    return head + data + b"\r\n"


@pytest.mark.parametrize("job_first", [True, False])
async def test_an_upload_becomes_a_file_and_a_job(api: Api, job_first: bool) -> None:
    """The recording lies in the upload folder, complete, under a name that holds the job's id."""
    recording = os.urandom(90_000)
    data = form(recording, job={"id": "talk", "priority": "high"}, job_first=job_first)
    status, job = await api.call("POST", "/v1/jobs", data=data)

    assert (status, job["id"], job["priority"], job["state"]) == (202, "talk", "high", "queued")
    digest = hashlib.sha256(recording).hexdigest()[:16]
    assert api.files() == [f"talk-{digest}.mp3"]
    _check_file(job["source"], recording)


def _check_file(source: str, recording: bytes) -> None:
    path = Path(unquote(urlsplit(source).path))
    assert path.read_bytes() == recording
    assert path.stat().st_mode & 0o777 & ~0o640 == 0


async def test_an_upload_needs_no_json(api: Api) -> None:
    """`curl -F file=@talk.mp3` is enough."""
    status, job = await api.call("POST", "/v1/jobs", data=form(b"RIFF"))
    assert status == 202
    assert api.files() == [f"{job['id']}-{hashlib.sha256(b'RIFF').hexdigest()[:16]}.mp3"]


async def test_the_same_upload_under_the_same_id_is_the_same_job(api: Api) -> None:
    """A client that lost the answer sends its gigabyte again: one job, one file. Another recording is refused."""
    assert (await api.call("POST", "/v1/jobs", data=form(b"one", job={"id": "a"})))[0] == 202
    files = api.files()
    assert (await api.call("POST", "/v1/jobs", data=form(b"one", job={"id": "a"})))[0] == 200
    status, problem = await api.call("POST", "/v1/jobs", data=form(b"two", job={"id": "a"}))
    assert (status, problem["code"]) == (409, "id_conflict")
    assert api.files() == files


async def test_the_same_upload_many_times_at_once_is_one_job(api: Api) -> None:
    """Parallel retries race for one file name; the job's recording must be there in the end."""
    calls = (api.call("POST", "/v1/jobs", data=form(b"one", job={"id": "a"})) for _ in range(20))
    answers = await asyncio.gather(*calls)
    assert sorted(status for status, _ in answers) == [200] * 19 + [202]
    assert len(api.files()) == 1


@pytest.mark.parametrize("name", ["../../etc/passwd", "a.b/c", "x.wav\\..", "a." + "x" * 300, "", "ü.MP3", "a.m p3"])
async def test_the_clients_file_name_cannot_choose_a_place(api: Api, name: str) -> None:
    """Only a plain suffix of the name is used."""
    assert (await api.call("POST", "/v1/jobs", data=form(b"x", name=name, job={"id": "a"})))[0] == 202
    [stored] = api.files()
    assert re.fullmatch(r"a-[0-9a-f]{16}(\.mp3)?", stored)


@pytest.mark.parametrize("told", [True, False])
async def test_an_upload_over_the_limit_is_413_while_it_arrives(api: Api, told: bool) -> None:
    """The limit holds without Content-Length, and the client need not send the rest to learn of it."""
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield _file_part(b"")[:-2]
        while sent < 50_000_000:
            sent += 10_000
            yield b"x" * 10_000

    if told:
        status, problem = await api.call("POST", "/v1/jobs", data=form(b"x" * 300_000))
    else:
        async with api.client.post("/v1/jobs", data=endless(), headers=FORM) as answer:
            status, problem = answer.status, await answer.json(content_type=None)
        assert sent < 50_000_000
    assert (status, problem["code"], problem["error"]["param"]) == (413, "file_too_large", "file")
    assert api.files() == []


async def test_exactly_the_limit_is_accepted(api: Api) -> None:
    """The limit is the largest size allowed, not the smallest refused."""
    assert (await api.call("POST", "/v1/jobs", data=form(b"x" * 100_000)))[0] == 202
    assert (await api.call("POST", "/v1/jobs", data=form(b"x" * 100_001)))[0] == 413
    assert len(api.files()) == 1


BAD_FORMS: dict[str, tuple[bytes, int, str | None]] = {
    "empty recording": (_file_part(b"") + b"--b--\r\n", 422, "file"),
    "no recording": (b'--b\r\nContent-Disposition: form-data; name="job"\r\n\r\n{}\r\n--b--\r\n', 422, "file"),
    "nothing": (b"--b--\r\n", 422, "file"),
    "two recordings": (_file_part(b"x") + _file_part(b"y") + b"--b--\r\n", 422, "file"),
    "unknown part": (_file_part(b"x").replace(b'"file"', b'"audio"') + b"--b--\r\n", 422, "audio"),
    "cut off": (_file_part(b"x"), 400, None),
    "cut off in a header": (b"--b\r\nContent-Dispo", 400, None),
    "no form at all": (b"hello", 400, None),
    "a form in a form": (
        b"--b\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n--c\r\n\r\nx\r\n--c--\r\n--b--\r\n",
        422,
        "part",
    ),
    "endless header": (b"--b\r\nX: " + b"x" * 100_000 + b"\r\n\r\nx\r\n--b--\r\n", 400, None),
}


@pytest.mark.parametrize(("raw", "status", "param"), BAD_FORMS.values(), ids=BAD_FORMS.keys())
async def test_a_bad_form_is_refused_and_leaves_nothing(api: Api, raw: bytes, status: int, param: str | None) -> None:
    """Whatever breaks while a form arrives, no file stays and the answer says what was wrong."""
    found, problem = await api.call("POST", "/v1/jobs", data=raw, headers=FORM)
    assert (found, problem["error"]["param"]) == (status, param)
    assert api.files() == []


@pytest.mark.parametrize(
    ("job", "status", "param"),
    [
        ("{", 400, None),
        ("[]", 422, None),
        ({"source": "/a"}, 422, "source"),
        ({"id": "../a"}, 422, "id"),
        ({"options": {"language": "xx"}}, 422, "options.language"),
        ('{"metadata": {"a": "' + "x" * 70_000 + '"}}', 413, "job"),
    ],
)
@pytest.mark.parametrize("job_first", [True, False])
async def test_wrong_json_beside_an_upload_is_refused(
    api: Api, job: object, status: int, param: str | None, job_first: bool
) -> None:
    """The same checks as without an upload, and no file stays."""
    found, problem = await api.call("POST", "/v1/jobs", data=form(b"x" * 5000, job=job, job_first=job_first))
    assert (found, problem["error"]["param"]) == (status, param)
    assert api.files() == []


async def test_a_full_queue_keeps_no_upload(make_api: Maker, settings: Settings) -> None:
    """Refused recordings would fill the disk of a busy system."""
    api = await make_api(settings.model_copy(update={"max_queued": 1}))
    await api.submit()
    assert (await api.call("POST", "/v1/jobs", data=form(b"x")))[0] == 429
    assert api.files() == []


async def test_a_client_that_goes_away_leaves_no_file(api: Api) -> None:
    """Phones lose their network in the middle of an upload every day."""
    _, writer = await asyncio.open_connection("127.0.0.1", api.client.port)
    head = "POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    writer.write(f"{head}Content-Length: 90000\r\n\r\n".encode() + _file_part(b"x" * 5000)[:-2])
    await until(api.files, within_s=5, what="the upload has begun")
    writer.transport.abort()
    await until(lambda: not api.files(), within_s=5, what="the temporary file is gone")


@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=b", "application/json"])
async def test_a_body_that_trickles_is_408(make_api: Maker, settings: Settings, kind: str) -> None:
    """A few slow clients must not hold every connection."""
    api = await make_api(settings, pace=Pace(grace_s=0.2, bytes_per_s=1_000_000))
    gone = asyncio.Event()

    async def trickle() -> AsyncIterator[bytes]:
        yield _file_part(b"x")[:-2] if "form" in kind else b'{"source": '
        await gone.wait()

    try:
        async with api.client.post("/v1/jobs", data=trickle(), headers={"Content-Type": kind}) as answer:
            assert answer.status == 408
            assert (await answer.json(content_type=None))["code"] == "body_too_slow"
    finally:
        gone.set()
    assert api.files() == []


async def test_a_slow_but_steady_upload_is_accepted(make_api: Maker, settings: Settings) -> None:
    """The rule is a least rate, not a longest time."""
    api = await make_api(settings, pace=Pace(grace_s=0.1, bytes_per_s=100.0))

    async def steady() -> AsyncIterator[bytes]:
        yield _file_part(b"x" * 100)[:-2]
        began_s = time.monotonic()
        await until(lambda: time.monotonic() - began_s > 0.3, within_s=5, what="longer than the grace")
        yield b"\r\n--b--\r\n"

    assert (await api.call("POST", "/v1/jobs", data=steady(), headers=FORM))[0] == 202


async def test_an_upload_folder_that_cannot_be_written_is_503(api: Api) -> None:
    """Disk trouble is ours, not the client's: it shall try again."""
    folder = api.parts.uploads.folder
    folder.rename(folder.with_name("elsewhere"))
    async with api.client.post("/v1/jobs", data=form(b"x")) as answer:
        assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
        problem: Any = await answer.json(content_type=None)
    assert "disk" in problem["detail"]
    assert str(folder) not in problem["detail"]
    status, ready = await _ready(api)
    assert (status, ready["checks"]["redis"], ready["checks"]["disk"]) == (
        503,
        "ok",
        problem["detail"].split("(disk: ")[1].split(");")[0],
    )


async def _ready(api: Api) -> tuple[int, Any]:
    async with api.client.get("/readyz") as answer:
        return answer.status, await answer.json()


async def test_old_leftovers_are_removed_at_the_start(api: Api) -> None:
    """A killed producer leaves temporary files; nobody else removes them. Fresh ones belong to a colleague."""
    folder = api.parts.uploads.folder
    for name, age_s in (("old", 2 * 86_400), ("new", 60)):
        path = folder / f".upload-{name}.part"
        path.write_bytes(b"x")
        os.utime(path, (time.time() - age_s, time.time() - age_s))
    (folder / "job-0123.wav").write_bytes(b"x")
    api.parts.uploads.prepare()
    assert api.files() == [".upload-new.part", "job-0123.wav"]
