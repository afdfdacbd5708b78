"""`sttream consumer --gpus`: one process a GPU, watched, drained and ended together.

GPUs that do not work are named by numbers that no machine has. For those that do, a CPU stands in: all else is real.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.acceptance.consumers import consumer, job_of, server_of
from tests.acceptance.stacks import LIMIT_S, descendants, runs, sttream, up
from tests.ports import free_port
from tests.recordings import write_speech
from tests.until import until

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("gpus")]  # one stack for all of them

# One job at a time, so that two keep two consumers busy; leases that a busy machine does not lose.
ONE = {
    "STTREAM_DEVICE": "auto",
    "STTREAM_BATCH_SIZE": "1",
    "STTREAM_SLOTS": "1",
    "STTREAM_DRAIN_S": "60",
    "STTREAM_LEASE_MS": "30000",
}
ON_A_CPU = """
from consumer.engine import Engine
from cli.main import main

load = Engine.load
Engine.load = lambda settings, *more: load(settings.model_copy(update={"device": "cpu"}), *more)
main()
"""
TWO_STAND_INS = f"""
import dataclasses, sys
import deploy.gpus
from cli.main import main

real = deploy.gpus.own_service

def own_service(name, verb, *more):
    return dataclasses.replace(real(name, verb, *more), command=(sys.executable, "-c", {ON_A_CPU!r}, *verb))

deploy.gpus.own_service = own_service
deploy.gpus._counted = lambda *_: 2
main()
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """A stack without consumers; recordings lie in the folder of its data folder."""
    folder = tmp_path_factory.mktemp("gpus")
    with up(folder / "data", "--audio", str(folder), "--consumers", "0") as running:
        yield running


@pytest.fixture
def two_gpus(stack, tmp_path):
    """Start consumers on two stand-ins for GPUs."""

    def two_gpus(**settings):
        return consumer(stack, tmp_path, "--gpus", "all", program=TWO_STAND_INS, **ONE | settings)

    return two_gpus


def of_each_gpu(running, event):
    """Return the last log line of a kind by its GPU."""
    return {line["gpu"]: line for line in running.logged(event)}


async def ready(running, times=2):
    """Wait until models were loaded so many times."""
    await until(lambda: len(running.logged("model_loaded")) >= times, within_s=LIMIT_S, what=f"{times} models")


async def is_over(running, family, code, within_s=LIMIT_S):
    """Wait for an exit code, and until nothing that was started is left."""
    await until(lambda: running.process.poll() is not None, within_s=within_s, what="the end of the supervisor")
    assert running.process.returncode == code, running.output.read_text()
    await until(lambda: not any(map(runs, family)), within_s=10, what="the end of all that it had started")


def gpu_of(pid):
    """Return what a process may see."""
    variables = dict(entry.partition("=")[::2] for entry in Path(f"/proc/{pid}/environ").read_text().split("\0"))
    return variables.get("CUDA_VISIBLE_DEVICES")


def holds_the_engine(pid):
    """Return whether a process has loaded the library that takes memory of each GPU it looks at."""
    return "ctranslate2" in Path(f"/proc/{pid}/maps").read_text()


def consumers_of(running):
    """Return the processes that were started, by GPU."""
    children = Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children").read_text().split()
    return {gpu_of(child): int(child) for child in children}


async def begun(server, stack, folder, rounds=1):
    """Submit two recordings and wait until two processes work on them; return their ids."""
    jobs = [f"{folder.name}-{number}" for number in (1, 2)]
    for job_id in jobs:
        recording = write_speech(stack.data.parent / f"{job_id}.wav", rounds)
        assert stack.run("submit", str(recording), "--id", job_id).returncode == 0
    await until(
        lambda: all(float(job_of(server, job_id).get("progress", 0)) > 0.05 for job_id in jobs),
        within_s=2 * LIMIT_S,
        what="two jobs under way",
    )
    assert len({job_of(server, job_id)["worker"] for job_id in jobs}) == 2
    return jobs


def all_drain(running):
    """Return whether the supervisor and both consumers have had a signal."""
    return {line.get("gpu") for line in running.logged("signal_received")} == {"0", "1", None}


