import math
from itertools import pairwise
from typing import get_args

import pytest
import torch
from torch import nn

from tests.mixtures import Mixture
from vidiff.diffusion.denoiser import Denoiser
from vidiff.diffusion.prediction import target
from vidiff.diffusion.schedule import CosineSchedule, FlowSchedule, LinearSchedule, ScaledLinearSchedule
from vidiff.errors import ConfigError
from vidiff.model_folder import SamplingConfig
from vidiff.sampling.adaptive import RK45
from vidiff.sampling.loop import Estimate, Problem, SolverState, sample
from vidiff.sampling.multistep import DEIS, LMS, PNDM, DPMpp2M, DPMpp2MSDE, DPMpp3M
from vidiff.sampling.noise import SeededNoise
from vidiff.sampling.one_step import DDIM, DDPM, LCM, Euler, EulerAncestral, ReverseSDE
from vidiff.sampling.solvers import SOLVERS, Solver, adjusted, settings_of, solver_by_name
from vidiff.sampling.times import karras_times, uniform_times
from vidiff.sampling.two_stage import EDM, DPMpp2S, Heun
from vidiff.sampling.unipc import UniPC
from vidiff.types import Conditioning, TextEmbedding

OTHERS = [
    *(DDIM(eta=0.5), DDIM(eta=1.0), UniPC(order=1), UniPC(order=3, variant="bh1"), DEIS(order=2), LMS(order=2)),
    *(Heun(axis="flow"), EulerAncestral(axis="flow"), DPMpp2S(middle="grid")),
    *(UniPC(order=3, lower_order_final=True), DEIS(lower_order_final=True), DPMpp3M(lower_order_final=True)),
]
ALL = [*(member() for member in get_args(Solver)), *OTHERS]
# What takes x_0 for the mean of all possible ones; `LCM` takes it for one of them.
OF_MEANS = [solver for solver in ALL if not isinstance(solver, LCM)]


