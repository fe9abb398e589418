"""Reproducible noise: each sample has its own seed, so that its neighbors in a batch do not change it."""

from collections.abc import Sequence

import torch
from torch import Tensor


class SeededNoise:
    """Draws standard normal noise from one generator a sample, float32 on the CPU, whatever device uses it."""

    def __init__(self, seeds: Sequence[int]):
        self.generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]

    def randn(self, *shape: int) -> Tensor:
        """Return noise of shape (B, *shape), B the number of seeds."""
        return torch.stack([torch.randn(shape, generator=generator) for generator in self.generators])
