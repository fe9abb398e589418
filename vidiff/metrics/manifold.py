"""Neighbors in the space of features: fidelity and coverage, copies of training clips, diversity.

Distances are taken from differences and not through scalar products, whose rounding would hide exact copies. They are
made a block at a time, so that memory does not grow with the product of two sets.
"""

import math
from collections.abc import Iterator
from dataclasses import astuple, dataclass

import numpy as np
import torch

from vidiff.errors import ConfigError, DataError
from vidiff.metrics.frechet import checked, checked_pair

_BLOCK = 2**22  # distances at a time, 32 MB


@dataclass(frozen=True)
class ManifoldScores:
    """How well two sets of features cover each other."""

    precision: float  # share of fake samples among the real ones
    recall: float  # share of real samples among the fake ones
    density: float  # how densely real samples lie around fake ones; 1 for sets of one kind, and may exceed it
    coverage: float  # share of real samples with a fake one nearby


def manifold_scores(real: np.ndarray, fake: np.ndarray, neighbors: int = 5) -> ManifoldScores:
    """Return precision and recall (Kynkaanniemi et al., 2019, eq. 1-2), density and coverage (Naeem et al., 2020).

    A sample is nearby if it lies in the ball around another that just reaches that one's k-th neighbor of its own set.
    The ball is closed for precision and recall and open for density and coverage, as their authors have it.

    Args:
        real: features, (N, D).
        fake: features, (M, D).
        neighbors: k; the papers take 3 and 5.

    Raises:
        DataError: if a row is not finite, the widths differ, or a set has not more than k rows.
        ConfigError: if ``neighbors`` is below 1.
    """
    if neighbors < 1:
        raise ConfigError(f"neighbors must be 1 or more, got {neighbors}")
    rows, others = checked_pair(real, fake, ("the real features", "the fake features"), neighbors + 1)
    radii, other_radii = _radii(rows, neighbors), _radii(others, neighbors)
    inside, within = 0, 0
    recalled, covered = (np.zeros(len(rows), bool) for _ in range(2))
    for start, distances in _blocks(others, rows):
        near = distances < radii
        inside += int((distances <= radii).any(1).sum())
        within += int(near.sum())
        covered |= near.any(0)
        recalled |= (distances <= other_radii[start : start + len(distances), None]).any(0)
    return ManifoldScores(
        precision=inside / len(others),
        recall=float(recalled.mean()),
        density=within / (neighbors * len(others)),
        coverage=float(covered.mean()),
    )


def mean_scores(real: np.ndarray, fake: np.ndarray, size: int, seed: int, subsets: int, neighbors: int) -> np.ndarray:
    """Return the means of `ManifoldScores` over random subsets, (4,): more samples alone would change the scores.

    Args:
        real: features, (N, D).
        fake: features, (M, D).
        size: rows drawn from each set without replacement.
        seed: of the subsets.
        subsets: how many.
        neighbors: see `manifold_scores`, as for what is raised.
    """
    rng = np.random.default_rng(seed)
    draws = 1 if size == len(real) == len(fake) else subsets  # whole sets are always the same
    found = [
        astuple(manifold_scores(rng.permutation(real)[:size], rng.permutation(fake)[:size], neighbors))
        for _ in range(draws)
    ]
    return np.asarray(np.mean(found, 0))


