"""Dynamic thresholding of estimates."""

import math
from dataclasses import dataclass

from torch import Tensor

from vidiff.errors import ConfigError
from vidiff.tensors import expand_as


@dataclass(frozen=True)
class Threshold:
    """Dynamic thresholding (Saharia et al., 2022, section 2.3): at every step x_0 is clipped and shrunk into bounds.

    With s the ``percentile`` of |x_0| over a sample, and no less than ``bound``, x_0 is clipped to [-s, s] and
    multiplied by bound / s. Strong guidance then no longer drives values out of the range that training saw.
    """

    percentile: float = 1.0  # share of the values that are not clipped; 1 is off, the paper has 0.995
    bound: float = 1.0  # largest |x_0| of data: 1 of pixels; latents have unit variance and no end, so 3 or 4

    def __post_init__(self) -> None:
        if not 0 < self.percentile <= 1:
            raise ConfigError(f"percentile is a share above 0 and up to 1, got {self.percentile}")
        if not self.bound > 0:
            raise ConfigError(f"bound must be positive, got {self.bound}")

    @property
    def neutral(self) -> bool:
        """Return whether it leaves every estimate as it is."""
        return self.percentile == 1

    def __call__(self, x_0: Tensor) -> Tensor:
        """Return x_0 (B, ...) within [-bound, bound], each sample by itself."""
        if self.neutral:
            return x_0
        sizes = x_0.abs().flatten(1)
        # The value that stands there among all, not one in between: torch.quantile refuses large clips.
        at = sizes.kthvalue(max(1, math.ceil(self.percentile * sizes.shape[1])), dim=1).values
        limit = expand_as(at.clamp(min=self.bound), x_0)
        return x_0.clamp(-limit, limit) * (self.bound / limit)
