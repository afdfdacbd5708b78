"""The engine with a stand-in for the model: batches, what is read again, and what it makes of a model that fails."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from dataclasses import replace

import numpy as np
import pytest
from structlog.testing import capture_logs

from common.errors import JobError
from common.lease import Ended, Lease
from common.metrics import ConsumerMetrics
from common.options import Options
from common.transcript import Word
from common.watchdog import Watchdog
from consumer.chunks import Chunk
from consumer.engine import ChunkAbandoned, Engine
from consumer.reading import TEMPERATURES, Reading
from consumer.speech import Span
from consumer.window import FULL, Extent
from tests.until import until

SECOND = 16_000
# A recording whose every sample says in which second it is.
RECORDING = np.repeat(np.arange(1, 61, dtype=np.int16), SECOND)
GOOD = Reading((), 99, -0.2, 0.0, 1.2, "en", 1.0)
POOR = replace(GOOD, avg_logprob=-2.0)


def chunk(second, seconds=1):
    return Chunk((Span(second * SECOND, (second + seconds) * SECOND),))


class Model:
    """Reads of each chunk in which second it begins; does what a test wants when it is to read."""

    name, identity, workers, device = "stand-in", "stand-in int8", 1, "cpu"
    multilingual = short_windows = True

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.windows: list[tuple[int, Extent, float]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.on_read = lambda seconds: None
        self.judge = lambda window: GOOD

    def features(self, audio):
        return (audio[None, ::160] * 32768).round()

    def prefix(self, options):
        return tuple(range(len(options.initial_prompt or "")))

    def try_batch(self, size):
        pass

    def read(self, windows):
        seconds = [int(window.features[0, 0]) for window in windows]
        self.batches.append(seconds)
        self.gate.wait(30)
        self.windows += [(second, w.extent, w.temperature) for second, w in zip(seconds, windows, strict=True)]
        self.on_read(seconds)
        return [
            replace(self.judge(window), words=(Word(start=0.0, end=0.5, word=f" from {second}", probability=1.0),))
            for second, window in zip(seconds, windows, strict=True)
        ]


@pytest.fixture
def ended():
    return []


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def engine(model, ended):
    engine = Engine(model, 4, Watchdog(60, end=ended.append), ConsumerMetrics())
    yield engine
    model.gate.set()
    engine.close()


def lease():
    return Lease(lambda progress, parts: (), clock=time.monotonic)


async def transcribe(engine, second, options=None, own=None, seconds=1):
    text = await engine.transcribe(chunk(second, seconds), RECORDING, options or Options(), own or lease())
    return text.segments[0].text if text.segments else ""


async def while_busy(engine, model, *jobs):
    """Let the model work on one chunk while others come, then wait for all."""
    model.gate.clear()
    first = asyncio.create_task(transcribe(engine, 59))
    await until(lambda: model.batches, within_s=10, what="the model reads")
    tasks = [asyncio.create_task(job) for job in jobs]
    for _ in range(9):
        await asyncio.sleep(0)  # all of them are in the line, and who wants to leave it has left
    model.gate.set()
    await first
    return await asyncio.gather(*tasks, return_exceptions=True)


async def test_chunks_of_several_jobs_share_a_batch(engine, model):
    """Short recordings alone would leave the device half idle."""
    texts = await while_busy(engine, model, *(transcribe(engine, second) for second in range(5)))

    assert texts == [f"from {second}" for second in range(1, 6)]
    assert model.batches == [[60], [1, 2, 3, 4], [5]]


async def test_a_long_job_leaves_room_for_short_ones(engine, model):
    """Nobody waits behind all chunks of a ten-hour recording."""
    long = lease()
    jobs = [transcribe(engine, second, own=long) for second in range(8)]
    await while_busy(engine, model, *jobs, transcribe(engine, 20))

    assert model.batches[1] == [1, 21, 2, 3]


@pytest.mark.parametrize(
    "other", [Options(beam_size=1), Options(temperature=0.4), Options(initial_prompt="Names: Dashwood.")]
)
async def test_what_one_call_cannot_do_is_done_in_two(engine, model, other):
    """The model takes one beam size, one temperature and one length of prompt in a call."""
    await while_busy(engine, model, transcribe(engine, 0), transcribe(engine, 1, other), transcribe(engine, 2))

    assert model.batches == [[60], [1, 3], [2]]


async def test_languages_and_tasks_may_be_mixed(engine, model):
    """They are a row's own."""
    options = [Options(language="de"), Options(language="ko", task="translate"), Options()]
    await while_busy(engine, model, *(transcribe(engine, second, one) for second, one in enumerate(options)))

    assert model.batches == [[60], [1, 2, 3]]


