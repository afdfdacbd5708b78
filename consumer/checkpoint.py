"""Checkpoints: the chunks of a job that are done, kept so that another attempt goes on where this one ended.

A part is one chunk's text. Its name is a digest of all that the text depends on, so whoever has another recording,
other options or another model finds nothing: no case of its own for any of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import orjson
import structlog
from pydantic import TypeAdapter, ValidationError

from consumer.engine import ChunkText

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from common.options import Options
    from consumer.chunks import Chunk

log = structlog.get_logger()

_TEXT = TypeAdapter(ChunkText)
_NAME_BYTES = 16
# Options that decide how a recording becomes chunks, not what a chunk's text is.
_OF_THE_JOB = {"mode"}


class Checkpoint:
    """The parts of one job."""

    def __init__(self, parts: Mapping[str, str], keep: Callable[[str, str], None]) -> None:
        """Begin an attempt.

        Args:
            parts: what earlier attempts have kept, by name.
            keep: keeps one more, under its name.
        """
        self._parts = parts
        self._keep = keep

    def find(self, name: str) -> ChunkText | None:
        """Return the text that an earlier attempt has kept, None when there is none that can be read."""
        body = self._parts.get(name)
        if body is None:
            return None
        try:
            return _TEXT.validate_json(body)
        except ValidationError as exc:
            # Of another version, or damaged. Never the input, which is what was said.
            log.debug("part_unreadable", part=name, errors=exc.error_count(), next="the chunk is transcribed again")
            return None

    def keep(self, name: str, text: ChunkText) -> None:
        """Keep the text of a chunk for the next attempt, should there be one."""
        self._keep(name, _TEXT.dump_json(text).decode())


def part_name(identity: str, options: Options, chunk: Chunk, recording: NDArray[np.int16]) -> str:
    """Return the name of a chunk's part; under 2 ms for 30 s of audio.

    Args:
        identity: the engine's.
        options: those in force for this chunk: the language found before it, the text that prompts it.
        chunk: which part of the recording.
        recording: shape (samples,), 16 kHz mono.
    """
    spans = [(span.start, span.end) for span in chunk.spans]
    asked = options.model_dump(exclude=_OF_THE_JOB)
    facts = orjson.dumps([identity, asked, spans], option=orjson.OPT_SORT_KEYS)
    digest = hashlib.blake2b(facts, digest_size=_NAME_BYTES)
    for start, end in spans:
        digest.update(recording[start:end].data)
    return digest.hexdigest()
