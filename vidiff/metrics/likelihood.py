"""How likely a diffusion model finds data: in bits, by the variational bound and by the probability-flow ODE.

Both see no more than estimates of x_0 and the schedule. Steps are even in the level -asinh(alpha / sigma): far from
pure noise it is the log of sigma / (2 alpha), and it ends at 0 where no signal is left, so that one grid serves every
schedule.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from vidiff.diffusion.guidance import DenoiseFn
from vidiff.diffusion.schedule import NoiseSchedule
from vidiff.errors import ConfigError
from vidiff.sampling.loop import Problem

Variance = Literal["fixed_small", "fixed_large"]
OnStep = Callable[[int], None]

# Of sigma / alpha, where Karras et al. (2022) end: a quarter of the way from one 8-bit level of [-1, 1] to the next.
LEAST_NOISE = 0.002

_BIT = math.log(2)  # in nats


class Decoder(Protocol):
    """The last factor of the bound: how likely x_0 is under a normal distribution that has no other choice left."""

    def nats(self, x_0: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """Return -log p of each sample, (B,), for x_0 and mean (B, ...) and one variance ()."""
        ...


@dataclass(frozen=True)
class DensityDecoder:
    """The density itself, for data without levels, such as latents; bits may well be negative."""

    def nats(self, x_0: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return ((x_0 - mean).square() / variance + (2 * math.pi * variance).log()).flatten(1).sum(1) / 2


@dataclass(frozen=True)
class LevelDecoder:
    """The probability of each value's level, for data that take evenly spaced ones (Ho et al., 2020, equation 13).

    The first and the last level reach to infinity.
    """

    low: float = -1.0  # the first level
    high: float = 1.0  # the last one
    count: int = 256

    @property
    def step(self) -> float:
        """Return the distance of two levels."""
        return (self.high - self.low) / (self.count - 1)

    def nats(self, x_0: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        half, deviation = self.step / 2, variance.sqrt()
        below = torch.where(x_0 < self.low + half, -math.inf, (x_0 - half - mean) / deviation)
        above = torch.where(x_0 > self.high - half, math.inf, (x_0 + half - mean) / deviation)
        # By symmetry in the lower tail, where the logarithm of the normal integral loses no digits.
        flipped = below + above > 0
        low, high = torch.where(flipped, -above, below), torch.where(flipped, -below, above)
        log_high = torch.special.log_ndtr(high)
        return -(log_high + torch.log1p(-(torch.special.log_ndtr(low) - log_high).exp())).flatten(1).sum(1)

    def dequantized(self, x_0: Tensor, uniform: Tensor) -> Tensor:
        """Return ``x_0`` spread evenly over its levels by ``uniform`` numbers in [0, 1) (Theis et al., 2016)."""
        return x_0 + self.step * (uniform - 0.5)


@dataclass(frozen=True)
class Bound:
    """The parts of the variational bound of each sample, (B,), in bits."""

    prior: Tensor
    diffusion: Tensor
    decoder: Tensor

    @property
    def total(self) -> Tensor:
        return self.prior + self.diffusion + self.decoder


def time_of_noise(schedule: NoiseSchedule, ratio: float) -> float:
    """Return the time at which sigma / alpha is ``ratio``, or 0 on a schedule that begins with more noise."""
    return float(schedule.time_at(torch.tensor(ratio, dtype=torch.float64)).clamp(min=0))


def level_times(schedule: NoiseSchedule, num_steps: int, t_min: float | None = None) -> Tensor:
    """Return ``num_steps + 1`` rising times from ``t_min`` to 1, evenly spaced in the level, float64.

    Args:
        schedule: says how much noise there is when.
        num_steps: how many from one to the next.
        t_min: None is where sigma / alpha is `LEAST_NOISE`.

    Raises:
        ConfigError: if there is no step, or no noise at ``t_min``.
    """
    if num_steps < 1:
        raise ConfigError(f"the number of steps must be at least 1, got {num_steps}")
    first = torch.tensor(time_of_noise(schedule, LEAST_NOISE) if t_min is None else t_min, dtype=torch.float64)
    ends = torch.stack([first, torch.ones_like(first)])
    alpha, sigma = schedule.alpha_sigma(ends)
    if not 0 <= first < 1 or sigma[0] == 0:
        raise ConfigError(f"t_min must lie below 1 and where x_t has some noise, got {first:g}")
    start, stop = _level(alpha, sigma).tolist()
    times = schedule.time_at(1 / torch.linspace(start, stop, num_steps + 1, dtype=torch.float64).neg().sinh().abs())
    times[[0, -1]] = ends  # to the last digit
    return times


@torch.no_grad()
def variational_bound(
    denoise: DenoiseFn,
    schedule: NoiseSchedule,
    x_0: Tensor,
    times: Tensor,
    randn: Callable[[], Tensor],
    *,
    decoder: Decoder = DensityDecoder(),
    variance: Variance = "fixed_small",
    on_step: OnStep = lambda done: None,
) -> Bound:
    """Return how many bits ancestral sampling backwards over ``times`` needs for ``x_0`` at most.

    Every step costs the Kullback-Leibler divergence of two normal distributions of x_s, of which one knows x_0 and the
    other its estimate (Sohl-Dickstein et al., 2015, equation 14; Ho et al., 2020, equation 5). One noise is drawn for
    each: the sum has no bias. The model's has the variance of q(x_s | x_t, x_0), which is right where data are single
    points (``fixed_small``), or that of q(x_s | x_t) for data of unit variance (``fixed_large``; Ho et al., section
    3.2). The decoder always has the latter: the former is 0 there.

    Args:
        denoise: estimates x_0.
        schedule: the one the denoiser was trained on.
        x_0: data, (B, ...).
        times: rising, (num_steps + 1,), float64, of which the last is 1 and the first has noise; see `level_times`.
        randn: draws standard normal noise of x_0's shape.
        decoder: of what is left to know at the first time.
        variance: of the reverse steps.
        on_step: hears how many of ``num_steps`` are done.
    """
    x_0, times = x_0.double(), times.to(x_0.device)
    problem, (alpha, sigma) = Problem(denoise, schedule), schedule.alpha_sigma(times)
    dims, total = x_0[0].numel(), (alpha.square() + sigma.square())
    # Sampling begins with sigma times noise; what is left of x_0 there is what it does not know.
    prior = (alpha[-1] / sigma[-1] * x_0).square().flatten(1).sum(1) / 2
    share = torch.ones_like(times[1:])  # of the two variances, that of q(x_s | x_t, x_0) over that of the model
    if variance == "fixed_large":
        share = (sigma[:-1] / sigma[1:]).square() * total[1:] / total[:-1]
    snr = (alpha / sigma).square()
    weights = share * (snr[:-1] - snr[1:]) / 2  # Kingma et al., 2021, equation 13, where the variances are equal
    constant = dims * (share - 1 - share.log()).sum() / 2
    diffusion = torch.zeros_like(prior)
    for index in range(len(weights)):
        t = index + 1
        estimate = problem.x_0(alpha[t] * x_0 + sigma[t] * randn().to(x_0), times[t])
        diffusion += weights[index] * (x_0 - estimate).square().flatten(1).sum(1)
        on_step(t)
    estimate = problem.x_0(alpha[0] * x_0 + sigma[0] * randn().to(x_0), times[0])
    left = decoder.nats(x_0, estimate.to(x_0), sigma[0].square() / total[0])
    return Bound(prior / _BIT, (diffusion + constant) / _BIT, left / _BIT)


@torch.no_grad()
def flow_bits(
    denoise: DenoiseFn,
    schedule: NoiseSchedule,
    x_0: Tensor,
    probes: Tensor,
    num_steps: int,
    t_min: float | None = None,
    *,
    on_step: OnStep = lambda done: None,
) -> Tensor:
    """Return -log2 of the density that the probability-flow ODE gives ``x_0``, (B,).

    With (cos phi, sin phi) = (alpha, sigma) / hypot(alpha, sigma) and z = x / hypot(alpha, sigma), the ODE of Song et
    al. (2021, equation 13) is dz / dphi = (cos phi z - x_0) / sin phi. The level is log tan(phi / 2), and dphi / dlevel
    is sin phi: so dz / dlevel = cos phi z - x_0, which is regular everywhere. It is solved by the classical Runge-Kutta
    method of fourth order, together with the log-density, which changes by minus the divergence, estimated with probes
    that stay the same all the way (Grathwohl et al., 2019, equation 8). The data stand for samples at ``t_min``, as in
    Song et al.: what is found is the density of data and the noise of that time, taken where the data are.

    Args:
        denoise: estimates x_0; gradients must pass from its result to x_t.
        schedule: the one the denoiser was trained on.
        x_0: data, (B, ...).
        probes: random signs, (K, B, ...); see `rademacher`.
        num_steps: of four evaluations each.
        t_min: where the density is found, see `level_times`.
        on_step: hears how many steps are done.
    """
    times = level_times(schedule, 2 * num_steps, t_min).to(x_0.device)
    alpha, sigma = schedule.alpha_sigma(times)
    norm = torch.hypot(alpha, sigma)
    cosine, levels, dims = alpha / norm, _level(alpha, sigma), x_0[0].numel()
    problem, probes = Problem(denoise, schedule), probes.to(x_0.device, torch.float64)

    def slope(z: Tensor, at: int) -> tuple[Tensor, Tensor]:
        """Return dz / dlevel and its divergence at the time of number ``at``."""
        estimate, trace = _with_trace(lambda x: problem.x_0(x, times[at]), norm[at] * z, probes)
        return cosine[at] * z - estimate, dims * cosine[at] - norm[at] * trace

    z, spread = cosine[0] * x_0.double(), torch.zeros(len(x_0), dtype=torch.float64, device=x_0.device)
    for number in range(num_steps):
        at = 2 * number
        step = levels[at + 2] - levels[at]
        first, div_1 = slope(z, at)
        second, div_2 = slope(z + step / 2 * first, at + 1)
        third, div_3 = slope(z + step / 2 * second, at + 1)
        fourth, div_4 = slope(z + step * third, at + 2)
        z = z + step / 6 * (first + 2 * (second + third) + fourth)
        spread = spread + step / 6 * (div_1 + 2 * (div_2 + div_3) + div_4)
        on_step(number + 1)
    # Sampling begins with sigma times noise. The last term takes the density of z to that of z / cos phi.
    ends = DensityDecoder().nats(z, torch.zeros_like(z), (sigma[-1] / norm[-1]).square())
    return (ends - spread - dims * cosine[0].log()) / _BIT


def rademacher(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return random signs, float64 on the CPU: of all probes with unit variance those with the least scatter."""
    return torch.randint(0, 2, shape, generator=generator).double() * 2 - 1


def _level(alpha: Tensor, sigma: Tensor) -> Tensor:
    return -torch.asinh(alpha / sigma)


def _with_trace(function: Callable[[Tensor], Tensor], x: Tensor, probes: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``function`` at ``x`` and the trace of each sample's Jacobian there, (B,) (Hutchinson, 1990)."""
    with torch.enable_grad():  # for x alone: weights need none
        x = x.detach().requires_grad_()
        value = function(x)
        trace = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        for number, probe in enumerate(probes, 1):
            (product,) = torch.autograd.grad(value, x, probe.to(value), retain_graph=number < len(probes))
            trace += (product * probe).flatten(1).sum(1)
    return value.detach().to(x), trace / len(probes)
