"""The best of several checkpoints, and those that it cannot be told from."""

from dataclasses import replace

import numpy as np
import pytest

from tests.test_ab import result
from vidiff.errors import ConfigError
from vidiff.metrics.best import best_of
from vidiff.metrics.report import markdown, write_report
from vidiff.metrics.results import Value


def checkpoints(*scores, **more):
    return [replace(result(f"run/step-{k:08d}", one, **more), step=k) for k, one in enumerate(scores, 1)]


def test_the_best_checkpoint_is_told_from_those_that_do_worse_on_the_same_prompts(tmp_path):
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 1, 40)  # prompts differ far more than checkpoints do
    found = checkpoints(hard, hard + 0.3 + rng.normal(0, 0.05, 40), hard + 0.29 + rng.normal(0, 0.05, 40))
    best = best_of(found)
    assert (best.label, best.rivals) == ("run/step-00000002", ("run/step-00000003",))
    assert best.text() == "Best by following: run/step-00000002, which cannot be told from run/step-00000003."
    table = markdown(found, best=best)
    assert "| run/step-00000002 **best** |" in table and table.count("**best**") == 1 and best.text() in table
    write_report(tmp_path / "r.html", found, best=best)
    page = (tmp_path / "r.html").read_text()
    assert page.count("<em>best</em>") == 1 and best.text() in page


@pytest.mark.parametrize(("better", "winner"), [("lower", 1), ("higher", 3)])
def test_which_way_is_better_counts(better, winner):
    found = checkpoints(*(np.linspace(0, 1, 20) + k for k in range(3)), better=better)
    assert best_of(found).text() == f"Best by following: run/step-{winner:08d}."


def test_what_is_judged_prompt_by_prompt_picks_unless_another_metric_is_named():
    scores = np.linspace(0, 1, 20)
    found = [
        replace(
            one, values=(Value("fd-evaluator", "n=20", distance, "lower", (distance - 1, distance + 1)), *one.values)
        )
        for one, distance in zip(checkpoints(scores, scores + 1), (10.0, 20.0), strict=True)
    ]
    assert best_of(found).label == "run/step-00000002"
    assert best_of(found, "fd-evaluator").text() == "Best by fd-evaluator: run/step-00000001."
    with pytest.raises(ConfigError, match="Did you mean following"):
        best_of(found, "folowing")


def test_nothing_is_picked_unasked_among_models_that_are_no_checkpoints():
    scores = np.linspace(0, 1, 20)
    plain = [replace(one, step=None) for one in checkpoints(scores, scores + 1)]
    assert best_of(plain) is None and best_of(plain, "following").label == "run/step-00000002"
    assert best_of(checkpoints(scores)) is None and best_of(checkpoints(scores), "following") is None
    mixed = [*checkpoints(scores, scores + 1), replace(result("other", scores + 9), step=None)]
    assert best_of(mixed).label == "run/step-00000002"


def test_what_cannot_be_judged_is_never_the_best():
    found = checkpoints(*[np.linspace(0, 1, 20)] * 3, better="reference", floor=1.0)
    lost = replace(found[0].values[0], floor=None)
    assert best_of([replace(found[0], values=(lost,)), *found[1:]]).label == "run/step-00000002"
