"""An adaptive Runge-Kutta solver of the probability-flow ODE."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vidiff.errors import ConfigError
from vidiff.sampling.levels import level
from vidiff.sampling.loop import Estimate, Problem, SolverState, Traits
from vidiff.tensors import expand_as

# Dormand & Prince (1980), the pair of orders 5 and 4 with seven stages.
_PLACES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_STAGES: tuple[tuple[float, ...], ...] = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERRORS = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
_NEAREST = 1e-3  # angle where integration ends if t = 0 is asked for: there 0 is divided by 0, and x_0 is all but known
_SHORTEST = 1e-9  # angle of a step that is taken whatever its error


@dataclass(frozen=True)
class RK45:
    """Adaptive steps of fifth order between the times of the grid, as many as ``atol`` and ``rtol`` ask for.

    The variable is the angle a with (cos a, sin a) = (alpha, sigma) / hypot(alpha, sigma), in which z = x /
    hypot(alpha, sigma) obeys dz / da = (cos(a) z - x_0) / sin(a): without a singularity where there is no signal
    (Salimans & Ho, 2022, appendix D). Every sample has its own steps, so that it does not depend on its neighbors.
    """

    kind: Literal["rk45"] = "rk45"
    atol: float = 1e-3
    rtol: float = 1e-3
    traits: ClassVar[Traits] = Traits("5", "6 or more", False, "Dormand & Prince, 1980; Song et al., 2021b, D.4")

    def __post_init__(self) -> None:
        if not (self.atol > 0 and self.rtol > 0):
            raise ConfigError(f"atol and rtol must be positive, got {self.atol} and {self.rtol}")

    def __call__(self, problem: Problem, state: SolverState, t: Tensor, s: Tensor) -> SolverState:
        """Step from t to s."""
        at_t, at_s = level(problem.schedule, t), level(problem.schedule, s)
        start = torch.atan2(at_t.sigma, at_t.alpha)
        end = torch.atan2(at_s.sigma, at_s.alpha)
        whole = end <= 0
        if whole:
            end = torch.minimum(torch.full_like(end, _NEAREST), start / 2)
        z = self._integrated(problem, state.x / torch.hypot(*at_t), start, end)
        if not whole:
            return SolverState((z * torch.hypot(*at_s)).to(state.x.dtype))
        x_0 = _estimate(problem, z, end.expand(len(z)))
        return SolverState(x_0.to(state.x.dtype), (Estimate(state.x, x_0, t),))

    def _integrated(self, problem: Problem, z: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """Return z (B, ...) at the angle ``end``, from ``start``, both ()."""
        angle = start.expand(len(z)).clone()
        step = ((end - start) / 10).expand(len(z)).clone()  # angles fall: negative
        slope = _slope(problem, z, angle)
        while bool((angle > end).any()):
            step = torch.maximum(step, end - angle)
            slopes = [slope]
            for place, weights in zip(_PLACES[1:], _STAGES[1:], strict=True):
                inside = z + expand_as(step, z) * sum(w * k for w, k in zip(weights, slopes, strict=True))
                slopes.append(_slope(problem, inside.to(z.dtype), angle + place * step))
            scale = self.atol + self.rtol * torch.maximum(z.abs(), inside.abs())
            errors = expand_as(step, z) * sum(w * k for w, k in zip(_ERRORS, slopes, strict=True)) / scale
            error = errors.square().flatten(1).mean(1).sqrt().clamp(min=1e-10)
            taken = (error <= 1) | (step.abs() <= _SHORTEST)
            z = torch.where(expand_as(taken, z), inside, z).to(z.dtype)
            slope = torch.where(expand_as(taken, z), slopes[-1], slope)
            angle = torch.where(taken, torch.where(step <= end - angle, end, angle + step), angle)
            step = torch.where(angle > end, step * (0.9 * error ** (-1 / 5)).clamp(0.2, 10), step)
        return z


def _estimate(problem: Problem, z: Tensor, angle: Tensor) -> Tensor:
    """Return the estimate of x_0 for ``z`` at the angle (B,) of each sample."""
    ratio = torch.where(angle >= math.pi / 2, torch.inf, torch.tan(angle))
    t = problem.schedule.time_at(ratio)
    scale = expand_as(torch.hypot(*problem.schedule.alpha_sigma(t)), z)
    return problem.denoise((z * scale).to(z.dtype), t)


def _slope(problem: Problem, z: Tensor, angle: Tensor) -> Tensor:
    wide = expand_as(angle, z)
    return (torch.cos(wide) * z - _estimate(problem, z, angle)) / torch.sin(wide)
