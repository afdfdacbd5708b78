"""What is compared: our engine, and the library that it runs, under the same options with the same model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from common.lease import Lease
from common.metrics import ConsumerMetrics
from common.process import available_cores
from common.settings import Settings, load_settings
from common.watchdog import Watchdog
from consumer.engine import Engine
from consumer.service import JOBS_A_CHUNK
from consumer.speech import find_speech
from consumer.whisper import Whisper, find_model

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from common.options import Options

# A call to the model that takes longer hangs.
STALL_S = 600.0


@dataclass(frozen=True, slots=True)
class Timed:
    """A word or a segment, in seconds of the recording."""

    start: float
    end: float
    text: str


@dataclass(frozen=True, slots=True)
class Heard:
    """What a system makes of a recording."""

    segments: tuple[Timed, ...]
    words: tuple[Timed, ...]
    """Empty unless the options ask for their times."""

    @property
    def text(self) -> str:
        return " ".join(segment.text for segment in self.segments)


class System(Protocol):
    """Something that transcribes recordings."""

    @property
    def name(self) -> str:
        """What results call it."""

    async def hear(self, recordings: Sequence[NDArray[np.int16]], options: Options) -> list[Heard]:
        """Transcribe recordings, int16 at 16 kHz."""


class Ours:
    """The engine of a consumer, which has several recordings at a time."""

    name = "sttream"

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def hear(self, recordings: Sequence[NDArray[np.int16]], options: Options) -> list[Heard]:
        free = asyncio.Semaphore(JOBS_A_CHUNK * self._engine.at_a_time)

        async def one(samples: NDArray[np.int16]) -> Heard:
            async with free:
                return await self._hear_one(samples, options)

        return list(await asyncio.gather(*(one(samples) for samples in recordings)))

    async def _hear_one(self, samples: NDArray[np.int16], options: Options) -> Heard:
        lease = Lease(lambda _progress, _parts: (), clock=time.monotonic)
        spans = await asyncio.to_thread(find_speech, samples) if options.vad else []
        chunks = self._engine.chunks(samples, spans, options)
        texts = await asyncio.gather(*(self._engine.transcribe(chunk, samples, options, lease) for chunk in chunks))
        return _heard([segment for text in texts for segment in text.segments])


class Library:
    """faster-whisper as its README shows it: one recording after another, with all cores."""

    def __init__(self, name: str, transcribe: Any) -> None:
        self.name = name
        self._transcribe = transcribe

    async def hear(self, recordings: Sequence[NDArray[np.int16]], options: Options) -> list[Heard]:
        return await asyncio.to_thread(lambda: [self._hear_one(samples, options) for samples in recordings])

    def _hear_one(self, samples: NDArray[np.int16], options: Options) -> Heard:
        audio = samples.astype(np.float32) / 32768.0  # as its own decoder gives them
        found, _ = self._transcribe(audio, vad_filter=options.vad, **_arguments(options))
        return _heard(list(found))


def load_systems(model: str, device: str, compute_type: str, window: str) -> tuple[Ours, Library, Library]:
    """Load our engine, plain faster-whisper and its batched pipeline, all with the same weights and compute type.

    Args:
        model: as `STTREAM_MODEL`.
        device: as `STTREAM_DEVICE`.
        compute_type: as `STTREAM_COMPUTE_TYPE`.
        window: as `STTREAM_WINDOW`; of our engine only.
    """
    from faster_whisper import BatchedInferencePipeline, WhisperModel

    settings = load_settings(
        {
            "STTREAM_MODEL": model,
            "STTREAM_DEVICE": device,
            "STTREAM_COMPUTE_TYPE": compute_type,
            "STTREAM_WINDOW": window,
        }
    )
    engine = Engine.start(Whisper.load(settings), settings.batch_size, Watchdog(STALL_S), ConsumerMetrics())
    plain = WhisperModel(
        find_model(settings.model)[0],
        device=device,
        compute_type=_library_type(settings, compute_type),
        cpu_threads=available_cores(),
    )
    return (
        Ours(engine),
        Library("faster-whisper", plain.transcribe),
        Library("faster-whisper-batched", BatchedInferencePipeline(plain).transcribe),
    )


def _arguments(options: Options) -> dict[str, Any]:
    """Return the library's arguments; what a job does not set stays the library's default."""
    arguments = options.model_dump(include={"language", "task", "beam_size", "word_timestamps"})
    optional = options.model_dump(include={"initial_prompt", "hotwords", "temperature"}, exclude_none=True)
    return {**arguments, **optional}


def _library_type(settings: Settings, compute_type: str) -> str:
    """Return what our engine makes of `default`."""
    if compute_type != "default":
        return compute_type
    import ctranslate2

    on_gpu = settings.device == "cuda" or (settings.device == "auto" and ctranslate2.get_cuda_device_count() > 0)
    return "float16" if on_gpu else "int8"


def _heard(segments: Sequence[Any]) -> Heard:
    return Heard(
        tuple(Timed(segment.start, segment.end, segment.text.strip()) for segment in segments),
        tuple(Timed(word.start, word.end, word.word) for segment in segments for word in segment.words or ()),
    )
