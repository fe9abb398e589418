"""Text encoders: prompts to token states, by pretrained transformers.

Weights are read from safetensors only, tokenizers from ``tokenizer.json``; no code comes with either.
"""

import hashlib
import posixpath
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vidiff.errors import CheckpointError, ConfigError
from vidiff.files import sha256_of
from vidiff.text import sources
from vidiff.text.cleaning import cleaned
from vidiff.types import TextEmbedding


class TruncationWarning(UserWarning):
    """A prompt was longer than the encoder can read; the message shows the words that were cut."""


@dataclass(frozen=True)
class MiniLMConfig:
    """The MiniLM of the ``offline`` extra: all-MiniLM-L6-v2, 384 wide (Wang et al., 2020)."""

    kind: Literal["minilm"] = "minilm"
    source: str = ""  # a folder with other weights of this network; empty is the published ones of the extra
    max_tokens: int = 64


@dataclass(frozen=True)
class CLIPTextConfig:
    """A CLIP text tower (Radford et al., 2021)."""

    kind: Literal["clip"] = "clip"
    source: str = ""  # a folder, or a hub id
    revision: str | None = None  # the commit of a hub id, 40 hexadecimal digits
    subfolder: str = ""  # where the weights lie within the source
    tokenizer: str = "."  # folder of tokenizer.json, relative to the weights'
    allow_download: bool = False
    max_tokens: int = 77


@dataclass(frozen=True)
class T5Config:
    """The encoder of a T5 (Raffel et al., 2020) or UMT5 (Chung et al., 2023)."""

    kind: Literal["t5"] = "t5"
    source: str = ""
    revision: str | None = None
    subfolder: str = ""
    tokenizer: str = "."
    allow_download: bool = False
    max_tokens: int = 512
    pad: Literal["longest", "max"] = "longest"  # max: zeros up to max_tokens, as Wan wants it
    clean: bool = True  # prompts cleaned as Wan's are


_MODEL_TYPES = {"minilm": ("bert",), "clip": ("clip", "clip_text_model"), "t5": ("t5", "mt5", "umt5")}
# A prefix of all names of tensors in some files, and the names of those of other networks that may lie beside.
_NAMES = {
    "minilm": ("bert.", r"(^|\.)position_ids$|^(bert\.)?pooler\.|^cls\."),
    "clip": ("text_model.", r"(^|\.)position_ids$|^(vision_model|visual_projection|text_projection)\.|^logit_scale$"),
    "t5": ("", r"^(decoder|lm_head)\."),
}

TextEncoderConfig = MiniLMConfig | CLIPTextConfig | T5Config


