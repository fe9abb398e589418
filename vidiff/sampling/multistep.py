"""Linear multistep solvers: one evaluation a step, and what earlier steps have found.

All extrapolate x_0 or eps along log-SNR, sigma / alpha or the number of the step. Estimates out of pure noise lie at an
infinite place on the first two axes and are left out there: the order grows as in a first step.
"""

import itertools
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from vidiff.errors import ConfigError
from vidiff.sampling.levels import PLACES, WEIGHTS, Level, first_order, level, scaled_back
from vidiff.sampling.loop import Estimate, Problem, SolverState, Traits

# Below this many steps the authors of DPM-Solver lower the order of the last ones (Lu et al., 2022, their code).
_FEW_STEPS = 15

# Adams-Bashforth, by order (Liu et al., 2022, equation 12).
_ADAMS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def check_order(order: int, most: int) -> None:
    """Raise a ConfigError unless ``order`` is one of 1 to ``most``."""
    if not 1 <= order <= most:
        raise ConfigError(f"order lies in 1 to {most}, got {order}")


def final_order(problem: Problem, order: int, few_steps: int = _FEW_STEPS) -> int:
    """Return ``order``, or how many steps are left if that is less and the run has fewer than ``few_steps``."""
    return min(order, problem.steps_left) if problem.num_steps < few_steps else order


@dataclass(frozen=True)
class DPMpp2M:
    """DPM-Solver++(2M): second order.

    The first step and the last one are of first order: there is no past yet, and extrapolating into t = 0, where the
    step in log-SNR is infinite, is unstable.
    """

    kind: Literal["dpmpp_2m"] = "dpmpp_2m"
    traits: ClassVar[Traits] = Traits("2", "1", False, "Lu et al., 2022, Algorithm 2")

    def __call__(self, problem: Problem, state: SolverState, t: Tensor, s: Tensor) -> SolverState:
        """Step from t to s."""
        at_t, at_s = level(problem.schedule, t), level(problem.schedule, s)
        x_0 = problem.x_0(state.x, t)
        direction = x_0
        step = at_s.half_log_snr - at_t.half_log_snr
        if state.past and s > 0:
            last = at_t.half_log_snr - level(problem.schedule, state.past[0].t).half_log_snr
            if torch.isfinite(last):
                direction = x_0 + step / (2 * last) * (x_0 - state.past[0].x_0)
        x_s = scaled_back(at_t, at_s) * state.x - at_s.alpha * torch.expm1(-step) * direction
        return SolverState(x_s.to(state.x.dtype), (Estimate(state.x, x_0, t),))


@dataclass(frozen=True)
class DPMpp3M:
    """DPM-Solver++(3M): lower where `DPMpp2M` is, and in the step after.

    The authors' code, and all that follows it, counts the term of the second derivative half, which leaves a method of
    second order with a small error. Counted whole (``published: false``) it is of third order.
    """

    kind: Literal["dpmpp_3m"] = "dpmpp_3m"
    published: bool = True
    lower_order_final: bool = False  # in runs of fewer than 15 steps, the last but one is of second order
    traits: ClassVar[Traits] = Traits("2, or 3", "1", False, "Lu et al., 2022, section 3.4 and the authors' code")

    def __call__(self, problem: Problem, state: SolverState, t: Tensor, s: Tensor) -> SolverState:
        """Step from t to s."""
        at_t, at_s = level(problem.schedule, t), level(problem.schedule, s)
        x_0 = problem.x_0(state.x, t)
        past = (Estimate(state.x, x_0, t), *(one for one, _ in with_signal(problem, state.past)))
        order = final_order(problem, 3) if self.lower_order_final else 3
        step = at_s.half_log_snr - at_t.half_log_snr
        base = torch.expm1(-step)
        x_s = scaled_back(at_t, at_s) * state.x - at_s.alpha * base * x_0
        slopes = _slopes(problem, past[:order], step)
        if s > 0 and slopes and not at_t.has_no_signal:
            # With two slopes: the first derivative at t and half the second one, by Newton's differences.
            first, second = slopes[0][1], None
            if len(slopes) > 1:
                (near, slope), (far, earlier) = slopes
                second = (slope - earlier) / (near + far)
                first = slope + near * second
            weight = base / step + 1 if second is not None else -base / 2
            x_s = x_s + at_s.alpha * weight * first
            if second is not None:
                share = 1 if self.published else 2
                x_s = x_s - at_s.alpha * share * ((base + step) / step.square() - 0.5) * second
        return SolverState(x_s.to(state.x.dtype), past[:2])


