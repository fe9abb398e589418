"""Our solvers beside diffusers' schedulers, trajectory against trajectory, in float64.

The reference computes in float32 here and there: its tables are replaced by float64 ones, and where its steps cast to
float32, that name is float64 for the time of the test.
"""

import itertools

import pytest
import torch

from vidiff.diffusion.schedule import FlowSchedule, LinearSchedule
from vidiff.sampling.loop import Problem, SolverState, sample
from vidiff.sampling.multistep import DEIS, LMS, DPMpp2M, DPMpp2MSDE, DPMpp3M
from vidiff.sampling.one_step import Euler, EulerAncestral, ReverseSDE
from vidiff.sampling.two_stage import DPMpp2S, Heun
from vidiff.sampling.unipc import UniPC

diffusers = pytest.importorskip("diffusers")

STEPS = 20
CLOSE = 1e-5
LINEAR = LinearSchedule()
ZERO_SNR = LinearSchedule(zero_terminal_snr=True)


def model_x0(x, alpha, sigma):
    """A smooth stand-in for a network."""
    return torch.tanh(alpha * x / (alpha**2 + sigma**2)) + 0.1 * sigma


def ours(schedule):
    def denoise(x, t):
        alpha, sigma = (v.view(-1, 1, 1, 1, 1) for v in schedule.alpha_sigma(t))
        return model_x0(x, alpha, sigma)

    return denoise


def start(seed=0):
    return torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def trajectory(solver, schedule, x, times, randn=None):
    """Run our steps from ``x`` itself, since the reference starts without scaling by sigma."""
    state, states = SolverState(x), []
    for step, (t, s) in enumerate(itertools.pairwise(times)):
        state = solver(Problem(ours(schedule), schedule, randn, len(times) - 1, step), state, t, s)
        states.append(state.x)
    return states


@pytest.fixture
def in_double(monkeypatch):
    monkeypatch.setattr(torch, "float32", torch.float64)


def on_grid(reference, ratios):
    """Let the reference step over ``ratios`` of sigma to alpha, float64."""
    reference.sigmas = ratios
    if reference.config.get("use_flow_sigmas"):
        reference.sigmas = ratios / (1 + ratios)
    return reference


def falling(start=8.0, end=0.05):
    """Return STEPS + 1 ratios, unevenly spaced on every axis, that do not end at 0."""
    ramp = torch.linspace(0, 1, STEPS + 1, dtype=torch.float64)
    return (start ** (1 / 3) + ramp * (end ** (1 / 3) - start ** (1 / 3))) ** 3


def agree_on_x_over_alpha(reference, solver, ratios, **options):
    """Compare with a reference that steps x / alpha and is given eps."""
    on_grid(reference, ratios)
    times = LINEAR.time_at(ratios)
    alphas, sigmas = LINEAR.alpha_sigma(times)
    x, again = start() * ratios[0], torch.Generator().manual_seed(5)
    draw = lambda: torch.randn(x.shape, generator=again, dtype=torch.float64)  # noqa: E731
    mine = trajectory(solver, LINEAR, x * alphas[0], times, draw)
    if options:
        options["generator"] = torch.Generator().manual_seed(5)
    for index, timestep in enumerate(reference.timesteps):
        alpha, sigma = alphas[index], sigmas[index]
        eps = (x * alpha - alpha * model_x0(x * alpha, alpha, sigma)) / sigma
        x = reference.step(eps, timestep, x, **options).prev_sample
        assert x.dtype == torch.float64
        assert (x * alphas[index + 1] - mine[index]).abs().max() < CLOSE


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize("end", [0.05, 0.0])
def test_euler(end):
    reference = diffusers.EulerDiscreteScheduler(timestep_spacing="linspace")
    reference.set_timesteps(STEPS)
    agree_on_x_over_alpha(reference, Euler(), falling(end=end))


@pytest.mark.usefixtures("in_double")
def test_euler_ancestral():
    reference = diffusers.EulerAncestralDiscreteScheduler()
    reference.set_timesteps(STEPS)
    agree_on_x_over_alpha(reference, EulerAncestral(), falling(), generator=True)


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_lms(order):
    reference = diffusers.LMSDiscreteScheduler()
    reference.set_timesteps(STEPS)
    step = reference.step
    reference.step = lambda *arguments: step(*arguments, order=order)
    agree_on_x_over_alpha(reference, LMS(order=order), falling())