async def test_only_what_failed_is_read_again(engine, model):
    """The others of its batch are answered at once, and do not change."""
    model.judge = lambda window: POOR if window.features[0, 0] == 2 and window.temperature < 0.4 else GOOD

    texts = await while_busy(engine, model, *(transcribe(engine, second, seconds=29) for second in range(3)))

    assert texts == ["from 1", "from 2", "from 3"]
    assert model.batches == [[60], [1, 2, 3], [2], [2]]
    assert [temperature for second, _, temperature in model.windows if second == 2] == [0.0, 0.2, 0.4]


async def test_a_doubtful_short_window_is_read_again_in_full(engine, model):
    """That is what makes short windows safe."""
    model.judge = lambda window: POOR if window.extent != FULL else GOOD

    assert await transcribe(engine, 0) == "from 1"

    (_, short, first), (_, full, second) = model.windows
    assert short.frames < full.frames
    assert full == FULL
    assert (first, second) == (0.0, 0.0)


async def test_a_text_that_stops_early_is_finished(engine, model):
    """The model says the end of the text too soon at times; what it has not said must not be lost."""

    def stops(window):
        return replace(GOOD, unsaid_s=12.0 if window.seconds > 20 else 2.0 if window.seconds > 11 else 0.0)

    model.judge = stops
    text = await engine.transcribe(chunk(0, 29), RECORDING, Options(), lease())

    seconds = [second for second, _, _ in model.windows]
    assert seconds == [1, 18, 28]  # the rest of 12 s, and the rest of that
    assert [segment.text for segment in text.segments] == ["from 1", "from 18", "from 28"]
    assert [segment.start for segment in text.segments] == [0.0, 17.0, 27.0]


async def test_speech_of_which_little_was_written_is_read_in_halves(engine, model):
    """The model skips whole sentences at times and is sure of itself: they must not be lost."""
    model.judge = lambda window: replace(GOOD, tokens=7 if window.seconds > 12 else 30)

    text = await engine.transcribe(chunk(0, 16), RECORDING, Options(), lease())

    first, second = (segment.start for segment in text.segments)
    assert first == 0.0
    assert 16 / 3 <= second <= 16 * 2 / 3  # where it is quietest in the middle


async def test_speech_of_which_too_little_is_written_however_it_is_cut_is_read_to_its_end(engine, model):
    """The parts come to an end, and none of them is left out."""
    read = []

    def sparse(window):
        read.append(window.seconds)
        return replace(GOOD, tokens=1)

    model.judge = sparse
    text = await engine.transcribe(chunk(0, 29), RECORDING, Options(), lease())

    assert len(text.segments) <= 8
    assert len(read) <= 2 * len(text.segments)
    last = text.segments[-1]
    assert 29 - last.start == pytest.approx(read[-1], abs=0.02)  # the last part goes to the end


async def test_what_is_cut_keeps_the_language_of_the_whole(engine, model):
    """A part says less about it, and the first chunk decides for the recording."""
    languages = []

    def german(window):
        languages.append(window.language)
        probability = 1.0 if window.language else 0.9
        return replace(GOOD, language="de", language_probability=probability, tokens=7 if window.seconds > 12 else 30)

    model.judge = german
    text = await engine.transcribe(chunk(0, 16), RECORDING, Options(), lease())

    assert languages == [None, "de", "de"]
    assert (text.language, text.language_probability) == ("de", 0.9)


