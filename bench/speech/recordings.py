"""Evaluation recordings and what is said in them, made from a seed.

A set is a folder of 16 kHz wav files with `references.json`: one object a recording, `Recording` without the folder.
The same seed gives the same set with the same versions of the synthesizers, whatever the number of clips.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bench.speech.sound import (
    RATE_HZ,
    Sound,
    at_level,
    babble,
    joined,
    pink_noise,
    reverberant,
    silence,
    telephone,
    white_noise,
    with_noise,
    with_pitch,
    with_tempo,
    write_wav,
)
from bench.speech.voices import Utterance, Voice

REFERENCES = "references.json"
# Lengths in seconds and how often each stretch of them is wanted: calls and messages are mostly short.
_LENGTHS_S = (((1.0, 2.0), 0.14), ((2.0, 5.0), 0.36), ((5.0, 10.0), 0.28), ((10.0, 20.0), 0.14), ((20.0, 30.0), 0.08))
_LONGEST_S = 30.0
# Of a set with an arrangement `mixed`: every tenth file.
_LONG_SHARE = 10
_LONG_S = (60.0, 300.0)
_NOISES = (("none", 0.5), ("white", 0.15), ("pink", 0.2), ("babble", 0.15))
# Below these nobody understands much, and error rates say little: voices in the background, or a bad line on top.
_SNRS_DB = ((25.0, 0.25), (20.0, 0.3), (15.0, 0.25), (10.0, 0.15), (5.0, 0.05))
_LEAST_SNR_DB = {"babble": 15.0, "telephone": 15.0}
_PLACES = (("near", 0.6), ("telephone", 0.2), ("room", 0.2))
_LEVELS_DB = ((-23.0, 0.8), (-38.0, 0.2))
_SEMITONES = (-2.0, -1.0, 0.0, 0.0, 0.0, 1.0, 2.0)
_TEMPOS = (0.85, 0.93, 1.0, 1.0, 1.08, 1.18)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Condition:
    """How and where something is said."""

    voice: str
    speed: float = 1.0
    semitones: float = 0.0
    noise: str = "none"
    snr_db: float | None = None
    place: str = "near"
    level_db: float = -23.0


@dataclass(frozen=True, slots=True)
class Sentence:
    """What is said at a time, in seconds of the recording."""

    start: float
    end: float
    text: str


@dataclass(frozen=True, slots=True)
class Recording:
    """One file of a set."""

    file: str
    text: str
    seconds: float
    speech_s: float
    """Without silence around and between the sentences."""
    condition: Condition
    sentences: tuple[Sentence, ...] = ()
    more_voices: tuple[str, ...] = ()
    """Of a long recording, in which everybody has a say."""


@dataclass(frozen=True, slots=True)
class Made:
    """A recording's sound, and the facts about it."""

    sound: Sound
    sentences: tuple[Sentence, ...]
    condition: Condition
    voices: tuple[str, ...] = ()


def make_set(
    folder: Path, voices: Sequence[Voice], *, seed: int, clips: int, mixed: bool = False, clean: bool = False
) -> list[Recording]:
    """Write a set of clips of 1 to 30 s.

    Args:
        folder: is made; what lies there under the same names is replaced.
        voices: who speaks.
        seed: chooses everything.
        clips: how many.
        mixed: every tenth file is one to five minutes long.
        clean: without noise, telephones and rooms.
    """
    rooms = Studio(voices, clean=clean)
    made = []
    for number in range(clips):
        rng = np.random.default_rng([seed, number])
        long = mixed and number % _LONG_SHARE == _LONG_SHARE - 1
        name = f"{'long' if long else 'clip'}-{number:04d}.wav"
        made.append((name, rooms.long(float(rng.uniform(*_LONG_S)), rng) if long else rooms.clip(rng)))
    return write_set(folder, made)


