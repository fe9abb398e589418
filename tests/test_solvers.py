import math
from typing import get_args

import pytest
import torch
from torch import nn

from tests.mixtures import Mixture
from vidiff.diffusion.denoiser import Denoiser
from vidiff.diffusion.prediction import target
from vidiff.diffusion.schedule import CosineSchedule, FlowSchedule, LinearSchedule, ScaledLinearSchedule
from vidiff.errors import ConfigError
from vidiff.sampling.loop import sample
from vidiff.sampling.noise import SeededNoise
from vidiff.sampling.solvers import DDIM, DDPM, SOLVERS, DPMpp2M, Euler, Heun, Solver, solver_by_name
from vidiff.sampling.times import karras_times, uniform_times
from vidiff.types import Conditioning, TextEmbedding

ALL = [*(member() for member in get_args(Solver)), DDIM(eta=0.5), DDIM(eta=1.0)]


def noise_of(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(count, 1, 1, 1, 1, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("schedule", [CosineSchedule(), FlowSchedule(shift=2.0)], ids=repr)
@pytest.mark.parametrize("solver", ALL, ids=repr)
def test_samples_recover_the_means_and_weights_of_a_mixture(solver, schedule):
    mixture = Mixture(schedule)
    randn = noise_of(10_000)
    found = sample(mixture, schedule, solver, randn(), uniform_times(200), randn=randn).flatten()
    nearest = (found[:, None] - torch.tensor(mixture.means)).abs().argmin(1)
    for index, (mean, weight) in enumerate(zip(mixture.means, mixture.weights, strict=True)):
        chosen = found[nearest == index]
        assert chosen.mean().item() == pytest.approx(mean, abs=0.05)
        assert len(chosen) / len(found) == pytest.approx(weight, abs=0.03)


HARDEST = [  # none or next to no signal at t = 1
    CosineSchedule(),
    CosineSchedule(zero_terminal_snr=False),
    LinearSchedule(zero_terminal_snr=True),
    ScaledLinearSchedule(zero_terminal_snr=True),
    FlowSchedule(shift=5.0),
]
STEPS = [(schedule, steps) for schedule in HARDEST for steps in (1, 2, 4)] + [(CosineSchedule(), 1000)]


class ExactNetwork(nn.Module):
    """Answers with the target that the mixture's own denoiser implies."""

    def __init__(self, schedule, kind):
        super().__init__()
        self.schedule, self.kind = schedule, kind

    def forward(self, x, t, cond):
        alpha, sigma = (v.view(-1, 1, 1, 1, 1) for v in self.schedule.alpha_sigma(t))
        x_0 = Mixture(self.schedule)(x, t)
        return target(self.kind, x_0, (x - alpha * x_0) / sigma, alpha, sigma)


@pytest.mark.parametrize(("schedule", "steps"), STEPS, ids=repr)
@pytest.mark.parametrize("solver", ALL, ids=repr)
def test_no_number_of_steps_leaves_the_range_of_the_data(solver, schedule, steps):
    randn = noise_of(64)
    found = sample(Mixture(schedule), schedule, solver, randn(), uniform_times(steps), randn=randn)
    # The outermost means are -2 and 3, with a deviation of 0.1.
    assert torch.isfinite(found).all() and found.min() > -2.8 and found.max() < 3.8


@pytest.mark.parametrize("kind", ["x0", "v", "flow"])
@pytest.mark.parametrize("solver", ALL, ids=repr)
def test_float32_latents_and_a_network_end_where_exact_arithmetic_does(solver, kind):
    schedule = CosineSchedule()
    denoiser = Denoiser(ExactNetwork(schedule, kind), schedule, kind, text_dim=1)
    cond = Conditioning(TextEmbedding(torch.zeros(64, 1, 1), torch.ones(64, 1, dtype=torch.bool)))
    ends = []
    for denoise, dtype in ((Mixture(schedule), torch.float64), (lambda x, t: denoiser(x, t, cond), torch.float32)):
        randn = noise_of(64)
        end = sample(denoise, schedule, solver, randn().to(dtype), uniform_times(10), randn=randn)
        assert end.dtype == dtype
        ends.append(end.double())
    # One on the edge between two components may fall either way.
    assert ((ends[0] - ends[1]).abs() < 1e-5).double().mean() > 0.95


def gaussian_error(solver, steps, schedule, std=0.5, mean=1.0):
    """Return how far a solver ends from the exact probability-flow map of a Gaussian, which is affine."""

    def denoise(x, t):
        alpha, sigma = (v.view(-1, 1, 1, 1, 1) for v in schedule.alpha_sigma(t))
        gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        return mean + gain * (x - alpha * mean)

    times = uniform_times(steps, t_min=0.05, t_max=0.8)
    (a1, s1), (a0, s0) = schedule.alpha_sigma(times[0]), schedule.alpha_sigma(times[-1])
    x = sample(denoise, schedule, solver, torch.full((1, 1, 1, 1, 1), 1.7, dtype=torch.float64), times)
    deviation = lambda a, s: (a**2 * std**2 + s**2).sqrt()  # noqa: E731
    exact = a0 * mean + deviation(a0, s0) / deviation(a1, s1) * (s1 * 1.7 - a1 * mean)
    return x.item() - exact.item()


@pytest.mark.parametrize("schedule", [CosineSchedule(), FlowSchedule()], ids=repr)
@pytest.mark.parametrize(("solver", "order"), [(DDIM(), 1), (Euler(), 1), (Heun(), 2), (DPMpp2M(), 2)])
def test_solvers_converge_at_their_order(solver, order, schedule):
    few, many = abs(gaussian_error(solver, 64, schedule)), abs(gaussian_error(solver, 256, schedule))
    assert math.log(few / many, 4) == pytest.approx(order, abs=0.25)


def test_ancestral_sampling_is_ddim_with_full_noise():
    schedule = CosineSchedule()
    ends = []
    for solver in (DDPM(), DDIM(eta=1.0)):
        randn = noise_of(8)
        ends.append(sample(Mixture(schedule), schedule, solver, randn(), uniform_times(20), randn=randn))
    assert torch.allclose(*ends, atol=1e-9)


def test_the_last_step_of_a_multistep_solver_returns_the_estimate():
    schedule = CosineSchedule()
    estimates = []
    found = sample(
        Mixture(schedule),
        schedule,
        DPMpp2M(),
        noise_of(4)(),
        uniform_times(5),
        on_step=lambda done, total, x_0: estimates.append((done, total, x_0)),
    )
    assert torch.allclose(found, estimates[-1][2]) and [e[:2] for e in estimates] == [(i, 5) for i in range(1, 6)]


def test_noise_of_a_sample_does_not_depend_on_its_neighbors():
    alone, together = SeededNoise([7]), SeededNoise([3, 7, 9])
    for _ in range(2):
        assert torch.equal(alone.randn(2, 3, 5), together.randn(2, 3, 5)[1:2])


def test_a_solver_is_found_by_name_and_a_typo_gets_a_hint():
    assert all(solver_by_name(name).kind == name for name in SOLVERS)
    with pytest.raises(ConfigError, match=r"Did you mean euler\?"):
        solver_by_name("eulr")


def test_karras_times_fall_and_end_at_data():
    times = karras_times(LinearSchedule(), 20)
    assert times[-1] == 0 and (times.diff() < 0).all() and times.dtype == torch.float64


@pytest.mark.parametrize("steps", [0, -3])
def test_no_steps_are_refused(steps):
    with pytest.raises(ConfigError):
        uniform_times(steps)


def test_times_follow_the_latents_to_their_device():
    devices = []

    def denoise(x, t):
        devices.append(t.device.type)
        return x

    sample(denoise, CosineSchedule(), Euler(), torch.empty(2, 1, 1, 1, 1, device="meta"), uniform_times(2))
    assert devices == ["meta", "meta"]
