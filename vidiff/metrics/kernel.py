"""The kernel distance of two sets of features (KID), which has no bias at any number of samples."""

import math
from dataclasses import dataclass

import numpy as np

from vidiff.errors import ConfigError, DataError
from vidiff.metrics.frechet import checked_pair


@dataclass(frozen=True)
class KernelDistance:
    """Squared MMD over random subsets. It is unbiased, so that sets of one kind are as often below 0 as above."""

    mean: float
    std: float  # of a subset, the number that papers print
    subsets: int
    subset_size: int  # in groups

    @property
    def standard_error(self) -> float:
        """Return the standard error of the mean as the drawing of subsets causes it, for these two sets."""
        return self.std / math.sqrt(self.subsets)


def kernel_distance(
    a: np.ndarray, b: np.ndarray, seed: int, subset_size: int = 1000, subsets: int = 100, group: int = 1
) -> KernelDistance:
    """Return the kernel distance of two sets of features (Binkowski et al., 2018).

    Args:
        a: features, (N, D).
        b: features, (M, D).
        seed: of the subsets.
        subset_size: groups, which are rows unless ``group`` is given, drawn from each set without replacement.
        subsets: how often.
        group: see `squared_mmd`.

    Raises:
        DataError: as `squared_mmd`.
        ConfigError: if the subsets do not fit the sets.
    """
    sets = _grouped(a, b, group)
    most = min(map(len, sets))
    if not 2 <= subset_size <= most:
        raise ConfigError(f"subset_size must be 2 to {most}, the size of the smaller set; got {subset_size}")
    if subsets < 2:
        raise ConfigError(f"subsets must be 2 or more, got {subsets}")
    rng = np.random.default_rng(seed)
    found = [_mmd2(*(groups[rng.permutation(len(groups))[:subset_size]] for groups in sets)) for _ in range(subsets)]
    return KernelDistance(float(np.mean(found)), float(np.std(found, ddof=1)), subsets, subset_size)


def squared_mmd(a: np.ndarray, b: np.ndarray, group: int = 1) -> float:
    """Return the unbiased squared MMD of features (N, D) and (M, D) with the kernel (x.y / D + 1)^3.

    See Gretton et al., 2012, lemma 6. It holds N^2, M^2 and N M numbers: `kernel_distance` bounds them by its subsets.

    Args:
        a: features, (N, D).
        b: features, (M, D).
        group: how many rows in a row belong to one clip, as those of its frames do. Only rows of two clips are
            independent: within a set, no others are compared.

    Raises:
        DataError: if a set has fewer than two groups or a row that is not finite, or if the widths differ.
    """
    return _mmd2(*_grouped(a, b, group))


def mean_of_parts(a: np.ndarray, b: np.ndarray, most: int, group: int = 1) -> float:
    """Return the mean of `squared_mmd` over parts of both sets, of ``most`` groups each at most, that leave out none.

    Raises:
        DataError: as `squared_mmd`.
        ConfigError: if ``most`` is below 4, so that a part might be a single group.
    """
    if most < 4:
        raise ConfigError(f"a part must hold 4 groups or more, got {most}")
    parts = [np.array_split(groups, math.ceil(len(groups) / most)) for groups in _grouped(a, b, group)]
    count = max(map(len, parts))
    return float(np.mean([_mmd2(*(part[k % len(part)] for part in parts)) for k in range(count)]))


def _grouped(a: np.ndarray, b: np.ndarray, group: int) -> list[np.ndarray]:
    """Return both sets of rows as groups (N / group, group, D)."""
    found = []
    for name, rows in zip(("first", "second"), checked_pair(a, b), strict=True):
        if group < 1 or len(rows) % group or len(rows) < 2 * group:
            raise DataError(f"the {name} features must be two groups of {group} rows or more, got {len(rows)} rows")
        found.append(rows.reshape(-1, group, rows.shape[1]))
    return found


def _mmd2(a: np.ndarray, b: np.ndarray) -> float:
    """Return the squared MMD of groups (N, group, D) and (M, group, D)."""
    return _between_groups(a) + _between_groups(b) - 2 * float(_kernel(a, b).mean())


def _between_groups(groups: np.ndarray) -> float:
    """Return the mean kernel of rows of two different groups."""
    values, (n, group, _) = _kernel(groups, groups), groups.shape
    within = np.einsum("kikj->", values.reshape(n, group, n, group))
    return float((values.sum() - within) / (n * (n - 1) * group**2))


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the kernel of all rows of groups (N, group, D) with all those of (M, group, D)."""
    width = a.shape[2]
    base = a.reshape(-1, width) @ b.reshape(-1, width).T / width + 1
    return base * base * base  # numpy's power takes longer than the product of matrices
