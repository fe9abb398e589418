from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidiff.diffusion.prediction import Prediction, check_prediction, target, to_x0
from vidiff.diffusion.schedule import CosineSchedule, FlowSchedule, LinearSchedule, ScaledLinearSchedule
from vidiff.errors import ConfigError


@pytest.mark.parametrize("kind", get_args(Prediction))
@pytest.mark.parametrize(
    "schedule",
    [CosineSchedule(), FlowSchedule(shift=2.0), LinearSchedule(), ScaledLinearSchedule(zero_terminal_snr=True)],
    ids=repr,
)
@settings(deadline=None)  # a busy machine is no error
@given(t=st.floats(0.01, 0.99), x_0=st.floats(-5, 5), eps=st.floats(-5, 5))
def test_the_target_gives_back_the_data(kind, schedule, t, x_0, eps):
    alpha, sigma = schedule.alpha_sigma(torch.tensor([t], dtype=torch.float64))
    clean, noise = torch.tensor([x_0], dtype=torch.float64), torch.tensor([eps], dtype=torch.float64)
    output = target(kind, clean, noise, alpha, sigma)
    assert to_x0(kind, output, alpha * clean + sigma * noise, alpha, sigma).item() == pytest.approx(x_0, abs=1e-8)


@pytest.mark.parametrize("kind", ["x0", "v", "flow"])
def test_data_can_be_recovered_where_no_signal_is_left(kind):
    zero, one = torch.zeros(1), torch.ones(1)
    x_0, eps = torch.tensor([0.7]), torch.tensor([-1.3])
    assert to_x0(kind, target(kind, x_0, eps, zero, one), eps, zero, one).item() == pytest.approx(0.7)


def test_eps_is_refused_where_it_says_nothing():
    with pytest.raises(ConfigError, match="use v"):
        check_prediction("eps", CosineSchedule())
    check_prediction("eps", LinearSchedule())


@pytest.mark.parametrize("kind", get_args(Prediction))
def test_data_can_be_recovered_where_no_noise_is_left(kind):
    zero, one = torch.zeros(1), torch.ones(1)
    x_0, eps = torch.tensor([0.7]), torch.tensor([-1.3])
    assert to_x0(kind, target(kind, x_0, eps, one, zero), x_0, one, zero).item() == pytest.approx(0.7)
