"""The Frechet distance of two sets of features, and what it takes to read one: a floor, an interval, a limit.

The distance falls with the number n of samples, about as 1 / n, so that it means little without its n and without the
distance of real samples to real samples at that n (`floor`).
"""

import math
from dataclasses import dataclass
from functools import reduce

import numpy as np

from vidiff.errors import ConfigError, DataError
from vidiff.metrics.comparison import z_score

_HALVINGS = 100
_BATCH = 4096  # rows in double precision at once
_BOTH = ("the first features", "the second features")
_MIN_POINTS, _MIN_REPEATS = 15, 5
_MIN_ROWS, _MIN_POOL = 2.5, 5  # times D: the smallest subset, and all rows; below, the distance is not linear in 1 / n


def checked(features: np.ndarray, name: str = "features", least: int = 2) -> np.ndarray:
    """Return features (N, D) as float64, so that no sum is ever taken in half precision.

    Raises:
        DataError: if they are no matrix, have fewer than ``least`` rows, or a row that is not finite.
    """
    return _finite(features, name, least).astype(np.float64, copy=False)


def _finite(features: np.ndarray, name: str, least: int) -> np.ndarray:
    """Return features as they are, see `checked`: what is cast a part at a time takes no second copy of them all."""
    rows = np.asarray(features)
    if rows.dtype.kind != "f":
        rows = rows.astype(np.float64)
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise DataError(f"{name} must be (N, D), one row a sample; got {rows.shape}")
    if len(rows) < least:
        raise DataError(f"{name} must have {least} rows or more, got {len(rows)}: add samples")
    finite = np.isfinite(rows).all(1)
    if not finite.all():
        where, count = int(np.argmin(finite)), int((~finite).sum())
        raise DataError(f"{name}, row {where}: NaN or infinity ({count} such rows in all): look at these samples")
    return rows


