"""Noise schedules: how much signal and noise x_t holds at time t.

Every schedule writes the forward process as x_t = alpha x_0 + sigma eps with t in [0, 1], where t = 0 is data and
t = 1 is noise.
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from vidiff.diffusion.discrete import (
    ConstantSchedule,
    ExponentialSchedule,
    LinearSchedule,
    QuadraticSchedule,
    ScaledLinearSchedule,
)
from vidiff.errors import ConfigError
from vidiff.tensors import expand_as

# alpha(1) of the 1000-step cosine schedule whose last beta is clipped to 0.999 (Nichol & Dhariwal, 2021).
_CLIPPED_ALPHA = math.pi / 2 / 1000 * math.sqrt(1 - 0.999)


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


@dataclass(frozen=True)
class SigmoidSchedule:
    """Variance preserving, alpha^2 a falling sigmoid between ``start`` and ``end`` (Jabri et al., 2023, Algorithm 6).

    A larger ``tau`` bends it less, a larger ``start`` leaves less signal in the middle.
    """

    kind: Literal["sigmoid"] = "sigmoid"
    start: float = -3.0
    end: float = 3.0
    tau: float = 1.0
    zero_terminal_snr: bool = True  # False leaves alpha^2 = 1e-9, the published least

    def __post_init__(self) -> None:
        _positive("tau", self.tau)
        if not self.start < self.end:
            raise ConfigError(f"start must lie below end, got {self.start} and {self.end}")

    @property
    def _ends(self) -> tuple[float, float]:
        high, low = (1 / (1 + math.exp(place / self.tau)) for place in (self.start, self.end))
        return high, low

    @property
    def _least(self) -> float:
        return 0.0 if self.zero_terminal_snr else 1e-9

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        high, low = self._ends
        falling = torch.sigmoid(-(self.start + t * (self.end - self.start)) / self.tau)
        share = ((falling - low) / (high - low)).clamp(0, 1)
        power = self._least + (1 - self._least) * torch.where(t <= 0, 1.0, torch.where(t >= 1, 0.0, share))
        return power.sqrt(), (1 - power).sqrt()

    def time_at(self, ratio: Tensor) -> Tensor:
        high, low = self._ends
        power = 1 / (1 + ratio.square())
        share = ((power - self._least) / (1 - self._least)).clamp(0, 1)
        place = -self.tau * torch.logit(low + share * (high - low))
        return ((place - self.start) / (self.end - self.start)).clamp(0, 1)


@dataclass(frozen=True)
class EDMSchedule:
    """Variance exploding: alpha = 1, and sigma rises by a power of t (Karras et al., 2022, equation 5).

    Below ``sigma_min`` is data: sigma(0) is 0. Networks see x_t scaled to unit variance; see `Denoiser`.
    """

    kind: Literal["edm"] = "edm"
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        _positive("rho", self.rho)
        if not 0 < self.sigma_min < self.sigma_max:
            raise ConfigError(f"0 < sigma_min < sigma_max must hold, got {self.sigma_min} and {self.sigma_max}")

    @property
    def _roots(self) -> tuple[float, float]:
        return self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self._roots
        sigma = (low + t * (high - low)) ** self.rho
        return torch.ones_like(t), sigma.masked_fill(t <= 0, 0)

    def time_at(self, ratio: Tensor) -> Tensor:
        low, high = self._roots
        t = ((ratio ** (1 / self.rho) - low) / (high - low)).clamp(1e-9, 1)  # the least noise is no data yet
        return t.masked_fill(ratio <= 0, 0)


Schedule = (
    CosineSchedule
    | LinearSchedule
    | ScaledLinearSchedule
    | QuadraticSchedule
    | ExponentialSchedule
    | ConstantSchedule
    | SigmoidSchedule
    | FlowSchedule
    | EDMSchedule
)


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


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ConfigError(f"{name} must be positive, got {value}")


SCHEDULES: dict[str, type[Schedule]] = {member().kind: member for member in get_args(Schedule)}
