"""Two models on the same prompts and seeds, and several models in pairwise votes."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from vidiff.errors import ConfigError, DataError

_BLOCK = 2**20  # random numbers at a time
_ELO, _MEAN = 400 / math.log(10), 1000
_TOLERANCE, _MAX_NEWTON = 1e-8, 100


def tails(level: float) -> tuple[float, float]:
    """Return the two quantiles that enclose a central share, such as 0.025 and 0.975 for 0.95.

    Raises:
        ConfigError: if the level is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ConfigError(f"level must lie between 0 and 1, such as 0.95; got {level}")
    return (1 - level) / 2, (1 + level) / 2


def z_score(level: float) -> float:
    """Return how many standard deviations a two-sided normal interval reaches, see `tails`."""
    return NormalDist().inv_cdf(tails(level)[1])


@dataclass(frozen=True)
class Comparison:
    """The mean difference of two models."""

    difference: float  # first minus second
    low: float
    high: float
    p_value: float  # two-sided
    prompts: int
    clips: int


def compare(
    a: np.ndarray,
    b: np.ndarray,
    seed: int,
    prompts: np.ndarray | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
) -> Comparison:
    """Compare two models by the scores of paired clips, which share their prompt and seed.

    Clips of one prompt are alike, so that prompts are what is resampled: each counts once, by its mean difference. The
    p-value is that of flipping signs, which takes nothing but symmetry under the null. All flips are tried where they
    are at most ``resamples``; else as many are drawn and the observed one is counted in (Phipson & Smyth, 2010). Below
    ten prompts or so the interval covers less than its level: trust the p-value.

    Args:
        a: scores of the first model, (N,).
        b: scores of the second, (N,), in the same order.
        seed: of the resampling.
        prompts: a label for each clip's prompt, (N,). Every clip has its own unless given.
        level: of the percentile interval.
        resamples: how many, for the interval and for the p-value.

    Raises:
        DataError: if the scores are not paired or not finite, or if there are fewer than two prompts.
        ConfigError: if ``level`` or ``resamples`` is out of its range.
    """
    quantiles = _checked(level, resamples)
    means, clips = _mean_differences(a, b, prompts)
    rng, n, difference = np.random.default_rng(seed), len(means), float(means.mean())
    drawn = np.concatenate([means[rng.integers(n, size=size)].mean(1) for size in blocks(resamples, n)])
    # Resampled means scatter by 1 / n where samples of n do by 1 / (n - 1).
    ends = np.quantile(drawn - difference, quantiles) * math.sqrt(n / (n - 1))
    low, high = (difference + float(end) for end in ends)
    return Comparison(difference, low, high, _flipped(means, resamples, rng), n, clips)


def _mean_differences(a: np.ndarray, b: np.ndarray, prompts: np.ndarray | None) -> tuple[np.ndarray, int]:
    """Return the mean difference of each prompt and the number of clips."""
    scores = [np.asarray(x, np.float64) for x in (a, b)]
    groups = np.arange(scores[0].size) if prompts is None else np.asarray(prompts)
    shapes = [x.shape for x in (*scores, groups)]
    if scores[0].ndim != 1 or len(set(shapes)) > 1:
        raise DataError(f"scores and prompts must be one number a clip each, got shapes {shapes}")
    finite = np.isfinite(scores[0]) & np.isfinite(scores[1])
    if not finite.all():
        raise DataError(f"scores of clip {int(np.argmin(finite))}: NaN or infinity; a missing clip must not be skipped")
    _, index, counts = np.unique(groups, return_inverse=True, return_counts=True)
    if len(counts) < 2:
        raise DataError(f"a comparison takes two prompts or more, got {len(counts)}")
    return np.bincount(index, scores[0] - scores[1]) / counts, len(groups)


def _flipped(means: np.ndarray, resamples: int, rng: np.random.Generator) -> float:
    """Return the share of sign flips whose sum is as far from 0 as that of the signs observed."""
    n = len(means)
    least = abs(means.sum()) - 1e-12 * np.abs(means).sum()  # equal sums differ by rounding
    if 2**n <= resamples:
        bits = np.arange(2**n)[:, None] >> np.arange(n) & 1
        return float((np.abs((2 * bits - 1) @ means) >= least).mean())
    draws = (2 * rng.integers(2, size=size, dtype=np.int8) - 1 for size in blocks(resamples, n))
    reached = sum(int((np.abs(signs @ means) >= least).sum()) for signs in draws)
    return (1 + reached) / (1 + resamples)


def _checked(level: float, resamples: int) -> tuple[float, float]:
    if resamples < 100:
        raise ConfigError(f"resamples must be 100 or more, got {resamples}")
    return tails(level)


