"""How the time of each training sample is drawn."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vidiff.errors import ConfigError


@dataclass(frozen=True)
class UniformTimes:
    """Independent and uniform over [0, 1)."""

    kind: Literal["uniform"] = "uniform"

    def draw(self, batch: int, generator: torch.Generator) -> Tensor:
        """Return ``batch`` times, (B,), float32, on the generator's device."""
        return torch.rand(batch, generator=generator, device=generator.device)


@dataclass(frozen=True)
class StratifiedTimes:
    """One time in each of B equal parts of [t_min, 1), in random order: uniform, with less variance in the loss
    (Kingma et al., 2021, appendix I.1)."""

    kind: Literal["stratified"] = "stratified"
    t_min: float = 0.0  # less noise than sampling ever meets (its `last_t`) is not worth a sample

    def __post_init__(self) -> None:
        if not 0 <= self.t_min < 1:
            raise ConfigError(f"t_min is a time in [0, 1), got {self.t_min}")

    def draw(self, batch: int, generator: torch.Generator) -> Tensor:
        """Return ``batch`` times, (B,), float32, on the generator's device."""
        within = torch.rand(batch, generator=generator, device=generator.device)
        part = torch.randperm(batch, generator=generator, device=generator.device)
        return self.t_min + (1 - self.t_min) * (part + within) / batch


@dataclass(frozen=True)
class LogitNormalTimes:
    """Sigmoid of a normal variable: more of the middle (Esser et al., 2024, equation 19)."""

    kind: Literal["logit_normal"] = "logit_normal"
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ConfigError(f"std must be positive, got {self.std}")

    def draw(self, batch: int, generator: torch.Generator) -> Tensor:
        """Return ``batch`` times, (B,), float32, on the generator's device."""
        normal = torch.randn(batch, generator=generator, device=generator.device)
        return torch.sigmoid(self.mean + self.std * normal)


TrainingTimes = UniformTimes | StratifiedTimes | LogitNormalTimes
