"""Noise schedules: how much signal and noise x_t holds at time t.

Every schedule writes the forward process as x_t = alpha x_0 + sigma eps with t in [0, 1], where t = 0 is data and
t = 1 is noise.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol

import torch
from torch import Tensor

from vidiff.errors import ConfigError
from vidiff.tensors import expand_as

_GRID = 1_000  # discrete steps of the published linear schedules

# alpha(1) of the 1000-step cosine schedule whose last beta is clipped to 0.999 (Nichol & Dhariwal, 2021).
_CLIPPED_ALPHA = math.pi / 2 / _GRID * math.sqrt(1 - 0.999)


class NoiseSchedule(Protocol):
    """What samplers and losses ask of a schedule."""

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma at ``t``, both of t's shape and dtype."""
        ...

    def time_at(self, ratio: Tensor) -> Tensor:
        """Return the t at which sigma / alpha equals ``ratio``, which may be infinite."""
        ...


@dataclass(frozen=True)
class CosineSchedule:
    """Variance preserving, alpha = cos(pi t / 2) (Nichol & Dhariwal, 2021, equation 17 without its offset).

    ``shift`` multiplies sigma / alpha (Hoogeboom et al., 2023): above 1 for larger videos, whose neighboring pixels
    average noise away.
    """

    kind: Literal["cosine"] = "cosine"
    shift: float = 1.0
    zero_terminal_snr: bool = True  # no signal at t = 1 (Lin et al., 2024); False leaves the published trace of it

    def __post_init__(self) -> None:
        _positive("shift", self.shift)

    @property
    def _end(self) -> float:
        return math.pi / 2 if self.zero_terminal_snr else math.acos(_CLIPPED_ALPHA)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        # The cosine of the float nearest to pi / 2 is 6e-17, not 0; at t = 1 that would count as signal.
        signal = torch.cos(t * self._end).clamp(min=0)
        if self.zero_terminal_snr:
            signal = signal.masked_fill(t >= 1, 0)
        noise = self.shift * torch.sin(t * self._end)
        norm = torch.hypot(signal, noise)
        return signal / norm, noise / norm

    def time_at(self, ratio: Tensor) -> Tensor:
        return (torch.atan(ratio / self.shift) / self._end).clamp(max=1)


@dataclass(frozen=True)
class LinearSchedule:
    """Variance preserving, betas linear in t over 1000 steps (Ho et al., 2020), alpha interpolated between them."""

    kind: Literal["linear"] = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    zero_terminal_snr: bool = False  # rescaled so that no signal is left at t = 1 (Lin et al., 2024, Algorithm 1)

    def __post_init__(self) -> None:
        _check_betas(self.beta_start, self.beta_end)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return _interpolated(t, _alphas(self.beta_start, self.beta_end, 1.0, self.zero_terminal_snr))

    def time_at(self, ratio: Tensor) -> Tensor:
        return _inverted(ratio, _alphas(self.beta_start, self.beta_end, 1.0, self.zero_terminal_snr))


@dataclass(frozen=True)
class ScaledLinearSchedule:
    """Variance preserving, square roots of the betas linear over 1000 steps (Rombach et al., 2022)."""

    kind: Literal["scaled_linear"] = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        _check_betas(self.beta_start, self.beta_end)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return _interpolated(t, _alphas(self.beta_start, self.beta_end, 0.5, self.zero_terminal_snr))

    def time_at(self, ratio: Tensor) -> Tensor:
        return _inverted(ratio, _alphas(self.beta_start, self.beta_end, 0.5, self.zero_terminal_snr))


@dataclass(frozen=True)
class FlowSchedule:
    """Straight line from data to noise, alpha + sigma = 1 (Liu et al., 2023).

    ``shift`` moves times towards noise, sigma = shift t / (1 + (shift - 1) t) (Esser et al., 2024, equation 23).
    """

    kind: Literal["flow"] = "flow"
    shift: float = 1.0

    def __post_init__(self) -> None:
        _positive("shift", self.shift)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        signal, noise = 1 - t, self.shift * t
        return signal / (signal + noise), noise / (signal + noise)

    def time_at(self, ratio: Tensor) -> Tensor:
        # ratio / (shift + ratio), written so that an infinite ratio gives 1
        return 1 / (1 + self.shift / ratio)


Schedule = CosineSchedule | LinearSchedule | ScaledLinearSchedule | FlowSchedule


def log_snr(schedule: NoiseSchedule, t: Tensor) -> Tensor:
    """Return log(alpha^2 / sigma^2) at ``t``: infinite at t = 0, minus infinity where no signal is left."""
    alpha, sigma = schedule.alpha_sigma(t)
    return 2 * (alpha.log() - sigma.log())


def noised(schedule: NoiseSchedule, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """Return x_t of ``x_0`` (B, ...) at the time ``t`` (B,) of each sample, in the dtype of ``x_0``."""
    alpha, sigma = (expand_as(v.to(x_0.dtype), x_0) for v in schedule.alpha_sigma(t))
    return alpha * x_0 + sigma * eps


def has_no_signal_at_end(schedule: NoiseSchedule) -> bool:
    """Return whether alpha(1) is 0."""
    alpha, _ = schedule.alpha_sigma(torch.ones(1, dtype=torch.float64, device="cpu"))
    return alpha.item() == 0.0


@lru_cache
def _alphas(beta_start: float, beta_end: float, power: float, zero_terminal_snr: bool) -> Tensor:
    """Return alpha at the 1001 times k / 1000, float64: 1, then the square roots of the cumulative products."""
    # On the CPU by name: the table is kept for all callers, and one may be building a model on the meta device.
    roots = torch.linspace(beta_start**power, beta_end**power, _GRID, dtype=torch.float64, device="cpu")
    betas = roots ** (1 / power)
    alphas = (1 - betas).cumprod(0).sqrt()
    if zero_terminal_snr:
        alphas = (alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])
    return torch.cat([alphas.new_ones(1), alphas])


def _interpolated(t: Tensor, alphas: Tensor) -> tuple[Tensor, Tensor]:
    position = t.double().clamp(0, 1) * _GRID
    below = position.floor().clamp(max=_GRID - 1).long()
    alphas = alphas.to(t.device)
    alpha = torch.lerp(alphas[below], alphas[below + 1], position - below)
    return alpha.to(t.dtype), (1 - alpha.square()).clamp(min=0).sqrt().to(t.dtype)


def _inverted(ratio: Tensor, alphas: Tensor) -> Tensor:
    alphas = alphas.to(ratio.device)
    alpha = 1 / torch.hypot(ratio.double(), torch.ones_like(ratio, dtype=torch.float64))
    # alphas fall; searchsorted wants them to rise
    above = (_GRID - torch.searchsorted(alphas.flip(0).contiguous(), alpha, right=True)).clamp(0, _GRID - 1)
    share = (alphas[above] - alpha) / (alphas[above] - alphas[above + 1])
    return ((above + share) / _GRID).clamp(0, 1).to(ratio.dtype)


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ConfigError(f"{name} must be positive, got {value}")


def _check_betas(start: float, end: float) -> None:
    if not 0 < start <= end < 1:
        raise ConfigError(f"betas must rise between 0 and 1, got beta_start {start}, beta_end {end}")
