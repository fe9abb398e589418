"""Frames between two known ones along the motion between them, found by matching; no weights, no training.

The motion is sought from the frame that is missing: what was at x - s D and will be at x + (1 - s) D is at x when the
share s of the time has passed (bilateral motion estimation; Choi et al., 2000), so that every pixel has a source.
"""

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

_WINDOW = 7  # pixels a side over which differences are averaged twice
_PRIOR = 0.004  # difference, of values in [-1, 1], that a motion must save for each pixel of its length
_SOFTNESS = 0.003  # difference by which a motion may be worse than another and still count 1 / e of it
_TAPS = 2  # pixels to each side that cubic interpolation reads


def reach(search: int) -> int:
    """Return how many pixels around a place decide what `between` makes of it."""
    return search + _TAPS + 2 * (_WINDOW // 2)


@torch.autocast("cpu", enabled=False)
@torch.autocast("cuda", enabled=False)
def between(before: Tensor, after: Tensor, share: float, search: int) -> Tensor:
    """Return the frames that lie ``share`` of the way between two.

    Where several motions explain the frames as well, or none does, the result is the mean of what they say, near to a
    plain blend.

    Args:
        before: (N, 3, H, W) in [-1, 1].
        after: of the same shape.
        share: in (0, 1).
        search: motions of up to this many pixels along each axis are compared.
    """
    total, weights, least = before, before[:, :1], before[:, :1]
    for number, (cost, frame) in enumerate(_explained(before, after, share, search)):
        if number == 0:
            total, weights, least = frame, torch.ones_like(cost), cost
            continue
        # A softmax over the motions that holds one of them at a time.
        lower = torch.minimum(least, cost)
        kept, weight = torch.exp((lower - least) / _SOFTNESS), torch.exp((lower - cost) / _SOFTNESS)
        total, weights, least = total * kept + weight * frame, weights * kept + weight, lower
    return total / weights


def _explained(before: Tensor, after: Tensor, share: float, search: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield, motion by motion, how badly it explains the frames, (N, 1, H, W), and what it puts between them."""
    first, second = _Moved(before, search), _Moved(after, search)
    rows, columns = (_averaging(length).to(before) for length in before.shape[2:])
    moves = range(-search, search + 1)
    for dy, dx in itertools.product(moves, moves):
        old, new = first.by(-share * dy, -share * dx), second.by((1 - share) * dy, (1 - share) * dx)
        cost = (old - new).abs().mean(1, keepdim=True)
        yield rows @ cost @ columns.T + _PRIOR * math.hypot(dx, dy), torch.lerp(old, new, share)


def _averaging(length: int) -> Tensor:
    """Return the matrix that averages neighbors twice, (length, length); as a product it is faster than pooling."""
    places = torch.arange(length)
    near = ((places[:, None] - places).abs() <= _WINDOW // 2).float()
    near /= near.sum(1, keepdim=True)
    return near @ near


class _Moved:
    """Frames (N, 3, H, W) seen from up to ``search`` pixels away; beyond their border its pixels go on."""

    def __init__(self, frames: Tensor, search: int):
        self.size, self.margin = frames.shape[2:], search + _TAPS
        self.between: dict[tuple[float, float], Tensor] = {
            (0.0, 0.0): F.pad(frames, (search + _TAPS,) * 4, mode="replicate")
        }

    def by(self, dy: float, dx: float) -> Tensor:
        """Return what lies ``dy`` pixels below and ``dx`` to the right of each place."""
        rows, columns = math.floor(dy), math.floor(dx)
        part = (round(dy - rows, 6), round(dx - columns, 6))
        if part not in self.between:
            self.between[part] = _interpolated(_interpolated(self.between[0.0, 0.0], part[0], 2), part[1], 3)
        (height, width), (row, column) = self.size, (self.margin + rows, self.margin + columns)
        return self.between[part][:, :, row : row + height, column : column + width]


def _interpolated(frames: Tensor, part: float, axis: int) -> Tensor:
    """Return what lies ``part`` of a pixel further along ``axis``; the outermost pixels stay as they are."""
    if part == 0:
        return frames
    # Cubic convolution (Keys, 1981, equation 15).
    taps = (
        (-part + 2 * part**2 - part**3) / 2,
        (2 - 5 * part**2 + 3 * part**3) / 2,
        (part + 4 * part**2 - 3 * part**3) / 2,
        (part**3 - part**2) / 2,
    )
    length = frames.shape[axis]
    places = torch.arange(length, device=frames.device)
    moved = [
        frames.index_select(axis, (places + by).clamp(0, length - 1)) * tap
        for by, tap in zip(range(-1, 3), taps, strict=True)
    ]
    return moved[0] + moved[1] + moved[2] + moved[3]
