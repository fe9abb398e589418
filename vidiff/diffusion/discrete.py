"""Schedules that were published as a table of 1000 betas; alpha is interpolated between its steps.

alpha_k^2 is the product of 1 - beta_i over i <= k (Ho et al., 2020, equation 4); step k is t = k / 1000.
"""

import math
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal, assert_never

import torch
from torch import Tensor

from vidiff.errors import ConfigError

STEPS = 1_000
_Shape = Literal["linear", "quadratic", "exponential"]


@dataclass(frozen=True)
class _Betas:
    """What all tables of rising betas share."""

    kind: str = ""
    beta_start: float = 1e-4
    beta_end: float = 0.02
    zero_terminal_snr: bool = False  # rescaled so that no signal is left at t = 1 (Lin et al., 2024, Algorithm 1)

    def __post_init__(self) -> None:
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ConfigError(
                f"betas must rise between 0 and 1, got beta_start {self.beta_start}, beta_end {self.beta_end}"
            )

    @property
    def _shape(self) -> _Shape:
        raise NotImplementedError

    @property
    def _table(self) -> Tensor:
        return _alphas(self._shape, self.beta_start, self.beta_end, self.zero_terminal_snr)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return _interpolated(t, self._table)

    def time_at(self, ratio: Tensor) -> Tensor:
        return _inverted(ratio, self._table)


@dataclass(frozen=True)
class LinearSchedule(_Betas):
    """Variance preserving, betas linear in t (Ho et al., 2020)."""

    kind: Literal["linear"] = "linear"

    @property
    def _shape(self) -> _Shape:
        return "linear"


@dataclass(frozen=True)
class QuadraticSchedule(_Betas):
    """Variance preserving, square roots of the betas linear, from and to those of Ho et al. (2020): their "quad"."""

    kind: Literal["quadratic"] = "quadratic"

    @property
    def _shape(self) -> _Shape:
        return "quadratic"


@dataclass(frozen=True)
class ScaledLinearSchedule(_Betas):
    """The curve of `QuadraticSchedule` between the betas of latent diffusion (Rombach et al., 2022)."""

    kind: Literal["scaled_linear"] = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012

    @property
    def _shape(self) -> _Shape:
        return "quadratic"


@dataclass(frozen=True)
class ExponentialSchedule(_Betas):
    """Variance preserving, logarithms of the betas linear."""

    kind: Literal["exponential"] = "exponential"

    @property
    def _shape(self) -> _Shape:
        return "exponential"


@dataclass(frozen=True)
class ConstantSchedule:
    """Variance preserving, the same ``beta`` at every step, so that log(alpha) falls evenly."""

    kind: Literal["constant"] = "constant"
    beta: float = 0.02
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.beta < 1:
            raise ConfigError(f"beta lies between 0 and 1, got {self.beta}")

    @property
    def _table(self) -> Tensor:
        return _alphas("linear", self.beta, self.beta, self.zero_terminal_snr)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return _interpolated(t, self._table)

    def time_at(self, ratio: Tensor) -> Tensor:
        return _inverted(ratio, self._table)


@lru_cache
def _alphas(shape: _Shape, start: float, end: float, zero_terminal_snr: bool) -> Tensor:
    """Return alpha at the 1001 times k / 1000, float64: 1, then the square roots of the cumulative products."""
    alphas = (1 - _betas(shape, start, end)).cumprod(0).sqrt()
    if zero_terminal_snr:
        alphas = (alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])
    return torch.cat([alphas.new_ones(1), alphas])


def _betas(shape: _Shape, start: float, end: float) -> Tensor:
    # On the CPU by name: the table is kept for all callers, and one may be building a model on the meta device.
    ramp = partial(torch.linspace, steps=STEPS, dtype=torch.float64, device="cpu")
    match shape:
        case "linear":
            return ramp(start, end)
        case "quadratic":
            return ramp(start**0.5, end**0.5) ** 2
        case "exponential":
            return ramp(math.log(start), math.log(end)).exp()
    assert_never(shape)


def _interpolated(t: Tensor, alphas: Tensor) -> tuple[Tensor, Tensor]:
    position = t.double().clamp(0, 1) * STEPS
    below = position.floor().clamp(max=STEPS - 1).long()
    alphas = alphas.to(t.device)
    alpha = torch.lerp(alphas[below], alphas[below + 1], position - below)
    return alpha.to(t.dtype), (1 - alpha.square()).clamp(min=0).sqrt().to(t.dtype)


def _inverted(ratio: Tensor, alphas: Tensor) -> Tensor:
    alphas = alphas.to(ratio.device)
    alpha = 1 / torch.hypot(ratio.double(), torch.ones_like(ratio, dtype=torch.float64))
    # alphas fall; searchsorted wants them to rise
    above = (STEPS - torch.searchsorted(alphas.flip(0).contiguous(), alpha, right=True)).clamp(0, STEPS - 1)
    share = (alphas[above] - alpha) / (alphas[above] - alphas[above + 1])
    return ((above + share) / STEPS).clamp(0, 1).to(ratio.dtype)
