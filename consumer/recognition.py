"""One recording's chunks on their way through the engine: many at a time, or one after another."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import structlog

from consumer.checkpoint import part_name
from consumer.chunks import total_seconds

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from common.lease import Lease
    from common.options import Options
    from consumer.checkpoint import Checkpoint
    from consumer.chunks import Chunk
    from consumer.engine import ChunkText, Engine

log = structlog.get_logger()

# The tail of the text so far that prompts the next chunk in sequential mode; the model keeps 223 tokens.
_PROMPT_CHARACTERS = 600


class Recognition:
    """Turns the chunks of one recording into text, in their order."""

    def __init__(
        self,
        engine: Engine,
        lease: Lease,
        chunks: list[Chunk],
        samples: NDArray[np.int16],
        checkpoint: Checkpoint,
        done: Callable[[float], Awaitable[None]],
    ) -> None:
        """Take what the engine needs.

        Args:
            engine: shared by all jobs of the process.
            lease: the job's; when it is over, so is the work.
            chunks: of the recording.
            samples: shape (samples,), 16 kHz mono.
            checkpoint: what earlier attempts have finished of the job.
            done: told after each chunk which share of the recording it was, 0 to 1.
        """
        self._engine = engine
        self._lease = lease
        self._chunks = chunks
        self._samples = samples
        self._checkpoint = checkpoint
        self._done = done
        self._seconds = total_seconds(chunks)
        self._found: list[Chunk] = []
        """Those that an earlier attempt had finished."""
        # As many as the engine reads at a time, and as many to follow. It sees to it that jobs take turns.
        self._running = asyncio.Semaphore(2 * engine.at_a_time)

    @property
    def transcribed(self) -> float:
        """The share of the recording, 0 to 1, that was transcribed here and not found."""
        return 1 - total_seconds(self._found) / self._seconds if self._found else 1.0

    async def run(self, options: Options) -> list[ChunkText]:
        """Return the text of each chunk.

        Raises:
            ChunkAbandoned: the lease is over.
            JobError: engine_failed.
        """
        texts = await (self._one_by_one(options) if options.mode == "sequential" else self._together(options))
        if self._found:
            log.info("chunks_resumed", kept=len(self._found), total=len(self._chunks))
        return texts

    async def _together(self, options: Options) -> list[ChunkText]:
        """Transcribe chunks side by side; the first decides the language of all where nobody says it."""
        texts: list[ChunkText] = []
        options = options.model_copy(update={"language": options.language or self._engine.only_language})
        if self._chunks and options.language is None:
            texts.append(await self._chunk(self._chunks[0], options))
            options = options.model_copy(update={"language": texts[0].language})
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._chunk(chunk, options)) for chunk in self._chunks[len(texts) :]]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from failures  # one failed chunk ends the job; the others were cancelled
        return texts + [task.result() for task in tasks]

    async def _one_by_one(self, options: Options) -> list[ChunkText]:
        """Transcribe chunks in order, each prompted with the end of the text before it."""
        texts: list[ChunkText] = []
        prompt = options.initial_prompt
        for chunk in self._chunks:
            texts.append(await self._chunk(chunk, options.model_copy(update={"initial_prompt": prompt})))
            options = options.model_copy(update={"language": texts[0].language})
            prompt = _end_of(texts) or options.initial_prompt
        return texts

    async def _chunk(self, chunk: Chunk, options: Options) -> ChunkText:
        async with self._running:
            name = part_name(self._engine.identity, options, chunk, self._samples)
            text = self._checkpoint.find(name)
            if text is not None:
                self._found.append(chunk)
            else:
                text = await self._engine.transcribe(chunk, self._samples, options, self._lease)
                self._checkpoint.keep(name, text)
        await self._done(chunk.seconds / self._seconds)
        return text


def _end_of(texts: Sequence[ChunkText]) -> str:
    """Return the last words of all that was said so far."""
    said = ""
    for text in reversed(texts):
        said = " ".join([*(segment.text for segment in text.segments), said])
        if len(said) > _PROMPT_CHARACTERS:
            break
    return said[-_PROMPT_CHARACTERS:].strip()
