"""What values, intervals and floors allow to say about one model, or about several."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from vidiff.errors import DataError
from vidiff.metrics.comparison import z_score
from vidiff.metrics.results import Results, Value

DIRECTIONS = {"lower": "lower is better", "higher": "higher is better", "reference": "nearer to the floor is better"}


@dataclass(frozen=True)
class Standing:
    """What all results say about one metric under one protocol."""

    name: str  # of the metric, with its protocol
    entries: tuple[tuple[Results, Value], ...]  # at least one

    @property
    def metric(self) -> str:
        """Return the metric without its protocol."""
        return self.entries[0][1].metric

    @property
    def values(self) -> list[Value]:
        """Return the values alone."""
        return [value for _, value in self.entries]

    @cached_property
    def best(self) -> tuple[str, ...]:
        """Return the labels of the results that the best one cannot be told from, itself among them.

        One label is a winner: no other interval reaches its own. There is none without a second value, or where an
        interval, or the floor that a value should be near to, is missing.
        """
        ends = [(result.label, costs(value)) for result, value in self.entries]
        known = [(label, *cost) for label, cost in ends if cost is not None]
        if len(known) < max(2, len(ends)):
            return ()
        reach = min(high for _, _, high in known)
        return tuple(label for label, low, _ in known if low <= reach)


def standings(results: Sequence[Results]) -> list[Standing]:
    """Return the values of ``results`` by metric and protocol, in the order in which they first appear.

    Raises:
        DataError: if there are no results, or two have the same label.
    """
    if not results:
        raise DataError("nothing to report: no results were given")
    label, count = Counter(result.label for result in results).most_common(1)[0]
    if count > 1:
        raise DataError(f"{count} results are called {label!r}; give each a label of its own")
    names = dict.fromkeys(value.name for result in results for value in result.values)
    return [Standing(name, tuple((r, v) for r in results for v in r.values if v.name == name)) for name in names]


def cost(value: Value, number: float) -> float:
    """Return ``number`` on the scale of ``value`` as something to keep low: for a reference, the distance to it."""
    match value.better:
        case "lower":
            return number
        case "higher":
            return -number
        case _:
            return math.nan if value.floor is None else abs(number - value.floor)


def costs(value: Value) -> tuple[float, float] | None:
    """Return the least and the largest cost in a value's interval, or None where nothing can be judged."""
    if value.interval is None or not all(math.isfinite(cost(value, end)) for end in value.interval):
        return None
    low, high = sorted(cost(value, end) for end in value.interval)
    inside = value.better == "reference" and value.interval[0] <= (value.floor or 0.0) <= value.interval[1]
    return (0.0 if inside else low), high


def standard_error(value: Value) -> float:
    """Return the standard error that a value's interval stands for, infinite where there is none."""
    return math.inf if value.interval is None else (value.interval[1] - value.interval[0]) / (2 * z_score(0.95))


def verdict(results: Sequence[Results], opening: Sequence[str] = ()) -> list[str]:
    """Return a few plain sentences that say what intervals and floors allow to say; raises as `standings`.

    Args:
        results: one, or several to compare.
        opening: what a comparison on pairs of clips says, which sees more than intervals do and stands for them.
    """
    found = _wholes(standings(results))
    sentences = list(opening) or (_against_each_other(found) if len(results) > 1 else _against_floors(found))
    suspects = {result.label: sum(neighbor.flagged for neighbor in result.neighbors) for result in results}
    if any(suspects.values()):
        flagged, total = sum(suspects.values()), sum(len(result.neighbors) for result in results)
        where = f", in {_listed([label for label, count in suspects.items() if count])}" if len(results) > 1 else ""
        sentences.append(
            f"{flagged} of {total} clips {'is' if flagged == 1 else 'are'} nearer to a training clip than real "
            f"held-out clips are{where}: look for copies."
        )
    return sentences


