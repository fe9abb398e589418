import pytest
import torch

from vidiff.diffusion.training_times import LogitNormalTimes, StratifiedTimes, UniformTimes
from vidiff.errors import ConfigError


@pytest.mark.parametrize("times", [UniformTimes(), StratifiedTimes(), LogitNormalTimes()], ids=repr)
def test_times_are_a_function_of_the_generator_alone(times):
    state = torch.get_rng_state()
    first, again = (times.draw(7, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again) and first.shape == (7,) and first.dtype == torch.float32
    assert torch.equal(torch.get_rng_state(), state)


def test_strata_do_not_belong_to_places_in_the_batch():
    generator = torch.Generator().manual_seed(0)
    first_places = torch.stack([StratifiedTimes().draw(4, generator)[0] for _ in range(400)])
    shares = torch.histc(first_places, bins=4, min=0, max=1) / 400
    assert (shares - 0.25).abs().max() < 0.1  # over four standard errors


def test_strata_may_leave_out_what_sampling_never_meets():
    found = StratifiedTimes(t_min=0.2).draw(4, torch.Generator().manual_seed(0)).sort().values
    ends = torch.linspace(0.2, 1, 5)
    assert ((found >= ends[:-1]) & (found < ends[1:])).all()
    for t_min in (-0.1, 1.0):
        with pytest.raises(ConfigError, match="t_min is a time"):
            StratifiedTimes(t_min=t_min)


def test_a_spread_that_is_not_positive_is_refused():
    with pytest.raises(ConfigError, match="std must be positive"):
        LogitNormalTimes(std=0)
