"""Checkpoints with the real model in real processes: a killed consumer costs the chunks that it had not finished."""

from __future__ import annotations

import json

import pytest

from tests.acceptance.consumers import QUICK, consumer, ended, job_of, server_of
from tests.acceptance.stacks import up
from tests.recordings import write_speech
from tests.until import until

# Five minutes of speech, beside a whole suite on two cores.
LIMIT_S = 200.0


def transcript(stack, job_id):
    """Return what must not depend on how often the job was begun."""
    told = json.loads((stack.data / "results" / f"{job_id}.json").read_text())
    return {name: told[name] for name in ("text", "segments", "language", "language_probability", "duration_s")}


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_job_that_is_taken_over_goes_on_where_it_stopped(tmp_path):
    """SIGKILL at 80 %: the next consumer does the rest, and the transcript is that of an undisturbed run."""
    recording = write_speech(tmp_path / "long.wav", rounds=11)
    submit = ("submit", str(recording), "--option", "beam_size=1", "--id")
    with (
        up(tmp_path / "data", "--audio", str(tmp_path), "--consumers", "0", **QUICK) as stack,
        server_of(stack) as server,
    ):
        # Chunk by chunk: a batch would take all of so short a recording at once.
        with consumer(stack, tmp_path, STTREAM_BATCH_SIZE="1") as killed:
            stack.run(*submit, "whole")
            await ended(server, "whole", within_s=LIMIT_S)
            stack.run(*submit, "resumed")
            await until(
                lambda: float(job_of(server, "resumed").get("progress", 0)) > 0.8,
                within_s=LIMIT_S,
                what="four fifths are done",
            )
            killed.process.kill()
        kept = server.hlen("{sttream}:parts:resumed")
        with consumer(stack, tmp_path) as rescuer:
            job = await ended(server, "resumed", within_s=LIMIT_S)
        left = list(server.scan_iter("*:parts:*"))
        whole, resumed = transcript(stack, "whole"), transcript(stack, "resumed")

    assert (job["state"], job["attempts"]) == ("completed", "2")
    [line] = rescuer.logged("chunks_resumed")
    assert line["kept"] == kept
    assert line["total"] * 0.7 <= kept < line["total"]
    assert resumed == whole
    assert left == []
