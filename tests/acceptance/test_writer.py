"""The writer's process on a disk that takes nothing more."""

from __future__ import annotations

import contextlib
import json
import resource
import sqlite3
import urllib.error
import urllib.request

import pytest

from tests.acceptance.consumers import ended, job_of, server_of
from tests.acceptance.stacks import EXAMPLES, LIMIT_S, up
from tests.until import until

CLIPS = sorted(EXAMPLES.glob("austen-*"))[:3]


def limit_files(pid, size_bytes):
    """Let a process write no file beyond a size: what a full disk does to it, and no other process notices."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))


def is_ready(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=30):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return False


@pytest.mark.timeout(400)
async def test_a_full_disk_costs_no_result(tmp_path):
    """What was transcribed meanwhile waits in Redis, and is stored once, by the same process, when there is room."""
    with up(tmp_path / "data") as stack, server_of(stack) as server:
        log = (stack.data / "logs" / "writer.log").read_text()
        served = next(line for line in log.splitlines() if "health_served" in line)
        writer, port = stack.pid_of("writer"), json.loads(served)["port"]
        limit_files(writer, 0)  # its log cannot be written either
        for clip in CLIPS:
            assert stack.run("submit", str(clip), "--id", clip.stem).returncode == 0
        for clip in CLIPS:
            await until(
                lambda job_id=clip.stem: job_of(server, job_id)["state"] == "transcribed",
                within_s=LIMIT_S,
                what=f"{clip.stem} is transcribed",
            )
        await until(lambda: not is_ready(port), within_s=LIMIT_S, what="the writer noticing")
        assert server.xlen("{sttream}:results") == len(CLIPS)
        limit_files(writer, resource.RLIM_INFINITY)
        jobs = [await ended(server, clip.stem, within_s=LIMIT_S) for clip in CLIPS]
        await until(lambda: is_ready(port), within_s=LIMIT_S, what="a writer that is ready again")
        assert stack.pid_of("writer") == writer
        with contextlib.closing(sqlite3.connect(stack.data / "sttream.db")) as database:
            stored = [job_id for (job_id,) in database.execute("SELECT id FROM jobs")]
        completed = [
            fields["id"] for _, fields in server.xrange("{sttream}:events") if fields.get("state") == "completed"
        ]

    assert {job["state"] for job in jobs} == {"completed"}
    assert sorted(stored) == sorted(completed) == sorted(clip.stem for clip in CLIPS)
    assert not list((stack.data / "results").glob(".*"))
