"""The order of the samples, a pure function of (seed, step): nothing of it is ever saved or restored."""

import numpy as np
import torch
from torch import Tensor


def epoch_order(size: int, seed: int, epoch: int) -> Tensor:
    """Return the permutation of ``range(size)`` that epoch ``epoch`` visits, int64."""
    return torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(size))


def batch_indices(size: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Return the samples of one step, taken in turn from the endless sequence of shuffled epochs.

    Every epoch visits each of ``size`` samples once, whether or not batches divide it evenly.
    """
    if size < 1 or batch_size < 1 or step < 0:
        raise ValueError(f"size and batch_size must be at least 1 and step at least 0: {size}, {batch_size}, {step}")
    indices: list[int] = []
    position = step * batch_size
    while len(indices) < batch_size:
        epoch, offset = divmod(position + len(indices), size)
        wanted = batch_size - len(indices)
        indices += epoch_order(size, seed, epoch)[offset : offset + wanted].tolist()
    return indices
