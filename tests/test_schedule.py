import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidiff.diffusion.schedule import (
    ConstantSchedule,
    CosineSchedule,
    EDMSchedule,
    ExponentialSchedule,
    FlowSchedule,
    LinearSchedule,
    QuadraticSchedule,
    ScaledLinearSchedule,
    SigmoidSchedule,
    has_no_signal_at_end,
    log_snr,
)
from vidiff.errors import ConfigError

SCHEDULES = [
    CosineSchedule(),
    CosineSchedule(shift=3.0),
    CosineSchedule(zero_terminal_snr=False),
    LinearSchedule(),
    LinearSchedule(zero_terminal_snr=True),
    ScaledLinearSchedule(),
    ScaledLinearSchedule(zero_terminal_snr=True),
    FlowSchedule(),
    FlowSchedule(shift=5.0),
    QuadraticSchedule(),
    ExponentialSchedule(zero_terminal_snr=True),
    ExponentialSchedule(),
    ConstantSchedule(),
    ConstantSchedule(zero_terminal_snr=True),
    SigmoidSchedule(),
    SigmoidSchedule(tau=0.5, start=0.0, zero_terminal_snr=False),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_time_starts_at_data_and_signal_falls(schedule):
    alpha, sigma = schedule.alpha_sigma(torch.linspace(0, 1, 501, dtype=torch.float64))
    assert alpha[0] == 1 and sigma[0] == 0
    assert (alpha.diff() < 0).all() and (sigma.diff() >= 0).all()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@settings(deadline=None)  # a busy machine is no error
@given(t=st.floats(1e-4, 1 - 1e-4))
def test_time_at_inverts_the_ratio_of_noise_to_signal(schedule, t):
    time = torch.tensor([t], dtype=torch.float64)
    alpha, sigma = schedule.alpha_sigma(time)
    assert schedule.time_at(sigma / alpha).item() == pytest.approx(t, abs=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_only_schedules_that_say_so_keep_signal_at_the_end(schedule):
    empty = getattr(schedule, "zero_terminal_snr", True)
    assert has_no_signal_at_end(schedule) == empty
    assert torch.isinf(log_snr(schedule, torch.ones(1))).item() == empty
    if empty:
        assert schedule.time_at(torch.tensor([math.inf], dtype=torch.float64)).item() == 1


@pytest.mark.parametrize("schedule", [s for s in SCHEDULES if not isinstance(s, FlowSchedule)], ids=repr)
def test_variance_is_preserved(schedule):
    alpha, sigma = schedule.alpha_sigma(torch.linspace(0, 1, 101, dtype=torch.float64))
    assert torch.allclose(alpha**2 + sigma**2, torch.ones(101, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize(
    ("ours", "beta_schedule", "start", "end"),
    [
        (LinearSchedule(), "linear", 1e-4, 0.02),
        (ScaledLinearSchedule(), "scaled_linear", 0.00085, 0.012),
        (QuadraticSchedule(), "scaled_linear", 1e-4, 0.02),
    ],
)
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_linear_schedules_pass_through_the_published_steps(ours, beta_schedule, start, end, zero_terminal_snr):
    from diffusers import DDIMScheduler

    reference = DDIMScheduler(
        beta_schedule=beta_schedule, beta_start=start, beta_end=end, rescale_betas_zero_snr=zero_terminal_snr
    )
    ours = type(ours)(zero_terminal_snr=zero_terminal_snr)
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    assert torch.allclose(ours.alpha_sigma(t)[0] ** 2, reference.alphas_cumprod.double(), atol=1e-5)


def test_the_trace_of_signal_that_the_cosine_leaves_is_the_published_one():
    from diffusers import DDIMScheduler

    published = DDIMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod[-1].double().sqrt()
    found, _ = CosineSchedule(zero_terminal_snr=False).alpha_sigma(torch.ones(1, dtype=torch.float64))
    assert found.item() == pytest.approx(published.item(), rel=0.01)  # the reference has the offset of 0.008


def test_a_shift_multiplies_the_ratio_of_noise_to_signal():
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    for plain, shifted in ((CosineSchedule(), CosineSchedule(shift=3.0)), (FlowSchedule(), FlowSchedule(shift=3.0))):
        (a, s), (a3, s3) = plain.alpha_sigma(t), shifted.alpha_sigma(t)
        assert torch.allclose(3 * s / a, s3 / a3)


@pytest.mark.parametrize(
    "build",
    [
        lambda: CosineSchedule(shift=0),
        lambda: FlowSchedule(shift=-1),
        lambda: LinearSchedule(beta_start=0.5, beta_end=0.1),
    ],
)
def test_impossible_settings_are_refused(build):
    with pytest.raises(ConfigError):
        build()


@pytest.mark.parametrize("schedule", [LinearSchedule(beta_end=0.019), ScaledLinearSchedule(beta_end=0.011)], ids=repr)
def test_a_schedule_first_used_while_building_on_meta_still_has_its_numbers(schedule):
    with torch.device("meta"):  # settings used nowhere else, so that no table of theirs is kept yet
        assert not has_no_signal_at_end(schedule)
    assert 0 < schedule.alpha_sigma(torch.tensor([0.5]))[0].item() < 1


def test_exponential_and_constant_betas_are_what_they_are_called():
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    for schedule, ratio in ((ExponentialSchedule(), 200 ** (1 / 999)), (ConstantSchedule(beta=0.01), 1.0)):
        power = torch.cat([torch.ones(1, dtype=torch.float64), schedule.alpha_sigma(t)[0] ** 2])
        betas = 1 - power[1:] / power[:-1]
        assert torch.allclose(betas[1:] / betas[:-1], torch.full((999,), ratio, dtype=torch.float64), atol=1e-6)


@pytest.mark.parametrize(("tau", "start", "end"), [(1.0, -3.0, 3.0), (0.9, 0.0, 3.0)])
def test_the_sigmoid_is_the_published_one(tau, start, end):
    # Algorithm 6 of the paper, in its own letters, before its clip at 1e-9.
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    v_start, v_end = (1 / (1 + math.exp(-place / tau)) for place in (start, end))
    gamma = (v_end - torch.sigmoid((t * (end - start) + start) / tau)) / (v_end - v_start)
    assert torch.allclose(SigmoidSchedule(start=start, end=end, tau=tau).alpha_sigma(t)[0] ** 2, gamma, atol=1e-12)


def test_the_exploding_schedule_has_the_published_levels_and_nothing_below_the_least():
    schedule = EDMSchedule()
    steps = torch.arange(18, dtype=torch.float64)
    published = (80 ** (1 / 7) + steps / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    alpha, sigma = schedule.alpha_sigma(1 - steps / 17)
    assert (alpha == 1).all() and torch.allclose(sigma[:-1], published[:-1]) and sigma[-1] == 0
    t = torch.linspace(0.01, 1, 50, dtype=torch.float64)
    assert torch.allclose(schedule.time_at(schedule.alpha_sigma(t)[1]), t)
    found = schedule.time_at(torch.tensor([0.0, 0.002, 0.001, 1e9], dtype=torch.float64))
    assert found[0] == 0 and found[-1] == 1
    assert schedule.alpha_sigma(found[1:3])[1].tolist() == pytest.approx([0.002, 0.002])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: EDMSchedule(sigma_min=2.0, sigma_max=1.0), "0 < sigma_min < sigma_max"),
        (lambda: SigmoidSchedule(tau=0), "tau must be positive"),
        (lambda: SigmoidSchedule(start=3.0), "start must lie below end"),
        (lambda: ConstantSchedule(beta=1.0), "beta lies between 0 and 1"),
    ],
)
def test_impossible_schedules_are_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()
