"""Is a transcript as good as the library's? Our engine and faster-whisper on the same recordings, options and weights.

    .venv/bin/python -m bench.accuracy --clips 100
    .venv/bin/python -m bench.accuracy --folder /tmp/set --short --show 5

One JSON line a case, then tables. Measured are
  errors     the word error rate over an evaluation set (`bench.speech`), and its difference from faster-whisper's with
             a 95 % interval (bootstrap, paired by recording): a difference whose interval holds 0 is none;
  times      of words and segments against faster-whisper's, and of first and last words against where sentences begin
             and end in the recording;
  no_speech  how many recordings of silence, noise, tones and music get a transcript.
Speeds are given beside, of one run each and with the load of the machine: they are no benchmark.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog

from bench.speech.compare import Times, difference
from bench.speech.recordings import Recording, make_set, read_set
from bench.speech.sound import (
    Sound,
    as_int16,
    at_level,
    joined,
    music,
    pink_noise,
    read_wav,
    silence,
    telephone,
    tone,
    white_noise,
)
from bench.speech.systems import Heard, System, load_systems
from bench.speech.voices import PIPER, find_voices
from bench.speech.words import Errors, error_count, normalized, total
from common.options import Options

if TYPE_CHECKING:
    from numpy.typing import NDArray

Result = dict[str, Any]
OURS, LIBRARY, BATCHED = "sttream", "faster-whisper", "faster-whisper-batched"


@dataclass(frozen=True)
class Material:
    """The recordings of a run, and how they sound."""

    recordings: list[Recording]
    samples: list[NDArray[np.int16]]

    @property
    def audio_s(self) -> float:
        return sum(one.seconds for one in self.recordings)

    def errors(self, heard: Sequence[Heard]) -> list[Errors]:
        """Return the errors in each recording."""
        return [error_count(one.text, said.text) for one, said in zip(self.recordings, heard, strict=True)]


def no_speech(rng: np.random.Generator) -> Iterator[tuple[str, Sound]]:
    """Yield recordings in which nobody speaks, and what they are made of."""
    for seconds in (1.0, 10.0, 40.0):
        yield "silence", silence(seconds)
    for level_db in (-70.0, -50.0, -30.0):
        yield "noise", at_level(white_noise(15.0, rng), level_db)
        yield "noise", at_level(pink_noise(15.0, rng), level_db)
    yield "noise", telephone(at_level(white_noise(20.0, rng), -40.0))
    for hertz in (60.0, 440.0, 1000.0):
        yield "tones", tone(12.0, hertz)
    yield "tones", joined([piece for _ in range(6) for piece in (tone(1.0, 425.0), silence(4.0))])
    yield "tones", joined([piece for _ in range(20) for piece in (tone(0.1, 1200.0), silence(0.4))])
    for level_db in (-20.0, -20.0, -20.0, -35.0, -45.0):
        yield "music", at_level(music(20.0, rng), level_db)
        yield "music", telephone(at_level(music(20.0, rng), level_db))


async def measure_errors(systems: Sequence[System], material: Material, options: Options, show: int) -> list[Result]:
    """Measure error rates and their differences from faster-whisper's.

    Args:
        systems: ours first, then faster-whisper.
        material: what they hear.
        options: for all of them.
        show: how many recordings to print in which we are worse than the library.
    """
    heard: dict[str, list[Heard]] = {}
    speed: dict[str, float] = {}
    for system in systems:
        begun = time.perf_counter()
        heard[system.name] = await system.hear(material.samples, options)
        speed[system.name] = material.audio_s / (time.perf_counter() - begun)
    errors = {name: material.errors(said) for name, said in heard.items()}
    show_worst(material, heard, errors, show)
    return [
        {
            "case": name,
            "measure": "errors",
            "beam_size": options.beam_size,
            "wer": round(total(found).rate, 4),
            **difference(found, errors[LIBRARY]).figures("wer"),
            "same_text": round(statistics.mean(map(_same_text, heard[name], heard[LIBRARY])), 3),
            "clips": len(found),
            "words": total(found).said,
            "audio_s": round(material.audio_s),
            "audio_s_per_s": round(speed[name], 1),
            "load": round(os.getloadavg()[0], 1),
        }
        for name, found in errors.items()
    ]


def show_worst(material: Material, heard: dict[str, list[Heard]], errors: dict[str, list[Errors]], most: int) -> None:
    """Print, to standard error, the recordings in which we lose most against the library."""
    lost = [ours.wrong - theirs.wrong for ours, theirs in zip(errors[OURS], errors[LIBRARY], strict=True)]
    worst = sorted((at for at, words in enumerate(lost) if words > 0), key=lambda at: -lost[at])
    for at in worst[:most]:
        one = material.recordings[at]
        texts = {"said": one.text, "ours": heard[OURS][at].text, "theirs": heard[LIBRARY][at].text}
        print(f"\n{one.file}: {lost[at]} words more are wrong; {one.condition}", file=sys.stderr)
        print(*(f"  {name:6} {normalized(text)}" for name, text in texts.items()), sep="\n", file=sys.stderr)


async def measure_times(systems: Sequence[System], material: Material, options: Options) -> list[Result]:
    """Compare the times of words and segments with faster-whisper's, and those of sentences with the recording."""
    asked = options.model_copy(update={"word_timestamps": True})
    heard = {system.name: await system.hear(material.samples, asked) for system in systems}
    results = []
    for name, said in heard.items():
        times = Times()
        for ours, theirs, one in zip(said, heard[LIBRARY], material.recordings, strict=True):
            times.add(ours, theirs, one.sentences)
        errors = {"wer": round(total(material.errors(said)).rate, 4)}
        results.append({"case": name, "measure": "times", "beam_size": options.beam_size, **errors, **times.result()})
    return results


