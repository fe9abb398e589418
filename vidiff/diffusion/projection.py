"""Guidance that looks at the directions of estimates: what is parallel to another one, and what is perpendicular.

A sample is one vector here: products and norms run over all of its axes, and each sample stands for itself.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vidiff.errors import ConfigError
from vidiff.tensors import expand_as


@dataclass(frozen=True)
class Projection:
    """Adaptive projected guidance (Sadat et al., 2024, Algorithm 1), on estimates of x_0 as there.

    The difference d between the estimates with and without text is averaged with the earlier ones, shortened to
    ``norm``, and its part parallel to the conditional estimate, which over-saturates, is weighted by ``eta``. Neutral
    as it stands; the paper has eta 0, negative momentum, and a norm for each model, 2.5 to 15.
    """

    eta: float = 1.0
    norm: float | None = None  # most that the L2 norm of d over a sample may be, which grows as the root of its size
    momentum: float = 0.0  # d gets this times the average before; below 0 it is pushed away from where it went

    def __post_init__(self) -> None:
        if self.norm is not None and not self.norm > 0:
            raise ConfigError(f"norm must be positive, or null for no limit, got {self.norm}")
        if not -1 < self.momentum < 1:
            raise ConfigError(f"momentum lies between -1 and 1, got {self.momentum}")

    @property
    def neutral(self) -> bool:
        """Return whether it leaves every difference as it is."""
        return self == Projection()

    def __call__(self, difference: Tensor, towards: Tensor) -> Tensor:
        """Return the ``difference`` (B, ...) shortened and projected, given the conditional estimate (B, ...)."""
        if self.norm is not None:
            length = difference.flatten(1).norm(dim=1)
            difference = difference * expand_as((self.norm / length).clamp(max=1), difference)
        if self.eta == 1:
            return difference
        return difference + (self.eta - 1) * parallel_part(difference, towards)


class RunningAverage:
    """What momentum remembers in one run of sampling: the average of the differences at larger times.

    The average at t is d(t) + momentum * (the one at the time that was evaluated before t), so it follows from the
    times and not from how often a solver calls. Hence the last two times are kept: a second evaluation at the last one,
    or one between the two (a corrector, a step taken back), starts from what the first of them left, and one at a time
    larger than both, as in a new run, from nothing.
    """

    def __init__(self, momentum: float):
        self.momentum = momentum
        self._past: list[tuple[float, Tensor]] = []  # the last two times, falling, with their averages

    def update(self, difference: Tensor, t: Tensor) -> Tensor:
        """Return the average with ``difference`` (B, ...) at the time ``t`` (B,), which all samples share."""
        if not (t == t[0]).all():
            raise ValueError("momentum follows one run, whose samples share their times")
        now = float(t[0])
        larger = [past for past in self._past if past[0] > now][-1:]
        average = difference + self.momentum * larger[0][1] if larger else difference
        self._past = [*larger, (now, average)]
        return average


def share_along(found: Tensor, wanted: Tensor) -> Tensor:
    """Return how many times ``wanted`` (B, ...) lies in ``found`` (B, ...): <found, wanted> / <wanted, wanted>, (B,).

    0 where ``wanted`` is 0.
    """
    found, wanted = found.flatten(1).double(), wanted.flatten(1).double()
    length = wanted.square().sum(1)
    return torch.where(length > 0, (found * wanted).sum(1) / length, 0)


def parallel_part(found: Tensor, wanted: Tensor) -> Tensor:
    """Return the part of ``found`` (B, ...) that is parallel to ``wanted`` (B, ...)."""
    return expand_as(share_along(found, wanted).to(wanted.dtype), wanted) * wanted


def fitted_null(away: Tensor, towards: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Return the null estimate whose velocity is scaled to fit that of the conditional one best.

    CFG-Zero* (Fan et al., 2025): v_null is replaced by s* v_null with s* = <v_cond, v_null> / |v_null|^2. Its velocity
    is that of the straight path, v = eps - x_0. Every schedule lies on it, x_t / (alpha + sigma) = (1 - r) x_0 + r eps
    with r = sigma / (alpha + sigma), so sigma v = x_t - (alpha + sigma) x_0, and v leads back to x_0.

    Args:
        away: the null estimate of x_0, (B, ...).
        towards: the conditional one, (B, ...).
        x_t: what both were made from, (B, ...).
        alpha: signal level of each sample, (B,).
        sigma: noise level of each sample, (B,).
    """
    level = expand_as((alpha + sigma).to(away.dtype), away)
    null, cond = x_t - level * away, x_t - level * towards
    return (x_t - parallel_part(cond, null)) / level


def resting(x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Return the x_0 whose velocity v = eps - x_0 is 0: a step of any first-order solver then only rescales x_t.

    CFG-Zero*'s zero-init (Fan et al., 2025); arguments as of `fitted_null`.
    """
    return x_t / expand_as((alpha + sigma).to(x_t.dtype), x_t)


def without_negative(towards: Tensor, negative: Tensor, away: Tensor, weight: float) -> Tensor:
    """Return the conditional estimate minus what of the negative one is perpendicular to it, all (B, ...).

    Perp-Neg (Armandpour et al., 2023): with p = cond - null and n = negative - null, p becomes
    p - w (n - <n, p> / |p|^2 p), so that what a negative prompt shares with the prompt is kept.
    """
    unwanted = negative - away
    return towards - weight * (unwanted - parallel_part(unwanted, towards - away))
