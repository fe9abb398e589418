"""Ways from one clip's noise and text to another's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vidiff.errors import ConfigError
from vidiff.sampling.noise import SeededNoise
from vidiff.tensors import expand_as
from vidiff.types import TextEmbedding

_STRAIGHT = 1e-4  # sine of the angle below which an arc is a line
_MOST_TOKENS = 4096  # of one text between two


@dataclass(frozen=True)
class Arc:
    """Where a clip lies on the way from its own seed and prompt to others."""

    share: float  # of the way: 0 is the clip itself, 1 the one of the others
    to_seed: int | None = None  # None: the seed stays
    to_prompt: str | None = None  # None: the prompt stays

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigError(f"a share of the way lies in [0, 1], got {self.share}")


def slerp(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """Go from ``a`` to ``b`` along a great circle (Shoemake, 1985), each sample by itself.

    Independent Gaussian noise stays as large as noise is; halfway along a line it would be 0.7 times that. The ends are
    exact, and parallel samples are joined by a line.

    Args:
        a: (B, ...), floating-point.
        b: of the same shape.
        share: of the way, (B,).
    """
    from_, to = a.flatten(1).double(), b.flatten(1).double()
    share = share.to(from_)
    angle = torch.acos(((from_ * to).sum(1) / (from_.norm(dim=1) * to.norm(dim=1))).clamp(-1, 1))
    round_ = angle.sin() > _STRAIGHT  # False for a sample of zeros too, which has no angle
    left = torch.where(round_, ((1 - share) * angle).sin() / angle.sin(), 1 - share)
    right = torch.where(round_, (share * angle).sin() / angle.sin(), share)
    return expand_as(left.to(a.dtype), a) * a + expand_as(right.to(b.dtype), b) * b


class ArcNoise:
    """Draws noise on the way between two seeds, each sample's own; every draw of a stochastic sampler is on it too."""

    def __init__(self, seeds: Sequence[int], arcs: Sequence[Arc | None]):
        ways = [
            (seed, 0.0) if arc is None or arc.to_seed is None else (arc.to_seed, arc.share)
            for seed, arc in zip(seeds, arcs, strict=True)
        ]
        self.here, self.there = SeededNoise(seeds), SeededNoise([seed for seed, _ in ways])
        self.shares = torch.tensor([share for _, share in ways], dtype=torch.float64)

    def randn(self, *shape: int) -> Tensor:
        """Return standard normal noise of shape (B, *shape), float32 on the CPU."""
        return slerp(self.here.randn(*shape), self.there.randn(*shape), self.shares)


def text_between(a: TextEmbedding, b: TextEmbedding, shares: Sequence[float]) -> TextEmbedding:
    """Return B texts that lie ``shares`` of the way from ``a`` to ``b``, token by token along great circles.

    A text at an end is that end's own. Between, the tokens of texts of unequal length are repeated in their order until
    both have as many: attention and mean over all repeated equally often are those over the text itself, so the way
    begins and ends where it should, which it would not with zeros in place of the tokens that one lacks.
    """
    rows = [_row_between(_row(a, index), _row(b, index), share) for index, share in enumerate(shares)]
    length = max(row.tokens.shape[1] for row in rows)
    rows = [row.padded(length) for row in rows]
    return TextEmbedding(torch.cat([row.tokens for row in rows]), torch.cat([row.mask for row in rows]))


def _row(text: TextEmbedding, index: int) -> TextEmbedding:
    return TextEmbedding(text.tokens[index : index + 1], text.mask[index : index + 1])


def _row_between(a: TextEmbedding, b: TextEmbedding, share: float) -> TextEmbedding:
    if share in (0, 1):
        return b if share else a
    here, there = a.tokens[a.mask], b.tokens[b.mask]
    # Long texts whose lengths have no common factor are repeated nearly equally often.
    length = min(math.lcm(len(here), len(there)), _MOST_TOKENS)
    index = torch.arange(length, device=here.device)
    here, there = (tokens[index * len(tokens) // length] for tokens in (here, there))
    tokens = slerp(here, there, torch.full((length,), share))
    return TextEmbedding(tokens[None], torch.ones(1, length, dtype=torch.bool, device=tokens.device))
