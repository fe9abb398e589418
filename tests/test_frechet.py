"""The Frechet distance, against closed forms and two independent implementations."""

import math
from functools import reduce

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.image.fid import _compute_fid

from vidiff.errors import ConfigError, DataError
from vidiff.metrics import frechet
from vidiff.metrics.frechet import Moments, extrapolated, floor, frechet_distance, frechet_of_moments, interval


def drawn(n, width, seed=0):
    return np.random.default_rng(seed).standard_normal((n, width))


def exact(mean, covariance, n=40, seed=0):
    """Features whose sample mean and covariance are these to the last digits."""
    rows = drawn(n, len(mean), seed)
    rows -= rows.mean(0)
    white = rows @ np.linalg.inv(np.linalg.cholesky(np.cov(rows.T).reshape(len(mean), -1))).T
    return white @ np.linalg.cholesky(np.asarray(covariance, float)).T + np.asarray(mean, float)


def by_rows(a, b, ddof=1):
    """The distance as halves of sets have it."""
    return frechet._distance(np.asarray(a), np.asarray(b), ddof)


both = pytest.mark.parametrize("distance", [frechet_distance, by_rows])
close = pytest.approx


def turned(values, angle=0.7):
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return rotation @ np.diag(values) @ rotation.T


GENERAL = (np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.6], [-0.6, 3.0]]))


def planar_trace(a, b):
    """tr (a b)^(1/2) of 2x2 matrices: (x + y)^2 = x^2 + y^2 + 2 x y for the roots x^2, y^2 of the product."""
    product = a @ b
    return math.sqrt(np.trace(product) + 2 * math.sqrt(np.linalg.det(product)))


@both
@pytest.mark.parametrize(
    ("mean_a", "covariance_a", "mean_b", "covariance_b", "expected"),
    [
        ([0], [[4]], [3], [[25]], 3**2 + (5 - 2) ** 2),
        ([1, 2, 3], np.eye(3), [1, 4, 0], np.eye(3), 4 + 9),
        ([0, 0, 0], np.diag([1, 4, 9]), [0, 1, 0], np.diag([4, 4, 1]), 1 + 1 + 0 + 4),
        ([0, 0], turned([1, 9]), [0, 0], turned([16, 4]), 9 + 1),
        ([0, 1], GENERAL[0], [2, 0], GENERAL[1], 5 + 3 + 4 - 2 * planar_trace(*GENERAL)),
    ],
    ids=["one_dimension", "mean_only", "diagonal", "commuting", "general"],
)
def test_gaussians_have_their_closed_form(distance, mean_a, covariance_a, mean_b, covariance_b, expected):
    a, b = exact(mean_a, covariance_a), exact(mean_b, covariance_b, n=60, seed=1)
    assert distance(a, b) == close(expected, rel=1e-10)


def test_the_divisor_is_that_of_the_sample_covariance():
    a, b = exact([0], [[4]], n=10), exact([0], [[25]], n=20)
    expected = (math.sqrt(4 * 9 / 10) - math.sqrt(25 * 19 / 20)) ** 2
    assert frechet_distance(a, b, ddof=0) == close(expected) and by_rows(a, b, ddof=0) == close(expected)


@both
@pytest.mark.parametrize(("n", "m"), [(300, 200), (30, 200), (21, 22)])
def test_it_agrees_with_two_references(distance, n, m):
    mixing = drawn(20, 20, 5)
    a, b = drawn(n, 20) @ mixing, 1.3 * drawn(m, 20, 1) @ mixing + 0.5
    moments = [(x.mean(0), np.cov(x.T)) for x in (a, b)]
    (mean_a, cov_a), (mean_b, cov_b) = moments
    root = np.trace(scipy.linalg.sqrtm(cov_a @ cov_b)).real
    assert distance(a, b) == close(np.square(mean_a - mean_b).sum() + np.trace(cov_a + cov_b) - 2 * root, rel=1e-6)
    tensors = [torch.from_numpy(x) for pair in moments for x in pair]
    assert distance(a, b) == close(_compute_fid(*tensors).item(), rel=1e-6)


@both
@pytest.mark.parametrize(("n", "width"), [(200, 8), (20, 60), (2, 5), (30, 1)])
def test_a_set_is_no_distance_from_itself(distance, n, width):
    a = 3 * drawn(n, width) + 1
    assert abs(distance(a, a)) < 1e-10 * np.square(a).sum()
    assert abs(distance(a, np.random.default_rng(1).permutation(a))) < 1e-6


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 12), st.integers(2, 12), st.integers(1, 8), st.integers(0, 999))
def test_moments_and_rows_agree_at_any_rank(n, m, width, seed):
    a, b = drawn(n, width, seed), 2 * drawn(m, width, seed + 1) + 1
    assert by_rows(a, b) == close(frechet_distance(a, b), rel=1e-9)
    assert frechet_distance(b, a) == close(frechet_distance(a, b), rel=1e-12)


