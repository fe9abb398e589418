"""Loss weights by signal-to-noise ratio.

The error that a network makes in its own target is a multiple of its error in x_0. A weighting decides what one
unit of squared error counts and divides that multiple out again, so it means the same for every prediction.
"""

from dataclasses import dataclass
from typing import Literal, assert_never

import torch
from torch import Tensor

from vidiff.diffusion.prediction import Prediction
from vidiff.errors import ConfigError


@dataclass(frozen=True)
class SimpleWeighting:
    """Every time counts the same in the network's own target (Ho et al., 2020, equation 14)."""

    kind: Literal["simple"] = "simple"

    def weights(self, log_snr: Tensor, predicts: Prediction, sigma_data: float = 1.0) -> Tensor:
        """Return the factors of the squared errors, of log_snr's shape."""
        return torch.ones_like(log_snr)


@dataclass(frozen=True)
class MinSNRWeighting:
    """Squared error of x_0 times min(SNR, gamma) (Hang et al., 2023, equation 8)."""

    kind: Literal["min_snr"] = "min_snr"
    gamma: float = 5.0

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise ConfigError(f"gamma must be positive, got {self.gamma}")

    def weights(self, log_snr: Tensor, predicts: Prediction, sigma_data: float = 1.0) -> Tensor:
        """Return the factors of the squared errors in the network's target, of log_snr's shape."""
        # min(SNR, gamma) / m(SNR), with SNR kept finite: both ends have finite limits for eps, v and flow.
        snr = log_snr.clamp(-60, 60).exp()
        return snr.clamp(max=self.gamma) / _per_x0_error(predicts, snr, sigma_data)


@dataclass(frozen=True)
class VelocityWeighting:
    """Squared error as v would have it, SNR + 1 in x_0, with the SNR cut at ``max_snr``.

    Lets a network predict x_0 and still learn at every noise level, as v does (Li & He, 2025).
    """

    kind: Literal["velocity"] = "velocity"
    max_snr: float = 100.0

    def __post_init__(self) -> None:
        if not self.max_snr > 0:
            raise ConfigError(f"max_snr must be positive, got {self.max_snr}")

    def weights(self, log_snr: Tensor, predicts: Prediction, sigma_data: float = 1.0) -> Tensor:
        """Return the factors of the squared errors in the network's target, of log_snr's shape."""
        snr = log_snr.clamp(-60, 60).exp()
        return (snr.clamp(max=self.max_snr) + 1) / _per_x0_error(predicts, snr, sigma_data)


@dataclass(frozen=True)
class SoftMinSNRWeighting:
    """`MinSNRWeighting` without its corner: SNR gamma / (SNR + gamma) in x_0 (Crowson et al., 2024, section 4)."""

    kind: Literal["soft_min_snr"] = "soft_min_snr"
    gamma: float = 4.0

    def __post_init__(self) -> None:
        _positive("gamma", self.gamma)

    def weights(self, log_snr: Tensor, predicts: Prediction, sigma_data: float = 1.0) -> Tensor:
        """Return the factors of the squared errors in the network's target, of log_snr's shape."""
        snr = log_snr.clamp(-60, 60).exp()
        return snr * self.gamma / (snr + self.gamma) / _per_x0_error(predicts, snr, sigma_data)


@dataclass(frozen=True)
class P2Weighting:
    """Squared error of eps over (k + SNR)^gamma: less where only details are left (Choi et al., 2022, equation 8)."""

    kind: Literal["p2"] = "p2"
    k: float = 1.0
    gamma: float = 1.0

    def __post_init__(self) -> None:
        _positive("k", self.k)

    def weights(self, log_snr: Tensor, predicts: Prediction, sigma_data: float = 1.0) -> Tensor:
        """Return the factors of the squared errors in the network's target, of log_snr's shape."""
        snr = log_snr.clamp(-60, 60).exp()
        return snr / (self.k + snr) ** self.gamma / _per_x0_error(predicts, snr, sigma_data)


@dataclass(frozen=True)
class SigmoidWeighting:
    """Squared error of eps times sigmoid(bias - log SNR) (Kingma & Gao, 2023; Hoogeboom et al., 2024, equation 6)."""

    kind: Literal["sigmoid"] = "sigmoid"
    bias: float = -1.0

    def weights(self, log_snr: Tensor, predicts: Prediction, sigma_data: float = 1.0) -> Tensor:
        """Return the factors of the squared errors in the network's target, of log_snr's shape."""
        log_snr = log_snr.clamp(-60, 60)
        snr = log_snr.exp()
        return snr * torch.sigmoid(self.bias - log_snr) / _per_x0_error(predicts, snr, sigma_data)


@dataclass(frozen=True)
class EDMWeighting:
    """Squared error of x_0 times SNR + 1 / sigma_data^2: equal in what edm predicts (Karras et al., 2022, table 1)."""

    kind: Literal["edm"] = "edm"

    def weights(self, log_snr: Tensor, predicts: Prediction, sigma_data: float = 1.0) -> Tensor:
        """Return the factors of the squared errors in the network's target, of log_snr's shape."""
        snr = log_snr.clamp(-60, 60).exp()
        return (snr + sigma_data**-2) / _per_x0_error(predicts, snr, sigma_data)


Weighting = (
    SimpleWeighting
    | MinSNRWeighting
    | SoftMinSNRWeighting
    | VelocityWeighting
    | P2Weighting
    | SigmoidWeighting
    | EDMWeighting
)


def _per_x0_error(predicts: Prediction, snr: Tensor, sigma_data: float) -> Tensor:
    """Return the squared error in the target for a unit of it in x_0, on a variance-preserving schedule."""
    match predicts:
        case "eps":
            return snr
        case "x0":
            return torch.ones_like(snr)
        case "v":
            return snr + 1
        case "flow":
            return (snr.sqrt() + 1).square()
        case "score":
            return snr * (snr + 1)
        case "edm":
            return snr + sigma_data**-2
    assert_never(predicts)


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ConfigError(f"{name} must be positive, got {value}")
