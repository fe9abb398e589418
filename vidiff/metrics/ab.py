"""Two evaluated models against each other, metric by metric: which is better, by how much, and whether that is real."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from vidiff.errors import DataError
from vidiff.metrics.comparison import compare, z_score
from vidiff.metrics.results import Results, Value
from vidiff.metrics.verdict import cost, numbers

LEVEL = 0.05  # of the whole comparison, whatever the number of metrics


@dataclass(frozen=True)
class Row:
    """One metric of two models."""

    name: str  # with its protocol
    metric: str
    a: float
    b: float
    difference: float  # a minus b
    low: float  # 95% interval of the difference
    high: float
    p_value: float
    how: str  # "64 pairs of 64 prompts", "two intervals"
    better: str = ""  # the label of the better model, where the difference is real

    def text(self) -> str:
        """Return the row as one line."""
        a, b, difference, low, high = numbers([], self.a, self.b, self.difference, self.low, self.high)
        verdict = f"{self.better} is better" if self.better else "no difference shows"
        p = f"p={self.p_value:.2g}" if self.p_value >= 0.001 else "p<0.001"
        return f"{self.metric}: {a} against {b}, difference {difference} ({low} to {high}), {p}, {self.how}: {verdict}"


def compared(a: Results, b: Results, seed: int = 0) -> list[Row]:
    """Return a row for each metric that both were measured by under one protocol.

    Metrics with a value for each clip are compared on pairs of the same prompt and seed, or the same name (`compare`).
    Others are compared by their two intervals as if these were independent, which they are not where both have the
    same real clips: then the true interval is rather narrower. A difference counts as real where its p-value, corrected
    for the number of metrics (Holm, 1979), is below 0.05.

    Raises:
        DataError: if they have no metric in common.
    """
    others = {_without_count(value.name): value for value in b.values}
    rows = [
        _row(a, b, value, others[_without_count(value.name)], seed)
        for value in a.values
        if _without_count(value.name) in others
    ]
    if not rows:
        raise DataError(f"{a.label} and {b.label} have no metric of one protocol in common")
    order = sorted(range(len(rows)), key=lambda index: rows[index].p_value)
    for rank, index in enumerate(order):
        if not rows[index].p_value <= LEVEL / (len(rows) - rank):
            return [replace(row, better="") if place in order[rank:] else row for place, row in enumerate(rows)]
    return rows


def _row(a: Results, b: Results, mine: Value, other: Value, seed: int) -> Row:
    left, right = cost(mine, mine.value), cost(other, other.value)
    better = "" if left == right or math.isnan(left - right) else a.label if left < right else b.label
    pairs = _pairs(a, b, mine, other)
    prompts = np.array([prompt for prompt, _, _ in pairs])
    if len(set(prompts.tolist())) >= 2:
        found = compare(np.array([x for _, x, _ in pairs]), np.array([y for _, _, y in pairs]), seed, prompts)
        how = f"{found.clips} pairs of {found.prompts} prompts"
        ends, p_value, difference = (found.low, found.high), found.p_value, found.difference
    else:
        difference = mine.value - other.value
        ends, p_value = _by_intervals(mine, other)
        how = "two intervals"
    return Row(mine.name, mine.metric, mine.value, other.value, difference, *ends, p_value, how, better)


def _by_intervals(mine: Value, other: Value) -> tuple[tuple[float, float], float]:
    """Return the interval and the p-value of a difference of two values with normal errors."""
    if mine.interval is None or other.interval is None:
        return (-math.inf, math.inf), 1.0
    half = [(ends[1] - ends[0]) / 2 for ends in (mine.interval, other.interval)]
    reach, difference = math.hypot(*half), mine.value - other.value
    if reach == 0:
        return (difference, difference), float(difference == 0)
    p_value = 2 * (1 - NormalDist().cdf(abs(difference) / reach * z_score(0.95)))
    return (difference - reach, difference + reach), p_value


def _pairs(a: Results, b: Results, mine: Value, other: Value) -> list[tuple[str, float, float]]:
    """Return (prompt, first score, second score) of the clips that both have, by prompt and seed, or by name."""
    scores = [_by_identity(results, value) for results, value in ((a, mine), (b, other))]
    shared = [identity for identity in scores[0] if identity in scores[1]]
    if not shared:
        scores = [_by_name(results, value) for results, value in ((a, mine), (b, other))]
        shared = [identity for identity in scores[0] if identity in scores[1]]
    return [(scores[0][one][0], scores[0][one][1], scores[1][one][1]) for one in shared]


Scores = dict[tuple[str, int | None], tuple[str, float]]  # prompt and score of each clip


def _by_identity(results: Results, value: Value) -> Scores:
    return {
        (clip.prompt, clip.seed): (clip.prompt, value.per_clip[clip.key])
        for clip in results.clips
        if clip.prompt and clip.key in value.per_clip
    }


def _by_name(results: Results, value: Value) -> Scores:
    return {
        (clip.key, None): (clip.prompt or clip.key, value.per_clip[clip.key])
        for clip in results.clips
        if clip.key in value.per_clip
    }


def _without_count(name: str) -> str:
    """Return a metric's name without the number of generated clips, which two models may differ in."""
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
    open_ones = [row.metric for row in rows if not row.better]
    if open_ones:
        found.append(f"No difference shows on {', '.join(open_ones)}.")
    return found
