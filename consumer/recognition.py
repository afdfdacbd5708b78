"""One recording's chunks on their way through the engine: many at a time, or one after another."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from consumer.chunks import total_seconds

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from common.lease import Lease
    from common.options import Options
    from consumer.chunks import Chunk
    from consumer.engine import ChunkText, Engine

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
        done: Callable[[float], Awaitable[None]],
    ) -> None:
        """Take what the engine needs.

        Args:
            engine: shared by all jobs of the process.
            lease: the job's; when it is over, so is the work.
            chunks: of the recording.
            samples: shape (samples,), 16 kHz mono.
            done: told after each chunk which share of the recording it was, 0 to 1.
        """
        self._engine = engine
        self._lease = lease
        self._chunks = chunks
        self._samples = samples
        self._done = done
        self._seconds = total_seconds(chunks)

    async def run(self, options: Options) -> list[ChunkText]:
        """Return the text of each chunk.

        Raises:
            ChunkAbandoned: the lease is over.
            JobError: engine_failed.
        """
        if options.mode == "sequential":
            return await self._one_by_one(options)
        texts: list[ChunkText] = []
        if self._chunks and options.language is None:
            # The first chunk decides for the whole recording.
            texts.append(await self._chunk(self._chunks[0], options))
            options = options.model_copy(update={"language": texts[0].language})
        return texts + await self._together(self._chunks[len(texts) :], options)

    async def _together(self, chunks: list[Chunk], options: Options) -> list[ChunkText]:
        """Transcribe chunks, no more at a time than the engine does: another job's chunks come in between."""
        running = asyncio.Semaphore(self._engine.at_a_time)

        async def transcribe(chunk: Chunk) -> ChunkText:
            async with running:
                return await self._chunk(chunk, options)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(transcribe(chunk)) for chunk in chunks]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from failures  # one failed chunk ends the job; the others were cancelled
        return [task.result() for task in tasks]

    async def _one_by_one(self, options: Options) -> list[ChunkText]:
        """Transcribe chunks in order, each prompted with the end of the text before it."""
        texts: list[ChunkText] = []
        prompt = options.initial_prompt
        for chunk in self._chunks:
            texts.append(await self._chunk(chunk, options.model_copy(update={"initial_prompt": prompt})))
            options = options.model_copy(update={"language": texts[0].language})
            said = " ".join(segment.text for text in texts[-3:] for segment in text.segments)
            prompt = said[-_PROMPT_CHARACTERS:] or options.initial_prompt
        return texts

    async def _chunk(self, chunk: Chunk, options: Options) -> ChunkText:
        text = await self._engine.transcribe(chunk, self._samples, options, self._lease)
        await self._done(chunk.seconds / self._seconds)
        return text
