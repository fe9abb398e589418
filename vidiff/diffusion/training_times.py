"""How the time of each training sample is drawn."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vidiff.diffusion.schedule import NoiseSchedule
from vidiff.errors import ConfigError


@dataclass(frozen=True)
class UniformTimes:
    """Independent and uniform over [0, 1)."""

    kind: Literal["uniform"] = "uniform"

    def draw(self, batch: int, generator: torch.Generator, schedule: NoiseSchedule) -> Tensor:
        """Return ``batch`` times, (B,), float32, on the generator's device."""
        return torch.rand(batch, generator=generator, device=generator.device)


@dataclass(frozen=True)
class StratifiedTimes:
    """One time in each of B equal parts of [t_min, 1), in random order: uniform, with less variance in the loss
    (Kingma et al., 2021, appendix I.1), then moved towards noise by ``shift`` (Esser et al., 2024, equation 23)."""

    kind: Literal["stratified"] = "stratified"
    t_min: float = 0.0  # less noise than sampling ever meets (its `last_t`) is not worth a sample
    shift: float = 1.0  # s in s t / (1 + (s - 1) t): above 1, more of the noise where it is decided what is where

    def __post_init__(self) -> None:
        if not 0 <= self.t_min < 1:
            raise ConfigError(f"t_min is a time in [0, 1), got {self.t_min}")
        if not self.shift > 0:
            raise ConfigError(f"shift must be positive, got {self.shift}")

    def draw(self, batch: int, generator: torch.Generator, schedule: NoiseSchedule) -> Tensor:
        """Return ``batch`` times, (B,), float32, on the generator's device."""
        within = torch.rand(batch, generator=generator, device=generator.device)
        part = torch.randperm(batch, generator=generator, device=generator.device)
        least = self.t_min / (self.shift - (self.shift - 1) * self.t_min)  # moved, it is t_min
        u = least + (1 - least) * (part + within) / batch
        return self.shift * u / (1 + (self.shift - 1) * u)


@dataclass(frozen=True)
class LogitNormalTimes:
    """Sigmoid of a normal variable: more of the middle (Esser et al., 2024, equation 19)."""

    kind: Literal["logit_normal"] = "logit_normal"
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ConfigError(f"std must be positive, got {self.std}")

    def draw(self, batch: int, generator: torch.Generator, schedule: NoiseSchedule) -> Tensor:
        """Return ``batch`` times, (B,), float32, on the generator's device."""
        normal = torch.randn(batch, generator=generator, device=generator.device)
        return torch.sigmoid(self.mean + self.std * normal)


@dataclass(frozen=True)
class ModeTimes:
    """Uniform, bent towards the middle by ``scale`` (Esser et al., 2024, equation 20)."""

    kind: Literal["mode"] = "mode"
    scale: float = 1.29

    def __post_init__(self) -> None:
        if not -1 <= self.scale <= 2 / (math.pi - 2):
            raise ConfigError(
                f"scale lies in [-1, {2 / (math.pi - 2):.3f}], where times stay in order, got {self.scale}"
            )

    def draw(self, batch: int, generator: torch.Generator, schedule: NoiseSchedule) -> Tensor:
        """Return ``batch`` times, (B,), float32, on the generator's device."""
        u = torch.rand(batch, generator=generator, device=generator.device)
        return (1 - u - self.scale * (torch.cos(math.pi / 2 * u).square() - 1 + u)).clamp(0, 1)


@dataclass(frozen=True)
class CosMapTimes:
    """The log-SNRs of uniform times on the cosine schedule, for flow schedules (Esser et al., 2024, equation 21)."""

    kind: Literal["cosmap"] = "cosmap"

    def draw(self, batch: int, generator: torch.Generator, schedule: NoiseSchedule) -> Tensor:
        """Return ``batch`` times, (B,), float32, on the generator's device."""
        u = torch.rand(batch, generator=generator, device=generator.device)
        return 1 - 1 / (torch.tan(math.pi / 2 * u) + 1)


@dataclass(frozen=True)
class EDMTimes:
    """The logarithm of sigma / alpha is normal (Karras et al., 2022, table 1)."""

    kind: Literal["edm"] = "edm"
    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ConfigError(f"std must be positive, got {self.std}")

    def draw(self, batch: int, generator: torch.Generator, schedule: NoiseSchedule) -> Tensor:
        """Return ``batch`` times, (B,), float32, on the generator's device."""
        normal = torch.randn(batch, generator=generator, device=generator.device)
        return schedule.time_at((self.mean + self.std * normal).double().exp()).float()


@dataclass(frozen=True)
class ImportanceTimes:
    """More often where the loss has been large, and counted less there (Nichol & Dhariwal, 2021, equation 18).

    Times fall into ``bins``, of which the last ``history`` losses are remembered; a bin is drawn by the root of their
    mean square once all have as many, and uniformly before. What is remembered is not kept here but in the stage, whose
    checkpoints hold it.
    """

    kind: Literal["importance"] = "importance"
    bins: int = 50
    history: int = 10
    uniform: float = 1e-3  # share of draws that fall anywhere

    def __post_init__(self) -> None:
        if self.bins < 1 or self.history < 1:
            raise ConfigError(f"bins and history must be at least 1, got {self.bins} and {self.history}")
        if not 0 < self.uniform <= 1:
            raise ConfigError(f"uniform is a share above 0 and up to 1, got {self.uniform}")

    def memory(self) -> Tensor:
        """Return the memory of a new run, (bins, history), float64; a loss below 0 is none."""
        return torch.full((self.bins, self.history), -1.0, dtype=torch.float64)

    def draw(self, batch: int, generator: torch.Generator, schedule: NoiseSchedule) -> Tensor:
        """Return ``batch`` uniform times, (B,), float32: those of an empty memory."""
        return torch.rand(batch, generator=generator, device=generator.device)

    def drawn_from(self, memory: Tensor, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return ``batch`` times and the factors of their losses, 1 over bins times the chance, both (B,), float32."""
        chances = self._chances(memory).to(generator.device)
        bins = torch.multinomial(chances, batch, replacement=True, generator=generator)
        within = torch.rand(batch, generator=generator, device=generator.device)
        return ((bins + within) / self.bins).float(), (1 / (self.bins * chances[bins])).float()

    def remembered(self, memory: Tensor, t: Tensor, losses: Tensor) -> Tensor:
        """Return the memory after the losses (B,) at the times ``t`` (B,), newest first in each bin."""
        memory = memory.clone()
        for place, loss in zip((t.cpu() * self.bins).long().clamp(max=self.bins - 1), losses.cpu(), strict=True):
            memory[place] = torch.cat([loss.double()[None], memory[place, :-1]])
        return memory

    def _chances(self, memory: Tensor) -> Tensor:
        if (memory < 0).any():
            return torch.full((self.bins,), 1 / self.bins, dtype=torch.float64)
        roots = memory.square().mean(1).sqrt()
        if not roots.sum() > 0:
            return torch.full((self.bins,), 1 / self.bins, dtype=torch.float64)
        return (1 - self.uniform) * roots / roots.sum() + self.uniform / self.bins


TrainingTimes = UniformTimes | StratifiedTimes | LogitNormalTimes | ModeTimes | CosMapTimes | EDMTimes | ImportanceTimes
