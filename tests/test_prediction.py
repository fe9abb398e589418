from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidiff.diffusion.prediction import Prediction, check_prediction, target, to_x0
from vidiff.diffusion.schedule import CosineSchedule, EDMSchedule, FlowSchedule, LinearSchedule, ScaledLinearSchedule
from vidiff.errors import ConfigError


@pytest.mark.parametrize("kind", get_args(Prediction))
@pytest.mark.parametrize(
    "schedule",
    [
        CosineSchedule(),
        FlowSchedule(shift=2.0),
        LinearSchedule(),
        ScaledLinearSchedule(zero_terminal_snr=True),
        EDMSchedule(),
    ],
    ids=repr,
)
@settings(deadline=None)  # a busy machine is no error
@given(t=st.floats(0.01, 0.99), x_0=st.floats(-5, 5), eps=st.floats(-5, 5))
def test_the_target_gives_back_the_data(kind, schedule, t, x_0, eps):
    alpha, sigma = schedule.alpha_sigma(torch.tensor([t], dtype=torch.float64))
    clean, noise = torch.tensor([x_0], dtype=torch.float64), torch.tensor([eps], dtype=torch.float64)
    output = target(kind, clean, noise, alpha, sigma)
    assert to_x0(kind, output, alpha * clean + sigma * noise, alpha, sigma).item() == pytest.approx(x_0, abs=1e-8)


@pytest.mark.parametrize("kind", ["x0", "v", "flow", "edm"])
def test_data_can_be_recovered_where_no_signal_is_left(kind):
    zero, one = torch.zeros(1), torch.ones(1)
    x_0, eps = torch.tensor([0.7]), torch.tensor([-1.3])
    assert to_x0(kind, target(kind, x_0, eps, zero, one), eps, zero, one).item() == pytest.approx(0.7)


def test_eps_is_refused_where_it_says_nothing():
    for kind in ("eps", "score"):
        with pytest.raises(ConfigError, match=f"{kind} says nothing at t = 1.*use v"):
            check_prediction(kind, CosineSchedule())
        check_prediction(kind, LinearSchedule())
        check_prediction(kind, EDMSchedule())


@pytest.mark.parametrize("kind", [kind for kind in get_args(Prediction) if kind != "score"])  # infinite there
def test_data_can_be_recovered_where_no_noise_is_left(kind):
    zero, one = torch.zeros(1), torch.ones(1)
    x_0, eps = torch.tensor([0.7]), torch.tensor([-1.3])
    assert to_x0(kind, target(kind, x_0, eps, one, zero), x_0, one, zero).item() == pytest.approx(0.7)


@settings(deadline=None)
@given(
    alpha=st.floats(0.01, 2),
    sigma=st.floats(0.01, 90),
    sigma_data=st.floats(0.1, 3),
    x_t=st.floats(-5, 5),
    said=st.floats(-5, 5),
    start=st.sampled_from(get_args(Prediction)),
    end=st.sampled_from(get_args(Prediction)),
)
def test_what_one_kind_says_every_other_can_say(alpha, sigma, sigma_data, x_t, said, start, end):
    alpha, sigma, x_t, said = (torch.tensor([v], dtype=torch.float64) for v in (alpha, sigma, x_t, said))
    clean = to_x0(start, said, x_t, alpha, sigma, sigma_data)
    again = target(end, clean, (x_t - alpha * clean) / sigma, alpha, sigma, sigma_data)
    back = to_x0(end, again, x_t, alpha, sigma, sigma_data)
    assert torch.allclose(back, clean, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.002, 0.5, 80.0])
def test_edm_is_the_preconditioning_of_the_paper(sigma):
    # Karras et al. (2022), table 1, with sigma_data = 0.5.
    x_t, said, sigma = (torch.tensor([v], dtype=torch.float64) for v in (0.9, -0.4, sigma))
    skip, out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / (sigma**2 + 0.25).sqrt()
    assert torch.allclose(to_x0("edm", said, x_t, torch.ones_like(sigma), sigma, 0.5), skip * x_t + out * said)


def test_edm_on_a_variance_preserving_schedule_is_v_turned_round():
    alpha, sigma = CosineSchedule().alpha_sigma(torch.tensor([0.3], dtype=torch.float64))
    x_0, eps = torch.tensor([0.7]), torch.tensor([-1.3])
    assert torch.allclose(target("edm", x_0, eps, alpha, sigma), -target("v", x_0, eps, alpha, sigma))
