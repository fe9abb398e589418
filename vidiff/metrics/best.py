"""Which of several models, such as the checkpoints of a run, does best on the prompts that it was given."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vidiff.errors import ConfigError, did_you_mean
from vidiff.metrics.ab import LEVEL, compared
from vidiff.metrics.results import Results, Value
from vidiff.metrics.verdict import Standing, cost, standings

# What picks a checkpoint unasked: what is judged prompt by prompt, the exact judge first. Else what comes first.
_PREFERRED = ("following", "alignment-evaluator", "clipsim")


@dataclass(frozen=True)
class Best:
    """The best of several results by one metric."""

    name: str  # of the metric, with its protocol
    metric: str
    label: str
    rivals: tuple[str, ...] = ()  # that cannot be told from it

    def text(self) -> str:
        """Return it as one sentence."""
        rivals = f", which cannot be told from {', '.join(self.rivals)}" if self.rivals else ""
        return f"Best by {self.metric}: {self.label}{rivals}."


def best_of(results: Sequence[Results], by: str | None = None, seed: int = 0) -> Best | None:
    """Return the best of ``results``, and those that it cannot be told from on the same prompts and seeds.

    Args:
        results: with labels that differ.
        by: metric; None picks one for the checkpoints of training among them, and nothing where there are none.
        seed: of the comparison, see `vidiff.metrics.ab.compared`.

    Returns:
        None if there is nothing to choose from.

    Raises:
        ConfigError: if ``by`` is no metric of theirs.
        DataError: as `standings`.
    """
    found = standings(results)
    if by is not None and not any(by in (standing.metric, standing.name) for standing in found):
        known = list(dict.fromkeys(standing.metric for standing in found))
        raise ConfigError(f"--by {by}: no result has this metric.{did_you_mean(by, known)}")
    steps = [result for result in results if result.step is not None]
    fitting = [_of(standing, results if by is not None else steps) for standing in found]
    fitting = [standing for standing in fitting if len(standing.entries) > 1]
    if by is not None:
        fitting = [standing for standing in fitting if by in (standing.metric, standing.name)]
    if not fitting:
        return None
    chosen = min(fitting, key=lambda one: [*_PREFERRED, one.metric].index(one.metric))
    (winner, value), *others = sorted(chosen.entries, key=lambda entry: cost(entry[1], entry[1].value))
    rivals = [result.label for result, other in others if not _apart(winner, value, result, other, len(others), seed)]
    return Best(chosen.name, chosen.metric, winner.label, tuple(rivals))


def _of(standing: Standing, results: Sequence[Results]) -> Standing:
    """Return the entries of ``results`` alone that can be judged."""
    labels = {result.label for result in results}
    entries = (entry for entry in standing.entries if entry[0].label in labels)
    return replace(standing, entries=tuple(e for e in entries if math.isfinite(cost(e[1], e[1].value))))


def _apart(a: Results, mine: Value, b: Results, other: Value, count: int, seed: int) -> bool:
    """Return whether a difference is real, however many others the best one is compared with (Bonferroni)."""
    (row,) = compared(replace(a, values=(mine,)), replace(b, values=(other,)), seed)
    return row.p_value <= LEVEL / count
