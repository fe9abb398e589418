"""Signal and noise at one time, and the variables in which solvers count noise."""

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vidiff.diffusion.schedule import NoiseSchedule

# What an ODE is stepped in: sigma / alpha, where the slope is eps (Karras et al., 2022, equation 4), or the time of a
# flow, where it is eps - x_0 (Liu et al., 2023). Steps of first order without fresh noise are the same on both.
Axis = Literal["ratio", "flow"]

# Below this alpha / sigma x_t counts as pure noise: what divides by alpha says nothing there.
_PURE_NOISE = 1e-3
# Below this log(alpha / sigma) says nothing either; published flow models start just above it.
_NO_SIGNAL = 1e-7

_nodes, _weights = np.polynomial.legendre.leggauss(32)
# Places in [0, 1] and weights whose sum integrates what multistep solvers need, to the last digits and without the
# cancellation that closed forms have in small steps.
PLACES, WEIGHTS = (_nodes + 1) / 2, _weights / 2


class Level(NamedTuple):
    """alpha and sigma at one time, both (), float64."""

    alpha: Tensor
    sigma: Tensor

    @property
    def ratio(self) -> Tensor:
        """sigma / alpha, the noise of x / alpha; infinite without signal."""
        return self.sigma / self.alpha

    @property
    def flow_time(self) -> Tensor:
        """sigma / (alpha + sigma): the t of a flow, which x / (alpha + sigma) is on any schedule (Liu et al., 2023)."""
        return self.sigma / (self.alpha + self.sigma)

    @property
    def half_log_snr(self) -> Tensor:
        """log(alpha / sigma), the lambda of Lu et al. (2022)."""
        return self.alpha.log() - self.sigma.log()

    @property
    def is_pure_noise(self) -> bool:
        return bool(self.alpha <= _PURE_NOISE * self.sigma)

    @property
    def has_no_signal(self) -> bool:
        return bool(self.alpha <= _NO_SIGNAL * self.sigma)

    def eps(self, x: Tensor, x_0: Tensor) -> Tensor:
        """Return the noise in ``x`` if ``x_0`` is the signal; both (B, ...)."""
        return (x - self.alpha * x_0) / self.sigma


def level(schedule: NoiseSchedule, t: Tensor) -> Level:
    """Return the level at one time ``t`` ()."""
    return Level(*schedule.alpha_sigma(t))


def fresh_share(at_t: Level, at_s: Level) -> Tensor:
    """Return the deviation of q(x_s | x_t, x_0) as a share of sigma_s (Song et al., 2021, equation 16)."""
    return (1 - (at_t.alpha * at_s.sigma / (at_s.alpha * at_t.sigma)).square()).clamp(min=0).sqrt()


def fresh_of_flow(at_t: Level, at_s: Level, eta: float) -> Tensor:
    """Return the deviation of fresh noise after a step down ``eta`` of the way from s to s^2 / t, in a flow's time.

    ComfyUI's code samples flows like this (euler_ancestral_RF); no paper has it.
    """
    down = at_s.flow_time * (1 + (at_s.flow_time / at_t.flow_time - 1) * eta)
    return (at_s.sigma.square() - (at_s.alpha * down / (1 - down)).square()).clamp(min=0).sqrt()


def first_order(at_s: Level, x_0: Tensor, eps: Tensor) -> Tensor:
    """Return x_s where x_0 and eps stay as they are: the step of DDIM, of Euler, and of order 1 of all that follow.

    It divides by no alpha, so it may start without signal (Song et al., 2021, equation 12).
    """
    return at_s.alpha * x_0 + at_s.sigma * eps


def scaled_back(at_t: Level, at_s: Level) -> Tensor:
    """Return sigma_s / sigma_t, the factor of x_t in exponential integrators of x_0 (Lu et al., 2022, equation 8)."""
    return torch.as_tensor(at_s.sigma / at_t.sigma)
