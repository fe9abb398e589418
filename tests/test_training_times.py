import math
from typing import get_args

import pytest
import torch

from vidiff.diffusion.schedule import CosineSchedule, EDMSchedule, FlowSchedule, log_snr
from vidiff.diffusion.training_times import (
    CosMapTimes,
    EDMTimes,
    ImportanceTimes,
    LogitNormalTimes,
    ModeTimes,
    StratifiedTimes,
    TrainingTimes,
)
from vidiff.errors import ConfigError


@pytest.mark.parametrize("times", [member() for member in get_args(TrainingTimes)], ids=repr)
def test_times_are_a_function_of_the_generator_alone(times):
    state = torch.get_rng_state()
    first, again = (times.draw(7, torch.Generator().manual_seed(3), CosineSchedule()) for _ in range(2))
    assert torch.equal(first, again) and first.shape == (7,) and first.dtype == torch.float32
    assert torch.equal(torch.get_rng_state(), state)


def test_strata_do_not_belong_to_places_in_the_batch():
    generator = torch.Generator().manual_seed(0)
    first_places = torch.stack([StratifiedTimes().draw(4, generator, CosineSchedule())[0] for _ in range(400)])
    shares = torch.histc(first_places, bins=4, min=0, max=1) / 400
    assert (shares - 0.25).abs().max() < 0.1  # over four standard errors


def test_strata_may_leave_out_what_sampling_never_meets():
    found = StratifiedTimes(t_min=0.2).draw(4, torch.Generator().manual_seed(0), CosineSchedule()).sort().values
    ends = torch.linspace(0.2, 1, 5)
    assert ((found >= ends[:-1]) & (found < ends[1:])).all()
    for t_min in (-0.1, 1.0):
        with pytest.raises(ConfigError, match="t_min is a time"):
            StratifiedTimes(t_min=t_min)


def test_strata_move_towards_noise_and_still_begin_at_t_min():
    plain = StratifiedTimes(t_min=0.2).draw(1000, torch.Generator().manual_seed(0), CosineSchedule())
    found = StratifiedTimes(t_min=0.2, shift=20.0).draw(1000, torch.Generator().manual_seed(0), CosineSchedule())
    u = found / (20 - 19 * found)  # the inverse of equation 23 of Esser et al. (2024)
    least = 0.2 / (20 - 19 * 0.2)
    assert torch.allclose((u - least) / (1 - least), (plain - 0.2) / 0.8, atol=1e-4)
    assert found.min() >= 0.2 and found.max() <= 1 and (found > 0.95).float().mean() == pytest.approx(0.519, abs=0.005)
    with pytest.raises(ConfigError, match="shift must be positive"):
        StratifiedTimes(shift=0.0)


def test_a_spread_that_is_not_positive_is_refused():
    with pytest.raises(ConfigError, match="std must be positive"):
        LogitNormalTimes(std=0)


def quantiles(times, schedule):
    t = times.draw(40_000, torch.Generator().manual_seed(0), schedule).double()
    return t.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))


def test_modes_are_bent_uniform_times():
    # Equation 20 maps u to t and turns the order round, so quantile q of t is that of 1 - q in u.
    u = 1 - torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    expected = 1 - u - 1.29 * (torch.cos(math.pi / 2 * u) ** 2 - 1 + u)
    assert torch.allclose(quantiles(ModeTimes(), FlowSchedule()), expected, atol=0.01)
    assert torch.allclose(quantiles(ModeTimes(scale=0.0), FlowSchedule()), 1 - u, atol=0.01)


def test_mapped_times_have_the_log_snrs_of_the_cosine_schedule():
    found = log_snr(FlowSchedule(), quantiles(CosMapTimes(), FlowSchedule()))
    wanted = log_snr(CosineSchedule(), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))
    assert torch.allclose(found, wanted, atol=0.06)


@pytest.mark.parametrize("schedule", [EDMSchedule(), CosineSchedule(), FlowSchedule()], ids=repr)
def test_edm_times_have_log_normal_noise(schedule):
    t = EDMTimes().draw(40_000, torch.Generator().manual_seed(0), schedule).double()
    alpha, sigma = schedule.alpha_sigma(t)
    logs = (sigma / alpha).clamp(min=1e-4).log()
    assert logs.mean().item() == pytest.approx(-1.2, abs=0.03) and logs.std().item() == pytest.approx(1.2, abs=0.03)


def test_times_are_drawn_by_the_root_of_what_losses_were_and_counted_less():
    times = ImportanceTimes(bins=4, history=2, uniform=0.01)
    memory, generator = times.memory(), torch.Generator().manual_seed(0)
    t, counts = times.drawn_from(memory, 1000, generator)
    assert (counts == 1).all() and torch.histc(t, 4, 0, 1).min() > 200
    for _ in range(2):
        memory = times.remembered(memory, torch.tensor([0.1, 0.3, 0.6, 0.9]), torch.tensor([1.0, 1.0, 2.0, 4.0]))
    chances = 0.99 * torch.tensor([1, 1, 2, 4]) / 8 + 0.01 / 4
    t, counts = times.drawn_from(memory, 40_000, generator)
    assert torch.allclose(torch.histc(t, 4, 0, 1) / 40_000, chances, atol=0.01)
    assert torch.allclose(counts, 1 / (4 * chances[(t * 4).long()]))
    # Whatever is drawn more counts less: the mean of any quantity stays what it is for uniform times.
    assert (counts * t).mean().item() == pytest.approx(0.5, abs=0.01)


def test_only_the_newest_losses_are_remembered():
    times = ImportanceTimes(bins=1, history=2)
    memory = times.memory()
    for loss in (1.0, 2.0, 3.0):
        memory = times.remembered(memory, torch.tensor([1.0]), torch.tensor([loss]))
    assert memory.tolist() == [[3.0, 2.0]]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ModeTimes(scale=2.0), "scale lies in"),
        (lambda: EDMTimes(std=0), "std must be positive"),
        (lambda: ImportanceTimes(bins=0), "bins and history must be at least 1"),
        (lambda: ImportanceTimes(uniform=0.0), "uniform is a share"),
    ],
)
def test_impossible_settings_are_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()