async def test_each_gpu_has_a_process_that_comes_back_and_drains(stack, two_gpus, tmp_path):
    """One GPU's crash costs one process; a deploy costs no work on any; and who watches holds no GPU's memory."""
    port = free_port(2)
    with two_gpus(STTREAM_METRICS_PORT=str(port), STTREAM_AUDIO_ROOTS=str(stack.data.parent)) as running:
        await ready(running)
        first = consumers_of(running)
        ports = {gpu: line["port"] for gpu, line in of_each_gpu(running, "health_served").items()}
        assert (first.keys(), ports) == ({"0", "1"}, {"0": port, "1": port + 1})
        assert all(map(holds_the_engine, first.values()))
        assert not holds_the_engine(running.process.pid)

        os.kill(first["1"], signal.SIGKILL)
        await ready(running, times=3)
        second = consumers_of(running)
        assert second["0"] == first["0"]
        [exited] = running.logged("service_exited")
        assert (exited["name"], exited["how"], exited["level"]) == ("consumer of GPU 1", "SIGKILL", "warning")

        with server_of(stack) as server:
            jobs = await begun(server, stack, tmp_path)
            family = descendants(running.process.pid)
            running.process.send_signal(signal.SIGTERM)
            await is_over(running, family, 0, within_s=2 * LIMIT_S)
            ends = [job_of(server, job_id) for job_id in jobs]

    assert {job["state"] for job in ends} <= {"transcribed", "completed"}
    assert [job["attempts"] for job in ends] == ["1", "1"]
    assert {int(job["worker"].rsplit("-", 2)[1]) for job in ends} == set(second.values())
    assert {line.get("gpu") for line in running.logged("service_stopped")} == {"0", "1", None}


async def test_a_second_signal_ends_all_at_once(stack, two_gpus, tmp_path):
    """Somebody who asks twice does not want to wait for two jobs of an hour."""
    with two_gpus(STTREAM_AUDIO_ROOTS=str(stack.data.parent)) as running:
        await ready(running)
        with server_of(stack) as server:
            jobs = await begun(server, stack, tmp_path, rounds=8)
            family = descendants(running.process.pid)
            running.process.send_signal(signal.SIGINT)
            await until(lambda: all_drain(running), within_s=LIMIT_S, what="the first signal, passed on to both")
            running.process.send_signal(signal.SIGINT)
            await is_over(running, family, 128 + signal.SIGINT, within_s=10)
            for job_id in jobs:
                stack.run("cancel", job_id)


async def test_nothing_outlives_a_killed_supervisor(two_gpus):
    """A consumer that nobody watches would hold a GPU that the next start needs."""
    with two_gpus() as running:
        await ready(running)
        family = descendants(running.process.pid)
        assert len(family) > 2  # their decoders, too
        running.process.kill()
        await is_over(running, family, -signal.SIGKILL)


async def test_lost_data_end_all_with_their_code(stack, two_gpus):
    """Exit code 4 waits for an operator, whoever watches; starting again would only say the same."""
    queue = {"STTREAM_QUEUE": "lost", "STTREAM_DATABASE_URL": f"sqlite:///{stack.data.parent / 'lost.db'}"}
    assert sttream("setup", STTREAM_REDIS_URL=f"redis://127.0.0.1:{stack.port + 1}/0", **queue).returncode == 0
    with two_gpus(STTREAM_QUEUE="lost") as running, server_of(stack) as server:
        await ready(running)
        family = descendants(running.process.pid)
        server.delete(*server.keys("{lost}:*"))
        await is_over(running, family, 4)
    assert "the server was emptied or replaced" in running.logged("service_failed")[0]["error"]
    assert (
        "has stopped, and all else with it; its own log line says why" in running.logged("service_failed")[-1]["error"]
    )


async def test_a_gpu_that_cannot_be_used_is_tried_again_and_told_of(stack, tmp_path):
    """A GPU that another process holds is free again some time; one that is gone must not go unseen."""
    with consumer(stack, tmp_path, "--gpus", "98,99", **ONE) as running:
        await until(
            lambda: (
                {line["name"] for line in running.logged("service_exited") if line["in_a_row"] == 3}
                == {"consumer of GPU 98", "consumer of GPU 99"}
            ),
            within_s=2 * LIMIT_S,
            what="three ends of each consumer",
        )
        family = descendants(running.process.pid)
        running.process.send_signal(signal.SIGTERM)
        await is_over(running, family, 0)
    assert {(line["how"], line["level"]) for line in running.logged("service_exited")} == {
        ("exit 3", "warning"),
        ("exit 3", "error"),
    }
    failed = of_each_gpu(running, "service_failed")
    assert failed.keys() == {"98", "99"}
    assert "cannot be loaded on cuda" in failed["98"]["error"]


async def test_a_wrong_setting_ends_all_with_its_code(stack, tmp_path):
    """A model that is not there is not there for any GPU, and not later either."""
    with consumer(stack, tmp_path, "--gpus", "98,99", **ONE, STTREAM_MODEL=str(tmp_path / "none")) as running:
        await is_over(running, [], 2)
    assert "refuses to start; its own log line says why" in running.logged("service_failed")[-1]["error"]


def test_no_gpu_is_told_before_anything_starts():
    """Whoever asked for GPUs does not want a process that runs on the CPU."""
    refused = sttream("consumer", "--gpus", "all", CUDA_VISIBLE_DEVICES="")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "CUDA finds no GPU (CUDA_VISIBLE_DEVICES is ''; the NVIDIA driver knows " in refused.stderr
