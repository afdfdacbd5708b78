"""Chunks on their way through the engine, with a stand-in for the model: order, language, prompts, failures."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from common.errors import JobError
from common.lease import Lease
from common.options import Options
from common.transcript import Segment
from consumer.chunks import Chunk
from consumer.engine import ChunkText
from consumer.recognition import Recognition
from consumer.speech import Span
from tests.until import until

CHUNKS = [Chunk((Span(start, start + 10),)) for start in range(0, 80, 10)]


class StandIn:
    """An engine that says where each chunk began; chunks end in the order that a test wants."""

    at_a_time = 3

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


async def recognise(engine, options, done=None):
    async def nothing(share: float) -> None: ...

    lease = Lease(lambda progress: (), clock=time.monotonic)
    return await Recognition(engine, lease, CHUNKS, np.zeros(80, np.int16), done or nothing).run(options)


@pytest.mark.parametrize("options", [Options(), Options(language="en"), Options(mode="sequential")])
async def test_texts_come_in_the_order_of_the_recording(engine, options):
    """Chunks end in any order; a transcript has one."""
    texts = await recognise(engine, options)

    assert [text.segments[0].start for text in texts] == [chunk.spans[0].start for chunk in CHUNKS]


async def test_one_job_takes_no_more_than_the_engine_does_at_a_time(engine):
    """The chunks of a long recording must not stand before those of a short one."""
    await recognise(engine, Options(language="en"))

    assert engine.most == engine.at_a_time


async def test_the_first_chunk_decides_the_language_for_all(engine):
    """A recording must not change its language because a chunk is short."""
    await recognise(engine, Options())

    assert [options.language for _, options in engine.asked] == [None] + ["de"] * 7


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

    await recognise(engine, Options(language="en"), done)

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

    async def nothing(share: float) -> None: ...

    lease = Lease(lambda progress: (), clock=time.monotonic)
    assert await Recognition(engine, lease, [], np.zeros(0, np.int16), nothing).run(Options()) == []
    assert engine.asked == []
