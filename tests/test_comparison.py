"""Comparisons of models: intervals that cover, p-values that are uniform, ratings that are found again."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from vidiff.errors import ConfigError, DataError
from vidiff.metrics.comparison import Vote, compare, ratings, win_rate


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def within_binomial(share, expected, draws, bounds=4):
    return abs(share - expected) <= bounds * math.sqrt(expected * (1 - expected) / draws)


def test_the_exact_p_value_is_that_of_all_sign_flips():
    a, b = drawn(7), drawn(7, seed=1) - 0.8
    found = compare(a, b, seed=0)
    flipped = [abs(np.dot(signs, a - b)) for signs in itertools.product((-1, 1), repeat=7)]
    assert found.p_value == np.mean(np.array(flipped) >= abs((a - b).sum()) - 1e-12)
    assert found.difference == pytest.approx(np.mean(a - b)) and (found.prompts, found.clips) == (7, 7)
    reference = stats.permutation_test((a, b), lambda x, y: np.mean(x - y), permutation_type="samples")
    assert found.p_value == pytest.approx(reference.pvalue)


def test_equal_models_have_no_difference():
    found = compare(np.ones(9), np.ones(9), seed=0)
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def test_drawn_flips_come_near_the_exact_ones():
    a, b = drawn(12), drawn(12, seed=3)
    exact, near = compare(a, b, 0).p_value, compare(a, b, 0, resamples=4000).p_value
    assert 2**12 > 4000 and abs(near - exact) < 4 * math.sqrt(exact * (1 - exact) / 4000) + 1 / 4001


def null(seed, **options):
    """Two models of equal quality, compared."""
    prompts = options.pop("prompts")
    return compare(drawn(prompts, seed=2 * seed), drawn(prompts, seed=2 * seed + 1), seed, **options)


@pytest.mark.parametrize(("prompts", "resamples", "steps"), [(8, 256, 128), (30, 199, 200)], ids=["exact", "drawn"])
def test_p_values_are_uniform_without_a_difference(prompts, resamples, steps):
    draws = 600
    found = np.array([null(seed, prompts=prompts, resamples=resamples).p_value for seed in range(draws)])
    for level in (0.05, 0.25, 0.5, 0.75):  # multiples of 1 / steps are all as likely
        assert within_binomial((found < level + 1e-9).mean(), int(level * steps) / steps, draws)


def test_a_shift_is_found():
    found = [compare(drawn(30, seed=k) + 1, drawn(30, seed=k + 999), k, resamples=500) for k in range(50)]
    assert np.mean([x.p_value < 0.05 for x in found]) > 0.9
    assert np.mean([x.low > 0 for x in found]) > 0.9


def test_the_interval_covers_the_true_difference():
    found = [null(seed, prompts=25, resamples=300) for seed in range(300)]
    assert abs(np.mean([x.low <= 0 <= x.high for x in found]) - 0.95) < 0.05


def clustered(seed):
    """Scores of 6 clips of each of 12 prompts, where the difference of the models is the prompt's."""
    prompts = np.repeat(np.arange(12), 6)
    base, noise, differences = drawn(72, seed=3 * seed), drawn(72, seed=3 * seed + 1), drawn(12, seed=3 * seed + 2)
    return base + differences[prompts] + 0.3 * noise, base, prompts


def test_clips_of_one_prompt_are_not_taken_for_evidence_of_their_own():
    draws = 200
    sets = [clustered(seed) for seed in range(draws)]
    right, naive = (
        [compare(a, b, 0, prompts if known else None, resamples=200) for a, b, prompts in sets]
        for known in (True, False)
    )
    assert within_binomial(np.mean([x.p_value <= 0.05 for x in right]), 0.05, draws)
    assert np.mean([x.p_value <= 0.05 for x in naive]) > 0.3
    assert np.mean([x.low <= 0 <= x.high for x in right]) > 0.85 > np.mean([x.low <= 0 <= x.high for x in naive])
    assert (right[0].prompts, right[0].clips) == (12, 72)


def test_each_prompt_counts_once():
    found = compare(np.array([1.0, 1, 1, 4]), np.zeros(4), 0, np.array([3, 3, 3, 8]))
    assert found.difference == pytest.approx(2.5) and found.prompts == 2
    again = compare(np.array([1.0, 4]), np.zeros(2), 0)
    assert (found.low, found.high, found.p_value) == (again.low, again.high, again.p_value)


def test_a_comparison_is_a_function_of_its_seed_and_turns_with_its_models():
    a, b = drawn(40), drawn(40, seed=1)
    assert compare(a, b, 5) == compare(a, b, 5) != compare(a, b, 6)
    assert compare(b, a, 5).difference == -compare(a, b, 5).difference
    narrow, wide = compare(a, b, 5, level=0.5), compare(a, b, 5, level=0.99)
    assert wide.low < narrow.low < narrow.difference < narrow.high < wide.high


