"""`sttream up`: starts everything, mends what dies, stops cleanly, keeps the data, leaves nothing behind."""

import json
import os
import signal
import time

import pytest

from tests.acceptance.stacks import EXAMPLES, LIMIT_S, processes_of, sttream, up
from tests.ports import free_port
from tests.until import until

CLIP = EXAMPLES / "austen-2-young-man.wav"


@pytest.fixture
def data(tmp_path):
    return tmp_path / "data"


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_stops_everything(data, signal_):
    """Ctrl-C, and the SIGTERM of a service manager, end in exit code 0 with no process left."""
    with up(data) as stack:
        running = " ".join(processes_of(data).values())
        assert all(name in running for name in ("valkey-server", "producer", "consumer", "writer"))
        assert stack.stop(signal_) == 0
        await stack.nothing_is_left()
    said = stack.output.read_text()
    assert "stopping; running work gets up to 25 s, Ctrl-C again ends at once" in said
    assert "overcommit" not in said


async def test_what_ended_long_ago_can_be_removed(data, tmp_path):
    """The verb that keeps a disk from filling, as somebody types it beside the running stack."""
    recording = tmp_path / "call.wav"
    recording.write_bytes(CLIP.read_bytes())
    with up(data, STTREAM_JOB_TTL_S="1") as stack:
        assert stack.run("submit", str(recording), "--id", "old", "--upload", "--wait").returncode == 0

        def prune(*arguments):
            port = str(stack.port)
            result = sttream("prune", "--older-than", "0s", "--data-dir", str(data), *arguments, STTREAM_HTTP_PORT=port)
            assert result.returncode == 0, result.stderr
            return result.stdout

        await until(lambda: prune().startswith("1 job, 6 files"), within_s=LIMIT_S, what="the queue forgets the job")
        assert json.loads(prune("--delete", "--json"))["jobs"] == 1
        assert stack.run("status", "old").returncode != 0
    assert [*(data / "results").iterdir(), *(data / "uploads").iterdir()] == []
    assert recording.exists()


def test_nothing_is_removed_by_what_another_server_knows(data, tmp_path):
    """Two stacks on a machine, and the wrong port: the other's server would call each job forgotten."""
    with up(data) as stack, up(tmp_path / "other") as other:
        assert stack.run("submit", str(CLIP), "--id", "kept", "--wait").returncode == 0
        arguments = ("prune", "--older-than", "0s", "--data-dir", str(data), "--delete")
        refused = sttream(*arguments, STTREAM_HTTP_PORT=str(other.port))
        assert refused.returncode == 4, refused.stderr
        assert stack.run("transcript", "kept").returncode == 0


async def test_work_that_was_accepted_goes_on_at_the_next_start(data):
    """What the producer said yes to survives a stop of the whole machine."""
    with up(data, "--consumers", "0") as stack:
        assert stack.run("submit", str(CLIP), "--id", "kept").returncode == 0
        assert stack.stop() == 0

    with up(data) as stack:
        result = stack.run("submit", str(CLIP), "--id", "kept", "--wait")
        assert (result.returncode, "young man" in result.stdout) == (0, True)


async def test_a_killed_service_comes_back(data):
    """A crash of one process is mended without anybody looking."""
    with up(data, "--consumers", "0") as stack:
        killed = stack.pid_of("producer")
        os.kill(killed, signal.SIGKILL)

        await until(lambda: _pid_or_none(stack, "producer") not in {None, killed}, within_s=LIMIT_S, what="a new one")
        await until(lambda: stack.run("queue").returncode == 0, within_s=LIMIT_S, what="an answer of the producer")
        log = (data / "logs" / "supervisor.log").read_text()

    assert "service_exited" in log
    assert "service_restarted" in log


async def test_a_killed_server_comes_back_with_its_data(data):
    """The queue outlives the death of the process that holds it."""
    with up(data, "--consumers", "0") as stack:
        assert stack.run("submit", str(CLIP), "--id", "kept").returncode == 0
        os.kill(_server_pid(data), signal.SIGKILL)

        await until(lambda: stack.run("queue").returncode == 0, within_s=LIMIT_S, what="an answer about the queue")

        assert json.loads(stack.run("queue", "--json").stdout)["queued"]["normal"] == 1


