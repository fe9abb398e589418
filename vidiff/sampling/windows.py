"""Overlapping windows, so that a network trained on small clips serves large and long ones in bounded memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vidiff.diffusion.guidance import DenoiseFn
from vidiff.errors import ConfigError

Place = tuple[slice, slice, slice]  # frames, rows and columns of one window


@dataclass(frozen=True)
class Windows:
    """Size and overlap of windows along frames, rows and columns, in latents.

    Raises:
        ConfigError: if an overlap is not smaller than its window.
    """

    size: tuple[int, int, int]
    overlap: tuple[int, int, int]

    def __post_init__(self) -> None:
        if any(overlap < 0 or overlap >= size for size, overlap in zip(self.size, self.overlap, strict=True)):
            raise ConfigError(f"overlaps must be smaller than their windows, got {self.overlap} of {self.size}")

    def over(self, shape: tuple[int, int, int]) -> Iterator[Place]:
        """Yield windows that cover latents of ``shape`` (f, h, w); the last ones reach exactly to the end."""
        frames, rows, columns = (
            [slice(start, min(start + size, length)) for start in starts(length, size, overlap)]
            for length, size, overlap in zip(shape, self.size, self.overlap, strict=True)
        )
        for frame in frames:
            for row in rows:
                for column in columns:
                    yield frame, row, column

    def weights(self, place: Place) -> Tensor:
        """Return how much a window counts at each of its latents, (f, h, w): 1 inside, falling towards its borders."""
        f, h, w = (ramp(at.stop - at.start, overlap + 1) for at, overlap in zip(place, self.overlap, strict=True))
        return f[:, None, None] * h[:, None] * w


def blended(windows: Windows, like: Tensor, piece: Callable[[Place], Tensor]) -> Tensor:
    """Return what ``piece`` says of each window, (B, C, f', h', w'), as one tensor of the shape of ``like``.

    Where windows overlap it is their weighted mean (Bar-Tal et al., 2023, equation 5), so what they agree on, such as
    a constant or a ramp, comes out as it is.
    """
    places = list(windows.over(like.shape[2:]))  # type: ignore[arg-type]
    if len(places) == 1:
        return piece(places[0])
    total, weight = torch.zeros_like(like), like.new_zeros(like.shape[2:])
    for place in places:
        share = windows.weights(place).to(like)
        total[(..., *place)] += share * piece(place)
        weight[place] += share
    return total / weight


def windowed(denoise: Callable[[Tensor, Tensor, Place], Tensor], windows: Windows) -> DenoiseFn:
    """Return a denoiser of clips of any size out of one that sees a window at a time.

    Args:
        denoise: estimates x_0 of (x_t of the window, t, which window).
        windows: what it can take at once.
    """

    def whole(x_t: Tensor, t: Tensor) -> Tensor:
        return blended(windows, x_t, lambda place: denoise(x_t[(..., *place)], t, place))

    return whole


def starts(length: int, size: int, overlap: int) -> list[int]:
    """Return where windows along one axis begin."""
    if length <= size:
        return [0]
    return [*range(0, length - size, size - overlap), length - size]


def ramp(size: int, width: int) -> Tensor:
    """Return weights (size,) that rise from just above 0 to 1 over ``width`` entries and fall again."""
    distance = torch.arange(1, size + 1, dtype=torch.float32)
    return torch.minimum(distance, distance.flip(0)).clamp(max=width) / width
