"""The values that modules hand to one another, with their shapes.

Axes: B batch, C channels, F frames, H height, W width (pixels); f, h, w the same axes of latents;
L text tokens, D width of a text token.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vidiff.errors import ConfigError


@dataclass(frozen=True)
class TextEmbedding:
    """Token states of a text encoder."""

    tokens: Tensor  # (B, L, D)
    mask: Tensor  # (B, L), True where a token is real; at least one in each row
    kept: dict[nn.Module, Any] | None = None  # what parts of networks made of the tokens; None: nothing is kept

    def keeping(self) -> "TextEmbedding":
        """Return the same, from which networks may keep what no step changes, for the steps of one run."""
        return replace(self, kept={})

    def once(self, part: nn.Module, make: Callable[[], Any]) -> Any:
        """Return what ``part`` makes of the tokens: made anew, or what was kept of it."""
        if self.kept is None:
            return make()
        if part not in self.kept:
            self.kept[part] = make()
        return self.kept[part]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "TextEmbedding":
        return TextEmbedding(self.tokens.to(device, dtype), self.mask.to(device))

    def padded(self, length: int) -> "TextEmbedding":
        """Return the same tokens followed by masked zeros up to ``length``."""
        extra = length - self.tokens.shape[1]
        if extra <= 0:
            return self
        pad = torch.nn.functional.pad
        kept: dict[nn.Module, Any] | None = None if self.kept is None else {}
        return TextEmbedding(pad(self.tokens, (0, 0, 0, extra)), pad(self.mask, (0, extra)), kept)


def pooled_text(text: TextEmbedding) -> Tensor:
    """Return the mean of the real tokens' states, (B, D)."""
    weights = text.mask.to(text.tokens.dtype)
    return torch.einsum("bld,bl->bd", text.tokens, weights) / weights.sum(1, keepdim=True)


_PARTS = ("first_frame", "low_res", "low_res_t", "concat", "image", "known")  # of a Conditioning: a row a sample


@dataclass(frozen=True)
class Conditioning:
    """Everything a backbone is told besides x_t and t."""

    text: TextEmbedding
    first_frame: Tensor | None = None  # latent frame index at which x_t starts in its clip, (B,), int64; None is 0
    low_res: Tensor | None = None  # cascade stages: the previous stage's latents on this stage's grid, (B, C, f, h, w)
    low_res_t: Tensor | None = None  # how much noise was added to low_res, (B,)
    concat: Tensor | None = None  # more channels for the network to see beside x_t, (B, K, f, h, w)
    image: Tensor | None = None  # states of a picture that cross-attention reads beside the text, (B, M, D)
    known: Tensor | None = None  # clean latents of the first k latent frames, which are given, (B, C, k, h, w)
    skip_layers: tuple[int, ...] = ()  # blocks that a dit leaves out, from 0
    skips: Tensor | None = None  # for which samples it does, bool, (B,); None is all

    def with_text(self, text: TextEmbedding) -> "Conditioning":
        return replace(self, text=text)

    def drop_text(self, drop: Tensor, null: TextEmbedding) -> "Conditioning":
        """Replace the text by ``null`` where ``drop`` (B,) is True. The only place where conditioning is dropped."""
        length = max(self.text.tokens.shape[1], null.tokens.shape[1])
        text, null = self.text.padded(length), null.padded(length)
        tokens = torch.where(drop[:, None, None], null.tokens.to(text.tokens.dtype), text.tokens)
        return self.with_text(TextEmbedding(tokens, torch.where(drop[:, None], null.mask, text.mask)))

    def skipping(self, layers: tuple[int, ...]) -> "Conditioning":
        """Return the same for a network without the blocks ``layers``."""
        return replace(self, skip_layers=layers, skips=None)

    def joined(self, other: "Conditioning") -> "Conditioning":
        """Stack the samples of ``other`` behind these (B + B'), so that one call of the backbone serves both."""
        length = max(self.text.tokens.shape[1], other.text.tokens.shape[1])
        mine, theirs = self.text.padded(length), other.text.padded(length)
        kept: dict[nn.Module, Any] | None = None if mine.kept is None or theirs.kept is None else {}
        text = TextEmbedding(torch.cat([mine.tokens, theirs.tokens]), torch.cat([mine.mask, theirs.mask]), kept)

        def cat(a: Tensor | None, b: Tensor | None) -> Tensor | None:
            if (a is None) != (b is None):
                raise ValueError("joined conditionings must hold the same parts")
            return None if a is None or b is None else torch.cat([a, b])

        if self.skip_layers and other.skip_layers and self.skip_layers != other.skip_layers:
            raise ValueError("joined conditionings must skip the same layers, or none")
        layers = self.skip_layers or other.skip_layers
        parts: dict[str, Any] = {name: cat(getattr(self, name), getattr(other, name)) for name in _PARTS}
        skips = torch.cat([self._skips(), other._skips()]) if layers else None
        return Conditioning(text, skip_layers=layers, skips=skips, **parts)

    def of(self, samples: Tensor) -> "Conditioning":
        """Return the conditioning of some of the samples; ``samples`` are their numbers or a bool for each."""
        parts: dict[str, Any] = {name: getattr(self, name) for name in (*_PARTS, "skips")}
        chosen: dict[str, Any] = {name: None if part is None else part[samples] for name, part in parts.items()}
        return replace(self, text=TextEmbedding(self.text.tokens[samples], self.text.mask[samples]), **chosen)

    def _skips(self) -> Tensor:
        if self.skips is not None:
            return self.skips
        mask = self.text.mask
        return torch.full((len(mask),), bool(self.skip_layers), device=mask.device)


