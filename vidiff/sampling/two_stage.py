"""Solvers that look twice within a step."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vidiff.errors import ConfigError
from vidiff.sampling.levels import Axis, Level, first_order, level, scaled_back
from vidiff.sampling.loop import Estimate, Problem, SolverState, Traits


@dataclass(frozen=True)
class Heun:
    """Second order, two evaluations a step, on the ODE of `Euler`; or with ``axis`` flow, on that of a flow.

    First order in the step that ends at t = 0; and where x_t is all but pure noise, which is no harm to a flow.
    """

    kind: Literal["heun"] = "heun"
    axis: Axis = "ratio"
    traits: ClassVar[Traits] = Traits("2", "2", False, "Karras et al., 2022, Algorithm 1")

    def __call__(self, problem: Problem, state: SolverState, t: Tensor, s: Tensor) -> SolverState:
        """Step from t to s."""
        return _heun(problem, state.x, t, s, self.axis)


@dataclass(frozen=True)
class EDM:
    """`Heun` after some fresh noise: before each step the noise grows by a factor of up to sqrt(2).

    Noise is counted in x / alpha, as in the paper. ``churn`` is spread over all steps; 0 is `Heun`.
    """

    kind: Literal["edm"] = "edm"
    churn: float = 40.0
    churn_min: float = 0.05  # only where sigma / alpha lies between these
    churn_max: float = 50.0
    churn_noise: float = 1.003  # deviation of the fresh noise
    traits: ClassVar[Traits] = Traits("2", "2", True, "Karras et al., 2022, Algorithm 2")

    def __post_init__(self) -> None:
        if min(self.churn, self.churn_min, self.churn_noise) < 0 or self.churn_max < self.churn_min:
            raise ConfigError(
                f"churn, churn_min and churn_noise are at least 0 and churn_max at least churn_min, got {self.churn}, "
                f"{self.churn_min}, {self.churn_noise} and {self.churn_max}"
            )

    def __call__(self, problem: Problem, state: SolverState, t: Tensor, s: Tensor) -> SolverState:
        """Step from t to s."""
        at_t = level(problem.schedule, t)
        gamma = min(self.churn / problem.num_steps, math.sqrt(2) - 1)
        # Without signal there is no noisier time to go to, and no bound on what churn_max would have to be.
        if gamma == 0 or not self.churn_min <= at_t.ratio <= self.churn_max:
            return _heun(problem, state.x, t, s)
        back = problem.schedule.time_at(at_t.ratio * (1 + gamma)).clamp(max=1)
        at_back = level(problem.schedule, back)
        added = (at_back.ratio.square() - at_t.ratio.square()).clamp(min=0).sqrt()
        noise = problem.noise(state.x)
        x = at_back.alpha * (state.x / at_t.alpha + self.churn_noise * added * noise)
        return _heun(problem, x.to(state.x.dtype), back, s)


@dataclass(frozen=True)
class DPMpp2S:
    """DPM-Solver++(2S): second order with an evaluation halfway in log-SNR.

    First order out of pure noise and into t = 0, where a step has no middle in log-SNR. With ``middle`` grid, two steps
    make one of second order, whose middle is the time between them: as many evaluations as steps. A last step that has
    no other to go with is of first order.
    """

    kind: Literal["dpmpp_2s"] = "dpmpp_2s"
    middle: Literal["halfway", "grid"] = "halfway"
    traits: ClassVar[Traits] = Traits("2", "2, or 1", False, "Lu et al., 2022, Algorithm 1")

    def __call__(self, problem: Problem, state: SolverState, t: Tensor, s: Tensor) -> SolverState:
        """Step from t to s."""
        at_t, at_s = level(problem.schedule, t), level(problem.schedule, s)
        x_0 = problem.x_0(state.x, t)
        if self.middle == "grid":
            return _every_other(problem, state, Estimate(state.x, x_0, t), s)
        if s > 0 and not at_t.is_pure_noise:
            middle = problem.schedule.time_at((at_t.ratio * at_s.ratio).sqrt())
            x = _exponential(state.x, at_t, level(problem.schedule, middle), x_0).to(state.x.dtype)
            x_s = _exponential(state.x, at_t, at_s, problem.x_0(x, middle))
        else:
            x_s = first_order(at_s, x_0, at_t.eps(state.x, x_0))
        return SolverState(x_s.to(state.x.dtype), (Estimate(state.x, x_0, t),))


def _heun(problem: Problem, x: Tensor, t: Tensor, s: Tensor, axis: Axis = "ratio") -> SolverState:
    at_t, at_s = level(problem.schedule, t), level(problem.schedule, s)
    x_0 = problem.x_0(x, t)
    eps = at_t.eps(x, x_0)
    x_s = first_order(at_s, x_0, eps)
    if s > 0 and axis == "flow":
        x_s = x_s.to(x.dtype)
        x_0_s = problem.x_0(x_s, s)
        turn = (at_s.eps(x_s, x_0_s) - x_0_s) - (eps - x_0)  # of the velocity, eps - x_0 (Liu et al., 2023)
        x_s = x_s + (at_s.alpha + at_s.sigma) * (at_s.flow_time - at_t.flow_time) * turn / 2
    # The correction is a difference of eps times sigma / alpha: singular at alpha = 0, and beyond any sample's
    # size long before that. At t = 0 eps has no meaning.
    elif s > 0 and not at_t.is_pure_noise:
        x_s = x_s.to(x.dtype)
        eps_s = at_s.eps(x_s, problem.x_0(x_s, s))
        step = at_s.sigma - at_s.alpha * at_t.ratio
        x_s = at_s.alpha / at_t.alpha * x + step * (eps + eps_s) / 2
    return SolverState(x_s.to(x.dtype), (Estimate(x, x_0, t),))


def _every_other(problem: Problem, state: SolverState, here: Estimate, s: Tensor) -> SolverState:
    """Step from ``here`` to s, or in every other step, through ``here`` from the time before to s."""
    at_t, at_s = level(problem.schedule, here.t), level(problem.schedule, s)
    x_s = first_order(at_s, here.x_0, at_t.eps(here.x, here.x_0))
    if problem.step % 2 and state.past and s > 0:
        begin = state.past[0]
        at_begin = level(problem.schedule, begin.t)
        if not at_begin.has_no_signal:
            whole, part = (at.half_log_snr - at_begin.half_log_snr for at in (at_s, at_t))
            x_0 = begin.x_0 + whole / (2 * part) * (here.x_0 - begin.x_0)
            x_s = _exponential(begin.x, at_begin, at_s, x_0)
    return SolverState(x_s.to(state.x.dtype), (here,))


def _exponential(x: Tensor, at_t: Level, at_s: Level, x_0: Tensor) -> Tensor:
    """Return x_s if x_0 is the same all the way (Lu et al., 2022, equation 8)."""
    step = at_s.half_log_snr - at_t.half_log_snr
    return scaled_back(at_t, at_s) * x - at_s.alpha * torch.expm1(-step) * x_0
