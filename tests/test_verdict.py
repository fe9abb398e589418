"""What the values of one or several models allow to say."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidiff.errors import DataError
from vidiff.metrics.intervals import mean_interval
from vidiff.metrics.results import Neighbor, Results, Value
from vidiff.metrics.verdict import numbers, standings, verdict


def value(metric="fvd", number=10.0, half=1.0, better="lower", protocol="n=64", **more):
    interval = None if half is None else (number - half, number + half)
    return Value(metric, protocol, number, better, interval, **more)


def models(*values):
    return [Results(f"model {chr(97 + i)}", (one,)) for i, one in enumerate(values)]


def said(*values):
    return " ".join(verdict(models(*values)))


@pytest.mark.parametrize(
    ("better", "first", "second", "winner"),
    [
        ("lower", (10, 1), (13, 1), "model a"),
        ("lower", (13, 1), (10, 1), "model b"),
        ("higher", (10, 1), (13, 1), "model b"),
        ("lower", (10, 1), (11, 1), None),
        ("lower", (10, 1), (12, 1), None),  # they touch
        ("higher", (10, 3), (11, 0.1), None),
        ("reference", (4, 0.5), (12, 1), "model a"),  # of real clips: 5
        ("reference", (4, 0.5), (6, 0.5), None),  # as far away on the other side
        ("reference", (5, 2), (5.5, 0.1), None),
    ],
)
def test_the_verdict_names_a_winner_where_intervals_are_apart_and_only_there(better, first, second, winner):
    text = said(*(value("m", number, half, better, floor=5.0) for number, half in (first, second)))
    loser = {"model a": "model b", "model b": "model a"}.get(winner)
    assert text == (f"{winner} is better than {loser} on m." if winner else "No difference shows on m: " + OVERLAP)


OVERLAP = "the 95% intervals overlap."


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 4)), min_size=2, max_size=5))
def test_the_best_are_those_whose_intervals_reach_the_best_one(drawn):
    found = standings(models(*(value(number=float(number), half=float(half)) for number, half in drawn)))[0].best
    unbeaten = [
        f"model {chr(97 + i)}"
        for i, (number, half) in enumerate(drawn)
        if not any(other + spread < number - half for other, spread in drawn)
    ]
    assert list(found) == unbeaten


def test_several_models_are_compared_metric_by_metric():
    rows = {
        "model a": [value("fvd", 10), value("psnr", 30, better="higher"), value("ssim", 0.9, None, "higher")],
        "model b": [value("fvd", 20), value("psnr", 30.5, better="higher"), value("ssim", 0.8, None, "higher")],
        "model c": [value("fvd", 30), value("psnr", 20, better="higher"), value("ssim", 0.7, None, "higher")],
    }
    assert verdict([Results(label, tuple(values)) for label, values in rows.items()]) == [
        "model a is the best of 3 models on fvd.",
        f"No difference shows on psnr (model a and model b): {OVERLAP}",
        "Not compared, for want of intervals or of a second value: ssim.",
    ]


def test_values_under_different_protocols_are_not_compared():
    assert said(value(number=10), value(number=90, protocol="n=2048")) == (
        "Not compared, for want of intervals or of a second value: fvd."
    )


def test_one_model_is_held_against_its_floors():
    values = (
        value("fvd", 213.4, 10, floor=41.23),
        value("clip", 0.3, 0.01, "higher", floor=0.2),
        value("kid", 0.5, 0.2, floor=0.4),
        value("motion", 0.9, 0.1, "reference", floor=0.5),
        value("kd", -0.5, 0.2, floor=0.0),  # no praise: real clips are not as near
        value("lpips", 0.2),
        value("is", 7.0, None, "higher", floor=5.0),
    )
    assert verdict([Results("model", values)]) == [
        "The model is worse than its floor on fvd (213 against 41); away from its floor on motion (0.90 against 0.50); "
        "no different from its floor on kid (0.50 against 0.40); "
        "below its floor on kd (-0.50 against 0.00); better than its floor on clip (0.300 against 0.200).",
        "Not judged, for want of an interval or a floor: lpips and is.",
    ]


def test_a_verdict_is_of_whole_metrics_not_of_their_parts():
    parts = [value(f"following-{kind}", 0.9, 0.1, "higher", floor=0.2) for kind in ("color", "shape")]
    values = (value("following", 0.9, 0.1, "higher", floor=0.2), *parts)
    assert verdict([Results("model", values)]) == [
        "The model is better than its floor on following (0.90 against 0.20)."
    ]


def test_a_floor_that_was_measured_on_few_clips_is_not_taken_as_exact():
    rng = np.random.default_rng(0)
    alarms = {False: 0, True: 0}
    for trial in range(200):
        fake, real = rng.normal(size=(2, 64))
        ends = mean_interval(fake, np.arange(64), trial, resamples=300)
        for known in alarms:
            error = float(real.std(ddof=1) / 8) if known else 0.0
            one = Value("motion", "n=64", float(fake.mean()), "reference", ends, float(real.mean()), error)
            alarms[known] += "away from" in verdict([Results("a", (one,))])[0]
    assert alarms[True] <= 20 < alarms[False]  # of 200, at 5%


def test_flagged_neighbors_are_part_of_the_verdict():
    near = [Neighbor(f"clip{i}", "train", "", 0.1, flagged=i < 2) for i in range(5)]
    result = Results("model", (value(floor=9.5),), neighbors=tuple(near))
    assert verdict([result])[-1] == (
        "2 of 5 clips are nearer to a training clip than real held-out clips are: look for copies."
    )
    assert "in other" in verdict([replace(result, label="other", neighbors=tuple(near[1:])), Results("b", ())])[-1]
    assert len(verdict([replace(result, neighbors=tuple(near[2:]))])) == 1


def test_nothing_and_results_that_cannot_be_told_apart_are_refused():
    with pytest.raises(DataError, match="no results"):
        verdict([])
    with pytest.raises(DataError, match="2 results are called 'model a'"):
        verdict(models(value()) * 2)
    assert verdict([Results("bare", ())]) == ["Nothing was measured."]


@pytest.mark.parametrize(
    ("number", "half", "shown"),
    [
        (213.4567, 12.9, "213"),
        (213.4567, 1.29, "213.5"),
        (0.293456, 0.0041, "0.2935"),
        (1234.5, 600.0, "1234"),
        (0.293456, None, "0.2935"),
        (12345.678, None, "12346"),
        (float("inf"), None, "infinite"),
        (float("nan"), None, "undefined"),
        (0.0, None, "0.000"),
    ],
)
def test_numbers_show_two_digits_of_the_interval_or_four_of_the_value(number, half, shown):
    assert numbers([value(number=number, half=half)], number) == [shown]