class PretrainedTextEncoder:
    """A transformer's last hidden states, one for each token."""

    def __init__(self, config: TextEncoderConfig, folder: Path, tokenizer: Path, model: nn.Module, dim: int):
        from tokenizers import Tokenizer

        self.config, self.folder, self.model, self.dim = config, folder, model.eval().requires_grad_(False), dim
        self.max_tokens = config.max_tokens
        positions = getattr(model.config, "max_position_embeddings", None)  # T5's are relative and have no end
        if self.max_tokens < 3 or (positions is not None and self.max_tokens > positions):
            limit = "" if positions is None else f" and at most {positions}, all that {folder} reads"
            raise ConfigError(f"text.max_tokens must be at least 3{limit}, got {self.max_tokens}")
        self._tokenizer_file = tokenizer
        try:
            self.tokenizer = Tokenizer.from_file(str(tokenizer))
        except Exception as error:  # tokenizers raises bare Exception
            raise CheckpointError(f"{tokenizer}: not a tokenizer: {error}") from error
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(self.max_tokens)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the weights, tokenizer and settings, for caches."""
        digest = hashlib.sha256(repr(self.config).encode())
        for path in [*sorted(self.folder.glob("*.safetensors")), self._tokenizer_file]:
            digest.update(sha256_of(path).encode())
        return digest.hexdigest()

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> TextEmbedding:
        """Embed ``prompts``: tokens (B, L, dim), zero where masked.

        A prompt beyond ``max_tokens`` raises a `TruncationWarning` with the words that were cut.
        """
        if isinstance(self.config, T5Config) and self.config.clean:
            prompts = [cleaned(prompt) for prompt in prompts]
        rows = [self._token_ids(prompt) for prompt in prompts]
        device = next(self.model.parameters()).device
        ids = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(device)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        mask = torch.arange(ids.shape[1], device=device) < lengths[:, None]
        states: Tensor = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        embedding = TextEmbedding(states * mask[..., None], mask)
        pad_to = self.max_tokens if isinstance(self.config, T5Config) and self.config.pad == "max" else 0
        return embedding.padded(pad_to)

    def _token_ids(self, prompt: str) -> list[int]:
        encoding = self.tokenizer.encode(prompt)
        if encoding.overflowing:
            rest = encoding.overflowing[0]
            start = next(
                span[0] for span, special in zip(rest.offsets, rest.special_tokens_mask, strict=True) if not special
            )
            while start and not prompt[start - 1].isspace() and not prompt[start].isspace():
                start -= 1  # a word of which only a part is read is shown whole
            cut = prompt[start:]
            warnings.warn(
                f"the prompt is longer than {self.max_tokens} tokens; these words were cut: {cut.strip()}",
                TruncationWarning,
                stacklevel=3,
            )
        return encoding.ids


def build_text_encoder(
    config: TextEncoderConfig, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> PretrainedTextEncoder:
    """Return the pretrained text encoder that ``config`` names.

    Raises:
        ConfigError: if the source is not a folder or a hub id at a pinned revision.
        CheckpointError: if the weights are missing, not safetensors, incomplete or not the published ones.
    """
    match config:
        case MiniLMConfig():
            folder = sources.local_folder(config.source) if config.source else sources.bundled_minilm()
            tokenizer = folder
        case CLIPTextConfig() | T5Config():
            parts = (config.subfolder, posixpath.join(config.subfolder, config.tokenizer))
            root = sources.resolved(config.source, config.revision, config.allow_download, parts)
            folder = root / config.subfolder
            tokenizer = folder / config.tokenizer
    model = _load(config, folder, torch.device(device), dtype)
    dim = model.config.d_model if isinstance(config, T5Config) else model.config.hidden_size
    return PretrainedTextEncoder(config, folder, tokenizer / "tokenizer.json", model.to(device, dtype), dim)


def _load(config: TextEncoderConfig, folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """Read the weights; the classes are imported here because importing them takes seconds."""
    from vidiff.text.pretrained import load_pretrained

    cls: Any
    found = sources.model_type(folder)
    if found not in _MODEL_TYPES[config.kind]:
        known = ", ".join(_MODEL_TYPES[config.kind])
        raise CheckpointError(f"{folder}: model_type {found} does not fit text kind {config.kind} ({known})")
    arguments: dict[str, Any] = {"dtype": dtype}  # or large weights would be in memory twice on their way to it
    if device.type != "cpu":  # nor are they gathered on the host
        arguments["device_map"] = device
    with quiet():
        match config:
            case MiniLMConfig():
                from transformers.models.bert.modeling_bert import BertModel

                cls = BertModel
                arguments["add_pooling_layer"] = False
            case CLIPTextConfig():
                from transformers.models.clip.modeling_clip import CLIPTextModel

                cls = CLIPTextModel
            case T5Config():
                if found == "umt5":
                    from transformers.models.umt5.modeling_umt5 import UMT5EncoderModel

                    cls = UMT5EncoderModel
                else:
                    from transformers.models.t5.modeling_t5 import T5EncoderModel

                    cls = T5EncoderModel
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{folder}: holds no safetensors weights; pickled weights are never read")
    with quiet():
        return load_pretrained(cls, folder, *_NAMES[config.kind], **arguments)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from printing its own progress and reports while it loads; what matters is checked here.

    It imports torchao where that is installed, which reports kernels that it was not built with.
    """
    import logging

    from transformers.utils import logging as reports

    others = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
    levels = [other.level for other in others]
    level, bar = reports.get_verbosity(), reports.is_progress_bar_enabled()
    reports.set_verbosity_error()
    reports.disable_progress_bar()
    for other in others:
        other.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for other, before in zip(others, levels, strict=True):
            other.setLevel(before)
        reports.set_verbosity(level)
        if bar:
            reports.enable_progress_bar()
