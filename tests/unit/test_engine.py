"""The engine with a stand-in for the model: what it makes of a model that fails or hangs."""

from __future__ import annotations

import asyncio
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from common.errors import JobError
from common.lease import Lease
from common.options import Options
from common.watchdog import Watchdog
from consumer.chunks import Chunk
from consumer.engine import Engine
from consumer.speech import Span

CHUNK = Chunk((Span(0, 16_000),))
NOISE = np.ones(16_000, np.int16)


class Model:
    """Fails as a test wants, on a job's audio and on silence."""

    model = SimpleNamespace(is_multilingual=True)

    def __init__(self) -> None:
        self.on_audio: BaseException | None = None
        self.on_silence: BaseException | None = None
        self.asked: list[str] = []

    def transcribe(self, audio, **_):
        return self._segments("audio" if audio.any() else "silence"), SimpleNamespace(
            language="en", language_probability=1.0
        )

    def _segments(self, what):
        """Fail while iterating: that is where the library does its work."""
        self.asked.append(what)
        if error := self.on_audio if what == "audio" else self.on_silence:
            raise error
        yield from ()


@pytest.fixture
def ended():
    return []


@pytest.fixture
def engine(ended):
    engine = Engine(Model(), "stand-in", 1, 1, Watchdog(60, end=ended.append), identity="stand-in int8")
    yield engine
    engine.close()


async def transcribe(engine):
    lease = Lease(lambda progress, parts: (), clock=time.monotonic)
    return await engine.transcribe(CHUNK, NOISE, Options(), lease)


@pytest.mark.parametrize("error", [RuntimeError("CUDA failed with error out of memory"), MemoryError("32 GiB")])
async def test_a_chunk_that_is_too_much_costs_an_attempt(engine, ended, error):
    """Another attempt may find more room; the model still works, so the other jobs go on."""
    engine._model.on_audio = error

    with pytest.raises(JobError, match="model stand-in failed") as caught:
        await transcribe(engine)

    assert (caught.value.type, caught.value.retryable) == ("engine_failed", True)
    assert engine._model.asked == ["audio", "silence"]
    assert ended == []


@pytest.mark.parametrize("on_silence", [RuntimeError("illegal access"), MemoryError(), OSError("gone")])
async def test_a_model_that_fails_on_silence_too_ends_the_process(engine, ended, on_silence, capsys):
    """It would spend the attempts of every job in the queue within seconds."""
    engine._model.on_audio = RuntimeError("an illegal memory access was encountered")
    engine._model.on_silence = on_silence

    with pytest.raises(JobError):
        await transcribe(engine)

    assert ended == [1]
    assert "an illegal memory access was encountered; then on silence too" in capsys.readouterr().out


async def test_a_model_that_works_is_not_asked_for_proof(engine):
    """Silence costs a pass through the model."""
    await transcribe(engine)

    assert engine._model.asked == ["audio"]


async def test_a_model_that_hangs_ends_the_process():
    """Its thread cannot be ended, and holds a part of the engine for ever."""
    hangs, ended = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    model = Model()
    model.transcribe = lambda audio, **_: hangs.wait(60)
    with Watchdog(0.2, end=lambda code: loop.call_soon_threadsafe(ended.set)) as watchdog:
        engine = Engine(model, "stand-in", 1, 1, watchdog, identity="stand-in int8")
        hanging = asyncio.create_task(transcribe(engine))
        await asyncio.wait_for(ended.wait(), 30)
    hanging.cancel()
    hangs.set()
    engine.close()
