"""Uploaded recordings: from a multipart body to a file in the upload folder.

A recording arrives under a temporary name and gets its own when it is whole and on disk. Its name holds the job's id
and a digest of its content, so that the same upload under the same id is the same job.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from aiohttp import BodyPartReader
from aiohttp.http_exceptions import HttpProcessingError

from common.errors import Unavailable
from common.logs import safe_text
from common.sources import upload_name
from producer.bodies import MAX_JSON_BYTES, PacedBody
from producer.intake import check_submission, load_json
from producer.problems import Problem

if TYPE_CHECKING:
    from aiohttp import MultipartReader, web

# One write, one turn of the digest and one change of thread for each.
_WRITTEN_BYTES = 1024 * 1024
_READ_BYTES = 256 * 1024
# Boundaries and part headers, beside the recording and the JSON.
_ENVELOPE_BYTES = 64 * 1024
_TEMPORARY = ".upload-*.part"
# A file that a killed process left; no upload takes so long.
_STALE_S = 86_400
_SUFFIX = re.compile(r"\.[a-z0-9]{1,8}")


@dataclass(slots=True)
class Upload:
    """One recording in the upload folder, under its temporary name or its own."""

    path: Path
    suffix: str
    digest: Any = field(default_factory=hashlib.sha256)
    size_bytes: int = 0
    created: bool = False
    """Whether `keep` made a new file: one that was there before belongs to a job."""

    @property
    def source(self) -> str:
        """The source that names the file."""
        return self.path.as_uri()


class UploadFolder:
    """Where uploads go. Raises `Unavailable` when the disk refuses."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes

    def prepare(self) -> None:
        """Make the folder, and remove what uploads that were cut off by a kill have left in it."""
        with _disk_errors():
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in self.folder.glob(_TEMPORARY):
                if time.time() - path.stat().st_mtime > _STALE_S:
                    path.unlink(missing_ok=True)

    @asynccontextmanager
    async def receive(self, part: BodyPartReader, body: PacedBody) -> AsyncIterator[Upload]:
        """Write a part to disk as it arrives; the file is gone after the block unless it was kept.

        Raises:
            Problem: 413 as soon as it is larger than the limit, 422 when it is empty.
        """
        upload = Upload(self._temporary(), _suffix_of(part.filename))
        temporary = upload.path
        try:
            with _disk_errors():
                file = await asyncio.to_thread(_create, temporary)
            with file:
                await self._fill(upload, file, part, body)
            yield upload
        finally:
            await asyncio.to_thread(temporary.unlink, missing_ok=True)

    async def _fill(self, upload: Upload, file: BinaryIO, part: BodyPartReader, body: PacedBody) -> None:
        buffer = bytearray()
        while chunk := await body.take(part.read_chunk(_READ_BYTES)):
            upload.size_bytes += len(chunk)
            if upload.size_bytes > self.max_bytes:
                raise _too_large(self.max_bytes)
            buffer += chunk
            if len(buffer) >= _WRITTEN_BYTES:
                await _write(upload, file, buffer)
                buffer = bytearray()
        await _write(upload, file, buffer)
        if upload.size_bytes == 0:
            raise Problem(422, "file_empty", "file: the upload is empty; expected a recording", param="file")
        with _disk_errors():
            await asyncio.to_thread(os.fsync, file.fileno())

    async def keep(self, upload: Upload, job_id: str) -> None:
        """Give an upload its own name, on disk for good."""
        own = self.folder / upload_name(job_id, upload.digest.hexdigest(), upload.suffix)
        with _disk_errors():
            upload.created = await asyncio.to_thread(_rename, upload.path, own)
        upload.path = own

    async def discard(self, upload: Upload) -> None:
        """Remove an upload whose job was refused, unless it was there before."""
        if upload.created:
            await asyncio.to_thread(upload.path.unlink, missing_ok=True)

    def _temporary(self) -> Path:
        return self.folder / _TEMPORARY.replace("*", secrets.token_hex(8))


@dataclass(slots=True)
class Form:
    """What a form held."""

    job: dict[str, object] | None = None
    upload: Upload | None = None


