"""What the network is asked to predict, as one linear map.

Each kind names a target a x_0 + b eps. Together with x_t = alpha x_0 + sigma eps that is a linear system of two
equations, so one formula turns any output back into x_0.
"""

from typing import Literal, assert_never

import torch
from torch import Tensor

from vidiff.diffusion.schedule import NoiseSchedule, has_no_signal_at_end
from vidiff.errors import ConfigError

Prediction = Literal["eps", "x0", "v", "flow", "score", "edm"]


def target_weights(kind: Prediction, alpha: Tensor, sigma: Tensor, sigma_data: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return the weights (a, b) of x_0 and eps in the target, of alpha's shape.

    v: Salimans & Ho (2022). score: the gradient of log q(x_t), -eps / sigma (Song et al., 2021). edm: what is left when
    the preconditioning of Karras et al. (2022, equation 8) has taken c_skip of the input out and divided by c_out; with
    data of deviation ``sigma_data`` = 1 on a variance-preserving schedule that is -v.
    """
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
        case "score":
            return zero, -1 / sigma
        case "edm":
            deviation = torch.hypot(alpha * sigma_data, sigma)
            return sigma / (sigma_data * deviation), -sigma_data * alpha / deviation
    assert_never(kind)


def target(kind: Prediction, x_0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor, sigma_data: float = 1.0) -> Tensor:
    """Return what the network should output for this pair of data and noise; all broadcast together."""
    a, b = target_weights(kind, alpha, sigma, sigma_data)
    return a * x_0 + b * eps


def to_x0(
    kind: Prediction, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor, sigma_data: float = 1.0
) -> Tensor:
    """Return the clean sample that ``output`` implies for ``x_t``; all broadcast together."""
    if kind == "x0":
        return output  # the formula below would divide 0 by 0 at t = 0
    if kind == "score":
        return (x_t + sigma.square() * output) / alpha  # as below, times sigma, which may be 0
    a, b = target_weights(kind, alpha, sigma, sigma_data)
    return (b * x_t - sigma * output) / (alpha * b - sigma * a)


def check_prediction(kind: Prediction, schedule: NoiseSchedule) -> None:
    """Refuse a prediction that cannot be turned into x_0 at t = 1.

    Raises:
        ConfigError: for eps or score on a schedule without signal at t = 1: there both are x_t, and x_0 could be
            anything.
    """
    if kind in ("eps", "score") and has_no_signal_at_end(schedule):
        raise ConfigError(f"predicts: {kind} says nothing at t = 1, where this schedule has no signal left; use v")
