"""Our solvers beside diffusers' schedulers, trajectory against trajectory."""

import itertools

import numpy as np
import pytest
import torch

from vidiff.diffusion.schedule import FlowSchedule, LinearSchedule
from vidiff.sampling.loop import Problem, SolverState, sample
from vidiff.sampling.solvers import DDIM, DDPM, DPMpp2M, Euler, Heun

diffusers = pytest.importorskip("diffusers")

STEPS = 20
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
    for t, s in itertools.pairwise(times):
        state = solver(Problem(ours(schedule), schedule, randn), state, t, s)
        states.append(state.x)
    return states


def vp_times(timesteps):
    """Return our times of the reference's discrete steps k, whose alpha is that of (k + 1) / 1000, then 0."""
    return torch.cat([(torch.as_tensor(timesteps).double() + 1) / 1000, torch.zeros(1, dtype=torch.float64)])


def exact(reference):
    """Let the reference compute in float64 with the betas that float64 gives."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    reference.betas, reference.alphas = betas, 1 - betas
    reference.alphas_cumprod = (1 - betas).cumprod(0)
    return reference


def without_signal(reference):
    """Let the reference compute in float64 with its own rescaled betas."""
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    betas = rescale_zero_terminal_snr(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
    reference.betas, reference.alphas = betas, 1 - betas
    reference.alphas_cumprod = (1 - betas).cumprod(0)
    return reference


def eps_of(x, timestep, schedule=LINEAR):
    alpha, sigma = schedule.alpha_sigma((torch.as_tensor(timestep).double() + 1) / 1000)
    return (x - alpha * model_x0(x, alpha, sigma)) / sigma


def v_of(x, timestep):
    alpha, sigma = ZERO_SNR.alpha_sigma((torch.as_tensor(timestep).double() + 1) / 1000)
    return alpha * eps_of(x, timestep, ZERO_SNR) - sigma * model_x0(x, alpha, sigma)


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_ddim(eta):
    reference = exact(diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=True, timestep_spacing="leading"))
    reference.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    reference.set_timesteps(STEPS)
    x, draws = start(), [start(i + 1) for i in range(STEPS)]
    queue = iter(draws)
    mine = trajectory(DDIM(eta=eta), LINEAR, x, vp_times(reference.timesteps), lambda: next(queue))
    for index, timestep in enumerate(reference.timesteps):
        # The reference's previous step is k - 50, ours the next in its list; the last one goes to 0 in both.
        x = reference.step(eps_of(x, timestep), timestep, x, eta=eta, variance_noise=draws[index]).prev_sample
        assert (x - mine[index]).abs().max() < 1e-4


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_ddim_from_no_signal_at_all(eta):
    reference = without_signal(
        diffusers.DDIMScheduler(
            clip_sample=False,
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
        )
    )
    reference.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    reference.set_timesteps(STEPS)
    times = vp_times(reference.timesteps)
    assert times[0] == 1 and ZERO_SNR.alpha_sigma(times[0])[0] == 0
    x, draws = start(), [start(i + 1) for i in range(STEPS)]
    queue = iter(draws)
    mine = trajectory(DDIM(eta=eta), ZERO_SNR, x, times, lambda: next(queue))
    for index, timestep in enumerate(reference.timesteps):
        x = reference.step(v_of(x, timestep), timestep, x, eta=eta, variance_noise=draws[index]).prev_sample
        assert (x - mine[index]).abs().max() < 1e-4


def test_ddpm_from_no_signal_at_all():
    reference = without_signal(
        diffusers.DDPMScheduler(
            clip_sample=False,
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            variance_type="fixed_small",
        )
    )
    reference.one = torch.ones((), dtype=torch.float64)
    reference.set_timesteps(STEPS)
    x, generator, again = start(), torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    draw = lambda: torch.randn(x.shape, generator=again, dtype=torch.float64)  # noqa: E731
    mine = trajectory(DDPM(), ZERO_SNR, x, vp_times(reference.timesteps), draw)
    for index, timestep in enumerate(reference.timesteps):
        x = reference.step(v_of(x, timestep), timestep, x, generator=generator).prev_sample
        assert (x - mine[index]).abs().max() < 1e-4


def test_ddpm():
    reference = exact(diffusers.DDPMScheduler(clip_sample=False, variance_type="fixed_small"))
    reference.one = torch.ones((), dtype=torch.float64)
    reference.set_timesteps(STEPS)
    x, generator = start(), torch.Generator().manual_seed(5)
    again = torch.Generator().manual_seed(5)
    draw = lambda: torch.randn(x.shape, generator=again, dtype=torch.float64)  # noqa: E731
    mine = trajectory(DDPM(), LINEAR, x, vp_times(reference.timesteps), draw)
    for index, timestep in enumerate(reference.timesteps):
        x = reference.step(eps_of(x, timestep), timestep, x, generator=generator).prev_sample
        assert (x - mine[index]).abs().max() < 1e-4


def test_euler():
    reference = diffusers.EulerDiscreteScheduler(timestep_spacing="linspace")
    reference.set_timesteps(STEPS)
    ratios = torch.as_tensor(np.asarray(reference.sigmas), dtype=torch.float64)  # it works on x / alpha
    times = LINEAR.time_at(ratios)
    alphas, _ = LINEAR.alpha_sigma(times)
    x = start() * reference.init_noise_sigma
    mine = trajectory(Euler(), LINEAR, x * alphas[0], times)
    for index, timestep in enumerate(reference.timesteps):
        alpha, sigma = LINEAR.alpha_sigma(times[index])
        eps = (x * alpha - alpha * model_x0(x * alpha, alpha, sigma)) / sigma
        x = reference.step(eps, timestep, x).prev_sample
        assert (x * alphas[index + 1] - mine[index]).abs().max() < 1e-3


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_euler(shift):
    reference = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    reference.set_timesteps(STEPS)
    schedule = FlowSchedule(shift=shift)  # the grid of sigmas decides: any shift finds its own times for it
    sigmas = torch.as_tensor(reference.sigmas, dtype=torch.float64)
    times = schedule.time_at(sigmas / (1 - sigmas))
    assert times[0] == 1 and times[-1] == 0
    x = start()
    mine = trajectory(Euler(), schedule, x, times)
    for index, timestep in enumerate(reference.timesteps):
        sigma = sigmas[index]
        velocity = (x - model_x0(x, 1 - sigma, sigma)) / sigma  # eps - x_0
        x = reference.step(velocity, timestep, x).prev_sample
        assert (x - mine[index]).abs().max() < 1e-3


def test_dpm_solver_pp_2m():
    reference = exact(
        diffusers.DPMSolverMultistepScheduler(
            algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint", final_sigmas_type="zero"
        )
    )
    reference.set_timesteps(STEPS)
    ratios = torch.as_tensor(reference.sigmas, dtype=torch.float64)
    times = LINEAR.time_at(ratios)
    x = start()
    mine = trajectory(DPMpp2M(), LINEAR, x, times)
    for index, timestep in enumerate(reference.timesteps):
        alpha, sigma = LINEAR.alpha_sigma(times[index])
        eps = (x - alpha * model_x0(x, alpha, sigma)) / sigma
        x = reference.step(eps, timestep, x).prev_sample
        assert (x - mine[index]).abs().max() < 1e-3


def test_heun():
    reference = diffusers.HeunDiscreteScheduler(
        timestep_spacing="linspace", beta_schedule="linear", beta_start=1e-4, beta_end=0.02
    )
    reference.set_timesteps(STEPS)
    ratios = torch.unique_consecutive(torch.as_tensor(reference.sigmas, dtype=torch.float64))
    times = LINEAR.time_at(ratios)
    alphas = LINEAR.alpha_sigma(times)[0]
    x = start() * reference.init_noise_sigma
    mine = trajectory(Heun(), LINEAR, x * alphas[0], times)
    steps = 0
    for index, timestep in enumerate(reference.timesteps):
        ratio = torch.as_tensor(float(reference.sigmas[index]), dtype=torch.float64)
        alpha = 1 / torch.hypot(ratio, torch.ones_like(ratio))
        sigma = ratio * alpha
        eps = (x.double() * alpha - alpha * model_x0(x.double() * alpha, alpha, sigma)) / sigma
        first_order = reference.state_in_first_order
        x = reference.step(eps, timestep, x).prev_sample
        if not first_order or index == len(reference.timesteps) - 1:
            assert (x.double() * alphas[steps + 1] - mine[steps]).abs().max() < 1e-3
            steps += 1
    assert steps == STEPS


def test_a_whole_run_scales_the_noise_by_sigma():
    schedule = LINEAR
    end = sample(ours(schedule), schedule, Euler(), start(), torch.tensor([0.5, 0.0], dtype=torch.float64))
    _, sigma = schedule.alpha_sigma(torch.tensor(0.5, dtype=torch.float64))
    by_hand = trajectory(Euler(), schedule, sigma * start(), torch.tensor([0.5, 0.0], dtype=torch.float64))[-1]
    assert torch.allclose(end, by_hand)