@both
def test_a_constant_generator_is_as_far_as_mean_and_spread(distance):
    real = exact([0, 0, 0], np.diag([1, 2, 3]))
    assert distance(real, np.full((7, 3), 2.0)) == close(3 * 4 + 6)


@both
def test_dead_and_repeated_features_add_what_they_must(distance):
    real = exact([0, 0, 0], np.diag([1, 2, 3]))
    dead, repeated = np.pad(real, ((0, 0), (0, 4))), np.tile(real, 5) / math.sqrt(5)
    assert distance(dead, 2 * dead) == close(1 + 2 + 3)
    assert distance(repeated, 2 * repeated[::-1]) == close(1 + 2 + 3)


@both
def test_order_rotation_and_offset_change_nothing_and_scale_counts_squared(distance):
    a, b = drawn(100, 6), 1.5 * drawn(80, 6, 1) + 0.3
    expected = distance(a, b)
    rotation, _ = np.linalg.qr(drawn(6, 6, 2))
    assert distance(a[::-1], np.random.default_rng(0).permutation(b)) == close(expected, rel=1e-12)
    assert distance(a @ rotation, b @ rotation) == close(expected, rel=1e-10)
    assert distance(-3 * a, -3 * b) == close(9 * expected, rel=1e-12)
    assert distance(a + 1e4, b + 1e4) == close(expected, rel=1e-8)
    assert distance(a, a + 2.0) == close(6 * 4, rel=1e-10)


def test_moments_gathered_in_any_parts_are_those_of_the_whole():
    rows = drawn(97, 5) + 1e4
    whole = Moments.of(rows)
    np.testing.assert_allclose(whole.covariance(), np.cov(rows.T), rtol=1e-9)
    for cuts in ([1], [1, 2, 3], [50], range(1, 97)):
        parts = [Moments.of(part) for part in np.split(rows, list(cuts))]
        for order in (parts, parts[::-1]):
            merged = reduce(Moments.merge, order)
            assert merged.n == 97
            np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-15)
            np.testing.assert_allclose(merged.m2, whole.m2, rtol=1e-9, atol=1e-9)
            assert abs(frechet_of_moments(merged, whole)) < 1e-9


def test_the_distance_streams_its_rows_and_says_what_they_say_at_once(monkeypatch):
    a, b = (1e-2 * drawn(97, 5) + 1e3).astype(np.float32), (1.5e-2 * drawn(80, 5, 1) + 1e3).astype(np.float32)
    whole = frechet_distance(a, b)
    assert whole == close(frechet._distance(a, b, 1), rel=1e-9)
    assert interval(a, b, 0, halvings=2).distance == whole
    for rows in (1, 2, 30):
        monkeypatch.setattr(frechet, "_BATCH", rows)
        assert frechet_distance(a, b) == close(whole, rel=1e-9)


def test_half_precision_features_are_upcast_before_any_sum():
    half = [(1e-3 * drawn(3000, 4, seed) + 1).astype(np.float16) for seed in range(2)]
    double = [x.astype(np.float64) for x in half]
    assert frechet_distance(*half) == frechet_distance(*double) and by_rows(*half) == by_rows(*double)


def test_more_noise_is_never_nearer():
    real, noise = drawn(400, 6), drawn(400, 6, 1)
    found = [frechet_distance(real, real + strength * noise) for strength in np.linspace(0, 2, 21)]
    assert (np.diff(found) > 0).all()


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (np.where(np.arange(12).reshape(6, 2) == 7, np.nan, 1), drawn(6, 2), "first features, row 3: NaN"),
        (drawn(6, 2), np.float16(drawn(6, 2)) * np.float16(np.inf), "second features, row 0.*6 such rows"),
        (drawn(1, 2), drawn(6, 2), "2 rows or more, got 1"),
        (drawn(6, 2), drawn(0, 2), "2 rows or more, got 0"),
        (drawn(6, 2), drawn(6, 3), "of 2 and of 3 numbers"),
        (drawn(6, 2)[0], drawn(6, 2), r"\(N, D\)"),
    ],
)
def test_sets_that_have_no_distance_are_refused_by_name(a, b, words):
    with pytest.raises(DataError, match=words):
        frechet_distance(a, b)