def numbers(values: Sequence[Value], *wanted: float | None) -> list[str]:
    """Return the ``wanted`` numbers as text of one precision.

    It is the second digit of the narrowest half interval of ``values``; without any, four digits of the largest value,
    or without ``values``, of the largest wanted number.
    """
    halves = [(v.interval[1] - v.interval[0]) / 2 for v in values if v.interval is not None]
    halves = [half for half in halves if 0 < half < math.inf]
    sizes = [abs(x) for x in ([v.value for v in values] or wanted) if x and math.isfinite(x)]
    scale, digits = (min(halves), 2) if halves else (max(sizes, default=1.0), 4)
    decimals = min(max(digits - 1 - math.floor(math.log10(scale)), 0), 9)
    return ["none" if number is None else _number(number, decimals) for number in wanted]


def interval_text(values: Sequence[Value], value: Value) -> str:
    """Return the interval of one of ``values``, with their digits."""
    return " to ".join(numbers(values, *value.interval)) if value.interval else "none"


def _number(number: float, decimals: int) -> str:
    if math.isnan(number):
        return "undefined"
    return f"{number:.{decimals}f}" if math.isfinite(number) else "infinite" if number > 0 else "-infinite"


def _wholes(found: Sequence[Standing]) -> list[Standing]:
    """Return the metrics that are no part of another: ``following-color`` is in the table, a verdict is short."""
    names = {standing.metric for standing in found}
    return [one for one in found if not any(one.metric.startswith(f"{name}-") for name in names)]


def _against_each_other(found: Sequence[Standing]) -> list[str]:
    protocols = Counter(standing.metric for standing in found)
    won: dict[tuple[str, str], list[str]] = {}
    tied, unjudged = [], []
    for standing in found:
        mention = standing.metric if protocols[standing.metric] == 1 else standing.name
        labels = [result.label for result, _ in standing.entries]
        match standing.best:
            case ():
                unjudged.append(standing.metric)
            case (best,):
                others = [label for label in labels if label != best]
                what = f"better than {others[0]}" if len(others) == 1 else f"the best of {len(labels)} models"
                won.setdefault((best, what), []).append(mention)
            case best:
                who = f"the best {len(best)} models" if len(best) > 3 else _listed(best)
                tied.append(mention if len(best) == len(labels) else f"{mention} ({who})")
    sentences = [f"{best} is {what} on {_listed(metrics)}." for (best, what), metrics in won.items()]
    if tied:
        sentences.append(f"No difference shows on {_listed(tied)}: the 95% intervals overlap.")
    if unjudged:
        sentences.append(f"Not compared, for want of intervals or of a second value: {_listed(unjudged)}.")
    return sentences or ["Nothing was measured."]


def _against_floors(found: Sequence[Standing]) -> list[str]:
    places = ("worse than", "away from", "no different from", "below", "better than")
    told: dict[str, list[str]] = {where: [] for where in places}
    unjudged = []
    for standing in found:
        value = standing.values[0]
        ends, floor = costs(_beside_its_floor(value)), value.floor
        if ends is None or floor is None:
            unjudged.append(standing.metric)
            continue
        at = cost(value, floor)
        where = "better than" if ends[1] < at else "no different from" if ends[0] <= at else "worse than"
        if value.better == "reference" and where == "worse than":
            where = "away from"
        if value.better == "lower" and where == "better than":  # which real clips are not: it is no praise
            where = "below"
        told[where].append(f"{standing.metric} ({' against '.join(numbers([value], value.value, floor))})")
    parts = [f"{where} its floor on {_listed(metrics)}" for where, metrics in told.items() if metrics]
    sentences = [f"The model is {'; '.join(parts)}."] if parts else []
    if unjudged:
        sentences.append(f"Not judged, for want of an interval or a floor: {_listed(unjudged)}.")
    return sentences or ["Nothing was measured."]


def _beside_its_floor(value: Value) -> Value:
    """Return a value with its interval widened by the error of the floor, as if that had none."""
    if value.interval is None:
        return value
    error = value.floor_error * z_score(0.95)
    low, high = (math.hypot(value.value - end, error) for end in value.interval)
    return replace(value, interval=(value.value - low, value.value + high))


def _listed(words: Sequence[str]) -> str:
    words = list(dict.fromkeys(words))
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