@dataclass(frozen=True)
class DPMpp2MSDE:
    """SDE-DPM-Solver++(2M): `DPMpp2M` on the reverse SDE; ``eta`` 0 is `DPMpp2M`, 1 all of the SDE's noise."""

    kind: Literal["dpmpp_2m_sde"] = "dpmpp_2m_sde"
    eta: float = 1.0
    traits: ClassVar[Traits] = Traits("2", "1", True, "Lu et al., 2022, section 5 and the authors' code")

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ConfigError(f"eta lies in [0, 1], got {self.eta}")

    def __call__(self, problem: Problem, state: SolverState, t: Tensor, s: Tensor) -> SolverState:
        """Step from t to s."""
        at_t, at_s = level(problem.schedule, t), level(problem.schedule, s)
        x_0 = problem.x_0(state.x, t)
        step = at_s.half_log_snr - at_t.half_log_snr
        # 0 times an infinite step, out of no signal, is the limit 0
        forgotten = self.eta * step if self.eta else torch.zeros_like(step)
        share = -torch.expm1(-step - forgotten)
        x_s = scaled_back(at_t, at_s) * torch.exp(-forgotten) * state.x + at_s.alpha * share * x_0
        if state.past and s > 0:
            last = at_t.half_log_snr - level(problem.schedule, state.past[0].t).half_log_snr
            if torch.isfinite(last):
                x_s = x_s + at_s.alpha * share * step / (2 * last) * (x_0 - state.past[0].x_0)
        if self.eta > 0 and s > 0:
            x_s = x_s + at_s.sigma * (-torch.expm1(-2 * forgotten)).sqrt() * problem.noise(x_s)
        return SolverState(x_s.to(state.x.dtype), (Estimate(state.x, x_0, t),))


@dataclass(frozen=True)
class PNDM:
    """Pseudo linear multistep (PLMS): the eps of four steps mixed as if they lay evenly, then a step of `DDIM`.

    The first step looks twice. The mixture is of fourth order in t, the step that uses it of second.
    """

    kind: Literal["pndm"] = "pndm"
    traits: ClassVar[Traits] = Traits("2", "1, the first step 2", False, "Liu et al., 2022, equations 11 and 12")

    def __call__(self, problem: Problem, state: SolverState, t: Tensor, s: Tensor) -> SolverState:
        """Step from t to s."""
        at_t, at_s = level(problem.schedule, t), level(problem.schedule, s)
        x_0 = problem.x_0(state.x, t)
        past = (Estimate(state.x, x_0, t), *(one for one, _ in usable(problem, state.past)))
        eps = [level(problem.schedule, e.t).eps(e.x, e.x_0) for e in past]
        x_s = first_order(at_s, x_0, eps[0])
        if not at_t.is_pure_noise:
            mixed = sum(weight * one for weight, one in zip(_ADAMS[len(eps) - 1], eps, strict=True))
            if len(past) == 1 and s > 0:
                x = x_s.to(state.x.dtype)
                mixed = (eps[0] + at_s.eps(x, problem.x_0(x, s))) / 2
            x_s = x_s + at_s.alpha * (at_s.ratio - at_t.ratio) * (mixed - eps[0])
        return SolverState(x_s.to(state.x.dtype), past[:3])


@dataclass(frozen=True)
class LMS:
    """Adams-Bashforth on the ODE of `Euler`, with eps a polynomial in sigma / alpha through the last estimates.

    Of first order into t = 0: a last step may be many times as long as those before, and what is extrapolated so far is
    without bound.
    """

    kind: Literal["lms"] = "lms"
    order: int = 4
    traits: ClassVar[Traits] = Traits("1 to 4", "1", False, "Adams-Bashforth on Karras et al., 2022, equation 4")

    def __post_init__(self) -> None:
        check_order(self.order, 4)

    def __call__(self, problem: Problem, state: SolverState, t: Tensor, s: Tensor) -> SolverState:
        """Step from t to s."""
        x_0 = problem.x_0(state.x, t)
        past = (Estimate(state.x, x_0, t), *state.past)[: self.order]
        x_s = _adams(problem, usable(problem, past), past[0], s, logarithmic=False)
        return SolverState(x_s.to(state.x.dtype), past)


