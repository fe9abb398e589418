"""Two models against each other: pairs, intervals, and a correction for looking many times."""

from dataclasses import replace

import numpy as np
import pytest

from vidiff.errors import DataError
from vidiff.metrics.ab import compared, sentences, uneven_counts
from vidiff.metrics.results import Clip, Results, Value


def result(label, scores, better="higher", metric="following", seeds=1, protocol="oracle", **more):
    clips = tuple(Clip(f"{label}{i}", "", f"prompt {i // seeds}", i % seeds) for i in range(len(scores)))
    per_clip = {clip.key: float(score) for clip, score in zip(clips, scores, strict=True)}
    protocol = f"{protocol},n={len(scores)},ref=x"
    return Results(label, (Value(metric, protocol, float(np.mean(scores)), better, per_clip=per_clip, **more),), clips)


def test_pairs_of_one_prompt_and_seed_show_what_intervals_hide():
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 1, 40)  # prompts differ far more than models do
    (row,) = compared(result("a", hard + 0.1 + rng.normal(0, 0.02, 40)), result("b", hard))
    assert row.better == "a" and row.p_value < 0.001 and row.low < 0.1 < row.high
    assert row.how == "40 pairs of 40 prompts"
    assert "a is better" in row.text() and sentences([row], ("a", "b")) == ["a is better than b on following."]


@pytest.mark.parametrize(("better", "wins"), [("lower", "b"), ("higher", "a")])
def test_which_way_is_better_counts(better, wins):
    scores = np.linspace(0, 1, 20)
    (row,) = compared(result("a", scores + 1, better), result("b", scores, better))
    assert row.better == wins


def test_equal_models_are_rarely_told_apart():
    rng = np.random.default_rng(1)
    found = [compared(result("a", rng.normal(size=30)), result("b", rng.normal(size=30)), k)[0] for k in range(60)]
    assert sum(bool(row.better) for row in found) <= 8


def test_many_metrics_are_corrected_for():
    rng = np.random.default_rng(2)
    sides = []
    for label in "ab":
        parts = [result(label, rng.normal(size=30), metric=f"m{i}") for i in range(40)]
        sides.append(Results(label, tuple(p.values[0] for p in parts), parts[0].clips))
    rows = compared(*sides)
    assert sum(row.p_value < 0.05 for row in rows) >= 1 and not any(row.better for row in rows)
    assert sentences(rows, "ab")[0].startswith("No difference shows on m0")


def test_set_level_values_are_compared_by_their_intervals():
    def fd(label, number, half):
        return Results(label, (Value("fd", "p,n=64", number, "lower", (number - half, number + half)),))

    (row,) = compared(fd("a", 10, 1), fd("b", 14, 1))
    assert row.better == "a" and row.how == "two intervals"
    assert np.allclose((row.low, row.high), (-4 - 2**0.5, -4 + 2**0.5))
    assert compared(fd("a", 10, 3), fd("b", 12, 3))[0].better == ""


def test_a_distance_at_another_number_of_clips_is_not_compared():
    rng = np.random.default_rng(3)
    a, b = result("a", rng.normal(size=30)), result("b", rng.normal(size=20))
    few, many = (Value("fd", f"p,n={n},ref=x", x, "lower", (x - 1, x + 1)) for n, x in ((64, 40.0), (512, 15.0)))
    sides = [replace(one, values=(*one.values, value)) for one, value in ((a, few), (b, many))]
    (row,) = compared(*sides)  # a mean over clips means the same for 20 as for 30
    assert row.metric == "following" and uneven_counts(*sides) == ["fd"]
    with pytest.raises(DataError, match="fd were measured on other numbers of clips"):
        compared(*(replace(side, values=side.values[1:]) for side in sides))
    assert uneven_counts(a, b) == []


def test_values_without_scatter_are_not_told_apart():
    a, b = (Results(label, (Value("fd", "p", x, "lower", (x, x)),)) for label, x in (("a", 1.0), ("b", 2.0)))
    assert compared(a, b)[0].p_value == 1


@pytest.mark.parametrize("paired", [True, False])
def test_what_should_be_near_to_real_clips_is_compared_by_how_near_it_is(paired):
    rng = np.random.default_rng(4)
    noise, told = rng.normal(0, 0.3, (2, 64)), {"better": "reference", "floor": 1.0, "floor_error": 0.04}

    def side(label, shift, k):
        scores = 1 + shift + noise[k] - noise[k].mean()
        one = result(label, scores, interval=(1 + shift - 0.08, 1 + shift + 0.08), **told)
        return one if paired else replace(one, clips=())

    (even,) = compared(side("a", 0.5, 0), side("b", -0.5, 1))  # far apart, but equally far from the real clips
    assert even.better == "" and even.p_value > 0.2 and even.low < 0 < even.high and abs(even.difference) < 1e-9
    (row,) = compared(side("a", 0.1, 0), side("b", -0.5, 1))
    assert row.better == "a" and row.low < -0.4 < row.high < 0 and "distance to the floor" in row.how
    lost = side("a", 0.1, 0)
    (unknown,) = compared(replace(lost, values=(replace(lost.values[0], floor=None),)), side("b", -0.5, 1))
    assert unknown.better == "" and unknown.p_value == 1 and unknown.to_dict()["low"] is None


@pytest.mark.parametrize("far", [(1.0, 1.0), (1.0, -1.0)])
def test_equal_distances_to_real_clips_are_rarely_told_apart(far):
    rng = np.random.default_rng(5)

    def side(label, shift):
        return result(label, rng.normal(shift, 1, 10), better="reference", floor=0.0)

    found = [compared(side("a", far[0]), side("b", far[1]), k)[0].p_value for k in range(150)]
    assert np.mean(np.array(found) <= 0.05) <= 0.09 and np.mean(np.array(found) <= 0.01) <= 0.03


def test_the_better_one_is_better_on_the_pairs():
    rng = np.random.default_rng(6)
    hard = np.concatenate([np.full(20, 0.6), np.zeros(80)]) + rng.normal(0, 0.01, 100)
    (row,) = compared(result("a", hard + 0.2), result("b", hard[:20]))  # b was asked for the easy ones only
    assert row.better == "a" and row.difference > 0 and row.a > row.b and row.how.startswith("20 pairs")


def test_what_lacks_a_floor_is_not_compared_and_costs_the_others_nothing():
    scores = np.linspace(0, 0.1, 8)

    def side(label, lead):
        real = result(label, scores + lead)
        blind = [result(label, scores + lead, better="reference", metric=f"m{k}").values[0] for k in range(6)]
        return replace(real, values=(*real.values, *blind))

    rows = compared(side("a", 0.1), side("b", 0.0))
    assert rows[0].better == "a" and rows[0].p_value == 2 / 2**8
    assert not any(row.known for row in rows[1:]) and "want of a floor" in rows[1].text()
    assert sentences(rows, "ab")[-1].startswith("m0, m1, m2, m3, m4, m5: not compared")


def test_clips_of_other_prompts_pair_by_name():
    a, b = (
        Results(s, (Value("m", "p", 0, "higher", per_clip={str(i): x + i for i in range(8)}),),
                tuple(Clip(str(i), "") for i in range(8)))
        for s, x in (("a", 1.0), ("b", 0.0))
    )  # fmt: skip
    assert compared(a, b)[0].how == "8 pairs of 8 prompts"


def test_two_results_need_a_metric_of_one_protocol():
    with pytest.raises(DataError, match="no metric of one protocol"):
        compared(result("a", [1.0, 2.0]), result("b", [1.0, 2.0], protocol="another"))
