"""The sampling loop, and what it hands to a solver."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from vidiff.diffusion.guidance import DenoiseFn
from vidiff.diffusion.schedule import NoiseSchedule


@dataclass(frozen=True)
class Estimate:
    """What the denoiser said at one time."""

    x: Tensor  # the latents at that time, (B, C, f, h, w)
    x_0: Tensor  # the estimate, of the same shape
    t: Tensor  # the time, ()


@dataclass(frozen=True)
class SolverState:
    """What one step hands to the next."""

    x: Tensor  # latents at the current time, (B, C, f, h, w)
    past: tuple[Estimate, ...] = ()  # newest first, as many as the solver will use again

    @property
    def x_0(self) -> Tensor | None:
        """The newest estimate of x_0, (B, C, f, h, w)."""
        return self.past[0].x_0 if self.past else None


@dataclass(frozen=True)
class Problem:
    """What a solver integrates: a denoiser on its schedule, and where fresh noise comes from."""

    denoise: DenoiseFn
    schedule: NoiseSchedule
    randn: Callable[[], Tensor] | None = None  # of the latents' shape; only stochastic solvers need it
    num_steps: int = 1  # of the whole run
    step: int = 0  # which of them is taken, from 0
    variance: DenoiseFn | None = None  # the share of the log-variance that a network has learned

    @property
    def steps_left(self) -> int:
        """The number of steps to the end of the run, this one counted."""
        return self.num_steps - self.step

    def x_0(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the estimate of x_0 (B, C, f, h, w) for ``x`` at one time ``t`` ()."""
        return self.denoise(x, t.expand(x.shape[0]))

    def noise(self, like: Tensor) -> Tensor:
        """Return fresh standard normal noise."""
        if self.randn is None:
            raise ValueError("a stochastic solver needs randn")
        return self.randn().to(like)


@dataclass(frozen=True)
class Traits:
    """What users choose a solver by."""

    order: str  # of convergence: of the ODE's solution, or of the moments where noise is added
    evaluations: str  # of the denoiser, a step
    stochastic: bool  # adds fresh noise
    source: str  # paper and equation


class Step(Protocol):
    """One step of a solver from time ``t`` to an earlier time ``s``, both () and float64."""

    traits: ClassVar[Traits]

    def __call__(self, problem: Problem, state: SolverState, t: Tensor, s: Tensor) -> SolverState: ...


@torch.no_grad()
def sample(
    denoise: DenoiseFn,
    schedule: NoiseSchedule,
    solver: Step,
    noise: Tensor,
    times: Tensor,
    *,
    start: Tensor | None = None,
    randn: Callable[[], Tensor] | None = None,
    variance: DenoiseFn | None = None,
    temperature: float = 1.0,
    on_step: Callable[[int, int, Tensor], None] | None = None,
) -> Tensor:
    """Integrate from noise to data.

    Args:
        denoise: estimates x_0.
        schedule: the one the denoiser was trained on.
        solver: takes one step; see `vidiff.sampling.solvers`.
        noise: standard normal latents, (B, C, f, h, w).
        times: falling times, (num_steps + 1,), float64, on any device.
        start: clean latents of the same shape that lie under the noise when it begins; None: nothing is known of them.
        randn: draws fresh noise of the latents' shape, for stochastic solvers.
        variance: where the log-variance lies between its bounds, in [0, 1], for solvers that use a learned one.
        temperature: times all noise, ``noise`` and what ``randn`` draws (as in Kingma & Dhariwal, 2018).
        on_step: called as (steps done, num_steps, estimate of x_0) after each step.

    Returns:
        Clean latents, (B, C, f, h, w).
    """
    num_steps, times = len(times) - 1, times.to(noise.device)
    alpha, sigma = schedule.alpha_sigma(times[0])
    fresh = randn if randn is None or temperature == 1 else lambda: temperature * randn()
    problem = Problem(denoise, schedule, fresh, num_steps, variance=variance)
    x = (temperature * sigma).to(noise) * noise
    if start is not None:  # else whatever signal t_max still had is not known: none is put in
        x = x + alpha.to(noise) * start
    state = SolverState(x=x)
    for index in range(num_steps):
        state = solver(replace(problem, step=index), state, times[index], times[index + 1])
        if on_step is not None:
            on_step(index + 1, num_steps, state.x if state.x_0 is None else state.x_0)
    return state.x
