"""What the network is asked to predict, as one linear map.

Each kind names a target a x_0 + b eps. Together with x_t = alpha x_0 + sigma eps that is a linear system of two
equations, so one formula turns any output back into x_0.
"""

from typing import Literal, assert_never

import torch
from torch import Tensor

from vidiff.diffusion.schedule import NoiseSchedule, has_no_signal_at_end
from vidiff.errors import ConfigError

Prediction = Literal["eps", "x0", "v", "flow"]


def target_weights(kind: Prediction, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights (a, b) of x_0 and eps in the target, of alpha's shape (v: Salimans & Ho, 2022)."""
    zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
    match kind:
        case "eps":
            return zero, one
        case "x0":
            return one, zero
        case "v":
            return -sigma, alpha
        case "flow":
            return -one, one
    assert_never(kind)


def target(kind: Prediction, x_0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Return what the network should output for this pair of data and noise; all broadcast together."""
    a, b = target_weights(kind, alpha, sigma)
    return a * x_0 + b * eps


def to_x0(kind: Prediction, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Return the clean sample that ``output`` implies for ``x_t``; all broadcast together."""
    if kind == "x0":
        return output  # the formula below would divide 0 by 0 at t = 0
    a, b = target_weights(kind, alpha, sigma)
    return (b * x_t - sigma * output) / (alpha * b - sigma * a)


def check_prediction(kind: Prediction, schedule: NoiseSchedule) -> None:
    """Refuse a prediction that cannot be turned into x_0 at t = 1.

    Raises:
        ConfigError: for eps on a schedule without signal at t = 1: there eps is x_t, and x_0 could be anything.
    """
    if kind == "eps" and has_no_signal_at_end(schedule):
        raise ConfigError("predicts: eps says nothing at t = 1, where this schedule has no signal left; use v")
