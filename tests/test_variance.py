"""The learned variance: its bound against torch's own, its gradient, and a model that has it."""

import math

import pytest
import torch
from torch import distributions

from tests.test_solvers import Gaussian, noise_of
from vidiff.diffusion.schedule import CosineSchedule, LinearSchedule
from vidiff.diffusion.variance import log_variance, neighbors, step_kl
from vidiff.errors import ConfigError
from vidiff.sampling.loop import sample
from vidiff.sampling.one_step import DDPM
from vidiff.sampling.times import uniform_times


@pytest.mark.parametrize("schedule", [CosineSchedule(), LinearSchedule()], ids=repr)
def test_a_step_of_the_bound_is_the_divergence_of_two_normals(schedule):
    generator = torch.Generator().manual_seed(0)
    shape = (4, 2, 1, 3, 3)
    x_0, found, eps = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    share = torch.rand(shape, generator=generator, dtype=torch.float64)
    t, s = neighbors(torch.tensor([0.0, 0.2, 0.5, 0.99]))
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (
        (v.view(-1, 1, 1, 1, 1) for v in schedule.alpha_sigma(time)) for time in (t, s)
    )
    x_t = alpha_t * x_0 + sigma_t * eps
    # Ho et al. (2020), equations 6 and 7, in the letters of this code.
    kept = alpha_t / alpha_s
    beta = sigma_t**2 - kept**2 * sigma_s**2
    mean = lambda clean: (kept * sigma_s**2 * x_t + alpha_s * beta * clean) / sigma_t**2  # noqa: E731
    posterior = beta * sigma_s**2 / sigma_t**2
    own = torch.exp(share * beta.log() + (1 - share) * posterior.log())
    assert torch.allclose(log_variance(schedule, share, t, s), own.log())
    kl = distributions.kl_divergence(
        distributions.Normal(mean(x_0), posterior.sqrt().expand(shape)), distributions.Normal(mean(found), own.sqrt())
    )
    assert torch.allclose(step_kl(schedule, x_0, found, share, t, s), kl.flatten(1).mean(1) / math.log(2))


def test_the_bound_teaches_the_variance_and_not_the_mean():
    found = torch.zeros(2, 1, 1, 1, 1, requires_grad=True)
    share = torch.full((2, 1, 1, 1, 1), 0.5, requires_grad=True)
    t, s = neighbors(torch.tensor([0.3, 0.8]))
    step_kl(CosineSchedule(), torch.ones(2, 1, 1, 1, 1), found, share, t, s).sum().backward()
    assert found.grad is None and share.grad.abs().min() > 0


def exact_share(schedule, std):
    """Return the share at which the variance is that of q(x_s | x_t), for data of deviation ``std``."""

    def share(x, t, s):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
        beta = sigma_t**2 - (alpha_t * sigma_s / alpha_s) ** 2
        posterior = beta * sigma_s**2 / sigma_t**2
        unknown = std**2 * sigma_t**2 / (alpha_t**2 * std**2 + sigma_t**2)  # variance of x_0 given x_t
        exact = posterior + (alpha_s * beta / sigma_t**2) ** 2 * unknown
        return ((exact / posterior).log() / (beta / posterior).log()).expand(x.shape)

    return share


def test_an_exact_variance_makes_few_steps_exact():
    schedule, gaussian = LinearSchedule(), Gaussian(LinearSchedule(), std=0.5, mean=0.0)
    times, randn = uniform_times(4, t_min=0.1), noise_of(60_000)
    share = exact_share(schedule, 0.5)
    after = dict(zip(times[:-1].tolist(), times[1:], strict=True))
    spread = {}
    for name in ("fixed_small", "fixed_large", "learned"):
        found = sample(
            gaussian,
            schedule,
            DDPM(variance=name),
            randn(),
            times,
            randn=randn,
            variance=lambda x, t: share(x, t[:1].view(1, 1, 1, 1, 1), after[t[0].item()]),
        )
        alpha, sigma = schedule.alpha_sigma(times[-1])
        spread[name] = found.std().item() / (alpha**2 * 0.25 + sigma**2).sqrt().item()
    assert spread["learned"] == pytest.approx(1, abs=0.01)
    assert abs(spread["fixed_small"] - 1) > 0.03 and abs(spread["fixed_large"] - 1) > 0.03


def test_a_variance_that_was_not_learned_is_refused():
    with pytest.raises(ConfigError, match="has learned no variance; use fixed_small or fixed_large"):
        sample(Gaussian(CosineSchedule()), CosineSchedule(), DDPM(variance="learned"), noise_of(1)(), uniform_times(3))