@asynccontextmanager
async def receive_form(
    request: web.Request, folder: UploadFolder, body: PacedBody
) -> AsyncIterator[tuple[dict[str, object], Upload]]:
    """Read a form: `file`, the recording, and before or after it `job`, the rest of the submission as JSON.

    Yields:
        The JSON, checked but for its source, and the upload.

    Raises:
        Problem: naming the part that is missing, given twice, unknown or wrong.
    """
    if (request.content_length or 0) > folder.max_bytes + MAX_JSON_BYTES + _ENVELOPE_BYTES:
        raise _too_large(folder.max_bytes)
    async with AsyncExitStack() as uploads:
        form = Form()
        with _form_errors():
            parts = await request.multipart()
            while (part := await body.take(parts.next())) is not None:
                await _read_part(part, form, folder, body, uploads)
        if form.upload is None:
            raise Problem(422, "invalid_field", "file: missing; expected a part with the recording", param="file")
        yield form.job or {}, form.upload


async def _read_part(
    part: BodyPartReader | MultipartReader,
    form: Form,
    folder: UploadFolder,
    body: PacedBody,
    uploads: AsyncExitStack,
) -> None:
    name = part.name if isinstance(part, BodyPartReader) else None
    if isinstance(part, BodyPartReader) and name == "file" and form.upload is None:
        form.upload = await uploads.enter_async_context(folder.receive(part, body))
    elif isinstance(part, BodyPartReader) and name == "job" and form.job is None:
        form.job = _check_job(load_json(await _read_text(part, body)))
    else:
        shown = safe_text(name or "part", 60)
        raise Problem(
            422, "invalid_field", f"{shown}: unexpected part; a form has one `file` and one `job`", param=shown
        )


async def _read_text(part: BodyPartReader, body: PacedBody) -> bytes:
    text = bytearray()
    while chunk := await body.take(part.read_chunk(MAX_JSON_BYTES)):
        text += chunk
        if len(text) > MAX_JSON_BYTES:
            raise Problem(413, "body_too_large", f"job: larger than {MAX_JSON_BYTES} bytes", param="job")
    return bytes(text)


def _check_job(job: object) -> dict[str, object]:
    """Return the JSON, refused at once where it is wrong: nobody should upload a gigabyte to learn of a typo."""
    if isinstance(job, dict) and "source" in job:
        raise Problem(422, "invalid_field", "source: not with an upload, whose file is the source", param="source")
    check_submission({**job, "source": "file"} if isinstance(job, dict) else job)
    return dict(job) if isinstance(job, dict) else {}


def _suffix_of(filename: str | None) -> str:
    """Return the suffix of the client's file name where it is a plain one, for people who look into the folder."""
    suffix = Path(filename or "").suffix.lower()
    return suffix if _SUFFIX.fullmatch(suffix) else ""


def _create(path: Path) -> BinaryIO:
    """Create a file that this user may write and its group may read: consumers can have a user of their own."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640), "wb", buffering=0)


async def _write(upload: Upload, file: BinaryIO, buffer: bytearray) -> None:
    def write() -> None:
        upload.digest.update(buffer)
        left = memoryview(buffer)
        while left:
            left = left[file.write(left) :]

    with _disk_errors():
        await asyncio.to_thread(write)


def _rename(temporary: Path, own: Path) -> bool:
    """Give a file its own name and make that last; False when the same file was there before."""
    if own.exists():
        return False
    temporary.replace(own)
    folder = os.open(own.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return True


def _too_large(max_bytes: int) -> Problem:
    return Problem(
        413,
        "file_too_large",
        f"file: the recording is larger than the limit of {max_bytes} bytes (STTREAM_MAX_FILE_BYTES)",
        param="file",
    )


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise Unavailable(f"the upload folder cannot be used now: {exc.strerror}; try again later") from exc


@contextmanager
def _form_errors() -> Iterator[None]:
    """Say of what the form's parser raises that the form is broken."""
    try:
        yield
    except (ValueError, RuntimeError, LookupError, AssertionError, HttpProcessingError) as exc:
        raise Problem(400, "invalid_form", "the body is no multipart form that can be read") from exc
