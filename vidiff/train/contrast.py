"""What an evaluator learns to tell apart: clips and captions that fit from those that nearly do."""

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vidiff.data.clips import Clips
from vidiff.data.toyworld.altered import altered_captions
from vidiff.data.toyworld.dataset import ToyWorld
from vidiff.data.toyworld.draw import draw_scene
from vidiff.errors import ConfigError

_ALTERED = 2  # captions of each toy-world scene that are wrong in one attribute


class ContrastCaptions:
    """The captions of all sources' clips; behind the true ones of a toy-world scene come `altered_captions`."""

    def __init__(self, sources: Sequence[Clips]):
        self.sources = sources
        self.first = [0, *accumulate(len(source) for source in sources)]
        told = "".join(source.fingerprint for source in sources)
        self.fingerprint = hashlib.sha256(f"{_ALTERED} altered, {told}".encode()).hexdigest()

    def __len__(self) -> int:
        return self.first[-1]

    def key(self, index: int) -> str:
        """Return a clip's name, for messages."""
        source, inner = self._place(index)
        return source.key(inner)

    def captions(self, index: int) -> list[str]:
        """Return the true captions, then the wrong ones."""
        source, inner = self._place(index)
        true = source.captions(inner)
        if not isinstance(source, ToyWorld):
            return true
        config = source.config
        scene = draw_scene(config.seed, inner, config.heldout)
        return [*true, *altered_captions(scene, config.seed, inner, _ALTERED)]

    def wrong(self, index: int) -> int:
        """Return how many of the captions, at their end, are wrong."""
        return _ALTERED if isinstance(self._place(index)[0], ToyWorld) else 0

    def _place(self, index: int) -> tuple[Clips, int]:
        number = bisect_right(self.first, index) - 1
        return self.sources[number], index - self.first[number]


def check_alike(sources: Sequence[Clips], frames: int, size: int) -> None:
    """Raise a ConfigError unless all clips are squares of ``size`` pixels a side with at least ``frames`` frames."""
    for source in sources:
        given = source.config
        if source.groups() is not None or (given.height, given.width) != (size, size) or given.frames < frames:
            raise ConfigError(
                f"the evaluator reads {frames} frames of {size}x{size}; data gives {given.frames} of "
                f"{given.width}x{given.height}{', and buckets' if source.groups() is not None else ''}"
            )


def spoiled(video: Tensor, rng: np.random.Generator) -> Tensor:
    """Return clips (B, 3, F, H, W) in [-1, 1], each made worse in one of five ways that no caption asks for.

    Backwards, out of order and frozen ones need an eye for time; noise and blur one for how clips look, which
    captions alone would leave a network blind to.
    """
    return torch.stack([_SPOILERS[int(rng.integers(len(_SPOILERS)))](clip, rng) for clip in video])


def _backwards(clip: Tensor, rng: np.random.Generator) -> Tensor:
    return clip.flip(1)


def _shuffled(clip: Tensor, rng: np.random.Generator) -> Tensor:
    return clip[:, torch.from_numpy(rng.permutation(clip.shape[1]))]


def _frozen(clip: Tensor, rng: np.random.Generator) -> Tensor:
    return clip[:, int(rng.integers(clip.shape[1]))].unsqueeze(1).expand_as(clip)


def _noisy(clip: Tensor, rng: np.random.Generator) -> Tensor:
    noise = torch.from_numpy(rng.standard_normal(clip.shape, np.float32))
    return (clip + rng.uniform(0.05, 0.3) * noise).clamp(-1, 1)


def _blurred(clip: Tensor, rng: np.random.Generator) -> Tensor:
    frames = clip.transpose(0, 1)
    height, width = (max(1, round(side * rng.uniform(0.3, 0.7))) for side in frames.shape[2:])
    small = F.interpolate(frames, (height, width), mode="bilinear", antialias=True)
    return F.interpolate(small, frames.shape[2:], mode="bilinear").transpose(0, 1)


_SPOILERS: tuple[Callable[[Tensor, np.random.Generator], Tensor], ...] = (
    *(_backwards, _shuffled, _frozen),
    *(_noisy, _blurred),
)


def also_true(keys: Sequence[str], captions: Sequence[str]) -> Tensor:
    """Return which captions, though not its own, are as true of a clip, and so no negatives: bool (B, B + A).

    Args:
        keys: names of B clips.
        captions: their own B, then A others.
    """
    texts, clips = _numbered(captions), _numbered(keys)
    same = texts[: len(keys), None] == texts
    same[:, : len(keys)] |= clips[:, None] == clips
    return same.fill_diagonal_(False)


def contrastive_losses(logits: Tensor, ignored: Tensor) -> dict[str, Tensor]:
    """Return the loss of finding each clip's caption and each caption's clip (Radford et al., 2021, figure 3).

    Args:
        logits: scaled cosines, (B + S, B + A): of B clips, then S spoiled ones, with B own captions, then A others.
        ignored: from `also_true`, (B, B + A).

    Returns:
        ``total``, and how often the right caption and the right clip were nearest.
    """
    count = len(ignored)
    right = torch.arange(count, device=logits.device)
    among_captions = logits[:count].masked_fill(ignored, -torch.inf)
    hidden = F.pad(ignored[:, :count].T, (0, len(logits) - count))
    among_clips = logits[:, :count].T.masked_fill(hidden, -torch.inf)
    total = (F.cross_entropy(among_captions, right) + F.cross_entropy(among_clips, right)) / 2
    found = {"caption_accuracy": among_captions, "clip_accuracy": among_clips}
    return {"total": total} | {name: (row.argmax(1) == right).float().mean() for name, row in found.items()}


def _numbered(names: Sequence[str]) -> Tensor:
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([numbers[name] for name in names])
