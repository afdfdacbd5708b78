"""The writer's process on a disk that takes nothing more."""

from __future__ import annotations

import json
import resource

from tests.acceptance.consumers import ended, job_of, server_of
from tests.acceptance.stacks import EXAMPLES, LIMIT_S, up
from tests.until import until

CLIPS = sorted(EXAMPLES.glob("austen-*"))


def limit_files(pid, size_bytes):
    """Let a process write no file beyond a size: what a full disk does to it, and no other process notices."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))


async def test_a_full_disk_costs_no_result(tmp_path):
    """What was transcribed meanwhile waits in Redis, and is stored once, by the same process, when there is room."""
    with up(tmp_path / "data") as stack, server_of(stack) as server:
        writer = stack.pid_of("writer")
        limit_files(writer, 0)
        for clip in CLIPS:
            assert stack.run("submit", str(clip), "--id", clip.stem).returncode == 0
        await until(
            lambda: server.xlen("{sttream}:results") == len(CLIPS), within_s=LIMIT_S, what="all clips are transcribed"
        )
        log = stack.data / "logs" / "writer.log"
        await until(lambda: "storage of results" in log.read_text(), within_s=LIMIT_S, what="the writer noticing")
        assert {job_of(server, clip.stem)["state"] for clip in CLIPS} == {"transcribed"}
        limit_files(writer, resource.RLIM_INFINITY)
        jobs = [await ended(server, clip.stem, within_s=LIMIT_S) for clip in CLIPS]
        stored = [json.loads(line) for line in stack.run("list", "--json").stdout.splitlines()]
        assert stack.pid_of("writer") == writer

    assert {job["state"] for job in jobs} == {"completed"}
    assert sorted(job["id"] for job in stored) == sorted(clip.stem for clip in CLIPS)
    trouble = [line for line in log.read_text().splitlines() if '"warning"' in line]
    assert len(trouble) == 1
    assert not list((stack.data / "results").glob(".*"))