@pytest.mark.parametrize(
    ("a", "b", "prompts", "words"),
    [
        ([1.0, 2], [1.0], None, "one number a clip"),
        ([1.0, 2], [1.0, 2], [0], "one number a clip"),
        ([1.0, 2, math.nan], [1.0, 2, 3], None, "clip 2: NaN"),
        ([1.0, 2], [math.inf, 2], None, "clip 0"),
        ([1.0, 2], [1.0, 2], [4, 4], "two prompts or more, got 1"),
        ([], [], None, "two prompts or more, got 0"),
    ],
)
def test_scores_that_are_not_paired_are_refused(a, b, prompts, words):
    with pytest.raises(DataError, match=words):
        compare(np.array(a), np.array(b), 0, None if prompts is None else np.array(prompts))


def test_settings_out_of_range_are_refused():
    votes = [Vote("a", "b", 1)]
    for wrong in ({"level": 1.0}, {"resamples": 99}):
        for asked in (lambda **more: compare(drawn(4), drawn(4), 0, **more), lambda **more: ratings(votes, 0, **more)):
            with pytest.raises(ConfigError, match=next(iter(wrong))):
                asked(**wrong)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 60), st.integers(0, 60), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_the_win_rate_has_wilsons_interval(wins, losses, level):
    if wins + losses == 0:
        return
    found = win_rate(wins, losses, level=level)
    expected = stats.binomtest(wins, wins + losses).proportion_ci(level, "wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.rate == wins / (wins + losses)


def test_ties_are_half_wins():
    found = win_rate(3, 1, 4)
    assert found.rate == 5 / 8 and found.votes == 8
    assert (found.low, found.high) == (win_rate(5, 3).low, win_rate(5, 3).high)
    for counts in ((0, 0, 0), (-1, 3, 0)):
        with pytest.raises(DataError, match="one vote or more"):
            win_rate(*counts)


def cast(strengths, pairs, seed=0):
    """Votes by the model of Bradley and Terry; strengths are on the Elo scale."""
    rng = np.random.default_rng(seed)
    for (a, x), (b, y) in itertools.combinations(strengths.items(), 2):
        chance = 1 / (1 + 10 ** ((y - x) / 400))
        yield from (Vote(a, b, float(rng.random() < chance)) for _ in range(pairs))


TRUE = {"small": 800.0, "middle": 1000.0, "large": 1200.0}


def test_known_ratings_are_found_again():
    found = ratings(list(cast(TRUE, 4000)), seed=0)
    assert list(found) == ["large", "middle", "small"]
    for name, true in TRUE.items():
        assert abs(found[name].rating - true) < 15 and found[name].high - found[name].low < 40
        assert found[name].votes == 8000


def test_intervals_of_ratings_cover():
    draws, hits = 60, 0
    for seed in range(draws):
        found = ratings(list(cast(TRUE, 30, seed)), seed, resamples=200)
        hits += sum(found[name].low <= true <= found[name].high for name, true in TRUE.items())
    assert hits / (3 * draws) > 0.88


def test_two_models_differ_by_the_log_odds_of_their_votes():
    votes = [Vote("a", "b", 1)] * 6 + [Vote("b", "a", 1)] * 2 + [Vote("a", "b", 0.5)] * 2
    # Half a win and half a loss more: 7 + 1/2 against 3 + 1/2.
    gap = 400 * math.log10(7.5 / 3.5)
    found = ratings(votes, seed=0)
    assert found["a"].rating == pytest.approx(1000 + gap / 2) and found["b"].rating == pytest.approx(1000 - gap / 2)
    order = np.random.default_rng(0).permutation(10)
    turned = [Vote(v.second, v.first, 1 - v.score) for v in (votes[i] for i in order)]
    assert ratings(turned, seed=0) == found


def test_fitted_ratings_are_the_likeliest():
    votes = list(cast({"a": 900, "b": 950, "c": 1150, "d": 1000}, 12))
    found = {name: x.rating for name, x in ratings(votes, seed=0).items()}
    assert np.mean(list(found.values())) == pytest.approx(1000)
    prior = [Vote(*pair, score) for pair in itertools.combinations("abcd", 2) for score in (0, 1)]

    def expected(name, votes):
        others = [v.second if v.first == name else v.first for v in votes if name in (v.first, v.second)]
        return sum(1 / (1 + 10 ** ((found[other] - found[name]) / 400)) for other in others)

    # At the maximum each model's expected wins are its wins (prior votes count half).
    for name in "abcd":
        wins = sum(v.score if v.first == name else 1 - v.score for v in votes if name in (v.first, v.second)) + 3 / 2
        assert expected(name, votes) + expected(name, prior) / 2 == pytest.approx(wins)


def test_a_model_that_won_all_its_votes_has_a_finite_rating_with_a_width():
    found = ratings([Vote("a", "b", 1)] * 10 + [Vote("b", "c", 1)] * 500, seed=0)
    assert list(found) == ["a", "b", "c"]
    for rating in found.values():
        assert math.isfinite(rating.low) and math.isfinite(rating.high)
        assert rating.low < rating.rating < rating.high and rating.high - rating.low > 100


def test_models_that_were_never_compared_are_not_rated_together():
    with pytest.raises(DataError, match="no vote compares a, b with c, d"):
        ratings([Vote("a", "b", 1), Vote("c", "d", 0.5)], seed=0)
    with pytest.raises(DataError, match="one vote or more"):
        ratings([], seed=0)
    with pytest.raises(DataError, match="a twice"):
        Vote("a", "a", 1)
    with pytest.raises(DataError, match="a vote is 1"):
        Vote("a", "b", 2)
