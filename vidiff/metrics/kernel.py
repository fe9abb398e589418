"""The kernel distance of two sets of features (KID), which has no bias at any number of samples."""

import math
from dataclasses import dataclass

import numpy as np

from vidiff.errors import ConfigError
from vidiff.metrics.frechet import checked_pair


@dataclass(frozen=True)
class KernelDistance:
    """Squared MMD over random subsets. It is unbiased, so that sets of one kind are as often below 0 as above."""

    mean: float
    std: float  # of a subset, the number that papers print
    subsets: int
    subset_size: int

    @property
    def standard_error(self) -> float:
        """Return the standard error of the mean as the drawing of subsets causes it, for these two sets."""
        return self.std / math.sqrt(self.subsets)


def kernel_distance(
    a: np.ndarray, b: np.ndarray, seed: int, subset_size: int = 1000, subsets: int = 100
) -> KernelDistance:
    """Return the kernel distance of two sets of features (Binkowski et al., 2018).

    Args:
        a: features, (N, D).
        b: features, (M, D).
        seed: of the subsets.
        subset_size: rows drawn from each set without replacement.
        subsets: how often.

    Raises:
        DataError: if a set has fewer than two rows or a row that is not finite, or if the widths differ.
        ConfigError: if the subsets do not fit the sets.
    """
    rows_a, rows_b = checked_pair(a, b)
    most = min(len(rows_a), len(rows_b))
    if not 2 <= subset_size <= most:
        raise ConfigError(f"subset_size must be 2 to {most}, the size of the smaller set; got {subset_size}")
    if subsets < 2:
        raise ConfigError(f"subsets must be 2 or more, got {subsets}")
    rng = np.random.default_rng(seed)
    found = [
        _mmd2(*(rows[rng.permutation(len(rows))[:subset_size]] for rows in (rows_a, rows_b))) for _ in range(subsets)
    ]
    return KernelDistance(float(np.mean(found)), float(np.std(found, ddof=1)), subsets, subset_size)


def squared_mmd(a: np.ndarray, b: np.ndarray) -> float:
    """Return the unbiased squared MMD of features (N, D) and (M, D) with the kernel (x.y / D + 1)^3.

    See Gretton et al., 2012, lemma 6. It holds N^2, M^2 and N M numbers: `kernel_distance` bounds them by its subsets.
    """
    return _mmd2(*checked_pair(a, b))


def _mmd2(a: np.ndarray, b: np.ndarray) -> float:
    return _between_pairs(a) + _between_pairs(b) - 2 * float(_kernel(a, b).mean())


def _between_pairs(rows: np.ndarray) -> float:
    """Return the mean kernel of two different rows."""
    values, n = _kernel(rows, rows), len(rows)
    return float((values.sum() - np.trace(values)) / (n * (n - 1)))


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b.T / a.shape[1] + 1) ** 3