@dataclass(frozen=True)
class Size:
    """Size of a clip in pixels, with its frame rate in frames a second."""

    frames: int
    height: int
    width: int
    fps: float


@dataclass(frozen=True)
class LatentSpec:
    """How an autoencoder maps pixels to latents: f = 1 + (F - 1) / frame_stride, h = H / stride, w = W / stride."""

    channels: int
    stride: int
    frame_stride: int

    def shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Return (C, f, h, w) for a video of this size.

        Raises:
            ConfigError: if the size is not on the latent grid; the message names the nearest one that is.
        """
        for name, value, stride, offset in (
            ("frames", frames, self.frame_stride, 1),
            ("height", height, self.stride, 0),
            ("width", width, self.stride, 0),
        ):
            if value < stride * (1 - offset) + offset or (value - offset) % stride:
                nearest = max(1 - offset, round((value - offset) / stride)) * stride + offset
                raise ConfigError(f"{name} must be {stride} * n{' + 1' if offset else ''}, got {value}; try {nearest}")
        return self.channels, 1 + (frames - 1) // self.frame_stride, height // self.stride, width // self.stride


@dataclass(frozen=True)
class Batch:
    """Clips for one training step. Exactly one of ``video`` and ``latents`` is set."""

    keys: list[str]  # names of the clips, for error messages
    video: Tensor | None = None  # (B, 3, F, H, W) in [-1, 1]
    latents: Tensor | None = None  # (B, C, f, h, w), normalized
    text: TextEmbedding | None = None
    captions: list[str] | None = None
    first_frame: Tensor | None = None  # see Conditioning.first_frame
    low_res: Tensor | None = None  # see Conditioning.low_res; without noise
    shown: Tensor | None = None  # numbers of what each clip shows, (B, Q)
    said: Tensor | None = None  # and of what its caption says of it, (B, Q)
    drafts: Tensor | None = None  # see `vidiff.train.drafted`, (B, 2 C, f, h, w)
    plan: Tensor | None = None  # which things are where, see `vidiff.models.plans`, (B, K + 1, D)


class TextEncoder(Protocol):
    """Turns prompts into token states. Owns tokenizing, the length limit and its warning."""

    dim: int

    def encode(self, prompts: list[str]) -> TextEmbedding:
        """Embed ``prompts``; tokens (B, L, dim)."""
        ...


class Autoencoder(Protocol):
    """Maps clips to latents of unit variance and back. Owns the scaling of its latents."""

    latents: LatentSpec

    def encode(self, video: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return normalized latents (B, C, f, h, w) of a video (B, 3, F, H, W) in [-1, 1].

        The posterior's mean; with ``generator``, a sample.
        """
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Return the video (B, 3, F, H, W) in [-1, 1] of normalized latents (B, C, f, h, w)."""
        ...
