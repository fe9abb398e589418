"""Intervals for what is measured once: means over clips, and statistics of two sets of features."""

import math
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from vidiff.errors import DataError
from vidiff.metrics.comparison import share_interval, tails, z_score

Statistic = TypeVar("Statistic", float, np.ndarray)  # one number or several


def mean_interval(
    values: np.ndarray,
    groups: np.ndarray,
    seed: int = 0,
    *,
    share: bool = False,
    level: float = 0.95,
    resamples: int = 2000,
) -> tuple[float, float]:
    """Return a percentile interval of the mean; clips of one group, such as one prompt, are drawn together.

    Where all values are equal, resampling sees nothing of their scatter. Of shares, Wilson's interval then says how
    many groups have agreed; of other values there is no telling.

    Args:
        values: one a clip, (N,).
        groups: a label for each clip's group, (N,).
        seed: of the resampling.
        share: whether values are shares, in [0, 1].
        level: of intervals, how many cover.
        resamples: how many.

    Raises:
        DataError: if there are fewer than two groups, or a value is not finite.
    """
    values = np.asarray(values, np.float64)
    _, index = np.unique(np.asarray(groups), return_inverse=True)
    count = int(index.max()) + 1 if len(index) else 0
    if count < 2 or not np.isfinite(values).all():
        raise DataError(f"an interval takes finite values of two prompts or more, got {count} prompts")
    if share and values.min() == values.max():
        return share_interval(float(values[0]), count, level)
    sums, sizes = np.bincount(index, values), np.bincount(index)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(count, np.full(count, 1 / count), resamples)
    means = (drawn @ sums) / (drawn @ sizes)
    # Resampled means scatter by 1 / n where samples of n do by 1 / (n - 1).
    center, stretch = sums.sum() / sizes.sum(), math.sqrt(count / (count - 1))
    ends = center + (np.quantile(means, tails(level)) - center) * stretch
    low, high = ends.clip(values.min(), values.max())  # no stretch leads to a share above 1
    return float(low), float(high)


def standard_error_of_mean(values: np.ndarray, groups: np.ndarray) -> float:
    """Return the standard error of the mean of ``values`` (N,), whose ``groups`` (N,) are what was drawn.

    It is infinite of a single group (Cochran, 1977, equation 9A.7, of a ratio of two sums).
    """
    _, index = np.unique(np.asarray(groups), return_inverse=True)
    residuals = np.bincount(index, values - np.mean(values))
    count = len(residuals)
    return math.inf if count < 2 else math.sqrt(count / (count - 1) * np.square(residuals).sum()) / len(values)


def halving_interval(
    statistic: Callable[[np.ndarray, np.ndarray], Statistic],
    a: np.ndarray,
    b: np.ndarray,
    seed: int,
    *,
    group: int = 1,
    level: float = 0.95,
    halvings: int = 50,
) -> tuple[Statistic, Statistic]:
    """Return an interval for a statistic of two sets that is smooth in their samples, without bias.

    Both sets are cut in two at random; half of the difference of the two halves' statistics scatters as the error of
    the whole does, to first order.

    Args:
        statistic: of rows (N, D) and (M, D).
        a: features, (N, D).
        b: features, (M, D).
        seed: of the halvings.
        group: how many rows in a row belong to one clip; they stay together.
        level: the share of intervals that cover.
        halvings: how many.

    Raises:
        DataError: if a set has fewer than four groups.
    """
    sets = [rows.reshape(-1, group, rows.shape[1]) for rows in (a, b)]
    if min(map(len, sets)) < 4:
        raise DataError(f"an interval takes four clips or more in each set, got {min(map(len, sets))}")
    rng, differences = np.random.default_rng(seed), []
    for _ in range(halvings):
        halves = []
        for groups in sets:
            order, half = rng.permutation(len(groups)), len(groups) // 2
            halves.append(
                [groups[part].reshape(-1, groups.shape[2]) for part in (order[:half], order[half : 2 * half])]
            )
        (a_1, a_2), (b_1, b_2) = halves
        differences.append((statistic(a_1, b_1) - statistic(a_2, b_2)) / 2)
    reach = z_score(level) * np.sqrt(np.mean(np.square(differences), 0))
    value = statistic(a, b)
    return value - reach, value + reach
