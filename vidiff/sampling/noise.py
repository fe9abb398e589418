"""Reproducible noise: each sample has its own seed, so that its neighbors in a batch do not change it."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vidiff.sampling.windows import Place

NoiseFrom = Literal["vidiff", "reference"]

_TILE = 64  # pixels a side that one key draws


def stage_seed(seed: int, stage: int) -> int:
    """Return the seed below 2^32 of a cascade's ``stage``; 0 is the base, whose seed is ``seed`` itself.

    All stages of one seed differ, and so do all seeds at one stage, since the step, 2^32 over the golden ratio, is odd
    (Knuth, The Art of Computer Programming, volume 3, section 6.4).
    """
    return (seed + stage * 0x9E3779B9) % 2**32  # torch's generator on the CPU ignores all higher bits


class SeededNoise:
    """Draws standard normal noise from one generator a sample, float32 on the CPU, whatever device uses it."""

    def __init__(self, seeds: Sequence[int]):
        self.generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]

    def randn(self, *shape: int) -> Tensor:
        """Return noise of shape (B, *shape), B the number of seeds."""
        return torch.stack([torch.randn(shape, generator=generator) for generator in self.generators])


class ReferenceNoise:
    """Draws what diffusers' pipelines draw for the same seeds, from a generator on the device that samples."""

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu"):
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def randn(self, *shape: int) -> Tensor:
        """Return noise of shape (B, *shape), float32, B the number of seeds."""
        drawn = [torch.randn((1, *shape), generator=one, device=one.device) for one in self.generators]
        return torch.cat(drawn)


class PlacedNoise:
    """Standard normal noise of a clip's pixels that follows from the place: where windows overlap, it is the same.

    It is drawn in tiles, so that a window costs no more in a large clip. Each has a key of its own, and a clip has so
    many that some would meet in the 2^32 streams of torch's generator on the CPU; NumPy's mixes keys of any length.
    """

    def __init__(self, seeds: Sequence[int]):
        self.seeds = tuple(seeds)

    def randn(self, place: Place, use: int, copy: int = 0) -> Tensor:
        """Return noise (B, 3, n, h, w) for B seeds, float32 on the CPU.

        Args:
            place: frames, rows and columns of the clip.
            use: what it is for; every use has noise of its own.
            copy: so has every copy of a pixel.
        """
        frames, rows, columns = place
        drawn = [
            [_frame((seed, use, copy, frame), rows, columns) for frame in range(frames.start, frames.stop)]
            for seed in self.seeds
        ]
        return torch.from_numpy(np.array(drawn)).transpose(1, 2)


def _frame(key: tuple[int, ...], rows: slice, columns: slice) -> np.ndarray:
    """Return noise (3, h, w) of a part of one frame."""
    down, across = (range(at.start // _TILE, -(-at.stop // _TILE)) for at in (rows, columns))
    tiles = [
        [np.random.default_rng((*key, y, x)).standard_normal((3, _TILE, _TILE), np.float32) for x in across]
        for y in down
    ]
    top, left = down.start * _TILE, across.start * _TILE
    return np.block(tiles)[:, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
