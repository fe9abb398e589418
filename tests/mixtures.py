"""Distributions whose denoisers are known exactly."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vidiff.diffusion.schedule import NoiseSchedule


@dataclass(frozen=True)
class Mixture:
    """Isotropic Gaussians in one dimension; samples are (B, 1, 1, 1, 1)."""

    schedule: NoiseSchedule
    means: tuple[float, ...] = (-2.0, 0.5, 3.0)
    weights: tuple[float, ...] = (0.2, 0.5, 0.3)
    std: float = 0.1

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Return E[x_0 | x_t]: responsibilities of the components times their posterior means."""
        alpha, sigma = (v.to(x_t.dtype).view(-1, 1, 1, 1, 1, 1) for v in self.schedule.alpha_sigma(t))
        means = torch.tensor(self.means, dtype=x_t.dtype)
        x = x_t.unsqueeze(-1)
        variance = alpha**2 * self.std**2 + sigma**2
        logits = torch.tensor(self.weights, dtype=x_t.dtype).log() - (x - alpha * means) ** 2 / (2 * variance)
        posterior = means + alpha * self.std**2 / variance * (x - alpha * means)
        return (logits.softmax(-1) * posterior).sum(-1)


@dataclass(frozen=True)
class WideMixture:
    """Gaussians in several dimensions, each with deviations of its own; samples are (B, D, 1, 1, 1), float64."""

    schedule: NoiseSchedule
    means: tuple[tuple[float, ...], ...] = ((-2.0, 0.5), (0.5, 1.0), (3.0, -1.0))
    stds: tuple[tuple[float, ...], ...] = ((0.1, 0.3), (0.2, 0.2), (0.4, 0.1))
    weights: tuple[float, ...] = (0.2, 0.5, 0.3)

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Return E[x_0 | x_t]: responsibilities of the components times their posterior means."""
        alpha, sigma = (v.to(x_t.dtype).view(-1, 1, 1) for v in self.schedule.alpha_sigma(t))
        means, stds, weights = (torch.tensor(v, dtype=x_t.dtype) for v in (self.means, self.stds, self.weights))
        off = x_t.flatten(1)[:, None] - alpha * means  # (B, K, D)
        variance = alpha**2 * stds**2 + sigma**2
        logits = weights.log() - (off**2 / variance + variance.log()).sum(-1) / 2
        posterior = means + alpha * stds**2 / variance * off
        return (logits.softmax(-1)[..., None] * posterior).sum(1).view_as(x_t)

    def distribution(self) -> torch.distributions.Distribution:
        """Return the same by torch, whose samples are (..., D)."""
        means, stds, weights = (torch.tensor(v, dtype=torch.float64) for v in (self.means, self.stds, self.weights))
        components = torch.distributions.Independent(torch.distributions.Normal(means, stds), 1)
        return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(weights), components)
