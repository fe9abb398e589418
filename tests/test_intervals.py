"""Intervals cover what they say they cover."""

import numpy as np
import pytest

from vidiff.errors import DataError
from vidiff.metrics.intervals import halving_interval, mean_interval, standard_error_of_mean
from vidiff.metrics.kernel import squared_mmd


def test_the_interval_of_a_mean_covers_it():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        low, high = mean_interval(rng.exponential(1, 40), np.arange(40), trial, resamples=500)
        hits += low <= 1 <= high
    assert 178 <= hits <= 198  # 95% of 200, less what skewed data takes


def test_clips_of_one_prompt_count_together():
    rng = np.random.default_rng(0)
    prompts = np.repeat(np.arange(20), 10)
    scores = rng.normal(size=20)[prompts]  # all clips of a prompt are equal
    alone, together = mean_interval(scores, np.arange(200)), mean_interval(scores, prompts)
    assert together[1] - together[0] > 2.5 * (alone[1] - alone[0])


def test_the_interval_of_a_share_stays_a_share():
    low, high = mean_interval(np.array([1.0] * 16 + [0.0]), np.arange(17))
    assert 0 <= low < 16 / 17 < high <= 1


def test_a_share_that_all_clips_agree_on_is_not_certain():
    assert mean_interval(np.ones(8), np.arange(8), share=True) == pytest.approx((0.676, 1), abs=1e-3)  # 8 / (8 + z^2)
    assert mean_interval(np.zeros(8), np.arange(8), share=True) == pytest.approx((0, 0.324), abs=1e-3)
    twice = mean_interval(np.ones(16), np.arange(16) // 2, share=True)  # two clips of a prompt say no more than one
    assert twice == mean_interval(np.ones(8), np.arange(8), share=True)


def test_the_standard_error_of_a_mean_is_that_of_its_prompts():
    rng = np.random.default_rng(0)
    means, errors = [], []
    for _ in range(300):
        scores = np.repeat(rng.normal(size=8), 8) + 0.1 * rng.normal(size=64)  # 8 clips of each of 8 prompts
        means.append(scores.mean())
        errors.append(standard_error_of_mean(scores, np.repeat(np.arange(8), 8)))
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.15)
    alone = rng.normal(size=64)
    assert standard_error_of_mean(alone, np.arange(64)) == pytest.approx(alone.std(ddof=1) / 8)
    assert standard_error_of_mean(alone, np.zeros(64)) == np.inf


@pytest.mark.parametrize(("values", "groups"), [([1.0, 2.0], [0, 0]), ([1.0, np.nan], [0, 1]), ([], [])])
def test_a_mean_without_an_interval_is_refused(values, groups):
    with pytest.raises(DataError):
        mean_interval(np.array(values), np.array(groups))


def test_the_halving_interval_covers_a_difference_of_means():
    rng = np.random.default_rng(1)

    def statistic(a, b):
        return float(a.mean() - b.mean())

    hits = 0
    for trial in range(100):
        a, b = rng.normal(1, 1, (60, 1)), rng.normal(0, 2, (80, 1))
        low, high = halving_interval(statistic, a, b, trial)
        hits += low <= 1 <= high
    assert 88 <= hits <= 99


def test_the_halving_interval_covers_a_kernel_distance():
    rng = np.random.default_rng(2)
    truth = squared_mmd(rng.normal(0, 1, (4000, 3)), rng.normal(0.5, 1, (4000, 3)))
    hits = 0
    for trial in range(60):
        low, high = halving_interval(
            squared_mmd, rng.normal(0, 1, (60, 3)), rng.normal(0.5, 1, (60, 3)), trial, halvings=20
        )
        hits += low <= truth <= high
    assert hits >= 51


def test_frames_of_a_clip_stay_together():
    rng = np.random.default_rng(3)
    a, b = (np.repeat(rng.normal(size=(20, 1)), 8, 0) for _ in range(2))

    def statistic(x, y):
        return float(x.mean() - y.mean())

    widths = [np.diff(halving_interval(statistic, a, b, 0, group=group, halvings=200)).item() for group in (1, 8)]
    assert widths[1] > 2 * widths[0]
