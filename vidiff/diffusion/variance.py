"""Learned variance of the reverse process, and the bound that teaches it (Nichol & Dhariwal, 2021).

The network says where the logarithm of the variance of p(x_s | x_t) lies between two bounds: ``share`` 1 is the noise
that came in between s and t, beta in the paper, and 0 the variance of q(x_s | x_t, x_0) (equation 15).
"""

import math

from torch import Tensor

from vidiff.diffusion.schedule import NoiseSchedule
from vidiff.tensors import expand_as

STEP = 1e-3  # between t and s in training: one of the thousand that the paper's bound has


def log_variance(schedule: NoiseSchedule, share: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Return the log-variance of p(x_s | x_t), of the shape of ``share`` (B, ...).

    Args:
        schedule: of x_t.
        share: where it lies between its bounds, in [0, 1].
        t: times, (B,).
        s: earlier ones, above 0, (B,).
    """
    most, least = _bounds(schedule, share, t, s)
    return share * most.log() + (1 - share) * least.log()


def step_kl(schedule: NoiseSchedule, x_0: Tensor, found: Tensor, share: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Return KL(q(x_s | x_t, x_0) || p(x_s | x_t)) of each sample, a mean over its numbers, (B,), in bits.

    Args:
        schedule: of x_t.
        x_0: clean latents, (B, ...).
        found: the estimate of them; no gradient goes there, only to ``share`` (section 3.1).
        share: see `log_variance`.
        t: times, (B,).
        s: earlier ones, above 0, (B,).
    """
    most, least = _bounds(schedule, x_0, t, s)
    log_own = log_variance(schedule, share, t, s)
    # The means differ by what they hold of x_0 only: this much (Ho et al., 2020, equation 7).
    (_, sigma_t), (alpha_s, _) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
    weight = expand_as(alpha_s, x_0) * most / expand_as(sigma_t, x_0).square()
    error = (weight * (x_0 - found.detach())).square()
    kl = 0.5 * (log_own - least.log() + (least + error) / log_own.exp() - 1)
    return kl.flatten(1).mean(1) / math.log(2)


def neighbors(t: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``t``, moved up where no step fits below, and the time a step before it; both float64."""
    t = t.double().clamp(min=2 * STEP)
    return t, t - STEP


def _bounds(schedule: NoiseSchedule, like: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Return the noise that comes in between s and t, and the variance of the posterior q(x_s | x_t, x_0)."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
    most = sigma_t.square() - (alpha_t * sigma_s / alpha_s).square()
    return expand_as(most, like), expand_as(most * (sigma_s / sigma_t).square(), like)