def make_long(folder: Path, voices: Sequence[Voice], *, seed: int, seconds: float, clean: bool = True) -> Recording:
    """Write a set of one long recording: clips of all voices with pauses of 0.4 to 3 s between them."""
    made = Studio(voices, clean=clean).long(seconds, np.random.default_rng([seed, 1_000_000]))
    return write_set(folder, [("long.wav", made)])[0]


def write_set(folder: Path, made: Sequence[tuple[str, Made]]) -> list[Recording]:
    """Write recordings and their references."""
    folder.mkdir(parents=True, exist_ok=True)
    recordings = []
    for name, one in made:
        write_wav(folder / name, one.sound)
        seconds = round(len(one.sound) / RATE_HZ, 3)
        text = " ".join(sentence.text for sentence in one.sentences)
        recordings.append(
            Recording(name, text, seconds, _speech_s(one.sentences), one.condition, one.sentences, one.voices)
        )
    (folder / REFERENCES).write_text(json.dumps([asdict(one) for one in recordings], indent=1) + "\n")
    return recordings


def read_set(folder: Path) -> list[Recording]:
    """Return the recordings of a set that was written before."""
    return [_recording(one) for one in json.loads((folder / REFERENCES).read_text())]


def _recording(one: dict[str, Any]) -> Recording:
    sentences = tuple(Sentence(**sentence) for sentence in one.pop("sentences"))
    condition, more_voices = Condition(**one.pop("condition")), tuple(one.pop("more_voices"))
    return Recording(**one, condition=condition, sentences=sentences, more_voices=more_voices)


def _speech_s(sentences: Sequence[Sentence]) -> float:
    return round(sum(sentence.end - sentence.start for sentence in sentences), 3)


class _Talk:
    """Sentences that follow each other."""

    def __init__(self, before_s: float) -> None:
        self.pieces = [silence(before_s)]
        self.voices: list[str] = []
        self.sentences: list[Sentence] = []
        self._samples = len(self.pieces[0])

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self._samples / RATE_HZ

    def add(self, said: Utterance, *, pause_s: float, voice: str = "") -> None:
        """Append a sentence and the pause after it."""
        start = self.seconds
        self.sentences.append(Sentence(round(start, 3), round(start + said.seconds, 3), said.text))
        self.voices += [voice] if voice else []
        self.pieces += [said.sound, silence(pause_s)]
        self._samples += len(said.sound) + len(self.pieces[-1])