async def test_the_best_of_all_temperatures_says_whether_speech_was_skipped(engine, model):
    """A good text must not be thrown away for what another temperature made of it."""
    model.judge = lambda window: replace(
        POOR, tokens=3 if window.temperature == 1.0 else 60, avg_logprob=-1.2 - window.temperature
    )

    await engine.transcribe(chunk(0, 10), RECORDING, Options(), lease())

    assert len(model.windows) == 7  # short, full, and five temperatures


async def test_without_speech_detection_little_text_may_be_all_there_is(engine, model):
    """A recording may be silent for most of its length."""
    model.judge = lambda window: replace(GOOD, tokens=7)

    await engine.transcribe(chunk(0, 29), RECORDING, Options(vad=False), lease())

    assert len(model.windows) == 1


async def test_reading_rest_after_rest_comes_to_an_end(engine, model):
    """What is no speech can look like a word and a rest for ever."""
    model.judge = lambda window: replace(GOOD, unsaid_s=window.seconds)

    text = await engine.transcribe(chunk(0, 29), RECORDING, Options(word_timestamps=True), lease())

    [segment] = text.segments
    assert [word.start for word in segment.words] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5]


async def test_the_language_that_was_found_is_that_of_the_rest(engine, model):
    """A recording does not change its language in the middle of a chunk."""
    languages = []

    def german(window):
        languages.append(window.language)
        return replace(GOOD, language="de", language_probability=0.9, unsaid_s=9.0 if window.seconds > 20 else 0.0)

    model.judge = german
    await engine.transcribe(chunk(0, 29), RECORDING, Options(), lease())

    assert languages == [None, "de"]


async def test_what_follows_the_text_may_be_no_speech(engine, model):
    """Breath and noise after the last word: nothing may be made up of them."""
    silent = replace(GOOD, avg_logprob=-1.5, no_speech_prob=0.9)
    model.judge = lambda window: replace(GOOD, unsaid_s=3.0) if window.seconds > 20 else silent

    assert await transcribe(engine, 0, seconds=29) == "from 1"


async def test_when_every_temperature_fails_the_best_is_kept(engine, model):
    """Something was said, and a poor transcript says more than none."""
    quality = iter([-1.9, -1.5, -1.2, -1.6, -1.7, -1.8])
    model.judge = lambda window: replace(POOR, avg_logprob=next(quality))

    text = await engine.transcribe(chunk(0, 29), RECORDING, Options(), lease())

    assert text.segments[0].avg_logprob == -1.2
    assert [temperature for _, _, temperature in model.windows] == list(TEMPERATURES)


async def test_a_temperature_that_was_asked_for_is_the_only_one(engine, model):
    """Whoever sets it wants no other."""
    model.judge = lambda window: POOR

    await transcribe(engine, 0, Options(temperature=0.3), seconds=29)

    assert [temperature for _, _, temperature in model.windows] == [0.3]


async def test_what_is_no_speech_is_no_text(engine, model):
    """The model says "you" on silence, and that it thinks nobody spoke."""
    model.judge = lambda window: replace(GOOD, avg_logprob=-1.3, no_speech_prob=0.9)

    assert await transcribe(engine, 0, seconds=29) == ""
    assert len(model.windows) == 1


async def test_a_job_that_has_ended_is_not_read(engine, model):
    """Nobody waits for it: its place in the batch is another's."""
    over = lease()
    over.end(Ended.LOST)

    async def leaves():
        waits = asyncio.create_task(transcribe(engine, 2))
        await asyncio.sleep(0)
        waits.cancel()
        await asyncio.wait({waits})

    ends, *_ = await while_busy(engine, model, transcribe(engine, 0, own=over), transcribe(engine, 1), leaves())

    assert isinstance(ends, ChunkAbandoned)
    assert model.batches == [[60], [2]]


async def test_a_recording_that_is_done_is_let_go(engine, model):
    """Its scratch file takes disk space for as long as somebody holds its samples."""
    recording = RECORDING.copy()
    held = weakref.ref(recording)
    await engine.transcribe(chunk(0), recording, Options(), lease())
    del recording

    await until(lambda: held() is None, within_s=10, what="nobody holds the samples")


