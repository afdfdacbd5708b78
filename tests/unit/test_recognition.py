"""Chunks on their way through the engine, with a stand-in for the model: order, language, prompts, failures."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest
from structlog.testing import capture_logs

from common.errors import JobError
from common.lease import Lease
from common.options import Options
from common.transcript import Segment
from consumer.checkpoint import Checkpoint
from consumer.chunks import Chunk
from consumer.engine import ChunkText
from consumer.recognition import Recognition
from consumer.speech import Span
from tests.until import until

CHUNKS = [Chunk((Span(start, start + 10),)) for start in range(0, 80, 10)]
SAMPLES = np.arange(80, dtype=np.int16)


class StandIn:
    """An engine that says where each chunk began; chunks end in the order that a test wants."""

    at_a_time = 3
    identity = "stand-in int8"
    only_language = None

    def __init__(self) -> None:
        self.asked: list[tuple[int, Options]] = []
        self.running = 0
        self.most = 0
        self.cancelled = 0
        self.fails_at: int | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def transcribe(self, chunk, recording, options, lease):
        start = chunk.spans[0].start
        self.asked.append((start, options))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if start == self.fails_at:
                raise JobError("engine_failed", "out of memory", retryable=True)
            await self.gate.wait()
            await asyncio.sleep(0.001 * (80 - start) / 10)  # later chunks end first
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        said = Segment(id=0, start=start, end=start + 10, text=f"from {start}", avg_logprob=0, no_speech_prob=0)
        return ChunkText((said,), options.language or "de", 0.9)


@pytest.fixture
def engine():
    return StandIn()


async def nothing(share: float) -> None: ...


def recognition(engine, *, chunks=CHUNKS, samples=SAMPLES, parts=None, keep=None, done=nothing):
    lease = Lease(lambda progress, parts: (), clock=time.monotonic)
    checkpoint = Checkpoint(parts or {}, keep or (lambda name, body: None))
    return Recognition(engine, lease, chunks, samples, checkpoint, done)


async def recognise(engine, options, **more):
    return await recognition(engine, **more).run(options)


@pytest.mark.parametrize("options", [Options(), Options(language="en"), Options(mode="sequential")])
async def test_texts_come_in_the_order_of_the_recording(engine, options):
    """Chunks end in any order; a transcript has one."""
    texts = await recognise(engine, options)

    assert [text.segments[0].start for text in texts] == [chunk.spans[0].start for chunk in CHUNKS]


async def test_one_job_keeps_the_engine_busy_and_no_more(engine):
    """What is read next waits in the engine; what comes later takes no memory yet."""
    await recognise(engine, Options(language="en"))

    assert engine.most == 2 * engine.at_a_time


async def test_the_first_chunk_decides_the_language_for_all(engine):
    """A recording must not change its language because a chunk is short."""
    await recognise(engine, Options())

    assert [options.language for _, options in engine.asked] == [None] + ["de"] * 7


async def test_a_model_that_knows_one_language_need_not_find_out(engine):
    """The rest of the recording would wait for its first chunk."""
    engine.only_language = "en"
    await recognise(engine, Options())

    assert {options.language for _, options in engine.asked} == {"en"}
    assert engine.most == 2 * engine.at_a_time


async def test_sequential_chunks_are_prompted_with_the_text_before(engine):
    """That is what the mode is for: names and style carry on."""
    await recognise(engine, Options(mode="sequential", initial_prompt="Names: Dashwood."))

    prompts = [options.initial_prompt for _, options in engine.asked]
    assert prompts[:3] == ["Names: Dashwood.", "from 0", "from 0 from 10"]
    assert engine.most == 1


async def test_shares_add_up_to_the_whole(engine):
    """Progress that ends at 80 % looks like a hang."""
    shares = []

    async def done(share: float) -> None:
        shares.append(share)

    await recognise(engine, Options(language="en"), done=done)

    assert sum(shares) == pytest.approx(1)


async def test_a_failed_chunk_ends_the_job_and_stops_the_others(engine):
    """Nobody wants the rest of a job that is tried again."""
    engine.fails_at = 20
    engine.gate.clear()

    with pytest.raises(JobError, match="out of memory"):
        await recognise(engine, Options(language="en"))

    assert engine.cancelled > 0
    assert len(engine.asked) < len(CHUNKS)
    await until(lambda: engine.running == 0, within_s=5, what="no chunk is left")


async def test_no_speech_is_no_work(engine):
    """A silent recording asks the engine for nothing."""
    assert await recognise(engine, Options(), chunks=[]) == []
    assert engine.asked == []


async def kept_by(options, **more):
    """Return the texts of an attempt, and the parts that it has kept."""
    parts = {}
    texts = await recognise(StandIn(), options, keep=parts.__setitem__, **more)
    assert len(parts) == len(CHUNKS)
    return texts, parts


def asked(engine):
    return sorted(start for start, _ in engine.asked)


@pytest.mark.parametrize(
    "options", [Options(), Options(language="en"), Options(mode="sequential", initial_prompt="A.")]
)
@pytest.mark.parametrize("missing", [[], [3], [0], [5, 6, 7], list(range(8))])
async def test_another_attempt_transcribes_only_what_is_missing(engine, options, missing):
    """A killed consumer costs the chunks that it had not finished, and the transcript does not show it."""
    texts, parts = await kept_by(options)
    names = list(parts)
    lost, again = {names[index]: parts.pop(names[index]) for index in missing}, {}
    resumed = recognition(engine, parts=parts, keep=again.__setitem__)

    with capture_logs() as logs:
        assert await resumed.run(options) == texts

    assert len(engine.asked) == len(missing)
    assert again == lost
    assert resumed.transcribed == pytest.approx(len(missing) / 8)
    kept = [(line["kept"], line["total"]) for line in logs if line["event"] == "chunks_resumed"]
    assert kept == ([(8 - len(missing), 8)] if len(missing) < 8 else [])


@pytest.mark.parametrize("mode", ["chunks", "sequential"])
@pytest.mark.parametrize(
    "changed",
    [
        {"language": "de"},
        {"task": "translate"},
        {"beam_size": 1},
        {"word_timestamps": True},
        {"initial_prompt": "Names."},
        {"hotwords": "Dashwood"},
        {"temperature": 0.0},
        {"vad": False},
    ],
)
async def test_parts_of_other_options_are_not_found(engine, mode, changed):
    """A job that was revived with other options must not get the old text."""
    _, parts = await kept_by(Options(language="en", mode=mode))

    await recognise(engine, Options(**({"language": "en", "mode": mode} | changed)), parts=parts)

    again = asked(engine)
    # What sequential mode says depends on the first prompt until there is text before.
    assert again == ([0] if (mode, *changed) == ("sequential", "initial_prompt") else list(range(0, 80, 10)))


async def test_parts_of_another_model_are_not_found(engine):
    """Consumers may run different models, and a transcript shall be of one."""
    _, parts = await kept_by(Options(language="en"))
    engine.identity = "stand-in float16"

    await recognise(engine, Options(language="en"), parts=parts)

    assert len(engine.asked) == len(CHUNKS)


async def test_a_change_in_the_audio_costs_the_chunks_that_it_is_in(engine):
    """The file may have been replaced between the attempts; what is the same in both need not be done again."""
    _, parts = await kept_by(Options(language="en"))
    changed = SAMPLES.copy()
    changed[35] += 1

    await recognise(engine, Options(language="en"), parts=parts, samples=changed)

    assert asked(engine) == [30]


async def test_the_same_audio_elsewhere_in_the_recording_is_another_chunk(engine):
    """Its times are the recording's."""
    _, parts = await kept_by(Options(language="en"))
    moved = [Chunk((Span(start + 1, start + 11),)) for start in range(0, 70, 10)]
    shifted = np.concatenate([SAMPLES[:1], SAMPLES])

    await recognise(engine, Options(language="en"), parts=parts, chunks=moved, samples=shifted)

    assert len(engine.asked) == len(moved)


@pytest.mark.parametrize("body", ["", "null", '{"segments": 7}', '{"segments": [], "language": "en"}', "not JSON"])
async def test_a_part_that_cannot_be_read_is_done_again(engine, body):
    """Another version wrote it, or somebody's hand: that costs the chunk, never the job."""
    texts, parts = await kept_by(Options(language="en"))
    parts |= {list(parts)[2]: body}

    assert await recognise(engine, Options(language="en"), parts=parts) == texts
    assert len(engine.asked) == 1


async def test_what_earlier_attempts_finished_counts_as_progress(engine):
    """A resumed job must not look as if it had begun anew: it tells before the engine has done anything."""
    _, parts = await kept_by(Options(language="en"))
    del parts[list(parts)[-1]]
    engine.gate.clear()
    shares = []

    async def done(share: float) -> None:
        shares.append(share)

    running = asyncio.create_task(recognise(engine, Options(language="en"), parts=parts, done=done))
    await until(lambda: len(shares) == 7, within_s=5, what="progress of seven chunks")
    engine.gate.set()
    await running
    assert sum(shares) == pytest.approx(1)
