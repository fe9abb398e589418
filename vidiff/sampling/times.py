"""Time grids: the falling times, from noise to data, that a sampler visits. Always float64, and 0 at the end.

A spacing is a frozen dataclass that says where steps fall; `Spacing` is their union.
"""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from vidiff.diffusion.discrete import STEPS
from vidiff.diffusion.schedule import NoiseSchedule
from vidiff.errors import ConfigError, did_you_mean

_NUDGE = 1e-6  # of the first of diffusers' times for UniPC, below 1


def uniform_times(num_steps: int, t_min: float = 0.0, t_max: float = 1.0) -> Tensor:
    """Return ``num_steps + 1`` evenly spaced times from ``t_max`` to ``t_min``.

    Raises:
        ConfigError: if ``num_steps`` is not positive.
    """
    _check(num_steps)
    return torch.linspace(t_max, t_min, num_steps + 1, dtype=torch.float64)


def karras_times(
    schedule: NoiseSchedule, num_steps: int, ratio_min: float = 0.002, ratio_max: float = 80.0, rho: float = 7.0
) -> Tensor:
    """Return times whose sigma / alpha follows equation 5 of Karras et al. (2022), then 0; raises as above."""
    _check(num_steps)
    ramp = torch.linspace(0, 1, num_steps, dtype=torch.float64)
    ratios = (ratio_max ** (1 / rho) + ramp * (ratio_min ** (1 / rho) - ratio_max ** (1 / rho))) ** rho
    return torch.cat([schedule.time_at(ratios), ratios.new_zeros(1)])


@dataclass(frozen=True)
class UniformSpacing:
    """Even in t."""

    kind: Literal["uniform"] = "uniform"

    def times(self, schedule: NoiseSchedule, num_steps: int) -> Tensor:
        """Return the times, (num_steps + 1,)."""
        return uniform_times(num_steps)


