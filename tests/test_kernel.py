"""The kernel distance, against its definition and torchmetrics."""

import numpy as np
import pytest
import torch
from torchmetrics.image.kid import poly_mmd

from vidiff.errors import ConfigError, DataError
from vidiff.metrics.kernel import kernel_distance, mean_of_parts, squared_mmd


def drawn(n, width=6, seed=0):
    return np.random.default_rng(seed).standard_normal((n, width))


def test_it_is_the_definition_summed_pair_by_pair():
    a, b = drawn(5, 3), drawn(4, 3, 1) + 1

    def kernel(x, y):
        return (x @ y / 3 + 1) ** 3

    own = [np.mean([kernel(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j]) for x in (a, b)]
    cross = np.mean([kernel(x, y) for x in a for y in b])
    assert squared_mmd(a, b) == pytest.approx(sum(own) - 2 * cross, rel=1e-12)


def test_rows_of_one_group_are_compared_with_the_other_set_only():
    a, b = drawn(6, 3), drawn(8, 3, 1) + 1

    def kernel(x, y):
        return (x @ y / 3 + 1) ** 3

    own = [
        np.mean([kernel(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i // 2 != j // 2]) for x in (a, b)
    ]
    cross = np.mean([kernel(x, y) for x in a for y in b])
    assert squared_mmd(a, b, group=2) == pytest.approx(sum(own) - 2 * cross, rel=1e-12)
    assert kernel_distance(a, b, 0, 3, 2, group=2).mean != pytest.approx(kernel_distance(a, b, 0, 6, 2).mean)


def like_frames(n, seed):
    """Clips of 16 rows that hardly differ."""
    return np.repeat(drawn(n, seed=seed), 16, 0) + 0.05 * drawn(16 * n, seed=seed + 1)


def test_clips_of_like_frames_average_to_zero_as_groups_alone():
    pairs = [(like_frames(12, 4 * k), like_frames(12, 4 * k + 2)) for k in range(100)]
    for distance in (
        lambda a, b: squared_mmd(a, b, 16),
        lambda a, b: mean_of_parts(a, b, 5, 16),
        lambda a, b: kernel_distance(a, b, 0, 6, 10, 16).mean,
    ):
        found = np.array([distance(*pair) for pair in pairs])
        assert abs(found.mean()) < 3 * found.std() / 10 and (found < 0).any()
    alone = np.array([squared_mmd(*pair) for pair in pairs])  # frames as if they were clips
    assert alone.mean() > 5 * alone.std() / 10


def test_the_mean_of_parts_leaves_out_no_row():
    a, b = drawn(22), drawn(9, seed=1) + 1
    assert mean_of_parts(a, b, 22) == pytest.approx(squared_mmd(a, b), rel=1e-12)
    by_parts = [squared_mmd(part, b) for part in np.split(a, [8, 15])]
    assert mean_of_parts(a, b, 10) == pytest.approx(np.mean(by_parts), rel=1e-12)
    assert np.isfinite([mean_of_parts(a[:n], b, 4) for n in range(2, 23)]).all()


def test_it_agrees_with_torchmetrics():
    a, b = drawn(50), 1.2 * drawn(50, seed=1) + 0.2
    expected = poly_mmd(torch.from_numpy(a), torch.from_numpy(b), degree=3, gamma=None, coef=1.0).item()
    assert squared_mmd(a, b) == pytest.approx(expected, rel=1e-9)
    whole = kernel_distance(a, b, seed=0, subset_size=50, subsets=3)
    assert whole.mean == pytest.approx(expected, rel=1e-9) and whole.std < 1e-12


def test_sets_of_one_kind_average_to_zero_with_negative_values_among_them():
    found = np.array([squared_mmd(drawn(20, seed=2 * k), drawn(30, seed=2 * k + 1)) for k in range(300)])
    assert abs(found.mean()) < 3 * found.std() / np.sqrt(300)
    assert 0.2 < (found < 0).mean() < 0.9


def test_a_negative_mean_survives():
    found = [kernel_distance(drawn(40, seed=2 * k), drawn(40, seed=2 * k + 1), k, 20, 10).mean for k in range(20)]
    assert min(found) < 0 < max(found)


def test_the_mean_over_subsets_is_that_of_the_sets_within_its_standard_error():
    a, b = drawn(300), drawn(200, seed=1) + 0.5
    found = kernel_distance(a, b, seed=4, subset_size=40, subsets=200)
    assert abs(found.mean - squared_mmd(a, b)) < 3 * found.standard_error
    assert found.standard_error == pytest.approx(found.std / np.sqrt(200))
    assert found == kernel_distance(a, b, seed=4, subset_size=40, subsets=200)
    assert found != kernel_distance(a, b, seed=5, subset_size=40, subsets=200)


def test_order_of_rows_and_sets_does_not_matter_and_half_precision_is_upcast():
    a, b = drawn(30), drawn(30, seed=1) + 1
    assert squared_mmd(b[::-1], a) == pytest.approx(squared_mmd(a, b), rel=1e-12)
    half = a.astype(np.float16)
    assert squared_mmd(half, b) == squared_mmd(half.astype(np.float64), b)


def test_more_noise_is_never_nearer():
    a, b, noise = drawn(400), drawn(400, seed=1), drawn(400, seed=2)
    found = [squared_mmd(a, b + strength * noise) for strength in np.linspace(0, 3, 13)]
    assert (np.diff(found[2:]) > 0).all() and max(found[:3]) < found[4]


def test_subsets_must_fit_the_sets():
    for wrong in ({"subset_size": 11}, {"subset_size": 1}, {"subsets": 1}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            kernel_distance(drawn(20), drawn(10), 0, **({"subset_size": 5, "subsets": 2} | wrong))
    with pytest.raises(DataError, match="row 2"):
        kernel_distance(drawn(4), np.where(np.arange(4)[:, None] == 2, np.inf, drawn(4)), 0, 2, 2)
    with pytest.raises(ConfigError, match="subset_size must be 2 to 5"):
        kernel_distance(drawn(20), drawn(10), 0, 6, 2, group=2)
    with pytest.raises(ConfigError, match="4 groups or more"):
        mean_of_parts(drawn(20), drawn(10), 3)
    for rows, group in ((drawn(9), 2), (drawn(3), 3)):
        with pytest.raises(DataError, match="second features must be two groups"):
            squared_mmd(drawn(12), rows, group)