def test_moments_and_settings_that_have_no_distance_are_refused():
    a = Moments.of(drawn(5, 2))
    with pytest.raises(DataError, match="2 samples or more, got 1"):
        frechet_of_moments(a, Moments.of(drawn(1, 2)), ddof=0)
    with pytest.raises(DataError, match="2 samples or more, got 1"):
        Moments.of(drawn(1, 2)).covariance()
    with pytest.raises(DataError, match="of 2 and of 3"):
        frechet_of_moments(a, Moments.of(drawn(5, 3)))
    with pytest.raises(DataError, match="of 2 and of 3"):
        a.merge(Moments.of(drawn(5, 3)))
    with pytest.raises(ConfigError, match="ddof"):
        frechet_of_moments(a, a, ddof=2)
    for wrong in ({"n": 1}, {"splits": 1}):
        with pytest.raises(ConfigError, match="2 samples and 2 splits"):
            floor(drawn(9, 2), **({"n": 3, "seed": 0} | wrong))
    for wrong in ({"level": 95}, {"halvings": 1}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            interval(drawn(9, 2), drawn(9, 2), 0, **wrong)


def test_the_floor_is_what_fresh_real_samples_give_and_says_its_n():
    found = floor(drawn(4000, 4), 100, seed=3, splits=60)
    fresh = [frechet_distance(drawn(100, 4, 2 * k + 9), drawn(100, 4, 2 * k + 10)) for k in range(60)]
    spread = math.hypot(np.std(fresh), found.std) / math.sqrt(60)
    assert found.n == 100 and abs(found.mean - np.mean(fresh)) < 4 * spread
    assert found == floor(drawn(4000, 4), 100, seed=3, splits=60)
    assert floor(drawn(31, 4), 100, seed=0, splits=2).n == 15


def test_the_interval_of_two_halves_of_one_set_covers_the_floor():
    covered = 0
    for seed in range(100):
        real = drawn(200, 8, seed)
        found = interval(real[:100], real[100:], seed, level=0.9, halvings=40)
        covered += found.low <= floor(real, 100, seed, splits=20).mean <= found.high
    assert covered >= 90


@pytest.mark.parametrize(("shift", "scale"), [(0.2, 1.0), (1.0, 1.0), (0.0, 1.5)])
def test_the_interval_covers_the_mean_of_different_sets(shift, scale):
    rng = np.random.default_rng(0)

    def pair():
        return rng.standard_normal((60, 3)), scale * rng.standard_normal((80, 3)) + shift

    expected = np.mean([frechet_distance(*pair()) for _ in range(500)])
    found = [interval(*pair(), seed, level=0.95, halvings=60) for seed in range(60)]
    # 5 standard errors of a binomial share around 0.95, and widths that are no more than they must be.
    assert np.mean([x.low <= expected <= x.high for x in found]) > 0.95 - 5 * math.sqrt(0.95 * 0.05 / 60)
    spread = np.std([x.distance for x in found])
    assert np.mean([x.high - x.distance for x in found]) < 1.5 * 1.96 * spread


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.5, 1.0), (0.0, 1.5)])
def test_extrapolation_finds_the_true_distance_within_its_error(shift, scale):
    true = 4 * (shift**2 + (scale - 1) ** 2)
    scores, raw = [], []
    for seed in range(25):
        a, b = drawn(100, 4, 2 * seed), scale * drawn(120, 4, 2 * seed + 1) + shift
        found = extrapolated(a, b, seed)
        scores.append((found.distance - true) / found.standard_error)
        raw.append(frechet_distance(a, b) - found.distance)
        assert found.slope > 0 and (found.smallest, found.largest) == (25, 100)
    assert np.abs(scores).max() < 3 and 0.6 < np.sqrt(np.square(scores).mean()) < 1.4
    assert np.mean(raw) > 4 * np.std(raw) / 5


def test_extrapolation_refuses_to_guess():
    a = drawn(40, 8)
    assert extrapolated(a, a[::-1], seed=0).smallest == 20
    for few, words in (
        (a[:39], "39 samples are too few.*40"),
        (drawn(40, 9), "45"),
        (drawn(16, 1), "15 points from 4"),
    ):
        with pytest.raises(ConfigError, match=words):
            extrapolated(few, few, seed=0)
    for wrong, words in (
        ({"points": 14}, "15 points"),
        ({"repeats": 4}, "5 repeats"),
        ({"smallest": 19}, "between 20"),
        ({"smallest": 27}, "and 26"),
    ):
        with pytest.raises(ConfigError, match=words):
            extrapolated(a, a, seed=0, **wrong)
