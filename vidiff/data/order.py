"""The order of the samples, a pure function of (seed, step): nothing of it is ever saved or restored."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


@lru_cache(maxsize=2)  # a step asks for the order of one epoch or two
def epoch_order(size: int, seed: int, epoch: int) -> Tensor:
    """Return the permutation of ``range(size)`` that epoch ``epoch`` visits, int64; not to be changed."""
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


def grouped_batch_indices(groups: Sequence[int], batch_size: int, seed: int, step: int) -> list[int]:
    """Return the samples of one step where a batch must not mix groups, such as clips of different shapes.

    Every epoch visits each sample at least once; a group's last batch is filled up from its beginning.

    Args:
        groups: the group of each sample.
        batch_size: samples of one batch.
        seed: decides the order, together with the epoch.
        step: counts batches over all epochs.
    """
    members = [[i for i, group in enumerate(groups) if group == wanted] for wanted in sorted(set(groups))]
    per_epoch = sum(-(-len(group) // batch_size) for group in members)
    epoch, position = divmod(step, per_epoch)
    batches: list[list[int]] = []
    for number, group in enumerate(members):
        order = [group[i] for i in epoch_order(len(group), seed, epoch * len(members) + number).tolist()]
        count = -(-len(order) // batch_size)
        filled = [order[i % len(order)] for i in range(count * batch_size)]
        batches += [filled[i * batch_size : (i + 1) * batch_size] for i in range(count)]
    return batches[int(epoch_order(per_epoch, seed + 1, epoch)[position])]
