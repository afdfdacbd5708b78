"""Forgetting old jobs: what goes, and what must stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.formats import FORMATS
from common.pruning import Pruned, Pruner
from common.records import State
from producer.uploads import UploadFolder
from tests.api.conftest import Api

FAR_MS = 10**14


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    return folder


@pytest.fixture
def pruner(api: Api, results: Path) -> Pruner:
    return Pruner(api.parts.database, api.parts.queue, results, api.parts.settings.upload_dir)


async def ended(api: Api, results: Path, job_id: str, *, upload: bool = False) -> Path | None:
    """Make a completed job that Redis has forgotten, its files, and its upload if it had one."""
    source = None
    if upload:
        folder: UploadFolder = api.parts.uploads
        source = folder.folder / f"{job_id}-0123456789abcdef.wav"
        source.write_bytes(b"RIFF")
        await api.call("POST", "/v1/jobs", json={"source": source.as_uri(), "id": job_id})
    else:
        await api.submit(id=job_id)
    await api.line.complete(job_id)
    await api.line.forget(job_id)
    for format_ in FORMATS:
        (results / f"{job_id}.{format_}").write_text("said")
    return source


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def there(path: Path | None) -> bool:
    assert path is not None
    return path.exists()


async def pruned(
    pruner: Pruner, before_ms: int = FAR_MS, *, dry_run: bool = False, state: State | None = None
) -> Pruned:
    totals = [total async for total in pruner.prune(before_ms, state=state, dry_run=dry_run)]
    return totals[-1] if totals else Pruned()


async def test_old_jobs_go_with_their_files_and_uploads(api: Api, pruner: Pruner, results: Path) -> None:
    """Disks and databases do not grow for ever."""
    upload = await ended(api, results, "sent", upload=True)
    await ended(api, results, "named")

    assert await pruned(pruner) == Pruned(jobs=2, files=11, size_bytes=44)

    assert not there(upload)
    assert names(results) == []
    assert there(Path(api.source))  # a recording of somebody else's
    assert await api.parts.database.count() == 0
    assert (await api.call("GET", "/v1/jobs/named"))[0] == 404


async def test_counting_removes_nothing(api: Api, pruner: Pruner, results: Path) -> None:
    """It is what one looks at before deciding."""
    upload = await ended(api, results, "sent", upload=True)

    assert await pruned(pruner, dry_run=True) == Pruned(jobs=1, files=6, size_bytes=24)

    assert there(upload)
    assert len(names(results)) == 5
    assert await api.parts.database.count() == 1
    assert (await pruned(pruner)).jobs == 1


async def test_what_the_queue_still_knows_stays(api: Api, pruner: Pruner, results: Path) -> None:
    """A dead letter may be revived, and needs its recording."""
    await api.submit(id="dead")
    await api.line.fail("dead")
    await api.line.store_all()
    await ended(api, results, "old")

    assert await pruned(pruner) == Pruned(jobs=1, files=5, size_bytes=20, kept=1)

    assert await api.parts.database.job("dead") is not None


async def test_only_what_is_asked_for_goes(api: Api, pruner: Pruner, results: Path) -> None:
    """By age, and by how it ended."""
    await ended(api, results, "young")

    assert await pruned(pruner, before_ms=1) == Pruned()
    assert await pruned(pruner, state=State.FAILED) == Pruned()
    assert (await pruned(pruner, state=State.COMPLETED)).jobs == 1


async def test_more_jobs_than_a_page_all_go(
    api: Api, pruner: Pruner, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages are cut by place, not by count: removing one must not skip another."""
    monkeypatch.setattr("common.pruning._AT_ONCE", 2)
    for number in range(5):
        await ended(api, results, f"job-{number}")

    assert (await pruned(pruner)).jobs == 5
    assert await api.parts.database.count() == 0


async def test_a_source_beneath_the_upload_folder_that_is_no_upload_stays(
    api: Api, pruner: Pruner, results: Path
) -> None:
    """Somebody may submit another job's upload by its path: it is not that job's to remove."""
    upload = await ended(api, results, "first", upload=True)
    assert upload is not None
    await api.call("POST", "/v1/jobs", json={"source": upload.as_uri(), "id": "second"})
    await api.line.complete("second")
    await api.line.forget("second")
    await api.parts.database.forget([job for job in await api.parts.database.jobs() if job.id == "first"])

    assert (await pruned(pruner)).jobs == 1

    assert there(upload)


async def test_an_upload_stays_when_a_job_goes_whose_id_begins_alike(api: Api, pruner: Pruner, results: Path) -> None:
    """An id may hold dashes: `call` is not `call-2`, though the upload's name begins with both."""
    upload = await ended(api, results, "call-2", upload=True)
    assert upload is not None
    await api.parts.database.forget(await api.parts.database.jobs())
    await api.call("POST", "/v1/jobs", json={"source": upload.as_uri(), "id": "call"})
    await api.line.complete("call")
    await api.line.forget("call")

    assert (await pruned(pruner)).jobs == 1

    assert there(upload)
