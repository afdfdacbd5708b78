"""The transcriber with the real decoder and the real model: one job after another, and what it says of its hunger."""

from __future__ import annotations

import asyncio
import time

import orjson
import pytest

from common.entries import Entry, Task
from common.errors import JobError
from common.lease import Ended, Lease
from common.metrics import ConsumerMetrics
from common.options import Options
from common.outcomes import Completed, RetryPolicy
from common.records import Job, JobSpec
from common.runner import Work
from common.settings import load_settings
from common.transcript import Transcript
from common.watchdog import Watchdog
from consumer.engine import Engine
from consumer.prepare import PreparePool
from consumer.transcriber import Transcriber
from consumer.whisper import Whisper
from tests.recordings import EXAMPLES, write_recording, write_speech
from tests.until import until


@pytest.fixture
async def transcriber(tmp_path):
    roots = f"{EXAMPLES}:{tmp_path}"
    environ = {"STTREAM_MODEL": "bundled", "STTREAM_DEVICE": "cpu", "STTREAM_AUDIO_ROOTS": roots}
    (tmp_path / "names.txt").write_text("Dashwood\nNorland\n")
    settings = load_settings(environ | {"STTREAM_UPLOAD_DIR": str(tmp_path), "STTREAM_LEXICONS_DIR": str(tmp_path)})
    metrics = ConsumerMetrics()
    engine = Engine(Whisper.load(settings), 2, Watchdog(60), metrics)
    async with PreparePool(processes=1, max_audio_s=600) as pool:
        yield Transcriber(settings, pool, engine, metrics)
    engine.close()


def work(source, parts=None, **options) -> Work:
    spec = JobSpec(source=str(source), options=Options(**options))
    job = Job(id="a", spec=spec, state="running", created_ms=1, queued_ms=1_000, started_ms=3_500)
    entry = Entry("lane", "1-0", 1, {})
    task = Task(entry, "a", job, 1, RetryPolicy(3, 1.0), 600.0, parts or {})
    return Work(task, Lease(lambda progress, parts: (), clock=time.monotonic))


async def test_a_job_becomes_a_transcript(transcriber):
    """Everything that a client reads is filled in, and progress reaches the end."""
    given = work(EXAMPLES / "austen-5-himself.ogg", word_timestamps=True)

    outcome = await transcriber.handle(given)

    assert isinstance(outcome, Completed)
    said = Transcript.model_validate(orjson.loads(outcome.body))
    assert said.text == "He might even have been made amiable himself."
    assert (said.language, said.model, said.job_id) == ("en", "tiny.en", "a")
    assert said.duration_s == pytest.approx(outcome.audio_s, abs=0.001)
    assert [segment.id for segment in said.segments] == list(range(len(said.segments)))
    assert said.segments[0].words
    assert said.timings.queued_s == 2.5
    assert given.lease.progress == pytest.approx(1)


async def test_a_lexicon_prompts_the_model(transcriber, monkeypatch):
    """Its terms are what a recording of this kind is likely to hold."""
    asked = []
    prefix = Whisper.prefix
    monkeypatch.setattr(
        Whisper, "prefix", lambda model, options: asked.append(options.hotwords) or prefix(model, options)
    )

    outcome = await transcriber.handle(work(EXAMPLES / "austen-5-himself.ogg", lexicon="names"))

    assert isinstance(outcome, Completed)
    assert asked == ["Dashwood, Norland"]


async def test_a_lexicon_that_is_gone_fails_the_job(transcriber):
    """Without it the transcript would be another one than was asked for."""
    with pytest.raises(JobError) as caught:
        await transcriber.handle(work(EXAMPLES / "austen-5-himself.ogg", lexicon="removed"))

    assert caught.value.type == "lexicon_unknown"


async def test_sequential_mode_says_the_same_of_short_recordings(transcriber, tmp_path):
    """One chunk has no text before it."""
    outcomes = [
        await transcriber.handle(work(EXAMPLES / "austen-1-leisure.mp3", mode=mode))
        for mode in ("chunks", "sequential")
    ]
    assert len({orjson.loads(outcome.body)["text"] for outcome in outcomes}) == 1


@pytest.mark.parametrize("mode", ["chunks", "sequential"])
async def test_a_resumed_job_gives_the_same_transcript(transcriber, tmp_path, mode):
    """Parts go through Redis as text: no digit may be lost on the way, nor the prompt of the next chunk."""
    recording = write_speech(tmp_path / "long.wav", rounds=2)
    options = {"mode": mode, "word_timestamps": True, "beam_size": 1}
    first = work(recording, **options)
    whole = orjson.loads((await transcriber.handle(first)).body)
    parts = dict(first.lease._parts)
    assert len(parts) == 2
    parts.popitem()

    again = work(recording, parts, **options)
    resumed = orjson.loads((await transcriber.handle(again)).body)

    assert len(again.lease._parts) == 1
    assert again.lease.progress == pytest.approx(1)
    assert resumed | {"timings": None} == whole | {"timings": None}


async def test_noise_is_an_empty_transcript(transcriber, tmp_path):
    """No speech, no words, and no language that nobody spoke."""
    outcome = await transcriber.handle(work(write_recording(tmp_path / "tone.wav", 5)))

    said = orjson.loads(outcome.body)
    assert (said["text"], said["segments"], said["language"]) == ("", [], None)


async def test_a_job_that_ends_early_leaves_the_transcriber_hungry(transcriber, tmp_path):
    """Counters that leak would starve the consumer, one cancelled job after another."""
    recording = write_speech(tmp_path / "long.wav", rounds=4)
    for _ in range(3):
        given = work(recording)
        handling = asyncio.create_task(transcriber.handle(given))
        await until(lambda lease=given.lease: lease.progress > 0, within_s=60, what="the recording is prepared")
        given.lease.end(Ended.CANCELLED)
        handling.cancel()
        await asyncio.wait({handling})
    with pytest.raises(JobError):
        await transcriber.handle(work(tmp_path / "missing.wav"))

    await asyncio.wait_for(transcriber.hungry(), 5)
    assert transcriber._waiting == 0


async def test_a_long_recording_is_enough(transcriber, tmp_path):
    """A consumer that holds a recording of many chunks must leave the next job to an idle one."""
    given = work(write_speech(tmp_path / "long.wav", rounds=8), language="en")
    handling = asyncio.create_task(transcriber.handle(given))
    await until(lambda: given.lease.progress > 0, within_s=60, what="the recording is prepared")

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(transcriber.hungry(), 0.05)

    handling.cancel()
    await asyncio.wait({handling})


async def test_a_host_that_can_prepare_nothing_soon_takes_no_jobs(transcriber, tmp_path):
    """With a full disk it fails jobs faster than others do them: it would spend the attempts of the whole queue."""
    transcriber._pool._scratch_dir = tmp_path / "gone"
    for _ in range(8):
        with pytest.raises(JobError, match="no scratch file"):
            await transcriber.handle(work(EXAMPLES / "austen-1-leisure.mp3"))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(transcriber.hungry(), 0.05)

    transcriber._pool._scratch_dir = None
    await asyncio.wait_for(transcriber.hungry(), 30)
    assert isinstance(await transcriber.handle(work(EXAMPLES / "austen-1-leisure.mp3")), Completed)
    assert transcriber._trouble.failures == 0