@dataclass(frozen=True)
class DEIS:
    """Exponential integrator with eps a polynomial in log(sigma / alpha) through the last estimates (tAB-DEIS).

    Of first order into t = 0, which lies at minus infinity there.
    """

    kind: Literal["deis"] = "deis"
    order: int = 3
    lower_order_final: bool = False  # in runs of fewer than 15 steps, no higher than the number of steps left
    traits: ClassVar[Traits] = Traits("1 to 3", "1", False, "Zhang & Chen, 2023, equations 14 and 15")

    def __post_init__(self) -> None:
        check_order(self.order, 3)

    def __call__(self, problem: Problem, state: SolverState, t: Tensor, s: Tensor) -> SolverState:
        """Step from t to s."""
        x_0 = problem.x_0(state.x, t)
        past = (Estimate(state.x, x_0, t), *state.past)[: self.order]
        order = final_order(problem, self.order) if self.lower_order_final else self.order
        # On a logarithmic axis what all but pure noise says lies near enough to be of use.
        x_s = _adams(problem, with_signal(problem, past)[:order], past[0], s, logarithmic=True)
        return SolverState(x_s.to(state.x.dtype), past)


def _adams(
    problem: Problem, past: list[tuple[Estimate, Level]], here: Estimate, s: Tensor, logarithmic: bool
) -> Tensor:
    """Return x_s: d(x / alpha) = eps d(sigma / alpha) from ``here``, with eps a polynomial through ``past``."""
    at_s, eps = level(problem.schedule, s), level(problem.schedule, here.t).eps(here.x, here.x_0)
    x_s = first_order(at_s, here.x_0, eps)
    if len(past) > 1 and s > 0:
        weights = _integrals([at.ratio.item() for _, at in past], at_s.ratio.item(), logarithmic)
        for weight, (one, at) in zip(weights[1:], past[1:], strict=True):
            x_s = x_s + at_s.alpha * weight * (at.eps(one.x, one.x_0) - eps)
    return x_s


def _integrals(nodes: list[float], end: float, logarithmic: bool) -> list[float]:
    """Return the integrals of the Lagrange polynomials through ``nodes`` from the first of them to ``end``.

    The polynomials are in the logarithm of the variable of integration if ``logarithmic``.
    """
    place = np.log if logarithmic else np.asarray
    low, high = place(nodes[0]), place(end)
    # Places are shares of the way from the first node to the end, which makes the powers below of size 1.
    density = np.exp(low + PLACES * (high - low)) if logarithmic else np.ones_like(PLACES)
    powers = np.arange(len(nodes))[:, None]
    moments = (PLACES**powers * density * WEIGHTS).sum(1) * (high - low)
    found = np.linalg.solve(((place(np.array(nodes)) - low) / (high - low)) ** powers, moments)
    return [float(value) for value in found]


def _slopes(problem: Problem, past: tuple[Estimate, ...], step: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return the differences of successive estimates of x_0, newest first, each as (length, difference / length).

    Lengths are in log-SNR, in units of ``step``.
    """
    found = []
    for one, before in pairwise(past):
        newer, older = (level(problem.schedule, e.t).half_log_snr for e in (one, before))
        length = (newer - older) / step
        found.append((length, (one.x_0 - before.x_0) / length))
    return found


def usable(problem: Problem, past: tuple[Estimate, ...]) -> list[tuple[Estimate, Level]]:
    """Return the newest estimates before the first one out of pure noise, each with its level."""
    found = [(one, level(problem.schedule, one.t)) for one in past]
    return list(itertools.takewhile(lambda pair: not pair[1].is_pure_noise, found))


def with_signal(problem: Problem, past: tuple[Estimate, ...]) -> list[tuple[Estimate, Level]]:
    """Return the newest estimates that `usable` does and those of nearly no signal, for what only takes log-SNR."""
    found = [(one, level(problem.schedule, one.t)) for one in past]
    return list(itertools.takewhile(lambda pair: not pair[1].has_no_signal, found))
