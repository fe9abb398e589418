"""The evaluator that ships: features and text alignment of clips with nothing to download.

It knows the bundled worlds and little else, so its numbers carry its name and version and are no FVD and no CLIP score.
What `recipes/evaluator.yaml` leaves behind, the bundled one included, is a folder:

config.yaml  model.safetensors     both towers, and which text encoder stands before the second one
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vidiff.checkpoint import load_weights, model_hash
from vidiff.errors import CheckpointError, ConfigError
from vidiff.metrics.preprocess import Preprocess
from vidiff.model_folder import read_config
from vidiff.models.evaluator import Evaluator, EvaluatorConfig
from vidiff.resources import EVALUATOR
from vidiff.text.encoders import MiniLMConfig, PretrainedTextEncoder, TextEncoderConfig, build_text_encoder
from vidiff.weights import CONFIG_NAME

EMBEDDED = Preprocess(size=64, filter="bicubic-aa", crop="center")  # as clips were brought to size in training

_NAME = "vidiff-evaluator"
_VERSION = 1  # counted up when the code makes other numbers of the same weights
_TOGETHER = 16  # clips, or prompts, that go through a tower at once


@dataclass(frozen=True)
class EvaluatorModelConfig:
    """What ``config.yaml`` of an evaluator's folder says."""

    format: Literal[1] = 1
    evaluator: EvaluatorConfig = field(default_factory=EvaluatorConfig)
    text: TextEncoderConfig = field(default_factory=MiniLMConfig)
    text_dim: int = 384


@dataclass(frozen=True)
class EmbeddedConfig:
    """The bundled evaluator, or one that was trained on other clips: one row a clip."""

    kind: Literal["embedded"] = "embedded"
    source: str = ""  # a folder; empty is the bundled one
    preprocess: Preprocess = EMBEDDED
    per_frame: ClassVar[bool] = False


@dataclass(frozen=True)
class EmbeddedExtractor:
    """An evaluator's video tower as an `Extractor`; `EmbeddedPromptEncoder` is its other half."""

    config: EmbeddedConfig
    settings: EvaluatorModelConfig
    evaluator: Evaluator
    version: str
    per_frame: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return _NAME

    @property
    def preprocess(self) -> Preprocess:
        return self.config.preprocess

    @property
    def dim(self) -> int:
        return self.evaluator.config.dim

    @property
    def device(self) -> torch.device:
        return self.evaluator.log_scale.device

    @torch.no_grad()
    def __call__(self, clips: Iterable[Tensor]) -> Tensor:
        """Return features, float32 (N, dim), on the CPU, of clips that are each uint8 (F, H, W, 3), of any size.

        Raises:
            DataError: if one is not a clip, or has too few frames; of a longer one the first frames are used.
        """
        ready = map(self.preprocess, clips)
        rows = [torch.empty(0, self.dim)]
        while some := list(islice(ready, _TOGETHER)):
            video = torch.stack(some).transpose(1, 2).to(self.device)
            rows.append(self.evaluator.features(video).float().cpu())
        return torch.cat(rows)

    @torch.no_grad()
    def among_prompts(self, features: Tensor) -> Tensor:
        """Return where clips with these features (N, dim) lie among prompts: unit vectors (N, E), on the CPU."""
        return self.evaluator.embed_features(features.to(self.device)).cpu()


class EmbeddedPromptEncoder:
    """The text side of an evaluator: prompts to where the clips lie that show them."""

    def __init__(self, extractor: EmbeddedExtractor) -> None:
        self._extractor = extractor

    @cached_property
    def _states(self) -> PretrainedTextEncoder:
        extractor = self._extractor
        encoder = build_text_encoder(extractor.settings.text, extractor.device)
        if encoder.dim != extractor.settings.text_dim:
            raise ConfigError(f"text_dim is {extractor.settings.text_dim}, but the text encoder is {encoder.dim} wide")
        return encoder

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Return unit vectors, float32 (N, E), on the CPU.

        A prompt that is longer than the text encoder reads raises a `TruncationWarning` with the words that were cut.
        """
        different = list(dict.fromkeys(prompts))
        rows = [
            self._extractor.evaluator.embed_text(self._states.encode(different[start : start + _TOGETHER])).cpu()
            for start in range(0, len(different), _TOGETHER)
        ]
        place = {prompt: number for number, prompt in enumerate(different)}
        return torch.cat(rows)[[place[prompt] for prompt in prompts]]


def find_evaluator(source: str = "") -> Path:
    """Return the folder of an evaluator: a path, or by default the bundled one.

    Raises:
        CheckpointError: if there is none.
    """
    folder = Path(source) if source else Path(str(files("vidiff.assets"))) / EVALUATOR
    if not (folder / CONFIG_NAME).is_file():
        bundled = "" if source else "this copy of vidiff bundles none; "
        raise CheckpointError(
            f"{folder}: no evaluator here ({CONFIG_NAME} is missing); {bundled}"
            "name the folder that `vidiff train evaluator` left"
        )
    return folder


def build_embedded(config: EmbeddedConfig, device: torch.device | str = "cpu") -> EmbeddedExtractor:
    """Return the evaluator that ``config`` names, float32, ready to be called.

    Raises:
        CheckpointError: if it is not there, or its weights are damaged or do not fit.
        ConfigError: if its config is not valid, or it reads other clips than the preprocessing gives.
    """
    folder = find_evaluator(config.source)
    settings: EvaluatorModelConfig = read_config(EvaluatorModelConfig, folder)
    given, wanted = config.preprocess, settings.evaluator
    if (given.frames, given.size, given.pixels) != (wanted.frames, wanted.size, "signed") or given.filter == "archive":
        raise ConfigError(
            f"preprocess: {folder} reads {wanted.frames} frames of size {wanted.size}, pixels signed, got {given!r}"
        )
    with torch.random.fork_rng(devices=[]):  # initialization must not move the caller's global stream
        evaluator = Evaluator(wanted, settings.text_dim)
    load_weights(evaluator, folder)
    evaluator = evaluator.to(device).eval().requires_grad_(False)
    return EmbeddedExtractor(config, settings, evaluator, f"{_VERSION}-{model_hash(folder)}")