def split_scores(real: np.ndarray, size: int, seed: int, splits: int, neighbors: int) -> np.ndarray:
    """Return the `ManifoldScores` of disjoint random parts of ``size`` rows of real features (N, D), (splits, 4)."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(splits):
        rows = rng.permutation(real)
        found.append(astuple(manifold_scores(rows[:size], rows[size : 2 * size], neighbors)))
    return np.array(found)


@dataclass(frozen=True)
class Nearest:
    """The nearest reference row of each sample."""

    index: np.ndarray  # (N,), int64
    distance: np.ndarray  # (N,), Euclidean


def nearest(samples: np.ndarray, reference: np.ndarray) -> Nearest:
    """Return the nearest row of the reference features (M, D) to each of the samples (N, D).

    Raises:
        DataError: if a set is empty, a row is not finite, or the widths differ.
    """
    rows, others = checked_pair(samples, reference, ("the samples", "the reference features"), 1)
    found = [(distances.argmin(1), distances.min(1)) for _, distances in _blocks(rows, others)]
    index, distance = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return Nearest(index, distance)


@dataclass(frozen=True)
class Memorization:
    """Which samples are nearer to the training set than real clips that were never trained on."""

    nearest: Nearest  # the training row of each sample
    threshold: float
    flagged: np.ndarray  # (N,), bool


def memorized(samples: np.ndarray, train: np.ndarray, heldout: np.ndarray, quantile: float = 0.01) -> Memorization:
    """Return the samples that are nearer to the training set than a low quantile of held-out real samples.

    Of samples that are as new as the held-out ones, a share of at most ``quantile`` is flagged on average.

    Args:
        samples: generated features, (N, D).
        train: features of the training set, (M, D).
        heldout: features of real clips that were not trained on, (H, D).
        quantile: the share of false alarms.

    Raises:
        DataError: if a set is empty, a row is not finite, the widths differ, or held-out clips are in the training set.
        ConfigError: if the held-out samples are too few for this quantile.
    """
    if not 0 < quantile < 1:
        raise ConfigError(f"quantile must lie between 0 and 1, got {quantile}")
    real = np.sort(nearest(heldout, train).distance)
    # A new distance is below the k-th of H by a chance of k / (H + 1).
    rank = math.floor(quantile * (len(real) + 1) + 1e-9)  # 1 / 49 of 49 is less than 1 in floating point
    if rank < 1:
        raise ConfigError(
            f"{len(real)} held-out samples do not show a quantile of {quantile}: "
            f"take {math.ceil(1 / quantile) - 1} of them, or a larger quantile"
        )
    threshold = float(real[rank - 1])
    if threshold == 0:
        raise DataError(f"{int((real == 0).sum())} held-out samples are in the training set too: remove them")
    found = nearest(samples, train)
    return Memorization(found, threshold, found.distance < threshold)


@dataclass(frozen=True)
class Diversity:
    """Mean distance of two samples."""

    within: float  # of one prompt, each prompt counting alike
    overall: float  # of any two

    @property
    def ratio(self) -> float:
        """Return ``within / overall``: near 0 where a prompt has one outcome; NaN where all samples are equal."""
        return self.within / self.overall if self.overall else math.nan


def diversity(features: np.ndarray, prompts: np.ndarray) -> Diversity:
    """Return how far apart samples (N, D) of the same prompt are, and any two.

    Args:
        features: (N, D).
        prompts: a label for each sample's prompt, such as its number, (N,).

    Raises:
        DataError: if a row is not finite, the prompts do not fit the samples, or no prompt has two samples.
    """
    rows, groups = checked(features), np.asarray(prompts)
    if groups.shape != rows.shape[:1]:
        raise DataError(f"prompts must be {len(rows)} labels, one a sample; got {groups.shape}")
    names, counts = np.unique(groups, return_counts=True)
    if counts.max() < 2:
        raise DataError("no prompt has two samples: generate several seeds of each")
    within = [_mean_distance(rows[groups == name]) for name in names[counts > 1]]
    return Diversity(float(np.mean(within)), _mean_distance(rows))


def _mean_distance(rows: np.ndarray) -> float:
    total = sum(float(distances.sum()) for _, distances in _blocks(rows, rows))
    return total / (len(rows) * (len(rows) - 1))


def _radii(rows: np.ndarray, neighbors: int) -> np.ndarray:
    """Return the distance of each row to its k-th neighbor; the nearest of all is the row itself."""
    found = [np.partition(distances, neighbors, axis=1)[:, neighbors] for _, distances in _blocks(rows, rows)]
    return np.concatenate(found)


def _blocks(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the distances of rows of ``a`` to all rows of ``b`` with the number of their first row."""
    left, right = (torch.tensor(np.ascontiguousarray(rows)) for rows in (a, b))
    size = max(1, _BLOCK // len(b))
    for start in range(0, len(a), size):
        block = left[start : start + size]
        yield start, torch.cdist(block, right, compute_mode="donot_use_mm_for_euclid_dist").numpy()