def noise_of(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(count, 1, 1, 1, 1, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("schedule", [CosineSchedule(), FlowSchedule(shift=2.0)], ids=repr)
@pytest.mark.parametrize("solver", OF_MEANS, ids=repr)
def test_samples_recover_the_means_and_weights_of_a_mixture(solver, schedule):
    mixture = Mixture(schedule)
    randn = noise_of(5_000)
    steps = 5 if isinstance(solver, RK45) else 120  # it takes as many as it needs between these
    found = sample(mixture, schedule, solver, randn(), uniform_times(steps), randn=randn).flatten()
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
    assert torch.isfinite(found).all()
    if not (isinstance(solver, PNDM) and steps == 4):  # its two last steps extrapolate over a third of all noise
        # The outermost means are -2 and 3, with a deviation of 0.1.
        assert found.min() > -2.8 and found.max() < 3.8


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


class Gaussian:
    """The exact denoiser of a normal variable, and its exact probability flow, which is affine."""

    def __init__(self, schedule, std=0.5, mean=1.0):
        self.schedule, self.std, self.mean = schedule, std, mean

    def __call__(self, x, t):
        alpha, sigma = (v.view(-1, 1, 1, 1, 1) for v in self.schedule.alpha_sigma(t))
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        return self.mean + gain * (x - alpha * self.mean)

    def at(self, t, start):
        """Return x_t of the flow that begins ``start`` deviations off the mean."""
        alpha, sigma = self.schedule.alpha_sigma(t)
        return alpha * self.mean + (alpha**2 * self.std**2 + sigma**2).sqrt() * start


def gaussian_error(solver, steps, schedule):
    """Return how far a solver ends from the exact solution, with an exact past: a start has an order of its own."""
    gaussian, start = Gaussian(schedule), torch.full((1, 1, 1, 1, 1), 1.2, dtype=torch.float64)
    times = uniform_times(steps, t_min=0.05, t_max=0.8)
    earlier = times[0] + (times[0] - times[1]) * torch.arange(1, 4)
    past = [Estimate(gaussian.at(t, start), gaussian(gaussian.at(t, start), t[None]), t) for t in earlier]
    state = SolverState(gaussian.at(times[0], start), tuple(past))
    for step, (t, s) in enumerate(pairwise(times)):
        state = solver(Problem(gaussian, schedule, num_steps=steps, step=step), state, t, s)
    return (state.x - gaussian.at(times[-1], start)).item()


# With the order of convergence that theory gives each.
ORDERS = [
    (DDIM(), 1),
    (Euler(), 1),
    (EulerAncestral(eta=0.0), 1),
    (Heun(), 2),
    (Heun(axis="flow"), 2),
    (EDM(churn=0.0), 2),
    (DPMpp2S(), 2),
    (DPMpp2S(middle="grid"), 2),
    (DPMpp2M(), 2),
    (DPMpp3M(), 2),
    (DPMpp3M(published=False), 3),
    (DPMpp2MSDE(eta=0.0), 2),
    (PNDM(), 2),
    *((DEIS(order=order), order) for order in (1, 2, 3)),
    *((LMS(order=order), order) for order in (1, 2, 3, 4)),
    *((UniPC(order=order), order + 1) for order in (1, 2, 3)),
]


@pytest.mark.parametrize("schedule", [CosineSchedule(), FlowSchedule()], ids=repr)
@pytest.mark.parametrize(("solver", "order"), ORDERS, ids=repr)
def test_solvers_converge_at_their_order(solver, order, schedule):
    steps = 256 if isinstance(solver, DEIS | DPMpp3M) else 64  # below, the error of these changes its sign
    few, many = abs(gaussian_error(solver, steps, schedule)), abs(gaussian_error(solver, 4 * steps, schedule))
    assert math.log(few / many, 4) == pytest.approx(order, abs=0.25)


def variance_error(solver, steps):
    """Return by how much the variance of a Gaussian's samples is wrong, without drawing any.

    A run is linear in its start and in each noise. Each sample has one of these at 1 and all others at 0.
    """
    schedule = CosineSchedule()
    gaussian = Gaussian(schedule, mean=0.0)
    times = uniform_times(steps, t_min=0.05, t_max=0.8)
    ones = iter(torch.eye(steps + 1, dtype=torch.float64)[:, :, None, None, None, None])
    state, problem = SolverState(next(ones)), Problem(gaussian, schedule, lambda: next(ones), steps)
    for t, s in pairwise(times):
        state = solver(problem, state, t, s)
    (alpha_1, sigma_1), (alpha_0, sigma_0) = schedule.alpha_sigma(times[0]), schedule.alpha_sigma(times[-1])
    gains = state.x.flatten().square()
    variance = gains[0] * ((alpha_1 * gaussian.std) ** 2 + sigma_1**2) + gains[1:].sum()
    return (variance / ((alpha_0 * gaussian.std) ** 2 + sigma_0**2) - 1).item()


@pytest.mark.parametrize(
    ("solver", "order"),
    [
        *((DDPM(), 1), (DDIM(eta=1.0), 1), (EulerAncestral(), 1), (EulerAncestral(axis="flow"), 1)),
        *((ReverseSDE(), 1), (DPMpp2MSDE(), 2)),
    ],
    ids=repr,
)
def test_the_variance_of_stochastic_solvers_converges_at_their_order(solver, order):
    few, many = abs(variance_error(solver, 64)), abs(variance_error(solver, 256))
    assert math.log(few / many, 4) == pytest.approx(order, abs=0.25)


def test_adaptive_steps_meet_their_tolerance():
    errors = []
    for tolerance in (1e-3, 1e-6, 1e-9):
        calls = []
        gaussian, start = Gaussian(CosineSchedule()), torch.full((1, 1, 1, 1, 1), 1.2, dtype=torch.float64)
        denoise = lambda x, t, gaussian=gaussian, calls=calls: calls.append(t) or gaussian(x, t)  # noqa: E731
        times = torch.tensor([0.8, 0.05], dtype=torch.float64)
        x = RK45(atol=tolerance, rtol=tolerance)(
            Problem(denoise, CosineSchedule()), SolverState(gaussian.at(times[0], start)), *times
        ).x
        errors.append((x - gaussian.at(times[1], start)).abs().item())
        assert errors[-1] < 5 * tolerance and len(calls) < 400
    assert errors[0] > errors[1] > errors[2]


def test_adaptive_steps_of_a_sample_do_not_depend_on_its_neighbors():
    randn = noise_of(5)
    noise, times = randn(), uniform_times(2)
    together = sample(Mixture(CosineSchedule()), CosineSchedule(), RK45(), noise, times)
    alone = sample(Mixture(CosineSchedule()), CosineSchedule(), RK45(), noise[2:3], times)
    assert torch.equal(alone, together[2:3])


def test_multistep_consistency_sampling_keeps_the_distribution_of_a_perfect_network():
    gaussian, schedule = Gaussian(CosineSchedule()), CosineSchedule()

    def consistent(x, t):
        alpha, sigma = (v.view(-1, 1, 1, 1, 1) for v in schedule.alpha_sigma(t))
        return gaussian.mean + gaussian.std * (x - alpha * gaussian.mean) / torch.hypot(alpha * gaussian.std, sigma)

    randn = noise_of(40_000)
    for steps in (1, 4):
        found = sample(consistent, schedule, LCM(), randn(), uniform_times(steps), randn=randn)
        assert found.mean().item() == pytest.approx(1.0, abs=0.01)
        assert found.std().item() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("solver", ALL, ids=repr)
def test_the_same_noise_gives_the_same_samples(solver):
    ends = []
    for _ in range(2):
        randn = noise_of(4)
        ends.append(sample(Mixture(FlowSchedule()), FlowSchedule(), solver, randn(), uniform_times(6), randn=randn))
    assert torch.equal(*ends)


@pytest.mark.parametrize("solver", ALL, ids=repr)
def test_only_solvers_that_say_so_draw_noise(solver):
    draws = []
    noise = noise_of(2)()
    randn = lambda: draws.append(1) or noise  # noqa: E731
    sample(Mixture(CosineSchedule()), CosineSchedule(), solver, noise, uniform_times(20), randn=randn)
    assert bool(draws) == (solver.traits.stochastic or settings_of(solver).get("eta", 0) > 0)


def test_without_churn_or_fresh_noise_stochastic_solvers_are_their_deterministic_ones():
    for quiet, plain in (
        (EDM(churn=0.0), Heun()),
        (EulerAncestral(eta=0.0), Euler()),
        (DPMpp2MSDE(eta=0.0), DPMpp2M()),
    ):
        ends = [
            sample(Mixture(CosineSchedule()), CosineSchedule(), solver, noise_of(8)(), uniform_times(12))
            for solver in (quiet, plain)
        ]
        assert torch.allclose(*ends, atol=1e-9)


def test_churn_is_algorithm_2_of_the_paper():
    ratios = torch.linspace(3.0, 0.1, 9, dtype=torch.float64)
    schedule, solver = CosineSchedule(), EDM(churn=4.0, churn_min=0.3, churn_max=2.0, churn_noise=1.1)
    mixture, randn, again = Mixture(schedule), noise_of(6, 3), noise_of(6, 3)
    times = schedule.time_at(ratios)
    alphas = schedule.alpha_sigma(times)[0]
    denoise = lambda y, ratio: mixture(y / torch.hypot(ratio, torch.ones(())), schedule.time_at(ratio)[None])  # noqa: E731
    y = noise_of(6)() * ratios[0]
    state = SolverState(y * alphas[0])
    for index, (ratio, lower) in enumerate(pairwise(ratios)):
        state = solver(Problem(mixture, schedule, randn, 8), state, times[index], times[index + 1])
        higher = ratio
        if 0.3 <= ratio <= 2.0:
            higher = ratio * (1 + min(4.0 / 8, math.sqrt(2) - 1))
            y = y + (higher**2 - ratio**2).sqrt() * 1.1 * again()
        slope = (y - denoise(y, higher)) / higher
        ahead = y + (lower - higher) * slope
        y = y + (lower - higher) * (slope + (ahead - denoise(ahead, lower)) / lower) / 2
        assert torch.allclose(state.x / alphas[index + 1], y, atol=1e-6)


def test_settings_of_a_solver_are_set_by_name_and_others_refused():
    assert solver_by_name("ddim", eta=0.4) == DDIM(eta=0.4) and solver_by_name("unipc", order=3) == UniPC(order=3)
    assert adjusted(DEIS(), order=1) == DEIS(order=1)
    with pytest.raises(ConfigError, match="heun has no eta; those that have: ddim, dpmpp_2m_sde, euler_ancestral"):
        solver_by_name("heun", eta=0.5)
    with pytest.raises(ConfigError, match="euler has no order; those that have: deis, lms, unipc"):
        adjusted(Euler(), order=2)
    with pytest.raises(ConfigError, match="order lies in 1 to 3, got 4"):
        solver_by_name("deis", order=4)


def test_an_order_above_the_number_of_steps_is_refused():
    with pytest.raises(ConfigError, match="order 3 needs at least 3 steps, got 2; an order of 1 to 2 is possible"):
        SamplingConfig(solver=UniPC(order=3), num_steps=2)


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
