"""A Whisper model of any size with random weights: its size decides how fast it is, not what it says.

    .venv/bin/python -m bench.random_weights --size large-v3 --like FOLDER --folder /tmp/large

For speed and memory where the real weights cannot be had. Takes tokenizer and vocabulary from the folder of a real
multilingual model.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from ctranslate2.specs.whisper_spec import WhisperSpec
from numpy.typing import NDArray

# Encoder layers, decoder layers, width, heads, mels. Source: the configurations of the published models.
SIZES = {
    "tiny": (4, 4, 384, 6, 80),
    "base": (6, 6, 512, 8, 80),
    "small": (12, 12, 768, 12, 80),
    "medium": (24, 24, 1024, 16, 80),
    "large-v3": (32, 32, 1280, 20, 128),
    "large-v3-turbo": (32, 4, 1280, 20, 128),
}
_AUDIO_STATES, _TEXT_POSITIONS = 1500, 448


class Weights:
    """Makes the weights: small ones, so that no sum overflows float16."""

    def __init__(self, width: int, seed: int) -> None:
        self.width = width
        self._rng = np.random.default_rng(seed)

    def random(self, *shape: int) -> NDArray[np.float16]:
        drawn = self._rng.standard_normal(shape, np.float32)
        small: NDArray[np.float16] = (drawn * (0.5 / np.sqrt(shape[-1]))).astype(np.float16)
        return small

    def linear(self, spec: Any, rows: int, columns: int) -> None:
        spec.weight, spec.bias = self.random(rows, columns), np.zeros(rows, np.float16)

    def norm(self, spec: Any) -> None:
        spec.gamma, spec.beta = np.ones(self.width, np.float16), np.zeros(self.width, np.float16)

    def attention(self, spec: Any) -> None:
        """Fill queries, keys, values and output: fused in self-attention, queries apart in cross-attention."""
        shares = {2: (3, 1), 3: (1, 2, 1)}[len(spec.linear)]
        for linear, share in zip(spec.linear, shares, strict=True):
            self.linear(linear, share * self.width, self.width)
        self.norm(spec.layer_norm)

    def block(self, spec: Any) -> None:
        self.attention(spec.self_attention)
        if hasattr(spec, "attention"):
            self.attention(spec.attention)
        self.norm(spec.ffn.layer_norm)
        self.linear(spec.ffn.linear_0, 4 * self.width, self.width)
        self.linear(spec.ffn.linear_1, self.width, 4 * self.width)


def make(size: str, tokens: list[str], seed: int = 1) -> WhisperSpec:
    """Return a model of this size."""
    encoder_layers, decoder_layers, width, heads, mels = SIZES[size]
    spec, weights = WhisperSpec(encoder_layers, heads, decoder_layers, heads), Weights(width, seed)
    for conv, channels in ((spec.encoder.conv1, mels), (spec.encoder.conv2, width)):
        conv.weight, conv.bias = weights.random(width, channels, 3), np.zeros(width, np.float16)
    spec.encoder.position_encodings.encodings = weights.random(_AUDIO_STATES, width)
    spec.decoder.position_encodings.encodings = weights.random(_TEXT_POSITIONS, width)
    for block in (*spec.encoder.layer, *spec.decoder.layer):
        weights.block(block)
    weights.norm(spec.encoder.layer_norm)
    weights.norm(spec.decoder.layer_norm)
    spec.decoder.embeddings.weight = weights.random(len(tokens), width)
    spec.decoder.projection.weight = spec.decoder.embeddings.weight
    spec.register_vocabulary(tokens)
    spec.config.alignment_heads = list(
        itertools.islice(itertools.product(range(decoder_layers // 2, decoder_layers), range(heads)), 10)
    )
    return spec


def save(size: str, like: Path, folder: Path) -> None:
    """Write a model folder that faster-whisper loads."""
    spec = make(size, _vocabulary(like))
    config = json.loads((like / "config.json").read_text())
    spec.config.suppress_ids, spec.config.suppress_ids_begin = config["suppress_ids"], config["suppress_ids_begin"]
    spec.config.lang_ids = config["lang_ids"]
    spec.validate()
    folder.mkdir(parents=True, exist_ok=True)
    spec.save(str(folder))
    shutil.copy(like / "tokenizer.json", folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"feature_size": SIZES[size][-1]}))


def _vocabulary(folder: Path) -> list[str]:
    if (listed := folder / "vocabulary.json").exists():
        tokens: list[str] = json.loads(listed.read_text())
        return tokens
    return (folder / "vocabulary.txt").read_text().removesuffix("\n").split("\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.random_weights", description="Make a model with random weights.")
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--like", type=Path, required=True, help="the folder of a real multilingual model")
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    save(options.size, options.like, options.folder)


if __name__ == "__main__":
    main()
