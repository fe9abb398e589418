"""Guidance: turns a conditional denoiser into the function a sampler calls."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vidiff.errors import ConfigError
from vidiff.tensors import expand_as
from vidiff.types import Conditioning

DenoiseFn = Callable[[Tensor, Tensor], Tensor]
"""Maps latents x_t (B, C, f, h, w) and times t (B,) to an estimate of x_0 (B, C, f, h, w)."""


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (Ho & Salimans, 2022, equation 6), on estimates of x_0.

    Mixing x_0 is mixing v or eps: all are linear in one another at given x_t, and the weights add up to 1.
    """

    scale: float = 7.5  # 1 is the conditional model alone
    rescale: float = 0.0  # share of the conditional estimate's deviation to restore (Lin et al., 2024, equation 16)
    t_min: float = 0.0  # guide in [t_min, t_max] only (Kynkäänniemi et al., 2024)
    t_max: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.rescale <= 1:
            raise ConfigError(f"rescale is a share in [0, 1], got {self.rescale}")
        if self.t_min > self.t_max:
            raise ConfigError(f"t_min {self.t_min} lies above t_max {self.t_max}")


def guided(
    denoiser: Callable[[Tensor, Tensor, Conditioning], Tensor],
    cond: Conditioning,
    null: Conditioning,
    guidance: Guidance,
) -> DenoiseFn:
    """Bind conditioning to ``denoiser`` and mix in its estimate under ``null``, in one call of 2 B samples.

    Args:
        denoiser: estimates x_0 of (x_t, t, conditioning).
        cond: conditioning of the B samples.
        null: the same with the null text or a negative prompt.
        guidance: how far to go from ``null`` towards ``cond``, and beyond; its interval holds for each sample's t.
    """
    both = null.joined(cond)

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        inside = (t >= guidance.t_min) & (t <= guidance.t_max)
        if guidance.scale == 1 or not inside.any():
            return denoiser(x_t, t, cond)
        away, towards = denoiser(x_t.repeat(2, *[1] * (x_t.ndim - 1)), t.repeat(2), both).chunk(2)
        mixed = away + guidance.scale * (towards - away)
        if guidance.rescale > 0:
            mixed = mixed.lerp(_with_deviation_of(towards, mixed), guidance.rescale)
        return torch.where(expand_as(inside, mixed), mixed, towards)

    return denoise


def _with_deviation_of(wanted: Tensor, found: Tensor) -> Tensor:
    """Return ``found`` scaled to the deviation of ``wanted``, each sample by itself."""
    axes = tuple(range(1, found.ndim))
    # Lin et al. restore the deviation of the network's output; of x_0 it is what over-saturation inflates.
    target, actual = (v.std(axes, correction=0, keepdim=True) for v in (wanted, found))
    # An estimate without any deviation has none to restore: it is left as it is, not turned to 0.
    return found * torch.where(actual > 0, target / actual, 1)
