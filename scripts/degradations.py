"""Seven ways to spoil clips, each at five strengths; strength 0 leaves them as they are."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

STRENGTHS = 5
_BLUR = (0.0, 0.4, 0.7, 1.0, 1.5, 2.2)  # deviation, pixels
_NOISE = (0, 4, 8, 16, 28, 48)  # deviation, of 255
_DROP = (0.0, 0.15, 0.3, 0.45, 0.6, 0.75)  # chance of each frame
_REACH = (1, 2, 4, 6, 9, 16)  # frames that change places among themselves
_COLOR = (0, 6, 12, 24, 40, 60)  # of 255


def blur(clip: Tensor, strength: int, rng: np.random.Generator) -> Tensor:
    """Blur every frame."""
    kernel = ImageFilter.GaussianBlur(_BLUR[strength])
    return torch.stack([torch.from_numpy(np.array(Image.fromarray(f.numpy()).filter(kernel))) for f in clip])


def noise(clip: Tensor, strength: int, rng: np.random.Generator) -> Tensor:
    """Add noise, other noise to each frame."""
    return _pixels(clip.numpy() + _NOISE[strength] * rng.standard_normal(clip.shape))


def shuffle(clip: Tensor, strength: int, rng: np.random.Generator) -> Tensor:
    """Let frames change places with others nearby, from strength to strength farther away; all are still there."""
    order = np.arange(len(clip))
    for start in range(0, len(clip), _REACH[strength]):
        part = order[start : start + _REACH[strength]]
        part[:] = rng.permutation(part)
    return clip[order]


def drop(clip: Tensor, strength: int, rng: np.random.Generator) -> Tensor:
    """Lose frames here and there, and show the one before in their place."""
    kept = rng.random(len(clip)) >= _DROP[strength]
    kept[0] = True
    return clip[np.maximum.accumulate(np.where(kept, np.arange(len(clip)), 0))]


def freeze(clip: Tensor, strength: int, rng: np.random.Generator) -> Tensor:
    """Stand still for a share of the time, at the end."""
    last = round((len(clip) - 1) * (1 - strength / STRENGTHS))
    return clip[np.minimum(np.arange(len(clip)), last)]


def color_shift(clip: Tensor, strength: int, rng: np.random.Generator) -> Tensor:
    """Make everything redder and less blue."""
    return _pixels(clip.numpy() + np.array([_COLOR[strength], 0, -_COLOR[strength]]))


def _pixels(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.round().clip(0, 255).astype(np.uint8))


DEGRADATIONS: dict[str, Callable[[Tensor, int, np.random.Generator], Tensor]] = {
    "blur": blur,
    "noise": noise,
    "frame shuffle": shuffle,
    "frame drop": drop,
    "freeze": freeze,
    "color shift": color_shift,
}
WRONG_PROMPTS = "wrong prompts"


def wrong_prompts(prompts: list[str], strength: int) -> list[str]:
    """Give a share of the clips, spread evenly, each other's prompts."""
    count = round(len(prompts) * strength / STRENGTHS)
    chosen = np.linspace(0, len(prompts) - 1, count).round().astype(int)
    found = list(prompts)
    for here, there in zip(chosen, np.roll(chosen, 1), strict=True):
        found[here] = prompts[there]
    return found
