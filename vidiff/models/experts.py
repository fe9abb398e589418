"""Several networks that share the way from noise to data, one at a time.

As in eDiff-I (Balaji et al., 2022) and Wan 2.2 (Wan Team, 2025).
"""

import itertools
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from vidiff.errors import ConfigError
from vidiff.models.dit import DiTConfig, SpaceTimeDiT
from vidiff.types import Conditioning

Expert = Literal["high", "low"]
"""The expert at the noise's end of the way or at the data's, by the noise that it is given."""
EXPERTS: tuple[Expert, ...] = get_args(Expert)

_SAME = 1e-6  # times this near are one: networks are told them in float32


@dataclass(frozen=True)
class ExpertsConfig:
    """Shape of `Experts`."""

    kind: Literal["experts"] = "experts"
    expert: DiTConfig = field(default_factory=DiTConfig)  # all have the same shape
    boundaries: tuple[float, ...] = (0.875,)  # falling times; at the first and above it works the first expert

    def __post_init__(self) -> None:
        inside = (1.0, *self.boundaries, 0.0)
        if not self.boundaries or any(t <= s for t, s in itertools.pairwise(inside)):
            raise ConfigError(f"boundaries are falling times between 1 and 0, such as [0.875]; got {self.boundaries}")


class Experts(nn.Module):
    """A backbone that asks one of several `SpaceTimeDiT` for each sample, by its time."""

    def __init__(self, config: ExpertsConfig, in_channels: int, text_dim: int):
        super().__init__()
        self.config = config
        count = len(config.boundaries) + 1
        self.experts = nn.ModuleList(SpaceTimeDiT(config.expert, in_channels, text_dim) for _ in range(count))

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Return the output of the expert for each sample's time; arguments and errors are `SpaceTimeDiT.forward`'s."""
        numbers = self.expert_at(t)
        first = int(numbers[0])
        if bool((numbers == first).all()):
            return self.experts[first](x, t, cond)
        output = torch.empty_like(x)
        for number in numbers.unique().tolist():
            rows = numbers == number
            output[rows] = self.experts[number](x[rows], t[rows], cond.of(rows))
        return output

    def number_of(self, expert: Expert) -> int:
        """Return the number of an expert, counted from noise to data."""
        return 0 if expert == "high" else len(self.experts) - 1

    def described(self, number: int) -> str:
        """Return what to call an expert before people."""
        names = {self.number_of(expert): f"the {expert}-noise expert" for expert in EXPERTS}
        return names.get(number, f"expert {number + 1}")

    def expert_at(self, t: Tensor) -> Tensor:
        """Return the number of the expert for each time (B,), counted from noise to data."""
        edges = torch.tensor(self.config.boundaries, dtype=torch.float64, device=t.device)
        return (t.double()[:, None] < edges - _SAME).sum(1)