@pytest.mark.usefixtures("in_double")
def test_heun():
    reference = diffusers.HeunDiscreteScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02)
    reference.set_timesteps(STEPS)
    ratios = falling(end=0.0)
    twice = torch.cat([ratios[:1], ratios[1:-1].repeat_interleave(2), ratios[-1:]])
    on_grid(reference, twice)
    times = LINEAR.time_at(ratios)
    alphas = LINEAR.alpha_sigma(times)[0]
    x = start() * ratios[0]
    mine = trajectory(Heun(), LINEAR, x * alphas[0], times)
    steps = 0
    for index, timestep in enumerate(reference.timesteps):
        alpha, sigma = LINEAR.alpha_sigma(LINEAR.time_at(twice[index]))
        eps = (x * alpha - alpha * model_x0(x * alpha, alpha, sigma)) / sigma
        first_order = reference.state_in_first_order
        x = reference.step(eps, timestep, x).prev_sample
        if not first_order or index == len(reference.timesteps) - 1:
            assert (x * alphas[steps + 1] - mine[steps]).abs().max() < CLOSE
            steps += 1
    assert steps == STEPS


class Exploding:
    """alpha = 1, sigma = t."""

    def alpha_sigma(self, t):
        return torch.ones_like(t), t

    def time_at(self, ratio):
        return ratio


@pytest.mark.usefixtures("in_double")
def test_euler_on_a_preconditioned_network():
    reference = diffusers.EDMEulerScheduler()
    reference.set_timesteps(STEPS)
    ratios = falling(start=80.0, end=0.0)
    reference.sigmas, x = ratios, start() * 80
    mine = trajectory(Euler(), Exploding(), x, ratios)
    for index, timestep in enumerate(reference.timesteps):
        ratio = ratios[index]
        x_0 = model_x0(x, torch.ones(()), ratio)
        skip, out = 0.25 / (ratio**2 + 0.25), ratio * 0.5 / (ratio**2 + 0.25).sqrt()
        x = reference.step((x_0 - skip * x) / out, timestep, x).prev_sample
        assert (x - mine[index]).abs().max() < CLOSE * 80


def test_the_reverse_sde_of_an_exploding_schedule():
    reference = diffusers.ScoreSdeVeScheduler()
    reference.set_timesteps(STEPS)
    ratios = falling(start=20.0, end=0.1)
    reference.discrete_sigmas = ratios.flip(0)  # its steps are counted from the least noise
    x, generator, again = start() * ratios[0], torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    draw = lambda: torch.randn(x.shape, generator=again, dtype=torch.float64)  # noqa: E731
    mine = trajectory(ReverseSDE(), Exploding(), x, ratios, draw)
    reference.timesteps = torch.linspace(1, 0, STEPS + 1, dtype=torch.float64)
    for index, timestep in enumerate(reference.timesteps[:-1]):
        ratio = ratios[index]
        score = (model_x0(x, torch.ones(()), ratio) - x) / ratio**2
        x = reference.step_pred(score, timestep, x, generator=generator).prev_sample
        assert (x - mine[index]).abs().max() < CLOSE


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.usefixtures("in_double")
def test_flow_euler(shift):
    reference = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    reference.set_timesteps(STEPS)
    schedule = FlowSchedule(shift=shift)  # the grid of sigmas decides: any shift finds its own times for it
    sigmas = torch.as_tensor(reference.sigmas, dtype=torch.float64)
    reference.sigmas = sigmas
    times = schedule.time_at(sigmas / (1 - sigmas))
    assert times[0] == 1 and times[-1] == 0
    x = start()
    mine = trajectory(Euler(), schedule, x, times)
    for index, timestep in enumerate(reference.timesteps):
        sigma = sigmas[index]
        velocity = (x - model_x0(x, 1 - sigma, sigma)) / sigma  # eps - x_0
        x = reference.step(velocity, timestep, x).prev_sample
        assert (x - mine[index]).abs().max() < CLOSE


