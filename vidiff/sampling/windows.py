"""Overlapping windows, so that a network trained on small clips serves large and long ones in bounded memory."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vidiff.errors import ConfigError

Place = tuple[slice, slice, slice]  # frames, rows and columns of one window


@dataclass(frozen=True)
class Windows:
    """Size and overlap of windows along frames, rows and columns, in frames and pixels.

    A finished clip is the mean of its windows, each weighted by the product of a ramp along each axis. The ramps of
    neighbors add up to 1, so what they agree on, such as a constant or a ramp, comes out as it is.

    Raises:
        ConfigError: if an overlap is not smaller than its window.
    """

    size: tuple[int, int, int]
    overlap: tuple[int, int, int]

    def __post_init__(self) -> None:
        if any(overlap < 0 or overlap >= size for size, overlap in zip(self.size, self.overlap, strict=True)):
            raise ConfigError(f"overlaps must be smaller than their windows, got {self.overlap} of {self.size}")

    def over(self, shape: tuple[int, int, int]) -> list[Place]:
        """Return windows that cover a clip of ``shape`` (F, H, W), row by row; the last ones reach exactly to the end.

        Only a window along an axis where the clip is shorter than that is smaller than ``size``.
        """
        frames, rows, columns = (
            [slice(start, min(start + size, length)) for start in starts(length, size, overlap)]
            for length, size, overlap in zip(shape, self.size, self.overlap, strict=True)
        )
        return [(frame, row, column) for frame in frames for row in rows for column in columns]

    def share(self, shape: tuple[int, int, int], place: Place) -> Tensor:
        """Return how much the window at ``place`` counts against what the windows before it in `over` made there.

        That is its weight over the sum of its and their weights, (n, h, w): so each window can be put on top of the
        others as soon as it is finished, and the last one leaves the weighted mean of all.
        """
        (f_before, f), (h_before, h), (w_before, w) = (
            _weights(*lengths)[at.start] for *lengths, at in zip(shape, self.size, self.overlap, place, strict=True)
        )
        # The windows before in the same row, then those of earlier rows, then those of earlier frames.
        before = h_before[:, None] + h[:, None] * w_before
        before = f_before[:, None, None] + f[:, None, None] * before
        own = f[:, None, None] * h[:, None] * w
        return torch.where(before > 0, own / (before + own), 1.0)


def overlay(clips: Tensor, place: Place, video: Tensor, share: Tensor) -> None:
    """Blend a finished window into clips, in place.

    Args:
        clips: uint8 (B, F, H, W, 3), which are changed at ``place``.
        place: frames, rows and columns of the window.
        video: what was made there, (B, 3, n, h, w) in [-1, 1].
        share: how much of it counts, (n, h, w) in [0, 1]; see `Windows.share`.
    """
    there = clips[(slice(None), *place)]
    made = ((video + 1) * 127.5).clamp(0, 255).permute(0, 2, 3, 4, 1)
    there.copy_(torch.lerp(there.to(made), made, share[..., None].to(made)).round_())


def starts(length: int, size: int, overlap: int) -> list[int]:
    """Return where windows along one axis begin."""
    if length <= size:
        return [0]
    return [*range(0, length - size, size - overlap), length - size]


def ramp(size: int, width: int) -> Tensor:
    """Return weights (size,) that rise from just above 0 to 1 over ``width`` entries and fall again."""
    distance = torch.arange(1, size + 1, dtype=torch.float32)
    return torch.minimum(distance, distance.flip(0)).clamp(max=width) / width


def _weights(length: int, size: int, overlap: int) -> dict[int, tuple[Tensor, Tensor]]:
    """Return, for the start of each window along one axis, the weights (size,) of all earlier ones there and its own.

    All weights at an entry add up to 1. A window's rise over its first ``overlap`` entries and take from those of the
    earlier ones; where the last window overlaps by more, it counts fully after them.
    """
    left, found = torch.ones(length), {}
    for start in reversed(starts(length, size, overlap)):
        rise = torch.ones(min(size, length))
        if start > 0:
            rise[:overlap] = torch.arange(1, overlap + 1) / (overlap + 1)
        at = slice(start, start + size)
        found[start] = (left[at] * (1 - rise), left[at] * rise)
        left[at] = found[start][0]
    return found
