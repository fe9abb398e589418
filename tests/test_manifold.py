"""Neighbors in feature space, against plain loops and planted cases."""

import numpy as np
import pytest

from vidiff.errors import ConfigError, DataError
from vidiff.metrics import manifold
from vidiff.metrics.manifold import ManifoldScores, diversity, manifold_scores, memorized, nearest


def drawn(n, width=4, seed=0):
    return np.random.default_rng(seed).standard_normal((n, width))


def by_loops(real, fake, k):
    """The definitions of both papers, word by word."""

    def distance(x, y):
        return np.linalg.norm(x - y)

    def radius(rows, i):
        return sorted(distance(rows[i], rows[j]) for j in range(len(rows)) if j != i)[k - 1]

    around_real, around_fake = ([radius(rows, i) for i in range(len(rows))] for rows in (real, fake))
    count = sum(distance(x, y) < r for x, r in zip(real, around_real, strict=True) for y in fake)
    return ManifoldScores(
        precision=np.mean([any(distance(x, y) <= r for x, r in zip(real, around_real, strict=True)) for y in fake]),
        recall=np.mean([any(distance(x, y) <= r for y, r in zip(fake, around_fake, strict=True)) for x in real]),
        density=count / (k * len(fake)),
        coverage=np.mean([any(distance(x, y) < r for y in fake) for x, r in zip(real, around_real, strict=True)]),
    )


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("block", [1, 100, 2**22])
def test_scores_are_the_definitions_at_any_block_size(monkeypatch, k, block):
    monkeypatch.setattr(manifold, "_BLOCK", block)
    real, fake = drawn(25), 1.2 * drawn(17, seed=1) + 0.9
    found, expected = manifold_scores(real, fake, k), by_loops(real, fake, k)
    assert min(vars(expected).values()) > 0 and max(expected.precision, expected.recall, expected.coverage) < 1
    assert vars(found) == pytest.approx(vars(expected), rel=1e-12)


@pytest.mark.parametrize("offset", [0, 1e4])
def test_equal_sets_score_one(offset):
    rows = drawn(60, 16) + offset
    shuffled = np.random.default_rng(1).permutation(rows)
    assert manifold_scores(rows, shuffled) == ManifoldScores(1.0, 1.0, 1.0, 1.0)


def test_far_sets_score_zero():
    assert manifold_scores(drawn(30), drawn(30, seed=1) + 100) == ManifoldScores(0.0, 0.0, 0.0, 0.0)


def test_a_collapsed_generator_is_precise_and_recalls_nothing():
    real = drawn(200)
    found = manifold_scores(real, 0.01 * drawn(50, seed=1))
    assert found.precision == 1 and found.recall < 0.05 and found.coverage < 0.3 and found.density > 1


def test_sets_of_one_kind_have_density_one_on_average():
    found = [manifold_scores(drawn(100, seed=2 * k), drawn(100, seed=2 * k + 1)).density for k in range(40)]
    # A fresh point falls into each ball with a chance of k / N: so the ball was made.
    assert abs(np.mean(found) - 1) < 4 * np.std(found) / np.sqrt(40)


def test_the_nearest_row_is_that_of_a_plain_search(monkeypatch):
    monkeypatch.setattr(manifold, "_BLOCK", 50)
    samples, reference = drawn(13), drawn(30, seed=1)
    distances = np.linalg.norm(samples[:, None] - reference[None], axis=2)
    found = nearest(samples.astype(np.float32), reference)
    np.testing.assert_array_equal(found.index, distances.argmin(1))
    np.testing.assert_allclose(found.distance, distances.min(1), rtol=1e-6)
    np.testing.assert_array_equal(nearest(reference[[4, 2]] + 0.0, reference).distance, 0)


def test_planted_copies_are_flagged_and_fresh_samples_are_not():
    train, heldout, fresh = drawn(300, 8), drawn(200, 8, 1), drawn(40, 8, 2)
    planted = train[[7, 11]] + [[0.0], [1e-3]]
    found = memorized(np.concatenate([fresh, planted]), train, heldout)
    assert found.flagged.tolist() == [False] * 40 + [True] * 2
    assert found.nearest.index[40:].tolist() == [7, 11] and found.nearest.distance[40] == 0


def test_fresh_samples_are_flagged_no_more_often_than_asked():
    train, share, draws = drawn(50, 3), 0.1, 200
    found = [memorized(drawn(20, 3, 9 + k), train, drawn(49, 3, 999 + k), share).flagged.mean() for k in range(draws)]
    # Of 49 held-out distances the 5th is the threshold: a new one is below it by a chance of 5 / 50.
    assert abs(np.mean(found) - share) < 4 * np.std(found) / np.sqrt(draws)


def test_the_least_share_that_so_many_clips_can_show_is_shown():
    for count in range(40, 100):  # 1 / 49 of 49 is not 1 in floating point
        assert memorized(drawn(3, 2), drawn(9, 2, 1), drawn(count, 2, 2), 1 / (count + 1)).threshold > 0


def test_what_cannot_be_flagged_is_refused():
    train = drawn(20)
    with pytest.raises(ConfigError, match=r"98 held-out .* take 99"):
        memorized(train, train, drawn(98, seed=1))
    with pytest.raises(DataError, match="2 held-out samples are in the training set"):
        memorized(train, train, np.concatenate([drawn(97, seed=1), train[:2]]))
    with pytest.raises(ConfigError, match="quantile"):
        memorized(train, train, train, quantile=0)


def test_diversity_is_the_mean_distance_of_pairs(monkeypatch):
    monkeypatch.setattr(manifold, "_BLOCK", 20)
    rows, prompts = drawn(9), np.array([5, 2, 5, 2, 2, 7, 5, 2, 0])

    def mean_of_pairs(index):
        pairs = [np.linalg.norm(rows[i] - rows[j]) for i in index for j in index if i < j]
        return np.mean(pairs)

    found = diversity(rows, prompts)
    assert found.overall == pytest.approx(mean_of_pairs(range(9)))
    assert found.within == pytest.approx((mean_of_pairs([0, 2, 6]) + mean_of_pairs([1, 3, 4, 7])) / 2)
    assert found.ratio == pytest.approx(found.within / found.overall)


def test_one_outcome_a_prompt_has_no_diversity_and_ignored_prompts_have_all():
    prompts = np.repeat(np.arange(30), 4)
    assert diversity(np.repeat(drawn(30), 4, 0), prompts).within == 0
    assert abs(diversity(drawn(120), prompts).ratio - 1) < 0.1
    assert np.isnan(diversity(np.ones((4, 2)), np.zeros(4)).ratio)


def test_sets_without_neighbors_are_refused():
    with pytest.raises(ConfigError, match="neighbors"):
        manifold_scores(drawn(9), drawn(9), 0)
    with pytest.raises(DataError, match="fake features must have 6 rows"):
        manifold_scores(drawn(9), drawn(5))
    with pytest.raises(DataError, match="of 4 and of 3"):
        nearest(drawn(9), drawn(9, 3))
    with pytest.raises(DataError, match="two samples"):
        diversity(drawn(4), np.arange(4))
    with pytest.raises(DataError, match="4 labels"):
        diversity(drawn(4), np.zeros(3))
