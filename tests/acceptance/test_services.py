"""Services as processes: what signals do to a running job, and what becomes of every kind of bad input."""

from __future__ import annotations

import json
import os
import signal

import aiohttp
import pytest

from tests.acceptance import consumers
from tests.acceptance.consumers import QUICK, job_of, server_of
from tests.acceptance.stacks import EXAMPLES, LIMIT_S, sttream, up
from tests.recordings import cut, write_recording, write_speech
from tests.until import until

pytestmark = pytest.mark.timeout(300)

# Progress shows soon after it is made; the lease stays long, so that a busy machine costs no attempt.
SHOWN = {"STTREAM_RENEW_MS": "300"}


async def running(stack, job_id):
    """Wait until the engine works on a job, and return its consumer's process id."""

    def under_way():
        job = job_of(server, job_id)
        return job if job["state"] == "running" and float(job.get("progress", 0)) > 0.05 else None

    with server_of(stack) as server:
        job = await until(under_way, within_s=LIMIT_S, what=f"{job_id} is being transcribed")
    return int(job["worker"].rsplit("-", 2)[1])


async def ended(stack, job_id):
    """Wait for the end of a job, and return it as the service tells it."""
    with server_of(stack) as server:
        await consumers.ended(server, job_id, within_s=2 * LIMIT_S)
    async with aiohttp.ClientSession() as session, session.get(f"{stack.url}/v1/jobs/{job_id}") as answer:
        return await answer.json()


async def test_another_consumer_finishes_what_a_killed_one_had(tmp_path):
    """SIGKILL in the middle of a job: it is run again elsewhere, and its transcript is there once."""
    recording = write_speech(tmp_path / "long.wav", rounds=8)
    with up(tmp_path / "data", "--audio", str(tmp_path), "--consumers", "2", **QUICK) as stack:
        stack.run("submit", str(recording), "--id", "long")
        killed = await running(stack, "long")
        os.kill(killed, signal.SIGKILL)
        job = await ended(stack, "long")
        text = stack.run("transcript", "long", "--format", "txt").stdout

    assert (job["state"], job["attempts"]) == ("completed", 2)
    assert int(job["worker"].rsplit("-", 2)[1]) != killed
    assert text.lower().count("john dashwood") == 8  # once for each time the clip was spoken: nothing twice


async def test_sigterm_lets_the_running_job_finish(tmp_path):
    """A deploy costs no work: the consumer ends what it has, exits 0, and the job counts one attempt."""
    recording = write_speech(tmp_path / "long.wav", rounds=8)
    with up(tmp_path / "data", "--audio", str(tmp_path), STTREAM_DRAIN_S="50", **SHOWN) as stack:
        stack.run("submit", str(recording), "--id", "long")
        consumer = await running(stack, "long")
        os.kill(consumer, signal.SIGTERM)
        job = await ended(stack, "long")
        log = stack.data / "logs" / "supervisor.log"
        await until(lambda: "service_exited" in log.read_text(), within_s=LIMIT_S, what="the consumer's exit")

    assert (job["state"], job["attempts"]) == ("completed", 1)
    assert int(job["worker"].rsplit("-", 2)[1]) == consumer
    [exited] = [json.loads(line) for line in log.read_text().splitlines() if "service_exited" in line]
    assert (exited["name"], exited["how"]) == ("consumer-1", "exit 0")


async def test_a_cancelled_job_stops_and_leaves_no_files(tmp_path):
    """The operator's way out of a mistake of two hours."""
    recording = write_speech(tmp_path / "long.wav", rounds=40)
    with up(tmp_path / "data", "--audio", str(tmp_path), **SHOWN) as stack:
        stack.run("submit", str(recording), "--id", "long")
        await running(stack, "long")
        assert stack.run("cancel", "long").returncode == 0
        job = await ended(stack, "long")

    assert job["state"] == "cancelled"
    assert list((stack.data / "results").iterdir()) == []