def checked_pair(
    a: np.ndarray, b: np.ndarray, names: tuple[str, str] = _BOTH, least: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """Return two sets of features that share their width, see `checked`."""
    rows_a, rows_b = _finite_pair(a, b, names, least)
    return rows_a.astype(np.float64, copy=False), rows_b.astype(np.float64, copy=False)


def _finite_pair(
    a: np.ndarray, b: np.ndarray, names: tuple[str, str] = _BOTH, least: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    rows_a, rows_b = _finite(a, names[0], least), _finite(b, names[1], least)
    _same_width(rows_a.shape[1], rows_b.shape[1])
    return rows_a, rows_b


@dataclass(frozen=True)
class Moments:
    """Mean and scatter of a set of features, which can be gathered in parts (Chan et al., 1983)."""

    n: int
    mean: np.ndarray  # (D,)
    m2: np.ndarray  # (D, D), sum of (x - mean)(x - mean)^T

    @staticmethod
    def of(features: np.ndarray) -> "Moments":
        """Return the moments of features (N, D), of which one row is enough."""
        rows = _finite(features, "features", 1)
        return reduce(Moments.merge, (_moments(rows[start : start + _BATCH]) for start in range(0, len(rows), _BATCH)))

    def merge(self, other: "Moments") -> "Moments":
        """Return the moments of both sets together, by the formula of pairs."""
        _same_width(len(self.mean), len(other.mean))
        n = self.n + other.n
        step = other.mean - self.mean
        between = (self.n * other.n / n) * np.outer(step, step)
        return Moments(n, self.mean + other.n / n * step, self.m2 + other.m2 + between)

    def covariance(self, ddof: int = 1) -> np.ndarray:
        """Return the covariance (D, D), a sum over ``n - ddof``."""
        return self.m2 / _divisor(self.n, ddof)


def _moments(features: np.ndarray) -> Moments:
    rows = features.astype(np.float64)
    mean = _mean(rows)
    return Moments(len(rows), mean, (rows - mean).T @ (rows - mean))


def frechet_distance(a: np.ndarray, b: np.ndarray, ddof: int = 1) -> float:
    """Return the squared Frechet distance of the Gaussians of two sets (Dowson & Landau, 1982; Heusel et al., 2017).

    Args:
        a: features, (N, D).
        b: features, (M, D).
        ddof: 1 divides covariances by N - 1 (FID and most of the field), 0 by N (StyleGAN-V).

    Raises:
        DataError: if a set has fewer than two rows or a row that is not finite, or if the widths differ.
        ConfigError: if ``ddof`` is neither 0 nor 1.
    """
    rows_a, rows_b = _finite_pair(a, b)
    return frechet_of_moments(Moments.of(rows_a), Moments.of(rows_b), ddof)


def frechet_of_moments(a: Moments, b: Moments, ddof: int = 1) -> float:
    """Return the distance of two sets of which only the moments are known, see `frechet_distance`."""
    _same_width(len(a.mean), len(b.mean))
    return _from_factors(a.mean - b.mean, _root(a, ddof), _root(b, ddof))


@dataclass(frozen=True)
class Floor:
    """The distance of real samples to other real samples."""

    mean: float
    std: float  # over splits
    n: int  # samples a side; fewer than were asked for where the set is too small


def floor(real: np.ndarray, n: int, seed: int, splits: int = 20, ddof: int = 1, group: int = 1) -> Floor:
    """Return the distance between disjoint random parts of real features (N, D), of ``min(n, N // 2)`` rows each.

    Args:
        real: features, (N, D).
        n: rows a side.
        seed: of the parts.
        splits: how many.
        ddof: see `frechet_distance`.
        group: how many rows in a row belong to one clip, as those of its frames do; they are never parted.

    Raises:
        DataError: as in `frechet_distance`, and if there are fewer than four rows, or groups.
        ConfigError: if ``n`` or ``splits`` is below 2.
    """
    rows = _grouped(_finite(real, "the real features", 4), group, "the real features")
    if n < 2 * group or splits < 2:
        raise ConfigError(f"a floor takes 2 samples and 2 splits or more, got n = {n // group}, splits = {splits}")
    count, rng = min(n // group, len(rows) // 2), np.random.default_rng(seed)
    found = [_distance(*_halves(rows, count, rng), ddof) for _ in range(splits)]
    return Floor(float(np.mean(found)), float(np.std(found, ddof=1)), count * group)


@dataclass(frozen=True)
class Interval:
    """A distance and the limits around it."""

    distance: float
    low: float
    high: float
    level: float


def interval(
    a: np.ndarray,
    b: np.ndarray,
    seed: int,
    level: float = 0.95,
    halvings: int = _HALVINGS,
    ddof: int = 1,
    group: int = 1,
) -> Interval:
    """Return the distance of two sets with an interval for its expectation at these sample sizes.

    It tells what other samples of the same sizes would have given; the bias at finite n is in both, as in the `floor`.
    A bootstrap is off here: repeated rows raise each resampled distance by about the bias of the sets themselves.

    Args:
        a: features, (N, D).
        b: features, (M, D).
        seed: of the halvings.
        level: the share of intervals that cover.
        halvings: how often both sets are cut in two at random.
        ddof: see `frechet_distance`.
        group: see `floor`.

    Raises:
        DataError: as in `frechet_distance`, and if a set has fewer than four rows, or groups.
        ConfigError: if an option is out of its range.
    """
    rows = _finite_pair(a, b, least=4)
    groups = (_grouped(rows[0], group, "the first features"), _grouped(rows[1], group, "the second features"))
    reach = z_score(level)
    if halvings < 2:
        raise ConfigError(f"halvings must be 2 or more, got {halvings}")
    distance = frechet_distance(*rows, ddof)
    spread = reach * math.sqrt(_variance(*groups, ddof, halvings, np.random.default_rng(seed)))
    return Interval(distance, max(0.0, distance - spread), distance + spread, level)


@dataclass(frozen=True)
class Extrapolation:
    """A distance at infinite n."""

    distance: float
    standard_error: float  # from the finite sets and from the drawing of subsets
    slope: float  # the distance at n samples is nearly distance + slope / n
    smallest: int
    largest: int


def extrapolated(
    a: np.ndarray,
    b: np.ndarray,
    seed: int,
    points: int = _MIN_POINTS,
    repeats: int = _MIN_REPEATS,
    smallest: int | None = None,
    ddof: int = 1,
) -> Extrapolation:
    """Return the distance at infinite n by a line in 1 / n (Chong & Forsyth, 2020).

    Args:
        a: features, (N, D).
        b: features, (M, D). Subsets of n rows are drawn from both, for the bias of both falls as 1 / n.
        seed: of the subsets.
        points: how many n, evenly from ``smallest`` to min(N, M).
        repeats: subsets of each n.
        smallest: the least n; unless given 2.5 D or a quarter of the largest, whichever is more.
        ddof: see `frechet_distance`.

    Raises:
        DataError: as in `frechet_distance`.
        ConfigError: where the line would be a guess: min(N, M) below 5 D, ``smallest`` below 2.5 D, fewer than 15
            different points or 5 repeats.
    """
    rows_a, rows_b = _finite_pair(a, b)
    sizes = _subset_sizes(min(len(rows_a), len(rows_b)), rows_a.shape[1], points, repeats, smallest)
    rng = np.random.default_rng(seed)
    found = np.array([_distance(rng.permutation(rows_a)[:n], rng.permutation(rows_b)[:n], ddof) for n in sizes])
    design = np.stack([np.ones(len(sizes)), 1 / sizes], 1)
    weights = np.linalg.pinv(design)
    line = weights @ found
    # Small subsets scatter more than large ones: the robust variance (White, 1980) does not assume one scatter for all.
    drawn = len(sizes) / (len(sizes) - 2) * weights[0] ** 2 @ (found - design @ line) ** 2
    finite = _variance(rows_a[:, None], rows_b[:, None], ddof, _HALVINGS, rng)
    return Extrapolation(float(line[0]), math.sqrt(drawn + finite), float(line[1]), int(sizes[0]), int(sizes[-1]))


def _subset_sizes(largest: int, width: int, points: int, repeats: int, smallest: int | None) -> np.ndarray:
    """Return the sizes of all subsets to draw, see `extrapolated`."""
    if points < _MIN_POINTS or repeats < _MIN_REPEATS:
        raise ConfigError(
            f"a line takes {_MIN_POINTS} points and {_MIN_REPEATS} repeats or more, got {points} and {repeats}"
        )
    if largest < _MIN_POOL * width:
        raise ConfigError(
            f"{largest} samples are too few for a limit at {width} features: take {_MIN_POOL * width} of each set, or "
            "report the distance with its floor"
        )
    least, most = math.ceil(_MIN_ROWS * width), largest - points + 1
    if smallest is None:
        smallest = max(least, largest // 4)  # the smallest subsets weigh most on a line and lie farthest from it
    if not least <= smallest <= most:
        raise ConfigError(
            f"{points} points from {smallest} to {largest} samples: the first must lie between {least} "
            f"({_MIN_ROWS} D) and {most}; set smallest, or take more samples"
        )
    return np.repeat(np.linspace(smallest, largest, points).round().astype(int), repeats)


def _variance(a: np.ndarray, b: np.ndarray, ddof: int, halvings: int, rng: np.random.Generator) -> float:
    """Return the variance of the distance of groups of rows ``a`` and ``b`` over samples of the same sizes.

    Both sets are cut into halves, whose means and covariances are those of the whole plus d and minus d, where d varies
    as the error of the whole does. To second order their two distances are then `whole + linear(d) + square(d)` and
    `whole - linear(d) + square(d)`. The linear part is measured at the whole and not at the truth, which adds the
    variance of the square once too often. What is left also holds where the true distance is 0 and only the square
    remains; there, `square` alone is a bound from below that does not depend on luck.
    """
    found = np.empty((halvings, 2))
    for k in range(halvings):
        first, second = _halves(a, len(a) // 2, rng), _halves(b, len(b) // 2, rng)
        found[k] = [_distance(first[i], second[i], ddof) for i in range(2)]
    linear = np.square((found[:, 0] - found[:, 1]) / 2).mean()
    square = found.mean(1).var(ddof=1)
    return float(max(linear - square, square))


def _grouped(rows: np.ndarray, group: int, name: str) -> np.ndarray:
    """Return rows (N, D) as (N / group, group, D)."""
    if group < 1 or len(rows) % group or len(rows) < 4 * group:
        raise DataError(f"{name} must be four groups of {group} rows or more, got {len(rows)} rows: add clips")
    return rows.reshape(-1, group, rows.shape[1])


def _halves(groups: np.ndarray, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return two disjoint draws of ``n`` groups (G, group, D) as rows."""
    order, width = rng.permutation(len(groups)), groups.shape[2]
    return groups[order[:n]].reshape(-1, width), groups[order[n : 2 * n]].reshape(-1, width)


def _distance(a: np.ndarray, b: np.ndarray, ddof: int) -> float:
    """Return the distance from rows that fit in memory, in less time than from moments where they are fewer than D."""
    a, b = (x.astype(np.float64, copy=False) for x in (a, b))
    mean_a, mean_b = _mean(a), _mean(b)
    factors = [(x - mean) / math.sqrt(_divisor(len(x), ddof)) for x, mean in ((a, mean_a), (b, mean_b))]
    if len(a) + len(b) >= 2 * a.shape[1]:  # a triangle has the same covariance and fewer rows
        factors = [np.linalg.qr(factor, "r") for factor in factors]
    return _from_factors(mean_a - mean_b, *factors)


def _from_factors(shift: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """Return the distance of Gaussians ``shift`` (D,) apart with covariances ``a.T @ a`` and ``b.T @ b``.

    tr (S_a S_b)^(1/2) is the nuclear norm of ``a @ b.T``. Nothing is rooted, so that singular covariances lose no
    digits and equal sets are 0 apart.
    """
    nuclear = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(shift @ shift + np.square(a).sum() + np.square(b).sum() - 2 * nuclear)


def _root(moments: Moments, ddof: int) -> np.ndarray:
    """Return a factor whose ``factor.T @ factor`` is the covariance."""
    if moments.n < 2:
        raise DataError(f"a distance takes the moments of 2 samples or more, got {moments.n}")
    values, vectors = np.linalg.eigh(moments.covariance(ddof))
    # What eigh finds beyond the rank is rounding, which a root would blow up.
    rounding = len(values) * np.finfo(float).eps * values[-1]
    return np.sqrt(np.where(values > rounding, values, 0))[:, None] * vectors.T


def _mean(rows: np.ndarray) -> np.ndarray:
    # Differences to a sample are of the size of the spread, so that a large common offset costs no digits.
    return rows[0] + (rows - rows[0]).mean(0)


def _divisor(n: int, ddof: int) -> int:
    if ddof not in (0, 1):
        raise ConfigError(f"ddof must be 0 (StyleGAN-V) or 1 (FID), got {ddof}")
    if n <= ddof:
        raise DataError(f"a covariance takes {ddof + 1} samples or more, got {n}")
    return n - ddof


def _same_width(a: int, b: int) -> None:
    if a != b:
        raise DataError(f"features of {a} and of {b} numbers cannot be compared: take both from one extractor")
