"""A whole deployment whose services log in as the users that we ship: each can do its work with its own rights."""

from __future__ import annotations

import contextlib
import json
import subprocess

import aiohttp
import pytest
import redis.asyncio
from redis.exceptions import NoPermissionError

from tests.acceptance.stacks import COMMAND, EXAMPLES, LIMIT_S, ROOT, environ, sttream
from tests.integration.servers import KINDS, Servers
from tests.ports import free_port
from tests.until import until

pytestmark = pytest.mark.timeout(300)
CLIP = EXAMPLES / "austen-5-himself.ogg"


@pytest.fixture(params=KINDS)
async def server(request, tmp_path_factory):
    with Servers(tmp_path_factory.mktemp) as servers:
        yield await servers.get(request.param)


@contextlib.contextmanager
def running(verb, server, folder, **settings):
    """Run one service as its user."""
    with (folder / f"{verb}.log").open("w") as log:
        process = subprocess.Popen(
            [*COMMAND, verb], cwd=ROOT, env=environ(STTREAM_REDIS_URL=server.url_of(verb), **settings), stderr=log
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(LIMIT_S)


async def submit_for_later(url, job_id):
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/v1/jobs", json={"source": str(CLIP), "id": job_id, "delay_s": 3600}) as answer,
    ):
        assert answer.status == 202, await answer.text()


async def test_services_work_with_least_rights_once_the_operator_has_set_up(server, tmp_path):
    """Services that come up first wait and say what to run; then a job goes through, is retried, cancelled and read."""
    port = free_port()
    settings = {
        "STTREAM_DATABASE_URL": f"sqlite:///{tmp_path}/jobs.db",
        "STTREAM_RESULTS_DIR": f"{tmp_path}/results",
        "STTREAM_UPLOAD_DIR": f"{tmp_path}/uploads",
        "STTREAM_AUDIO_ROOTS": str(EXAMPLES),
        "STTREAM_MODEL": "bundled",
        "STTREAM_HTTP_PORT": str(port),
        "STTREAM_LOG_FORMAT": "json",
        "STTREAM_RETRY_DELAY_S": "0",
    }

    def client(*arguments):
        return sttream(*arguments, STTREAM_URL=f"http://127.0.0.1:{port}")

    with contextlib.ExitStack() as services:
        for verb in ("producer", "consumer", "writer"):
            services.enter_context(running(verb, server, tmp_path, **settings))
        for verb in ("producer", "consumer", "writer"):
            log = tmp_path / f"{verb}.log"
            await until(lambda log=log: "setup_awaited" in log.read_text(), within_s=LIMIT_S, what=f"{verb} waits")
        assert client("submit", str(CLIP)).returncode == 3

        assert sttream("setup", STTREAM_REDIS_URL=server.url_of("operator"), **settings).returncode == 0
        await until(lambda: client("queue").returncode == 0, within_s=LIMIT_S, what="the producer is ready")
        done = client("submit", str(CLIP), "--id", "good", "--wait", "--json")
        assert done.returncode == 0, done.stderr
        (tmp_path / "uploads" / "bad.wav").write_text("no recording")
        assert client("submit", str(tmp_path / "uploads" / "bad.wav"), "--id", "bad", "--wait").returncode == 1
        assert client("dead", "revive", "bad").returncode == 0
        await until(lambda: "bad" in client("dead", "ls").stdout, within_s=LIMIT_S, what="it failed again")
        assert client("dead", "drop", "bad").returncode == 0
        await submit_for_later(f"http://127.0.0.1:{port}", "later")
        assert client("cancel", "later").returncode == 0
        assert json.loads(client("status", "later", "--json").stdout)["state"] == "cancelled"

    for verb in ("producer", "consumer", "writer"):
        assert '"level":"error"' not in (tmp_path / f"{verb}.log").read_text(), verb


async def test_metrics_are_counted_without_seeing_a_name(server):
    """An exporter gets what its figures take, and nothing that was said or recorded."""
    async with redis.asyncio.Redis.from_url(server.url) as everything:
        await everything.flushall()
        await everything.xadd("{sttream}:jobs:normal", {"id": "a", "source": "/audio/private.wav"})
        await everything.xgroup_create("{sttream}:jobs:normal", "transcribers", id="0")
    async with redis.asyncio.Redis.from_url(server.url_of("metrics"), decode_responses=True) as metrics:
        assert await metrics.xlen("{sttream}:jobs:normal") == 1
        assert (await metrics.xinfo_groups("{sttream}:jobs:normal"))[0]["name"] == "transcribers"
        assert (await metrics.info("memory"))["used_memory"] > 0
        with pytest.raises(NoPermissionError):
            await metrics.xrange("{sttream}:jobs:normal")