async def test_a_batch_that_is_too_large_is_halved_for_good(engine, model, ended):
    """Memory that does not suffice now will not suffice a minute later: no job must pay for finding out again."""

    def two_at_most(seconds):
        if len(seconds) > 2:
            raise RuntimeError("CUDA failed with error out of memory")

    model.on_read = two_at_most
    with capture_logs() as logs:
        texts = await while_busy(engine, model, *(transcribe(engine, second) for second in range(8)))

    assert texts == [f"from {second}" for second in range(1, 9)]
    assert model.batches == [[60], [1, 2, 3, 4], [1, 2], [3, 4], [5, 6], [7, 8]]
    assert [line["now"] for line in logs if line["event"] == "batch_halved"] == [2]
    assert engine.at_a_time == 2
    assert ended == []


async def test_a_chunk_that_fails_fails_alone(engine, model, ended):
    """One job's sound must not cost another an attempt."""

    def poison(seconds):
        if 2 in seconds:
            raise ValueError("no such features")

    model.on_read = poison
    texts = await while_busy(engine, model, *(transcribe(engine, second) for second in range(3)))

    assert (texts[0], texts[2]) == ("from 1", "from 3")
    assert isinstance(texts[1], JobError)
    assert (texts[1].type, texts[1].retryable) == ("engine_failed", True)
    assert ended == []


@pytest.mark.parametrize("error", [RuntimeError("CUDA failed with error out of memory"), MemoryError("32 GiB")])
async def test_a_chunk_that_is_too_much_costs_an_attempt(engine, model, ended, error):
    """Another attempt may find more room; the model still works, so the other jobs go on."""
    asked = []

    def too_much(seconds):
        asked.append(seconds)
        if seconds != [0]:  # silence
            raise error

    model.on_read = too_much
    with pytest.raises(JobError, match="model stand-in failed") as caught:
        await transcribe(engine, 0)

    assert (caught.value.type, caught.value.retryable) == ("engine_failed", True)
    assert asked == [[1], [0]]
    assert ended == []


@pytest.mark.parametrize("on_silence", [RuntimeError("illegal access"), MemoryError(), OSError("gone")])
async def test_a_model_that_fails_on_silence_too_ends_the_process(engine, model, ended, on_silence, capsys):
    """It would spend the attempts of every job in the queue within seconds."""

    def broken(seconds):
        raise on_silence if seconds == [0] else RuntimeError("an illegal memory access was encountered")

    model.on_read = broken
    with pytest.raises(JobError):
        await transcribe(engine, 0)

    assert ended == [1]
    assert "an illegal memory access was encountered; then on silence too" in capsys.readouterr().out


async def test_a_model_that_works_is_not_asked_for_proof(engine, model):
    """Silence costs a pass through the model."""
    await transcribe(engine, 0)

    assert model.batches == [[1]]


async def test_a_bug_fails_a_chunk_and_not_the_engine(engine, model):
    """A thread that ends takes a part of the engine with it, unseen."""

    def bug(seconds):
        if seconds == [1]:
            raise KeyError("bug")

    model.on_read = bug
    with pytest.raises(JobError, match="KeyError"):
        await transcribe(engine, 0)

    assert await transcribe(engine, 1) == "from 2"


async def test_a_model_that_hangs_ends_the_process(model):
    """Its thread cannot be ended, and holds a part of the engine for ever."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    model.gate.clear()
    with Watchdog(0.2, end=lambda code: loop.call_soon_threadsafe(ended.set)) as watchdog:
        engine = Engine(model, 1, watchdog, ConsumerMetrics())
        hanging = asyncio.create_task(transcribe(engine, 0))
        await asyncio.wait_for(ended.wait(), 30)
    hanging.cancel()
    model.gate.set()
    engine.close()


async def test_batches_and_what_is_read_again_are_counted(engine, model):
    """An operator sees whether batches fill, and how much is done twice."""
    model.judge = lambda window: POOR if window.temperature < 0.2 else GOOD
    await transcribe(engine, 0)

    def value(name, **labels):
        return engine._metrics.registry.get_sample_value(f"sttream_{name}", labels)

    assert value("batch_fill_ratio_count") == 3
    assert value("batch_fill_ratio_sum") == 0.75
    assert value("chunks_read_again_total", reason="short_window") == 1
    assert value("chunks_read_again_total", reason="temperature") == 1
