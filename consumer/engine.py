"""The engine: chunks of all jobs, read by one model in batches.

Chunks that can be read in one call wait together (`consumer.batcher`). What the model reads in each is believed, or the
chunk waits to be read again (`consumer.waiting`); the others of its batch are done. A model call that hangs, or a model
that fails on silence too, ends the process: its jobs go on elsewhere.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
import structlog

from common.errors import JobError
from common.transcript import Segment
from consumer.batch_size import best_batch_size
from consumer.batcher import Batcher
from consumer.chunks import WINDOW_S, chunks_of_everything, chunks_of_speech
from consumer.segments import segments_of
from consumer.speech import SAMPLE_RATE_HZ
from consumer.waiting import Waiting
from consumer.window import FULL, PACKED_S, Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from common.lease import Lease
    from common.metrics import ConsumerMetrics
    from common.options import Options
    from common.watchdog import Watchdog
    from consumer.chunks import Chunk
    from consumer.reading import Reading
    from consumer.speech import Span

log = structlog.get_logger()

# How long a start may take to find the batch size: a large model is loaded for longer than that.
_TRIAL_LIMIT_S = {"cpu": 2.0, "cuda": 5.0}
_SILENCE = np.zeros(SAMPLE_RATE_HZ, np.float32)


class Model(Protocol):
    """What the engine needs of a model; `consumer.whisper` is the real one. Its calls come from several threads."""

    name: str
    identity: str
    """What texts depend on beside the audio and the options, the same on all machines."""
    workers: int
    """Calls that it works on at a time."""
    device: str
    """Where it runs: `cpu` or `cuda`."""
    multilingual: bool
    """Whether it knows more than English."""
    short_windows: bool
    """Whether it may be given windows that are shorter than 30 s."""

    def features(self, audio: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the log-mel spectrogram of up to 30 s of audio."""

    def prefix(self, options: Options) -> tuple[int, ...]:
        """Return the tokens of prompt and hotwords."""

    def try_batch(self, size: int) -> None:
        """Do the work of a batch."""

    def read(self, windows: Sequence[Window]) -> list[Reading]:
        """Read windows that have states, beam size, temperature and the length of the prefix in common.

        Raises:
            RuntimeError, ValueError, MemoryError: it failed; on a GPU it may have run out of memory.
        """


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

    def __init__(self, model: Model, batch_size: int, watchdog: Watchdog, metrics: ConsumerMetrics) -> None:
        """Start the threads.

        Args:
            model: loaded.
            batch_size: chunks in one model call; halved when they are too much for the device.
            watchdog: ends the process when the model hangs.
            metrics: counts batches, and chunks that are read again.
        """
        self.name = model.name
        self.identity = model.identity
        self.only_language = None if model.multilingual else "en"
        """The language of all it reads, where it knows no other."""
        self._packed_s = PACKED_S if model.short_windows else WINDOW_S
        self._model = model
        self._batch_size = batch_size
        self._watchdog = watchdog
        self._metrics = metrics
        self._batcher: Batcher[Waiting] = Batcher(model.workers)
        self._features = ThreadPoolExecutor(batch_size, thread_name_prefix="features")
        for number in range(model.workers):
            threading.Thread(target=self._work, name=f"engine-{number}", daemon=True).start()

    @classmethod
    def start(cls, model: Model, batch_size: int | None, watchdog: Watchdog, metrics: ConsumerMetrics) -> Self:
        """Start the engine; blocks while the batch size is measured if it is None."""
        # On a CPU its own time counts: a busy host would look like a batch that is too large.
        clock = time.process_time if model.device == "cpu" else time.perf_counter
        size = batch_size or best_batch_size(model.try_batch, _TRIAL_LIMIT_S[model.device], clock=clock)
        return cls(model, size, watchdog, metrics)

    @property
    def at_a_time(self) -> int:
        """Chunks that it reads at a time."""
        return self._batch_size * self._model.workers

    def close(self) -> None:
        """Stop taking chunks; batches under way end in their threads."""
        self._batcher.close()
        self._features.shutdown(wait=False, cancel_futures=True)

    def check(self, options: Options) -> None:
        """Refuse what this model cannot do, instead of doing something else.

        Raises:
            JobError: option_unsupported.
        """
        if self._model.multilingual:
            return
        if options.language not in (None, "en") or options.task == "translate":
            asked = f"language={options.language}, task={options.task}"
            raise JobError(
                "option_unsupported",
                f"model {self.name} knows English only and cannot do {asked}; "
                "submit without them, or run consumers with a multilingual model",
            )

    def chunks(self, samples: NDArray[np.int16], spans: Sequence[Span], options: Options) -> list[Chunk]:
        """Cut a recording into chunks as this engine likes them.

        Args:
            samples: shape (samples,), 16 kHz mono.
            spans: where somebody speaks in it, in order; not looked at without speech detection.
            options: what the job asks for.
        """
        if not options.vad:
            return chunks_of_everything(samples)
        # The first chunk decides the language of all where nobody says it.
        first_s = self._packed_s if options.language or self.only_language else WINDOW_S
        return chunks_of_speech(spans, self._packed_s, first_packed_s=first_s)

    async def transcribe(self, chunk: Chunk, recording: NDArray[np.int16], options: Options, lease: Lease) -> ChunkText:
        """Transcribe one chunk, in batches with those of other jobs.

        Args:
            chunk: which part of the recording.
            recording: shape (samples,), 16 kHz mono.
            options: what the job asks for; `mode` is the caller's business.
            lease: the job's; when it is over, its chunks are not read any more.

        Raises:
            ChunkAbandoned: the lease is over.
            JobError: engine_failed; another attempt may help.
        """
        gone = threading.Event()
        waiting = Waiting(
            job=lease,
            audio=lambda: chunk.audio(recording),
            seconds=chunk.seconds,
            options=options,
            prefix=self._model.prefix(options),
            short_windows=self._model.short_windows,
            over=lambda: gone.is_set() or lease.over,
        )
        self._batcher.put(waiting)
        try:
            reading = await asyncio.wrap_future(waiting.done)
        finally:
            gone.set()  # nobody waits for it any more
        segments = segments_of(reading, chunk, words=options.word_timestamps)
        return ChunkText(segments, reading.language, reading.language_probability)

    def _work(self) -> None:
        """One thread: batch after batch, until closed."""
        while self._do_a_batch():
            pass  # here, where it waits for the next, nothing holds the recordings of the last

    def _do_a_batch(self) -> bool:
        """Read the next batch; return whether there was one."""
        began = time.perf_counter()
        batch = self._batcher.take(self._batch_size)
        self._metrics.engine_idle_seconds.inc(time.perf_counter() - began)
        wanted = [waiting for waiting in batch if not _abandoned(waiting)]
        if wanted:
            self._metrics.batch_fill_ratio.observe(len(wanted) / self._batch_size)
            self._read(wanted)
        return bool(batch)

    def _read(self, batch: Sequence[Waiting]) -> None:
        """Read chunks of one kind, and judge what was read."""
        try:
            with self._watchdog.step(f"model {self.name} on a batch of {len(batch)}"):
                # Spectrograms in a pool of threads: one after another they would hold up a GPU.
                windows = list(self._features.map(lambda waiting: waiting.window(self._model.features), batch))
                readings = self._model.read(windows)
        except Exception as exc:  # noqa: BLE001 the edge of the thread: whatever it is, it fails chunks, not the thread
            self._read_in_parts(batch, exc)
            return
        for waiting, reading in zip(batch, readings, strict=True):
            self._judge(waiting, reading)

    def _judge(self, waiting: Waiting, reading: Reading) -> None:
        """Let a chunk take in what was read of it; it waits again if it wants more."""
        try:
            again = waiting.judge(reading)
        except Exception as exc:  # noqa: BLE001 the edge of the thread, too: the others of the batch are not judged yet
            self._give_up(waiting, exc)
            return
        if again:
            self._metrics.chunks_read_again.labels(again).inc()
            self._batcher.put(waiting)

    def _read_in_parts(self, batch: Sequence[Waiting], error: Exception) -> None:
        """Read a batch that failed in parts: halves if it was too much, else each chunk alone; one is at fault."""
        if len(batch) == 1:
            self._give_up(batch[0], error)
            return
        parts = [[waiting] for waiting in batch]
        if _out_of_memory(error):
            half = (len(batch) + 1) // 2
            parts = [list(batch[:half]), list(batch[half:])]
            self._batch_size = min(self._batch_size, half)
            log.warning("batch_halved", was=len(batch), now=self._batch_size, error=str(error))
        for part in parts:
            self._read(part)

    def _give_up(self, waiting: Waiting, error: Exception) -> None:
        """Fail one chunk; end the process if the model is of no use any more."""
        failure = f"model {self.name} failed on one chunk: {type(error).__name__}: {error}"
        self._prove_itself(failure)
        waiting.done.set_exception(JobError("engine_failed", failure, retryable=True))

    def _prove_itself(self, failure: str) -> None:
        """End the process if the model fails on silence too: it would fail every job in a blink, attempt by attempt.

        After an illegal access a CUDA context is lost for good, say. Out of memory for one chunk is not.
        """
        try:
            silence = self._model.features(_SILENCE)
            self._model.read([Window(silence, FULL, (), "en", "transcribe", 1, 0.0)])
        except Exception as exc:  # noqa: BLE001 whatever it is: this model is of no use any more
            self._watchdog.give_up(f"{failure}; then on silence too: {type(exc).__name__}: {exc}")


def _abandoned(waiting: Waiting) -> bool:
    """Return whether nobody wants a chunk any more, and say so to who waits for it."""
    over = waiting.over()
    if over:
        waiting.done.set_exception(ChunkAbandoned())
    return over


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(text in str(error) for text in ("out of memory", "bad_alloc"))
