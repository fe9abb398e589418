"""Inversion: from data to the noise that a deterministic sampler turns back into it."""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from vidiff.diffusion.guidance import DenoiseFn
from vidiff.diffusion.schedule import NoiseSchedule
from vidiff.errors import ConfigError
from vidiff.sampling.loop import Problem
from vidiff.tensors import expand_as


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
    x_t is the fixed point of a map and is found by Anderson's iteration (Pan et al., 2023).

    Args:
        denoise: estimates x_0; the one that sampling will use.
        schedule: the one the denoiser was trained on.
        latents: clean ones, (B, C, f, h, w).
        times: the falling times that sampling will visit, (num_steps + 1,), float64.
        num_iterations: evaluations a step; more bring the way back nearer to the latents.
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
    """Return the x_t whose step leads from t to ``x_s`` at s, and the estimate of x_0 there; ``x_0`` is that at s."""
    (alpha_s, sigma_s), (alpha_t, sigma_t) = problem.schedule.alpha_sigma(s), problem.schedule.alpha_sigma(t)

    def image(x_t: Tensor, x_0: Tensor) -> Tensor:
        """Return what a step with this estimate would have to start from."""
        if sigma_s == 0:  # the step keeps nothing but the estimate, so it is x_s that has to be estimated
            return x_t + alpha_t * (x_s / alpha_s - x_0)
        return alpha_t * x_0 + sigma_t / sigma_s * (x_s - alpha_s * x_0)

    x_t = alpha_t / alpha_s * x_s if sigma_s == 0 else image(x_s, x_0)
    last: tuple[Tensor, Tensor] | None = None
    for _ in range(num_iterations):
        x_t = x_t.to(x_s.dtype)
        x_0 = problem.x_0(x_t, t)
        found = image(x_t, x_0)
        move = found - x_t
        x_t = found if last is None else _mixed(found, move, *last)
        last = found, move
    return x_t.to(x_s.dtype), x_0


def _mixed(found: Tensor, move: Tensor, last_found: Tensor, last_move: Tensor) -> Tensor:
    """Return the mix of two images whose moves, mixed alike, are least (Walker & Ni, 2011, Algorithm AA at m = 1).

    Where the estimate changes fast, as at t = 1 between two grounds that the prompt leaves open, plain iteration jumps
    to and fro without end, and this does not. Each sample has its own mix.
    """
    change, move = (move - last_move).flatten(1).double(), move.flatten(1).double()
    square = change.square().sum(1)
    share = torch.where(square > 0, (change * move).sum(1) / square, 0)
    return found - expand_as(share.to(found.dtype), found) * (found - last_found)
