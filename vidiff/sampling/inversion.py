"""Inversion: from data to the noise that a deterministic sampler turns back into it."""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from vidiff.diffusion.guidance import DenoiseFn
from vidiff.diffusion.schedule import NoiseSchedule
from vidiff.errors import ConfigError
from vidiff.sampling.loop import Problem


@torch.no_grad()
def invert(
    denoise: DenoiseFn,
    schedule: NoiseSchedule,
    latents: Tensor,
    times: Tensor,
    *,
    num_iterations: int = 3,
    on_step: Callable[[int, int, Tensor], None] | None = None,
) -> Tensor:
    """Return the noise from which `sample` with DDIM or Euler makes ``latents``, (B, C, f, h, w).

    Every step of the sampler is undone by itself, the last one first (DDIM inversion: Song et al., 2021, section 4.3;
    Dhariwal & Nichol, 2021, appendix F). A step from t to s uses the estimate of x_0 at x_t, which is not known here:
    x_t is the fixed point of a map and is found by iterating (Pan et al., 2023, section 4.1).

    Args:
        denoise: estimates x_0; the one that sampling will use.
        schedule: the one the denoiser was trained on.
        latents: clean ones, (B, C, f, h, w).
        times: the falling times that sampling will visit, (num_steps + 1,), float64.
        num_iterations: evaluations a step; more bring the way back nearer to the latents, except for
            latents between two modes of the data, where the estimate jumps.
        on_step: called as (steps done, num_steps, estimate of x_0) after each step.

    Raises:
        ConfigError: if ``num_iterations`` is not positive.
    """
    if num_iterations < 1:
        raise ConfigError(f"the number of iterations must be at least 1, got {num_iterations}")
    problem, x, x_0 = Problem(denoise, schedule), latents, latents
    rising = times.to(latents.device).flip(0)
    for index, (s, t) in enumerate(itertools.pairwise(rising)):
        x, x_0 = _undone(problem, x, x_0, s, t, num_iterations)
        if on_step is not None:
            on_step(index + 1, len(rising) - 1, x_0)
    _, sigma = schedule.alpha_sigma(rising[-1])
    return (x / sigma).to(latents.dtype)


def _undone(
    problem: Problem, x_s: Tensor, x_0: Tensor, s: Tensor, t: Tensor, num_iterations: int
) -> tuple[Tensor, Tensor]:
    """Return the x_t whose step leads from t to ``x_s`` at s, and the estimate of x_0 there.

    ``x_0`` is the estimate at s. The wanted x_t is kept + pull * x_0(x_t); at s = 0 the sampler's step drops all noise,
    so there it is an x_t whose estimate of x_0 is ``x_s`` itself, looked for around the signal alone.
    """
    (alpha_s, sigma_s), (alpha_t, sigma_t) = problem.schedule.alpha_sigma(s), problem.schedule.alpha_sigma(t)
    if sigma_s == 0:
        x_t = alpha_t / alpha_s * x_s
        for _ in range(num_iterations):
            x_0 = problem.x_0(x_t.to(x_s.dtype), t)
            x_t = x_t + alpha_t * (x_s / alpha_s - x_0)
        return x_t.to(x_s.dtype), x_0
    pull = alpha_t - sigma_t / sigma_s * alpha_s
    kept = sigma_t / sigma_s * x_s
    # The estimate moves with x_t by 0 to 1 (a posterior's variance at unit variance of the data), the map by 0 to pull,
    # which is negative and near -1 in the first steps: plain iteration would jump to and fro. This much of a step is
    # best for all in between.
    share = 2 / (2 + pull.abs())
    x_t = kept + pull * x_0
    for _ in range(num_iterations):
        x_0 = problem.x_0(x_t.to(x_s.dtype), t)
        x_t = x_t + share * (kept + pull * x_0 - x_t)
    return x_t.to(x_s.dtype), x_0
