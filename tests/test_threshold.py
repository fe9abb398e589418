import pytest
import torch

from vidiff.diffusion.threshold import Threshold
from vidiff.errors import ConfigError


def test_values_beyond_the_percentile_are_clipped_and_all_shrink_by_it():
    x_0 = torch.arange(1.0, 11.0).view(1, 1, 1, 2, 5)
    found = Threshold(percentile=0.8, bound=1.0)(x_0).flatten()  # the 8th of 10 sizes is 8
    assert torch.allclose(found, torch.arange(1.0, 11.0).clamp(max=8) / 8)


def test_each_sample_has_its_own_threshold_and_one_within_bounds_is_left_alone():
    x_0 = torch.randn(3, 2, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    x_0 = x_0 / x_0.abs().amax((1, 2, 3, 4), keepdim=True)
    found = Threshold(percentile=0.9)(x_0 * torch.tensor([1.0, 5.0, 50.0]).view(3, 1, 1, 1, 1))
    assert torch.equal(found[0], x_0[0])
    assert found[1:].abs().amax((1, 2, 3, 4)).tolist() == pytest.approx([1, 1])
    assert not torch.allclose(found[1], x_0[1])  # it did clip


def test_a_bound_is_that_of_the_data():
    x_0 = torch.tensor([2.0, -6.0]).view(1, 1, 1, 1, 2)
    assert torch.equal(Threshold(percentile=0.99, bound=8.0)(x_0), x_0)
    assert Threshold(percentile=0.99, bound=3.0)(x_0).flatten().tolist() == [1, -3]


def test_a_percentile_of_one_is_off():
    x_0 = torch.full((1, 1, 1, 1, 2), 70.0)
    assert Threshold(bound=0.1)(x_0) is x_0


def test_clips_of_many_values_have_a_percentile():
    # torch.quantile refuses more than 2^24 of them.
    assert Threshold(percentile=0.5)(torch.full((1, 1, 1, 4097, 4096), 2.0)).max() == 1


@pytest.mark.parametrize("bad", [{"percentile": 0.0}, {"percentile": 1.5}, {"bound": 0.0}])
def test_impossible_thresholds_are_refused(bad):
    with pytest.raises(ConfigError):
        Threshold(**bad)