def agree_on_x(reference, solver, ratios, flow=False, every=1, **options):
    """Compare with a reference that steps x and is given eps, or the velocity of a flow."""
    schedule = FlowSchedule() if flow else LINEAR
    on_grid(reference, ratios)
    times = schedule.time_at(ratios)
    alphas, sigmas = schedule.alpha_sigma(times)
    x, again = start(), torch.Generator().manual_seed(5)
    draw = lambda: torch.randn(x.shape, generator=again, dtype=torch.float64)  # noqa: E731
    mine = trajectory(solver, schedule, x, times[::every], draw)
    if options:
        options["generator"] = torch.Generator().manual_seed(5)
    for index, timestep in enumerate(reference.timesteps):
        alpha, sigma = alphas[index], sigmas[index]
        eps = (x - alpha * model_x0(x, alpha, sigma)) / sigma
        said = eps - model_x0(x, alpha, sigma) if flow else eps
        x = reference.step(said, timestep, x, **options).prev_sample
        if (index + 1) % every == 0:
            assert (x - mine[(index + 1) // every - 1]).abs().max() < CLOSE


MULTISTEP = {"algorithm_type": "dpmsolver++", "lower_order_final": False, "final_sigmas_type": "sigma_min"}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize(("solver", "order"), [(Euler(), 1), (DPMpp2M(), 2), (DPMpp3M(), 3)], ids=repr)
def test_dpm_solver_pp_multistep(solver, order, flow):
    reference = diffusers.DPMSolverMultistepScheduler(solver_order=order, **MULTISTEP, **(FLOW if flow else {}))
    reference.set_timesteps(STEPS)
    agree_on_x(reference, solver, falling(), flow)


@pytest.mark.usefixtures("in_double")
def test_dpm_solver_pp_2m_to_the_end():
    reference = diffusers.DPMSolverMultistepScheduler(final_sigmas_type="zero")
    reference.set_timesteps(STEPS)
    agree_on_x(reference, DPMpp2M(), falling(end=0.0))


@pytest.mark.usefixtures("in_double")
def test_sde_dpm_solver_pp_2m():
    reference = diffusers.DPMSolverMultistepScheduler(**(MULTISTEP | {"algorithm_type": "sde-dpmsolver++"}))
    reference.set_timesteps(STEPS)
    agree_on_x(reference, DPMpp2MSDE(), falling(), generator=True)


@pytest.mark.usefixtures("in_double")
def test_dpm_solver_pp_2s():
    # Its second stage is the next time of its grid: halfway where these are even in log-SNR.
    reference = diffusers.DPMSolverSinglestepScheduler(lower_order_final=False, final_sigmas_type="sigma_min")
    reference.set_timesteps(STEPS)
    agree_on_x(reference, DPMpp2S(), torch.logspace(1, -1.5, STEPS + 1, dtype=torch.float64), every=2)


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize("flow", [False, True])
def test_dpm_solver_pp_2s_through_the_times_of_its_grid(flow):
    reference = diffusers.DPMSolverSinglestepScheduler(
        lower_order_final=False, final_sigmas_type="sigma_min", **(FLOW if flow else {})
    )
    reference.set_timesteps(STEPS)
    agree_on_x(reference, DPMpp2S(middle="grid"), falling(), flow)


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc(order, variant, flow):
    reference = diffusers.UniPCMultistepScheduler(
        solver_order=order, solver_type=variant, lower_order_final=False, **(FLOW if flow else {})
    )
    reference.set_timesteps(STEPS)
    agree_on_x(reference, UniPC(order=order, variant=variant), falling(), flow)


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis(order):
    reference = diffusers.DEISMultistepScheduler(solver_order=order, lower_order_final=False)
    reference.set_timesteps(STEPS)
    agree_on_x(reference, DEIS(order=order), falling())


def test_a_whole_run_scales_the_noise_by_sigma():
    schedule = LINEAR
    end = sample(ours(schedule), schedule, Euler(), start(), torch.tensor([0.5, 0.0], dtype=torch.float64))
    _, sigma = schedule.alpha_sigma(torch.tensor(0.5, dtype=torch.float64))
    by_hand = trajectory(Euler(), schedule, sigma * start(), torch.tensor([0.5, 0.0], dtype=torch.float64))[-1]
    assert torch.allclose(end, by_hand)
