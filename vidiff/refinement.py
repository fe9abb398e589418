"""What a super-resolution stage adds to the clip of the stage before it: frames, or pixels.

`down` is how training clips lose what the stage will add, `up` the plain guess on the stage's own grid that the network
is given; the network makes the difference (Saharia et al., 2022; Ho et al., 2022).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from vidiff import motion
from vidiff.errors import ConfigError
from vidiff.types import Size


@dataclass(frozen=True)
class TemporalSR:
    """``factor`` times the frame rate: known frames stay, those between them are made."""

    kind: Literal["temporal_sr"] = "temporal_sr"
    factor: int = 2
    noise: float = 0.1  # time up to which the guess is noised when sampling
    max_noise: float = 0.4  # training noises it up to a random time below this
    search: int = 0  # pixels that things may move between known frames and the guess follows them; 0: it is a blend

    def __post_init__(self) -> None:
        _check(self)
        if self.search < 0:
            raise ConfigError(f"search is a number of pixels or 0, got {self.search}")

    @property
    def factors(self) -> tuple[int, int, int]:
        """How much finer frames, rows and columns become."""
        return (self.factor, 1, 1)

    @property
    def reach(self) -> int:
        """Known pixels around a place that change the guess there."""
        return motion.reach(self.search) if self.search else 0

    def down(self, video: Tensor) -> Tensor:
        """Keep every ``factor``-th frame of (B, 3, F, H, W)."""
        return video[:, :, :: self.factor]

    def up(self, video: Tensor) -> Tensor:
        """Put frames between neighbors, as their motion or a linear blend says: F become factor (F - 1) + 1."""
        if self.search:
            return self._followed(video)
        count = self.factor * (video.shape[2] - 1) + 1
        place = torch.arange(count, device=video.device) / self.factor
        before = place.floor().long()
        after = (before + 1).clamp(max=video.shape[2] - 1)
        share = (place - before).to(video)[:, None, None]
        return video[:, :, before] * (1 - share) + video[:, :, after] * share

    def _followed(self, video: Tensor) -> Tensor:
        frames = video.transpose(1, 2)
        pairs = (frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1))
        shares = [number / self.factor for number in range(1, self.factor)]
        made = [motion.between(*pairs, share, self.search).unflatten(0, (len(video), -1)) for share in shares]
        groups = torch.stack([frames[:, :-1], *made], dim=2).flatten(1, 2)
        return torch.cat([groups, frames[:, -1:]], dim=1).transpose(1, 2)

    def restored(self, made: Tensor, known: Tensor) -> Tensor:
        """Put the frames that were ``known``, (B, F, H, W, 3), back into ``made``, (B, F', H, W, 3), and return it."""
        made[:, :: self.factor] = known
        return made

    def size(self, size: Size) -> Size:
        """Return the size that a clip of ``size`` becomes."""
        return Size(self.factor * (size.frames - 1) + 1, size.height, size.width, size.fps * self.factor)

    def before(self, size: Size) -> Size:
        """Return the size that becomes ``size``; raises a ConfigError that names the nearest if there is none."""
        steps, left = divmod(size.frames - 1, self.factor)
        if left:
            near = max(1, round((size.frames - 1) / self.factor)) * self.factor + 1
            raise ConfigError(f"{self.kind} makes {self.factor} * n + 1 frames, not {size.frames}; try {near}")
        return Size(steps + 1, size.height, size.width, size.fps / self.factor)


@dataclass(frozen=True)
class SpatialSR:
    """``factor`` times the height and width."""

    kind: Literal["spatial_sr"] = "spatial_sr"
    factor: int = 4
    noise: float = 0.1
    max_noise: float = 0.4

    def __post_init__(self) -> None:
        _check(self)

    @property
    def factors(self) -> tuple[int, int, int]:
        """How much finer frames, rows and columns become."""
        return (1, self.factor, self.factor)

    @property
    def reach(self) -> int:
        """Known pixels around a place that change the guess there: bicubic interpolation's 2, and one to spare."""
        return 3

    def down(self, video: Tensor) -> Tensor:
        """Average squares of ``factor`` pixels of (B, 3, F, H, W)."""
        return F.avg_pool3d(video, (1, self.factor, self.factor))

    def up(self, video: Tensor) -> Tensor:
        """Enlarge every frame by bicubic interpolation."""
        frames = video.transpose(1, 2)
        large = F.interpolate(frames.flatten(0, 1), scale_factor=self.factor, mode="bicubic", align_corners=False)
        return large.clamp(-1, 1).unflatten(0, frames.shape[:2]).transpose(1, 2)

    def restored(self, made: Tensor, known: Tensor) -> Tensor:
        """Return the stage's result; nothing of it was known."""
        return made

    def size(self, size: Size) -> Size:
        """Return the size that a clip of ``size`` becomes."""
        return Size(size.frames, size.height * self.factor, size.width * self.factor, size.fps)

    def before(self, size: Size) -> Size:
        """Return the size that becomes ``size``; raises a ConfigError that names the nearest if there is none."""
        height, width = size.height // self.factor, size.width // self.factor
        if (height * self.factor, width * self.factor) != (size.height, size.width):
            near = [max(1, round(side / self.factor)) * self.factor for side in (size.width, size.height)]
            raise ConfigError(
                f"{self.kind} makes multiples of {self.factor} pixels, not {size.width}x{size.height}; "
                f"try {near[0]}x{near[1]}"
            )
        return Size(size.frames, height, width, size.fps)


Refinement = TemporalSR | SpatialSR


def _check(refinement: Refinement) -> None:
    if refinement.factor < 2:
        raise ConfigError(f"factor must be at least 2, got {refinement.factor}")
    if not 0 <= refinement.noise <= refinement.max_noise < 1:
        raise ConfigError(
            f"noise and max_noise are times with 0 <= noise <= max_noise < 1, "
            f"got {refinement.noise} and {refinement.max_noise}"
        )
