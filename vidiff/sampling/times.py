"""Time grids: the falling times, from noise to data, that a sampler visits. Always float64."""

import torch
from torch import Tensor

from vidiff.diffusion.schedule import NoiseSchedule
from vidiff.errors import ConfigError


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


def _check(num_steps: int) -> None:
    if num_steps < 1:
        raise ConfigError(f"the number of steps must be at least 1, got {num_steps}")