class Studio:
    """Where clips are made: voices, and what is done to their sound."""

    def __init__(self, voices: Sequence[Voice], *, clean: bool = False) -> None:
        self._voices = voices
        self._clean = clean
        self._weights = np.array([voice.weight for voice in voices]) / sum(voice.weight for voice in voices)
        # Six people and what each of them says in the background.
        self._crowd = [joined([voice.say(text).sound for text in voice.texts[-3:]]) for voice in voices[:6]]

    def clip(self, rng: np.random.Generator) -> Made:
        """Make a clip of 1 to 30 s."""
        (shortest, longest), voice = _one_of(_LENGTHS_S, rng), self._voice(rng)
        condition = self._condition(voice, rng)
        wanted_s = float(rng.uniform(shortest, longest))
        before_s, after_s = (float(rng.choice([0.0, 0.2, 0.5, rng.uniform(0.5, 2.5)])) for _ in range(2))
        if wanted_s < 5:
            before_s, after_s = min(before_s, 0.3), min(after_s, 0.3)
        talk = _Talk(before_s)
        for said in self._sentences(voice, condition, wanted_s - before_s - after_s, rng):
            if talk.seconds + said.seconds + after_s > _LONGEST_S:
                break  # the estimate was wrong: no reference for words that are cut off
            talk.add(said, pause_s=float(rng.uniform(0.2, 1.2)))
        return self._made(talk, condition, rng, ending_s=max(after_s, 1.0 - before_s - _speech_s(talk.sentences)))

    def long(self, seconds: float, rng: np.random.Generator) -> Made:
        """Make a recording of about so many seconds, all in one place, of clips by one voice after another."""
        condition = self._condition(self._voice(rng), rng)
        talk = _Talk(0.0)
        while talk.seconds < seconds:
            voice = self._voice(rng)
            said = next(self._sentences(voice, self._condition(voice, rng), seconds, rng))
            talk.add(said, pause_s=float(rng.uniform(0.4, 3.0)), voice=voice.name)
        return self._made(talk, condition, rng)

    def _made(
        self, talk: _Talk, condition: Condition, rng: np.random.Generator, *, ending_s: float | None = None
    ) -> Made:
        """Record what was said in one place.

        Args:
            talk: what was said.
            condition: where.
            rng: makes noises and rooms.
            ending_s: silence after the last sentence, in place of its pause.
        """
        pieces = talk.pieces if ending_s is None else [*talk.pieces[:-1], silence(ending_s)]
        sound = self._recorded(joined(pieces), condition, rng)
        return Made(sound, tuple(talk.sentences), condition, tuple(dict.fromkeys(talk.voices)))

    def _voice(self, rng: np.random.Generator) -> Voice:
        return self._voices[int(rng.choice(len(self._voices), p=self._weights))]

    def _condition(self, voice: Voice, rng: np.random.Generator) -> Condition:
        speed, semitones = float(rng.choice(_TEMPOS)), float(rng.choice(_SEMITONES))
        noise, place, level_db = _one_of(_NOISES, rng), _one_of(_PLACES, rng), _one_of(_LEVELS_DB, rng)
        snr_db = max(_one_of(_SNRS_DB, rng), *(_LEAST_SNR_DB.get(kind, 0.0) for kind in (noise, place)))
        if self._clean:
            return Condition(voice.name, speed, semitones)
        return Condition(voice.name, speed, semitones, noise, None if noise == "none" else snr_db, place, level_db)

    def _sentences(
        self, voice: Voice, condition: Condition, room_s: float, rng: np.random.Generator
    ) -> Iterator[Utterance]:
        """Yield different sentences in the condition's tempo and pitch while there is room; at least one."""
        left = [voice.texts[index] for index in rng.permutation(len(voice.texts))]
        used_s = 0.0
        while left:
            fitting = (text for text in left if _estimated_s(text) <= room_s - used_s)
            text = next(fitting, "" if used_s else min(left, key=len))
            if not text:
                return
            left.remove(text)
            sound = with_tempo(with_pitch(voice.say(text).sound, condition.semitones), condition.speed)
            used_s += len(sound) / RATE_HZ + 0.7
            yield Utterance(text, sound)

    def _recorded(self, sound: Sound, condition: Condition, rng: np.random.Generator) -> Sound:
        """Return what a microphone, a line and a room make of it."""
        if condition.place == "room":
            sound = reverberant(sound, float(rng.uniform(0.2, 0.5)), rng)
        if condition.snr_db is not None:
            sound = with_noise(sound, self._noise(condition.noise, len(sound) / RATE_HZ, rng), condition.snr_db)
        if condition.place == "telephone":
            sound = telephone(sound)
        return at_level(sound, condition.level_db)

    def _noise(self, kind: str, seconds: float, rng: np.random.Generator) -> Sound:
        if kind == "babble":
            return babble(seconds + 0.01, self._crowd, rng)
        return (white_noise if kind == "white" else pink_noise)(seconds + 0.01, rng)


def _estimated_s(text: str) -> float:
    """Return about how long it takes to say it: saying it first to know would take minutes for a set."""
    return 0.3 + 0.055 * len(text)


def _one_of(choices: Sequence[tuple[_T, float]], rng: np.random.Generator) -> _T:
    weights = np.array([weight for _, weight in choices])
    return choices[int(rng.choice(len(choices), p=weights / weights.sum()))][0]