@pytest.fixture(scope="module")
def bad_recordings(tmp_path_factory):
    """One file for each row of what people hand in."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "empty.wav").touch()
    (folder / "text.mp3").write_text("this is no recording\n" * 100)
    (folder / "list.m3u8").write_text(
        f"#EXTM3U\n#EXTINF:5,\nfile://{EXAMPLES}/austen-2-young-man.wav\n#EXT-X-ENDLIST\n"
    )
    (folder / "list.ffconcat.wav").write_text(f"ffconcat version 1.0\nfile {EXAMPLES}/austen-2-young-man.wav\n")
    (folder / "noise.mp3").write_bytes(os.urandom(20_000))
    cut(write_recording(folder / "cut.wav", 20), 0.3)
    cut(write_recording(folder / "cut.m4a", 20, container="mp4", codec="aac"), 0.5)
    write_recording(folder / "long.wav", 25)
    return folder


async def test_bad_recordings_fail_with_a_reason_and_harm_nobody(bad_recordings, tmp_path):
    """Each fails at once, without a retry, says why, and the consumer goes on with the next job."""
    with up(tmp_path / "data", "--audio", str(bad_recordings), STTREAM_MAX_AUDIO_S="22") as stack:
        for recording in sorted(bad_recordings.iterdir()):
            assert stack.run("submit", str(recording), "--id", recording.name).returncode == 0
        found = {recording.name: await ended(stack, recording.name) for recording in sorted(bad_recordings.iterdir())}
        stack.run("submit", str(EXAMPLES / "austen-2-young-man.wav"), "--id", "good")
        good = await ended(stack, "good")

    assert {name: (job["state"], job["attempts"]) for name, job in found.items()} == dict.fromkeys(found, ("failed", 1))
    errors = {name: job["error"]["type"] for name, job in found.items()}
    assert errors.pop("long.wav") == "audio_too_long"
    assert set(errors.values()) == {"audio_unreadable"}
    assert good["state"] == "completed"
    assert len({job["worker"] for job in (*found.values(), good)}) == 1  # the same process all along


async def test_silence_noise_and_a_blink_of_sound_give_an_empty_transcript(tmp_path):
    """The model invents words where nobody speaks; the service must not."""
    write_recording(tmp_path / "blink.wav", 0.05)
    write_recording(tmp_path / "tone.wav", 8)
    with up(tmp_path / "data", "--audio", str(tmp_path)) as stack:
        for name in ("blink.wav", "tone.wav"):
            result = stack.run("submit", str(tmp_path / name), "--wait")
            assert (result.returncode, result.stdout.strip()) == (0, "")


async def test_setup_prepares_a_new_server_and_a_new_database(tmp_path):
    """Where services may not create anything, an operator does it first, with this verb."""
    database = tmp_path / "new.db"
    with up(tmp_path / "data", "--consumers", "0") as stack:
        result = sttream(
            "setup",
            STTREAM_REDIS_URL=f"redis://127.0.0.1:{stack.port + 1}/0",
            STTREAM_QUEUE="another",
            STTREAM_DATABASE_URL=f"sqlite:///{database}",
        )

    assert (result.returncode, result.stderr) == (0, "")
    assert database.exists()


def test_a_user_whom_the_server_refuses_is_a_wrong_setting(tmp_path):
    """Waiting for a password to become right would look like an outage of the server."""
    with up(tmp_path / "data", "--consumers", "0") as stack:
        url = f"redis://nobody:hush@127.0.0.1:{stack.port + 1}/0"
        for verb in ("producer", "writer", "setup"):
            result = sttream(verb, cwd=tmp_path, STTREAM_REDIS_URL=url, STTREAM_HTTP_PORT="0")

            assert result.returncode == 2, verb
            assert "refuses the user that STTREAM_REDIS_URL names (invalid username" in result.stdout + result.stderr
            assert "hush" not in result.stdout + result.stderr
