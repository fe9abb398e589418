"""Our solvers beside those of diffusers that step over 1000 discrete times, in float64."""

import pytest
import torch

from tests.test_solvers_reference import CLOSE, LINEAR, STEPS, ZERO_SNR, model_x0, start, trajectory
from vidiff.sampling.multistep import PNDM
from vidiff.sampling.one_step import DDIM, DDPM, LCM

diffusers = pytest.importorskip("diffusers")


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
        assert (x - mine[index]).abs().max() < CLOSE


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
        assert (x - mine[index]).abs().max() < CLOSE


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
        assert (x - mine[index]).abs().max() < CLOSE


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
        assert (x - mine[index]).abs().max() < CLOSE


def test_pndm():
    reference = exact(diffusers.PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=True))
    reference.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    reference.set_timesteps(STEPS)
    first, *rest = reference.timesteps.tolist()
    x = start()
    mine = trajectory(PNDM(), LINEAR, x, vp_times([first, *rest[1:]]))  # its second time comes twice
    for index, timestep in enumerate([first, *rest]):
        x = reference.step(eps_of(x, timestep), timestep, x).prev_sample
        if index > 0:
            assert (x - mine[index - 1]).abs().max() < CLOSE


def test_lcm():
    reference = exact(diffusers.LCMScheduler(clip_sample=False, set_alpha_to_one=True))
    reference.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    # Its boundary condition is part of the network here, as it is in `Denoiser`.
    reference.get_scalings_for_boundary_condition_discrete = lambda timestep: (0.0, 1.0)
    reference.set_timesteps(4)
    x, generator, again = start(), torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    draw = lambda: torch.randn(x.shape, generator=again, dtype=torch.float64)  # noqa: E731
    mine = trajectory(LCM(), LINEAR, x, vp_times(reference.timesteps), draw)
    for index, timestep in enumerate(reference.timesteps):
        x = reference.step(eps_of(x, timestep), timestep, x, generator=generator).prev_sample
        assert (x - mine[index]).abs().max() < CLOSE
