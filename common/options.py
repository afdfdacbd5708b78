"""What a job may ask of the transcription, checked where it comes in."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

# The languages of the multilingual Whisper models, by ISO 639 code. A test with the real library compares them.
_CODES = """
af am ar as az ba be bg bn bo br bs ca cs cy da de el en es et eu fa fi fo fr gl gu ha haw he hi hr ht hu hy id is it
ja jw ka kk km kn ko la lb ln lo lt lv mg mi mk ml mn mr ms mt my ne nl nn no oc pa pl ps pt ro ru sa sd si sk sl sn so
sq sr su sv sw ta te tg th tk tl tr tt uk ur uz vi yi yo yue zh
"""
LANGUAGES = frozenset(_CODES.split())

# Whisper's decoder keeps at most 223 tokens of prompt; longer text would be cut without a word.
MOST_PROMPT_CHARACTERS = 800
Prompt = Annotated[str, Field(max_length=MOST_PROMPT_CHARACTERS)]
# The name of a file without its ending: no folder, nothing hidden.
LexiconName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class Options(BaseModel):
    """Decoding options of one job; what is left out takes the value shown."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    language: str | None = Field(None, description="ISO 639 code; detected when left out.")
    task: Literal["transcribe", "translate"] = Field("transcribe", description="`translate` writes English.")
    beam_size: int = Field(5, ge=1, le=10, description="1 is fastest.")
    word_timestamps: bool = Field(False, description="Times of each word.")
    initial_prompt: Prompt | None = Field(None, description="Text that sets style and spelling.")
    hotwords: Prompt | None = Field(None, description="Terms that are likely to be said.")
    lexicon: LexiconName | None = Field(None, description="Name of a list of such terms that the service keeps.")
    vad: bool = Field(True, description="Skip what is not speech; off lets the model invent text on silence.")
    temperature: float | None = Field(None, ge=0, le=1, description="Fixed; default: 0, rising when quality is poor.")
    mode: Literal["chunks", "sequential"] = Field(
        "chunks", description="`sequential`: in order, each chunk prompted with the text before; slower."
    )

    @field_validator("language")
    @classmethod
    def _known_language(cls, value: str | None) -> str | None:
        if value is not None and value not in LANGUAGES:
            raise ValueError(f"unknown language {value!r}: expected an ISO 639 code such as 'en', or leave it out")
        return value
