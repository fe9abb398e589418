import pytest

from vidiff.data.order import batch_indices, epoch_order, grouped_batch_indices


@pytest.mark.parametrize(("size", "batch"), [(10, 3), (7, 7), (5, 12), (64, 8)])
def test_every_epoch_visits_every_sample_once(size, batch):
    steps = 4 * size
    drawn = [index for step in range(steps) for index in batch_indices(size, batch, 3, step)]
    for epoch in range(len(drawn) // size):
        assert sorted(drawn[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_the_order_follows_from_seed_and_step_alone():
    assert batch_indices(100, 8, 1, 57) == batch_indices(100, 8, 1, 57)
    assert batch_indices(100, 8, 1, 57) != batch_indices(100, 8, 2, 57)
    assert epoch_order(100, 1, 0).tolist() != epoch_order(100, 1, 1).tolist()


def test_larger_batches_see_the_same_order():
    small = [index for step in range(6) for index in batch_indices(10, 4, 0, step)]
    large = [index for step in range(3) for index in batch_indices(10, 8, 0, step)]
    assert small == large


def test_grouped_batches_never_mix_and_miss_nobody():
    groups = [0] * 7 + [1] * 4 + [2]
    per_epoch = 3 + 2 + 1
    for epoch in range(3):
        batches = [grouped_batch_indices(groups, 3, 5, epoch * per_epoch + i) for i in range(per_epoch)]
        assert all(len(batch) == 3 and len({groups[i] for i in batch}) == 1 for batch in batches)
        assert {index for batch in batches for index in batch} == set(range(12))
    assert grouped_batch_indices(groups, 3, 5, 4) == grouped_batch_indices(groups, 3, 5, 4)
