"""Consumers whose model is of no use any more: their process ends, and their job goes on elsewhere."""

from __future__ import annotations

import pytest

from tests.acceptance.consumers import QUICK, consumer, ended, server_of
from tests.acceptance.stacks import LIMIT_S, up
from tests.recordings import write_speech
from tests.until import until

# The real consumer, but for what its model does when it is to read: no weights can be made to hang.
PROGRAM = """
import threading
import consumer.whisper
from cli.main import main

def read(self, windows):
    {does}

consumer.whisper.Whisper.read = read
main()
"""
HANGS = "threading.Event().wait()"
IS_BROKEN = "raise RuntimeError('an illegal memory access was encountered')"


@pytest.mark.parametrize(
    ("does", "why"),
    [
        (HANGS, "model tiny.en on a batch of 1: no sign of life for"),
        (IS_BROKEN, "an illegal memory access was encountered; then on silence too"),
    ],
)
async def test_a_consumer_whose_model_is_of_no_use_ends_and_another_does_its_job(tmp_path, does, why):
    """A hanging thread cannot be ended, a broken CUDA context fails every job in a blink: the process must go."""
    recording = write_speech(tmp_path / "a.wav", rounds=1)
    with up(tmp_path / "data", "--audio", str(tmp_path), "--consumers", "0", **QUICK) as stack:
        stack.run("submit", str(recording), "--id", "a")
        with consumer(stack, tmp_path, program=PROGRAM.format(does=does), STTREAM_STALL_S="5") as useless:
            await until(lambda: useless.process.poll() is not None, within_s=LIMIT_S, what="the end of the process")
        with consumer(stack, tmp_path), server_of(stack) as server:
            job = await ended(server, "a", within_s=LIMIT_S)

    assert useless.process.returncode == 1
    [given_up] = useless.logged("process_given_up")
    assert why in given_up["why"]
    assert (job["state"], job["attempts"]) == ("completed", "2")
