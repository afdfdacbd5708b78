"""The server loses its data: every service stops and says so, again at each start, until an operator decides."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess

import pytest
import redis.asyncio

from tests.acceptance.stacks import COMMAND, EXAMPLES, LIMIT_S, ROOT, environ, sttream, up
from tests.integration.servers import Servers
from tests.ports import free_port
from tests.until import until

CLIP = EXAMPLES / "austen-5-himself.ogg"
EMPTIED = "the server was emptied or replaced"


@pytest.fixture
def data(tmp_path):
    return tmp_path / "data"


async def test_a_stack_whose_server_was_emptied_waits_for_a_decision(data):
    """FLUSHALL under a running stack: exit code 4 with what to do, the same at the next start, then a new beginning."""
    with up(data, "--consumers", "0") as stack:
        assert stack.run("submit", str(CLIP), "--id", "lost").returncode == 0
        await emptied(f"redis://127.0.0.1:{stack.port + 1}")
        assert await asyncio.to_thread(stack.process.wait, LIMIT_S) == 4
        await stack.nothing_is_left()
    said = stack.output.read_text()
    assert EMPTIED in said
    assert "`sttream up --accept-data-loss`" in said.splitlines()[-1]

    again = sttream("up", "--data-dir", str(data), "--port", str(stack.port))
    assert (again.returncode, EMPTIED in again.stderr) == (4, True)

    with up(data, "--consumers", "0", "--accept-data-loss") as stack:
        assert stack.run("status", "lost").returncode == 2
        assert stack.run("submit", str(CLIP), "--id", "lost").stdout.startswith("lost")


def test_a_stack_without_its_append_only_file_says_what_is_gone(data):
    """A folder that was removed, or not mounted: a server without it starts empty, and the stack must not."""
    with up(data, "--consumers", "0") as stack:
        assert stack.run("submit", str(CLIP), "--id", "lost").returncode == 0
        assert stack.stop() == 0
    shutil.rmtree(data / "redis" / "appendonlydir")

    refused = sttream("up", "--data-dir", str(data), "--port", str(stack.port), "--consumers", "0")

    assert (refused.returncode, EMPTIED in refused.stderr) == (4, True)
    assert "service_restarted" not in (data / "logs" / "supervisor.log").read_text()


@pytest.fixture
async def server(tmp_path_factory):
    with Servers(tmp_path_factory.mktemp) as servers:
        yield await servers.get("valkey")  # tests/integration/test_setup.py shows each step on both


async def test_services_refuse_each_start_until_the_operator_has_decided(server, tmp_path):
    """Whatever starts a service again, as Compose does, cannot make it forget; a consumer waits meanwhile."""
    settings = {
        "STTREAM_REDIS_URL": server.url,
        "STTREAM_DATABASE_URL": f"sqlite:///{tmp_path / 'sttream.db'}",
        "STTREAM_RESULTS_DIR": str(tmp_path / "results"),
        "STTREAM_UPLOAD_DIR": str(tmp_path / "uploads"),
        "STTREAM_HTTP_PORT": str(free_port()),
        "STTREAM_MODEL": "bundled",
    }
    assert sttream("setup", **settings).returncode == 0
    with service("producer", tmp_path, settings) as running:
        await until(lambda: "producer_ready" in running.log(), within_s=LIMIT_S, what="the producer is ready")
        await emptied(server.url)
        assert await running.exit_code() == 4
    [last] = running.log().splitlines()[-1:]
    assert EMPTIED in last

    for verb in ("writer", "producer", "setup"):
        refused = sttream(verb, **settings)
        assert (refused.returncode, EMPTIED in refused.stdout + refused.stderr) == (4, True)

    with service("consumer", tmp_path, settings) as waiting:
        await until(lambda: "setup_awaited" in waiting.log(), within_s=LIMIT_S, what="the consumer says what it needs")
        decided = sttream("setup", "--accept-data-loss", **settings)
        assert decided.returncode == 0
        for word in ("begins anew", "0 jobs", "sttream status ID"):
            assert word in decided.stdout
        with service("producer", tmp_path, settings) as running:
            await until(lambda: "producer_ready" in running.log(), within_s=LIMIT_S, what="the producer is ready")
        await until(lambda: "model_loaded" in waiting.log(), within_s=LIMIT_S, what="the consumer goes on")

    assert "nothing was lost" in sttream("setup", "--accept-data-loss", **settings).stdout


class Running:
    """A service as a process."""

    def __init__(self, process, path):
        self.process, self._path = process, path

    def log(self):
        return self._path.read_text()

    async def exit_code(self):
        return await asyncio.to_thread(self.process.wait, LIMIT_S)


@contextlib.contextmanager
def service(verb, folder, settings):
    path = folder / f"{verb}.log"
    with path.open("w") as log:
        process = subprocess.Popen([*COMMAND, verb], cwd=ROOT, env=environ(**settings), stdout=log, stderr=log)
    try:
        yield Running(process, path)
    finally:
        process.kill()
        process.wait()


async def emptied(url):
    async with redis.asyncio.Redis.from_url(url) as client:
        await client.flushall()