async def test_nothing_outlives_a_killed_supervisor(data):
    """Services without a supervisor would hold the ports and the data that the next start needs."""
    with up(data) as stack:
        stack.process.kill()
        stack.process.wait()
        await stack.nothing_is_left()

    with up(data) as stack:
        assert stack.run("queue").returncode == 0


async def test_a_second_ctrl_c_does_not_wait(data):
    """Somebody who asks twice does not want to wait for a service that hangs."""
    with up(data, "--consumers", "0") as stack:
        os.kill(stack.pid_of("producer"), signal.SIGSTOP)
        began = time.monotonic()
        stack.process.send_signal(signal.SIGINT)
        stopping = stack.data / "logs" / "supervisor.log"
        await until(lambda: "signal_received" in stopping.read_text(), within_s=10, what="the first signal")
        assert stack.stop() == 0
        await stack.nothing_is_left()
    assert time.monotonic() - began < 15


def test_a_data_folder_has_one_stack(data):
    """Two servers on one append-only file would destroy it; the message says who holds it."""
    with up(data, "--consumers", "0") as stack:
        second = sttream("up", "--data-dir", str(data), "--port", str(stack.port))
    assert second.returncode == 2
    assert f"in use by the stack of process {stack.process.pid}" in second.stderr


def test_a_taken_port_is_refused_before_anything_starts(data, tmp_path):
    """The usual reason is a second stack; the message says which option helps."""
    with up(data, "--consumers", "0") as stack:
        second = sttream("up", "--data-dir", str(tmp_path / "other"), "--port", str(stack.port))
    assert second.returncode == 2
    assert f"(--port {stack.port + 1000}" in second.stderr or "(--port 8010" in second.stderr
    assert not (tmp_path / "other").exists()


def test_broken_data_are_shown_as_the_server_sees_them(data):
    """A damaged disk is not a time-out: the server's own words are on the screen."""
    with up(data, "--consumers", "0") as stack:
        stack.run("submit", str(CLIP))
        assert stack.stop() == 0
    [log] = (data / "redis" / "appendonlydir").glob("*.incr.aof")
    log.write_bytes(b"*3\r\n$3\r\nSET\r\nwhat is this\r\n" * 10 + log.read_bytes())

    again = sttream("up", "--data-dir", str(data), "--port", str(stack.port))

    assert again.returncode == 3
    assert "server ended (exit 1) before it was ready" in again.stderr
    assert "Bad file format reading the append only file" in again.stderr
    assert not processes_of(data)


def test_a_service_that_refuses_to_start_ends_the_stack(data):
    """A setting that only the consumer can judge is told on the screen, and nothing is left running."""
    port, model = str(free_port(8)), str(data / "no-such-model")
    result = sttream("up", "--data-dir", str(data), "--port", port, STTREAM_MODEL=model)
    assert result.returncode == 2
    indented = [line for line in result.stderr.splitlines() if line.startswith("  ")]
    assert len(indented) == 1, result.stderr  # the refusal, and no service's traceback
    assert "no-such-model" in indented[0]
    assert "{" not in indented[0]
    assert not processes_of(data)


def test_the_banner_says_where_everything_is(data, tmp_path):
    """A newcomer goes on by copying lines from the screen."""
    with up(data, "--consumers", "0", ready=False) as stack:
        printed = []
        while not printed or "XPENDING" not in printed[-1]:
            printed.append(stack.process.stdout.readline())
    banner = "".join(printed)
    for said in (stack.url, str(data), str(EXAMPLES), f"redis-cli -p {stack.port + 1}"):
        assert said in banner


async def test_the_embedded_server_syncs_always_and_drops_nothing(data):
    """An accepted job must survive a power cut, and a full memory must refuse instead of forgetting."""
    import redis.asyncio

    with up(data, "--consumers", "0") as stack:
        async with redis.asyncio.Redis(port=stack.port + 1, decode_responses=True) as client:
            found = await client.config_get("append*", "maxmemory-policy", "bind", "protected-mode")
    wanted = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction", "bind": "127.0.0.1"}
    assert wanted.items() <= found.items()


def _pid_or_none(stack, service):
    return next((pid for pid, command in processes_of(stack.data).items() if command.endswith(f" {service} ")), None)


def _server_pid(data):
    return next(pid for pid, command in processes_of(data).items() if "valkey-server" in command)