@dataclass(frozen=True)
class LeadingSpacing:
    """Every n-th of 1000 discrete steps from the first on: never the noisiest (Lin et al., 2024, table 2)."""

    kind: Literal["leading"] = "leading"
    offset: int = 1  # first step; published models use 0 or 1

    def times(self, schedule: NoiseSchedule, num_steps: int) -> Tensor:
        """Return the times, (num_steps + 1,)."""
        _check(num_steps)
        return _discrete((torch.arange(num_steps, dtype=torch.float64) * (STEPS // num_steps)).flip(0) + self.offset)


@dataclass(frozen=True)
class TrailingSpacing:
    """Every n-th of 1000 discrete steps from the last one back: pure noise first (Lin et al., 2024, table 2)."""

    kind: Literal["trailing"] = "trailing"

    def times(self, schedule: NoiseSchedule, num_steps: int) -> Tensor:
        """Return the times, (num_steps + 1,)."""
        _check(num_steps)
        return _discrete((STEPS - torch.arange(num_steps, dtype=torch.float64) * (STEPS / num_steps)).round() - 1)


@dataclass(frozen=True)
class LinspaceSpacing:
    """From the last to the first of 1000 discrete steps, evenly (Lin et al., 2024, table 2)."""

    kind: Literal["linspace"] = "linspace"

    def times(self, schedule: NoiseSchedule, num_steps: int) -> Tensor:
        """Return the times, (num_steps + 1,)."""
        _check(num_steps)
        return _discrete(torch.linspace(0, STEPS - 1, num_steps, dtype=torch.float64).flip(0).round())


@dataclass(frozen=True)
class KarrasSpacing:
    """Even in a root of sigma / alpha: many steps at little noise (Karras et al., 2022, equation 5)."""

    kind: Literal["karras"] = "karras"
    rho: float = 7.0
    ratio_min: float = 0.002  # sigma / alpha of the last evaluation
    ratio_max: float = 80.0  # of the first one, where the schedule has as much

    def __post_init__(self) -> None:
        _check_ratios(self.ratio_min, self.ratio_max)

    def times(self, schedule: NoiseSchedule, num_steps: int) -> Tensor:
        """Return the times, (num_steps + 1,)."""
        return karras_times(schedule, num_steps, self.ratio_min, _most(schedule, self.ratio_max), self.rho)


@dataclass(frozen=True)
class ExponentialSpacing:
    """Even in log(sigma / alpha), half the log-SNR (Lu et al., 2022, section 5)."""

    kind: Literal["exponential"] = "exponential"
    ratio_min: float = 0.002
    ratio_max: float = 80.0

    def __post_init__(self) -> None:
        _check_ratios(self.ratio_min, self.ratio_max)

    def times(self, schedule: NoiseSchedule, num_steps: int) -> Tensor:
        """Return the times, (num_steps + 1,)."""
        _check(num_steps)
        high = math.log(_most(schedule, self.ratio_max))
        ratios = torch.linspace(high, math.log(self.ratio_min), num_steps, dtype=torch.float64).exp()
        return torch.cat([schedule.time_at(ratios), ratios.new_zeros(1)])


@dataclass(frozen=True)
class BetaSpacing:
    """Quantiles of a beta distribution of t: more steps near both ends if below 1 (Lee et al., 2024, section 4)."""

    kind: Literal["beta"] = "beta"
    alpha: float = 0.6
    beta: float = 0.6

    def __post_init__(self) -> None:
        if not (self.alpha > 0 and self.beta > 0):
            raise ConfigError(f"alpha and beta must be positive, got {self.alpha} and {self.beta}")

    def times(self, schedule: NoiseSchedule, num_steps: int) -> Tensor:
        """Return the times, (num_steps + 1,)."""
        shares = uniform_times(num_steps).tolist()
        found = [_beta_quantile(share, self.alpha, self.beta) for share in shares]
        return torch.tensor(found, dtype=torch.float64)


@dataclass(frozen=True)
class FlowSpacing:
    """Even in t, then moved towards noise: s t / (1 + (s - 1) t) (Esser et al., 2024, equation 23).

    ``grid`` says which implementation's steps they are, to the last digit: those of Wan's own code, which are also
    diffusers' for DPM-Solver++ and DEIS; diffusers' for UniPC; diffusers' for Euler, Heun and consistency steps; or
    even in t all the way from 1 to 0, as diffusers has them for flow maps.
    """

    kind: Literal["flow"] = "flow"
    shift: float = 3.0
    grid: Literal["native", "reference", "euler", "even"] = "native"

    def __post_init__(self) -> None:
        if not self.shift > 0:
            raise ConfigError(f"shift must be positive, got {self.shift}")

    def times(self, schedule: NoiseSchedule, num_steps: int) -> Tensor:
        """Return the times, (num_steps + 1,)."""
        _check(num_steps)
        if self.grid == "native":
            # Differences from 1, as the others compute them: the networks are told whole steps, rounded down.
            sigmas = self._moved(1 - torch.from_numpy(np.linspace(1, 1 / STEPS, num_steps + 1))).flip(0)[:-1]
        elif self.grid == "reference":
            sigmas = self._moved(torch.from_numpy(np.linspace(1, 1 / STEPS, num_steps + 1)))[:-1]
            sigmas[0] -= _NUDGE  # multistep formulas take the logarithm of the signal
        elif self.grid == "even":
            sigmas = self._moved(uniform_times(num_steps))[:-1]
        else:
            least = self._moved(torch.tensor(1 / STEPS, dtype=torch.float64)).item()
            sigmas = self._moved(torch.from_numpy(np.linspace(1, least, num_steps)))
        return torch.cat([sigmas, sigmas.new_zeros(1)])

    def _moved(self, sigmas: Tensor) -> Tensor:
        return self.shift * sigmas / (1 + (self.shift - 1) * sigmas)


@dataclass(frozen=True)
class ListedSpacing:
    """Times as they are listed, such as those that someone has optimized (Sabour et al., 2024)."""

    kind: Literal["list"] = "list"
    listed: tuple[float, ...] = field(default=(1.0, 0.0))

    def __post_init__(self) -> None:
        falls = all(t > s for t, s in zip(self.listed, self.listed[1:], strict=False))
        if len(self.listed) < 2 or not falls or self.listed[0] > 1 or self.listed[-1] != 0:
            raise ConfigError(f"times must fall from at most 1 to 0, such as 1,0.8,0.4,0; got {_joined(self.listed)}")

    def check(self, num_steps: int) -> None:
        """Raise a ConfigError unless as many steps are listed."""
        if num_steps != len(self.listed) - 1:
            raise ConfigError(
                f"the times {_joined(self.listed)} are {len(self.listed) - 1} steps, not {num_steps}; "
                f"set the number of steps to {len(self.listed) - 1}"
            )

    def times(self, schedule: NoiseSchedule, num_steps: int) -> Tensor:
        """Return the times, (num_steps + 1,); raises a ConfigError if as many are not listed."""
        self.check(num_steps)
        return torch.tensor(self.listed, dtype=torch.float64)


Spacing = (
    UniformSpacing
    | LeadingSpacing
    | TrailingSpacing
    | LinspaceSpacing
    | KarrasSpacing
    | ExponentialSpacing
    | BetaSpacing
    | FlowSpacing
    | ListedSpacing
)


def spacing_by_name(name: str) -> Spacing:
    """Return the spacing of this name with its default settings; raises a ConfigError that names the nearest."""
    names = [known for known in SPACINGS if known != "list"]
    if name not in names:
        raise ConfigError(f"unknown spacing {name!r}.{did_you_mean(name, names)} Spacings: {', '.join(sorted(names))}.")
    return SPACINGS[name]()


def listed_spacing(text: str) -> ListedSpacing:
    """Return the spacing that ``text`` lists, such as "1,0.8,0.4,0"; raises a ConfigError if it is no such list."""
    try:
        return ListedSpacing(listed=tuple(float(part) for part in text.split(",")))
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"times are numbers from at most 1 to 0, such as 1,0.8,0.4,0; got {text}") from error


def noisier(schedule: NoiseSchedule, times: Tensor, factor: float) -> Tensor:
    """Return the times at which sigma / alpha is ``factor`` times what it is at ``times``.

    For clips of n times as many latents as the steps were chosen for, whose neighbors average noise away, the factor is
    sqrt(n) (Hoogeboom et al., 2023; Esser et al., 2024, equation 23).
    """
    alpha, sigma = schedule.alpha_sigma(times)
    return torch.where(times > 0, schedule.time_at(factor * sigma / alpha), times)


def _discrete(steps: Tensor) -> Tensor:
    """Return our times of discrete steps k, of which alpha_k is that of (k + 1) / 1000, and 0."""
    return torch.cat([((steps + 1) / STEPS).clamp(max=1), steps.new_zeros(1)])


def _most(schedule: NoiseSchedule, ratio: float) -> float:
    """Return ``ratio``, or what the schedule has at t = 1 if that is less."""
    alpha, sigma = schedule.alpha_sigma(torch.ones((), dtype=torch.float64))
    return min(ratio, (sigma / alpha).item())


def _beta_quantile(share: float, a: float, b: float) -> float:
    """Return the x below which a share of a beta distribution lies, by bisection."""
    if share in (0.0, 1.0):
        return share
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _beta_share(middle, a, b) < share else (low, middle)
    return (low + high) / 2


def _beta_share(x: float, a: float, b: float) -> float:
    """Return the regularized incomplete beta function by its continued fraction (DLMF 8.17.22)."""
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta_share(1 - x, b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    value = 1.0
    for m in range(60, 0, -1):  # from the inside out; 60 terms are far more than double precision needs
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m - 1) * (a + b + m - 1) * x / ((a + 2 * m - 2) * (a + 2 * m - 1))
        value = 1 + odd / (1 + even / value)
    return front / value


def _check_ratios(least: float, most: float) -> None:
    if not 0 < least < most:
        raise ConfigError(f"0 < ratio_min < ratio_max must hold, got {least} and {most}")


def _joined(times: tuple[float, ...]) -> str:
    return ",".join(f"{t:g}" for t in times)


def _check(num_steps: int) -> None:
    if num_steps < 1:
        raise ConfigError(f"the number of steps must be at least 1, got {num_steps}")


SPACINGS: dict[str, type[Spacing]] = {member().kind: member for member in get_args(Spacing)}