def blocks(resamples: int, n: int) -> Iterator[tuple[int, int]]:
    """Yield the shapes of the blocks of bounded size that make up (resamples, n)."""
    rows = max(1, _BLOCK // n)
    for start in range(0, resamples, rows):
        yield min(rows, resamples - start), n


@dataclass(frozen=True)
class WinRate:
    """The share of votes that a model won."""

    rate: float
    low: float
    high: float
    votes: int


def win_rate(wins: int, losses: int, ties: int = 0, level: float = 0.95) -> WinRate:
    """Return the share of votes won, a tie being half a win, with its interval, see `share_interval`.

    Ties scatter less than the interval allows for: with many of them it is wider than its level asks.

    Raises:
        DataError: if there are no votes or a count is negative.
        ConfigError: if the level is not between 0 and 1.
    """
    votes = wins + losses + ties
    if min(wins, losses, ties) < 0 or votes == 0:
        raise DataError(f"a win rate takes one vote or more, got {wins} wins, {losses} losses, {ties} ties")
    rate = (wins + ties / 2) / votes
    return WinRate(rate, *share_interval(rate, votes, level), votes)


def share_interval(share: float, count: int, level: float = 0.95) -> tuple[float, float]:
    """Return the interval of a share of ``count`` (Wilson, 1927), which has a width even at a share of 0 or 1.

    Raises:
        ConfigError: if the level is not between 0 and 1.
    """
    z = z_score(level)
    center = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    reach = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    # The ends of 0 and 1 are exact, their rounding is not.
    return max(0.0, center - reach), min(1.0, center + reach)


@dataclass(frozen=True)
class Vote:
    """One comparison of two models by a viewer."""

    first: str
    second: str
    score: float  # of the first: 1 won, 0.5 tied, 0 lost

    def __post_init__(self) -> None:
        if self.first == self.second:
            raise DataError(f"a vote compares two models, got {self.first} twice")
        if self.score not in (0, 0.5, 1):
            raise DataError(f"{self.first} against {self.second}: a vote is 1, 0.5 or 0, got {self.score}")


@dataclass(frozen=True)
class Rating:
    """The strength of one model on the Elo scale: 400 more is ten wins to one loss."""

    rating: float
    low: float
    high: float
    votes: int


def ratings(votes: Sequence[Vote], seed: int, level: float = 0.95, resamples: int = 1000) -> dict[str, Rating]:
    """Return the models' ratings, best first, by maximum likelihood (Bradley & Terry, 1952); their mean is 1000.

    Each pair of models that was compared is given half a win and half a loss, Jeffreys' prior of a share: no rating is
    infinite, even where a model won all its votes. Intervals are those of a Bayesian bootstrap of each pair's votes
    (Rubin, 1981) with the same prior, so that they have a width where all votes agree.

    Args:
        votes: in any order; a tie is half a win for both.
        seed: of the resampling.
        level: of the intervals.
        resamples: how many.

    Raises:
        DataError: if there are no votes, or if the models fall into groups that were never compared.
        ConfigError: if ``level`` or ``resamples`` is out of its range.
    """
    quantiles = _checked(level, resamples)
    if not votes:
        raise DataError("ratings take one vote or more, got none")
    names = sorted({name for vote in votes for name in (vote.first, vote.second)})
    place = {name: index for index, name in enumerate(names)}
    wins, ties = np.zeros((2, len(names), len(names)))
    for vote in votes:
        i, j = place[vote.first], place[vote.second]
        wins[i, j] += vote.score == 1
        wins[j, i] += vote.score == 0
        ties[[i, j], [j, i]] += vote.score == 0.5
    cast = wins + wins.T + ties
    _refuse_islands(cast, names)
    prior = (cast > 0) / 2
    drawn = _redrawn(wins + prior, ties, resamples, np.random.default_rng(seed))
    found = _fitted(np.concatenate([[wins + prior + ties / 2], drawn]))
    low, high = np.quantile(found[1:], quantiles, axis=0)
    order = np.argsort(-found[0], kind="stable")
    return {names[i]: Rating(float(found[0, i]), float(low[i]), float(high[i]), int(cast[i].sum())) for i in order}


def _redrawn(wins: np.ndarray, ties: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Return scores (resamples, M, M) with votes weighted at random, and as many of them for each pair as before."""
    shape = (resamples, *wins.shape)
    won, tied = rng.standard_gamma(wins, shape), np.triu(rng.standard_gamma(ties, shape))
    tied = tied + tied.swapaxes(1, 2)  # a tie is one vote of both
    weight = won + won.swapaxes(1, 2) + tied
    return (won + tied / 2) * (wins + wins.T + ties) / np.where(weight > 0, weight, 1)


def _fitted(scores: np.ndarray) -> np.ndarray:
    """Return the Elo ratings (R, M) that are likeliest for scores (R, M, M), of which [i, j] is what i won against j.

    Newton's method on the concave log-likelihood. A step that changes no difference of two strengths by more than 1
    always climbs, for the curvature there changes by less than a factor of e.
    """
    cast = scores + scores.swapaxes(1, 2)
    theta = np.zeros(scores.shape[:2])
    diagonal = np.eye(scores.shape[2])
    for _ in range(_MAX_NEWTON):
        chance = 1 / (1 + np.exp(theta[:, None, :] - theta[:, :, None]))
        slope = (scores - cast * chance).sum(2)
        curvature = cast * chance * (1 - chance)
        # Only differences matter; the constant 1 fixes the mean, which the likelihood leaves free.
        hessian = curvature.sum(2)[:, :, None] * diagonal - curvature + 1
        step = np.linalg.solve(hessian, slope[..., None])[..., 0]
        theta += step / np.maximum(1, np.ptp(step, axis=1))[:, None]
        if np.abs(step).max() < _TOLERANCE:
            break
    return _MEAN + _ELO * (theta - theta.mean(1, keepdims=True))


def _refuse_islands(cast: np.ndarray, names: list[str]) -> None:
    """Raise a DataError if some models were never compared with the others, not even through third ones."""
    reached = np.linalg.matrix_power((cast > 0) | np.eye(len(names), dtype=bool), len(names))[0]
    if not reached.all():
        here, there = (
            [name for name, met in zip(names, reached, strict=True) if met == side] for side in (True, False)
        )
        raise DataError(f"no vote compares {', '.join(here)} with {', '.join(there)}: rate them apart, or add votes")
