"""Two evaluated models against each other, metric by metric: which is better, by how much, and whether that is real."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from statistics import NormalDist
from typing import Any

import numpy as np

from vidiff.errors import DataError
from vidiff.metrics.comparison import blocks, compare, tails, z_score
from vidiff.metrics.pairing import paired
from vidiff.metrics.results import Clip, Results, Value
from vidiff.metrics.verdict import numbers, standard_error

LEVEL = 0.05  # of the whole comparison, whatever the number of metrics
_RESAMPLES = 10_000
UNKNOWN = "not compared, for want of a floor (--data) or an interval"


@dataclass(frozen=True)
class Row:
    """One metric of two models."""

    name: str  # with its protocol
    metric: str
    a: float
    b: float
    difference: float  # a minus b; for what real clips are the reference of, of their distances to it
    low: float  # 95% interval of the difference
    high: float
    p_value: float
    how: str  # "64 pairs of 64 prompts", "two intervals"
    better: str = ""  # the label of the better model, where the difference is real

    @property
    def known(self) -> bool:
        """Return whether there is a floor or an interval to compare by."""
        return math.isfinite(self.low)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data; what is not known, such as the end of an interval, is None."""
        return {
            name: None if isinstance(found, float) and not math.isfinite(found) else found
            for name, found in asdict(self).items()
        }

    def text(self) -> str:
        """Return the row as one line."""
        a, b, difference, low, high = numbers([], self.a, self.b, self.difference, self.low, self.high)
        if not self.known:
            return f"{self.metric}: {a} against {b}: {UNKNOWN}"
        verdict = f"{self.better} is better" if self.better else "no difference shows"
        p = f"p={self.p_value:.2g}" if self.p_value >= 0.001 else "p<0.001"
        return f"{self.metric}: {a} against {b}, difference {difference} ({low} to {high}), {p}, {self.how}: {verdict}"


def compared(a: Results, b: Results, seed: int = 0) -> list[Row]:
    """Return a row for each metric that both were measured by under one protocol.

    Metrics with a value for each clip are compared on pairs of clips (`vidiff.metrics.pairing`). Others are compared by
    their two intervals as if these were independent, which they are not where both have the same real clips: then the
    true interval is rather narrower. What should be near to that of real clips is compared by how far it is from there.
    A difference counts as real where its p-value, corrected for the number of metrics (Holm, 1979), is below 0.05.

    Raises:
        DataError: if they have no metric in common.
    """
    others = {_comparable(value): value for value in b.values}
    rows = [_row(a, b, value, others[_comparable(value)], seed) for value in a.values if _comparable(value) in others]
    if not rows:
        uneven = uneven_counts(a, b)
        why = f" ({', '.join(uneven)} were measured on other numbers of clips, which decide their values)"
        raise DataError(f"{a.label} and {b.label} have no metric of one protocol in common{why if uneven else ''}")
    order = sorted((row for row in rows if row.known), key=lambda row: row.p_value)
    real = takewhile(lambda ranked: ranked[1].p_value <= LEVEL / (len(order) - ranked[0]), enumerate(order))
    names = {row.name for _, row in real}
    return [row if row.name in names else replace(row, better="") for row in rows]


def uneven_counts(a: Results, b: Results) -> list[str]:
    """Return the metrics of sets, such as distances, whose numbers of clips alone keep them from being compared."""
    others, alike = {_comparable(value) for value in b.values}, {_without_count(value.name) for value in b.values}
    return [v.metric for v in a.values if _comparable(v) not in others and _without_count(v.name) in alike]


def _row(a: Results, b: Results, mine: Value, other: Value, seed: int) -> Row:
    clips = paired(_scored(a, mine), _scored(b, other))
    prompts = np.array([one.prompt or one.key for one, _ in clips])
    x = np.array([mine.per_clip[one.key] for one, _ in clips])
    y = np.array([other.per_clip[two.key] for _, two in clips])
    enough = len(set(prompts.tolist())) >= 2
    # Of pairs, their own means: clips of prompts that only one model has would speak for the prompts.
    shown = (float(x.mean()), float(y.mean())) if enough else (mine.value, other.value)
    how = f"{len(clips)} pairs of {len(set(prompts.tolist()))} prompts" if enough else "two intervals"
    if mine.better == "reference":
        how += ", distance to the floor"
        if mine.floor is None or other.floor is None:
            found: Found = (math.nan, -math.inf, math.inf, 1.0)
        elif enough:
            found = _by_distance(mine, other, _resampled(prompts, x - mine.floor, y - other.floor, seed), seed)
        else:
            found = _by_distance(mine, other, _redrawn(mine, other, mine.floor, other.floor, seed), seed)
    elif enough:
        pairs = compare(x, y, seed, prompts)
        found = pairs.difference, pairs.low, pairs.high, pairs.p_value
    else:
        found = _by_intervals(mine, other)
    lead = -found[0] if mine.better == "higher" else found[0]
    better = a.label if lead < 0 else b.label if lead > 0 else ""
    return Row(mine.name, mine.metric, *shown, *found, how, better)


