"""How much audio a machine transcribes in a second, beside the library that we run.

    .venv/bin/python -m bench.engine                  (about 20 minutes on two cores)
    .venv/bin/python -m bench.engine --short          (a few minutes)

From files to text, decoding and speech detection included, model loaded. Each system is a process of its own, and they
take turns: in each round each transcribes the same files once. Prints one JSON line a case and a table; `of_library`
and `of_best` compare within a round and are medians over the rounds, so that a busy machine slows all of them.

Materials (`bench.speech`): `short` clips of 3 to 10 s, `mixed` ones of 1 s to 5 minutes, one `long` recording.
Rivals: `faster-whisper` is the documentation's first example; the two `batched` are its fastest: several files at a
time on a worker a core, or one with all cores.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.speech.recordings import Recording, make_long, make_set
from bench.speech.voices import PIPER, find_voices
from bench.speech.words import error_count, total

OURS, LIBRARY = "sttream", "faster-whisper"
BATCHED = ("faster-whisper-batched", "faster-whisper-batched-threads")
MATERIALS = ("short", "mixed", "long")
SYSTEMS = (OURS, LIBRARY, *BATCHED)


@dataclass(frozen=True)
class Material:
    """Files, and what is said in them."""

    name: str
    folder: Path
    recordings: Sequence[Recording]

    @property
    def files(self) -> list[str]:
        return [str(self.folder / one.file) for one in self.recordings]

    @property
    def seconds(self) -> float:
        return sum(one.seconds for one in self.recordings)

    def error_rate(self, texts: Sequence[str]) -> float:
        return total([error_count(one.text, said) for one, said in zip(self.recordings, texts, strict=True)]).rate


@dataclass
class Runs:
    """What one system did of one material with one beam size, a figure a round."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)


class System:
    """A process of `bench.transcribers`."""

    def __init__(self, name: str, model: str) -> None:
        self.name = name
        command = (sys.executable, "-m", "bench.transcribers", name, "--model", model)
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()

    def transcribe(self, files: Sequence[str], beam_size: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"files": files, "beam_size": beam_size}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended (exit {self._process.wait()}) before it answered; its errors are above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def running(model: str) -> Iterator[list[System]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(contextlib.closing(System(name, model))) for name in SYSTEMS]


def materials(folder: Path, names: Sequence[str], *, seed: int, short: bool) -> Iterator[Material]:
    """Make what is transcribed."""
    voices, missing = find_voices(PIPER)
    for note in missing:
        print(note, file=sys.stderr)
    clips, mixed, long_s = (24, 12, 120.0) if short else (80, 30, 900.0)
    if "short" in names:
        of_any_length = make_set(folder / "short", voices, seed=seed, clips=3 * clips)
        few = [one for one in of_any_length if 3 <= one.seconds <= 10][:clips]
        yield Material("short", folder / "short", few)
    if "mixed" in names:
        yield Material(
            "mixed", folder / "mixed", make_set(folder / "mixed", voices, seed=seed, clips=mixed, mixed=True)
        )
    if "long" in names:
        yield Material("long", folder / "long", [make_long(folder / "long", voices, seed=seed, seconds=long_s)])


def measure(systems: Sequence[System], material: Material, beam_size: int, rounds: int) -> dict[str, Runs]:
    """Let the systems take turns."""
    runs: dict[str, Runs] = defaultdict(Runs)
    for system in systems:
        system.transcribe(material.files[:2], beam_size)  # warm, and the files are in memory
    for turn in range(rounds):
        for system in (*systems[turn % len(systems) :], *systems[: turn % len(systems)]):
            answer = system.transcribe(material.files, beam_size)
            runs[system.name].wall_s.append(answer["wall_s"])
            runs[system.name].cpu_s.append(answer["cpu_s"])
            runs[system.name].texts = answer["texts"]
    return runs


def results(material: Material, beam_size: int, runs: dict[str, Runs]) -> Iterator[dict[str, Any]]:
    library = runs[LIBRARY].wall_s
    best = [min(walls) for walls in zip(*(runs[name].wall_s for name in BATCHED), strict=True)]
    for name, own in runs.items():
        yield {
            "case": name,
            "material": material.name,
            "beam_size": beam_size,
            "audio_s_per_s": round(material.seconds / statistics.median(own.wall_s), 1),
            "audio_s_per_cpu_s": round(material.seconds / statistics.median(own.cpu_s), 1),
            "of_library": _ratio(library, own.wall_s),
            "of_best": _ratio(best, own.wall_s),
            "wer": round(material.error_rate(own.texts), 4),
            "files": len(material.recordings),
            "audio_s": round(material.seconds),
            "rounds": len(own.wall_s),
            "load": round(os.getloadavg()[0], 1),
        }


def _ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    return round(statistics.median(their / own for their, own in zip(theirs, ours, strict=True)), 2)


def table(found: Sequence[dict[str, Any]]) -> str:
    names = ["material", "beam_size", "case", "audio_s_per_s", "of_library", "of_best", "audio_s_per_cpu_s", "wer"]
    lines = [f"| {' | '.join(name.replace('_', ' ') for name in names)} |", "|---" * len(names) + "|"]
    lines += [f"| {' | '.join(str(one[name]) for name in names)} |" for one in found]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.engine", description="Measure how fast recordings are transcribed.")
    parser.add_argument("--model", default="bundled", help="`bundled`, or the folder of a model")
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, help="default: 5, short 2")
    parser.add_argument("--materials", nargs="+", choices=MATERIALS, default=MATERIALS)
    parser.add_argument("--short", action="store_true", help="less material, fewer rounds")
    parser.add_argument("--json", action="store_true", help="no table")
    options = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder, running(options.model) as systems:
        for material in materials(Path(folder), options.materials, seed=options.seed, short=options.short):
            for beam_size in options.beams:
                runs = measure(systems, material, beam_size, options.rounds or (2 if options.short else 5))
                for one in results(material, beam_size, runs):
                    found.append(one)
                    print(json.dumps(one), flush=True)
    if not options.json:
        print(table(found))


if __name__ == "__main__":
    main()