async def measure_no_speech(systems: Sequence[System], options: Options, seed: int) -> list[Result]:
    """Count the recordings without speech that get a transcript: `2 of 7`, by what they are made of."""
    sounds = list(no_speech(np.random.default_rng(seed)))
    recordings = Counter(kind for kind, _ in sounds)
    results: list[Result] = []
    for system in systems:
        heard = await system.hear([as_int16(sound) for _, sound in sounds], options)
        said = Counter(kind for (kind, _), one in zip(sounds, heard, strict=True) if normalized(one.text))
        figures = {f"{kind}_with_text": f"{said[kind]} of {count}" for kind, count in recordings.items()}
        results.append(
            {"case": system.name, "measure": "no_speech", "beam_size": options.beam_size, "vad": options.vad, **figures}
        )
    return results


def table(results: Sequence[Result]) -> str:
    """Return the results of one measure in Markdown."""
    names = [name for name in results[0] if name not in {"measure", "load"}]
    lines = [f"| {' | '.join(name.replace('_', ' ') for name in names)} |", "|---" * len(names) + "|"]
    lines += [f"| {' | '.join(str(result.get(name, '')) for name in names)} |" for result in results]
    return "\n".join(lines)


def _same_text(one: Heard, other: Heard) -> bool:
    return normalized(one.text) == normalized(other.text)


async def run(systems: Sequence[System], material: Material, options: argparse.Namespace) -> list[Result]:
    """Measure everything."""
    beams = [Options(beam_size=beam, language=options.language) for beam in options.beams]
    results = []
    for asked in beams:
        results += await measure_errors(systems, material, asked, options.show)
    if not options.short:
        results += await measure_times(systems, material, beams[-1])
    results += await measure_no_speech(systems, beams[-1], options.seed)
    if not options.short:
        unheard = beams[-1].model_copy(update={"vad": False})
        results += await measure_no_speech([one for one in systems if one.name != BATCHED], unheard, options.seed)
    return results


def material_of(folder: Path, options: argparse.Namespace) -> Material:
    """Return a set that is there, or make one."""
    if options.folder is None:
        voices, missing = find_voices(options.piper)
        print(*missing, sep="\n", file=sys.stderr, end="\n" * bool(missing))
        recordings = make_set(folder, voices, seed=options.seed, clips=options.clips, mixed=options.mixed)
    else:
        folder = options.folder
        recordings = read_set(folder)[: options.clips]
    return Material(recordings, [as_int16(read_wav(folder / one.file)) for one in recordings])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.accuracy", description="Compare transcripts with faster-whisper's.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--mixed", action="store_true", help="every tenth recording is 1 to 5 minutes long")
    parser.add_argument("--folder", type=Path, help="a set made before, in place of a new one")
    parser.add_argument("--piper", type=Path, default=PIPER, help="the Python of an environment with Piper")
    parser.add_argument("--model", default="bundled", help="a name, a folder or `bundled`")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compute-type", default="default")
    parser.add_argument("--window", default="auto", help="STTREAM_WINDOW of our engine")
    parser.add_argument("--language", help="asked for in every job; default: the model finds it")
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--short", action="store_true", help="error rates, and no speech with detection, only")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print the N recordings in which we lose most")
    parser.add_argument("--json", action="store_true", help="no tables")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    systems = load_systems(options.model, options.device, options.compute_type, options.window)
    with tempfile.TemporaryDirectory() as folder:
        material = material_of(Path(folder), options)
        results = asyncio.run(run(systems, material, options))
    for result in results:
        print(json.dumps(result))
    if not options.json:
        for measure in dict.fromkeys(result["measure"] for result in results):
            print("", table([result for result in results if result["measure"] == measure]), sep="\n")


if __name__ == "__main__":
    main()