Found = tuple[float, float, float, float]  # difference, the ends of its interval, p-value


def _by_intervals(mine: Value, other: Value) -> Found:
    """Return the difference of two values with normal errors."""
    reach, difference = math.hypot(*map(standard_error, (mine, other))), mine.value - other.value
    if not 0 < reach < math.inf:  # values without a known scatter say nothing of chance
        return difference, -math.inf, math.inf, 1.0
    half = reach * z_score(0.95)
    return difference, difference - half, difference + half, 2 * (1 - NormalDist().cdf(abs(difference) / reach))


@dataclass(frozen=True)
class _Drawn:
    """How far above their floors two values are, and might have been."""

    observed: tuple[float, float]
    mine: np.ndarray  # (R,)
    other: np.ndarray  # (R,)
    least_p: float  # the p-value is at least this


def _by_distance(mine: Value, other: Value, drawn: _Drawn | None, seed: int) -> Found:
    """Return the difference of how far two values are from those of real clips.

    A distance has a fold at 0, where nothing is symmetric that signs could be flipped of: the p-value is twice the
    share of resamples on the other side of 0 (Efron & Tibshirani, 1993, section 15.4), or if it is larger, as with few
    prompts, that of flipping signs as if there was no fold.
    """
    if drawn is None:
        return math.nan, -math.inf, math.inf, 1.0
    shift = np.random.default_rng((seed, 1)).standard_normal(_RESAMPLES)  # one and the same of the same real clips
    found = np.abs(drawn.mine - mine.floor_error * shift) - np.abs(drawn.other - other.floor_error * shift)
    beyond = (1 + min(int((found <= 0).sum()), int((found >= 0).sum()))) / (1 + _RESAMPLES)
    low, high = (float(end) for end in np.quantile(found, tails(0.95)))
    difference = abs(drawn.observed[0]) - abs(drawn.observed[1])
    return difference, low, high, min(1.0, max(2 * beyond, drawn.least_p))


def _resampled(prompts: np.ndarray, x: np.ndarray, y: np.ndarray, seed: int) -> _Drawn:
    """Return the means of ``x`` and ``y``, a score each of N pairs of clips, over prompts that are drawn again."""
    _, index = np.unique(prompts, return_inverse=True)
    sums = np.stack([np.bincount(index, scores) for scores in (np.ones(len(x)), x, y)], axis=1)
    count, rng, center = len(sums), np.random.default_rng(seed), np.array([x.mean(), y.mean()])
    even = np.full(count, 1 / count)
    drawn = np.concatenate([rng.multinomial(count, even, rows) @ sums for rows, _ in blocks(_RESAMPLES, count)])
    # See `mean_interval` for the stretch.
    means = center + (drawn[:, 1:] / drawn[:, :1] - center) * math.sqrt(count / (count - 1))
    sides = np.sign(center)
    least_p = compare(sides[0] * x, sides[1] * y, seed, prompts).p_value
    return _Drawn((float(center[0]), float(center[1])), means[:, 0], means[:, 1], least_p)


def _redrawn(mine: Value, other: Value, mine_floor: float, other_floor: float, seed: int) -> _Drawn | None:
    """Return two values with the normal errors that their intervals stand for."""
    rng, errors = np.random.default_rng(seed), (standard_error(mine), standard_error(other))
    if not all(0 < error < math.inf for error in errors):
        return None
    above = (mine.value - mine_floor, other.value - other_floor)
    drawn = [rng.normal(value, error, _RESAMPLES) for value, error in zip(above, errors, strict=True)]
    return _Drawn(above, drawn[0], drawn[1], 0.0)


def _scored(results: Results, value: Value) -> list[Clip]:
    return [clip for clip in results.clips if clip.key in value.per_clip]


def _comparable(value: Value) -> str:
    """Return what two values must share: a mean over clips is the same of any number of them, a distance is not."""
    return _without_count(value.name) if value.per_clip else value.name


def _without_count(name: str) -> str:
    """Return a metric's name without the number of generated clips."""
    head, _, tail = name.partition(",n=")
    return f"{head},{tail.partition(',')[2]}"


def sentences(rows: Sequence[Row], labels: Sequence[str]) -> list[str]:
    """Return what the rows say of the two models ``labels``, in plain sentences; without rows, nothing."""
    if not rows:
        return []
    a, b = labels
    found = []
    for label in (a, b):
        won = [row.metric for row in rows if row.better == label]
        if won:
            other = b if label == a else a
            found.append(f"{label} is better than {other} on {', '.join(won)}.")
    open_ones = [row.metric for row in rows if row.known and not row.better]
    if open_ones:
        found.append(f"No difference shows on {', '.join(open_ones)}.")
    unknown = [row.metric for row in rows if not row.known]
    if unknown:
        found.append(f"{', '.join(unknown)}: {UNKNOWN}.")
    return found
