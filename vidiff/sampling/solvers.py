"""Solvers: one step from time t to an earlier time s.

Each is a frozen dataclass, so it is its own configuration, and keeps nothing between steps: whatever a multistep
method remembers travels in `SolverState`. Coefficients are computed in float64.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from vidiff.errors import ConfigError, did_you_mean
from vidiff.sampling.loop import Problem, SolverState

# Below this alpha / sigma a step counts as one out of pure noise.
_PURE_NOISE = 1e-3


def _eps(x: Tensor, x_0: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    return (x - alpha * x_0) / sigma


@dataclass(frozen=True)
class DDIM:
    """Song et al. (2021), equation 12. ``eta`` 0 is the probability-flow ODE, 1 the ancestral sampler."""

    kind: Literal["ddim"] = "ddim"
    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ConfigError(f"eta lies in [0, 1], got {self.eta}")

    def __call__(self, problem: Problem, state: SolverState, t: Tensor, s: Tensor) -> SolverState:
        """Step from t to s."""
        (alpha_t, sigma_t), (alpha_s, sigma_s) = problem.schedule.alpha_sigma(t), problem.schedule.alpha_sigma(s)
        x_0 = problem.x_0(state.x, t)
        eps = _eps(state.x, x_0, alpha_t, sigma_t)
        fresh = self.eta * sigma_s * _posterior_share(alpha_t, sigma_t, alpha_s, sigma_s)
        x_s = alpha_s * x_0 + (sigma_s.square() - fresh.square()).clamp(min=0).sqrt() * eps
        if self.eta > 0 and s > 0:
            x_s = x_s + fresh * problem.noise(x_s)
        return SolverState(x_s.to(state.x.dtype), x_0, t)


@dataclass(frozen=True)
class DDPM:
    """Ancestral sampling from the posterior q(x_s | x_t, x_0) (Ho et al., 2020, equations 6 and 7)."""

    kind: Literal["ddpm"] = "ddpm"

    def __call__(self, problem: Problem, state: SolverState, t: Tensor, s: Tensor) -> SolverState:
        """Step from t to s."""
        (alpha_t, sigma_t), (alpha_s, sigma_s) = problem.schedule.alpha_sigma(t), problem.schedule.alpha_sigma(s)
        x_0 = problem.x_0(state.x, t)
        kept = alpha_t / alpha_s  # what is left at t of the signal at s
        variance = sigma_t.square() - kept.square() * sigma_s.square()  # of the noise that came in between
        mean = (kept * sigma_s.square() * state.x + alpha_s * variance * x_0) / sigma_t.square()
        x_s = mean
        if s > 0:
            x_s = x_s + sigma_s * _posterior_share(alpha_t, sigma_t, alpha_s, sigma_s) * problem.noise(x_s)
        return SolverState(x_s.to(state.x.dtype), x_0, t)


@dataclass(frozen=True)
class Euler:
    """First order on the probability-flow ODE d(x / alpha) = eps d(sigma / alpha) (Karras et al., 2022).

    A step keeps x_0 and eps, so it is written without dividing by alpha and may start where alpha is 0.
    """

    kind: Literal["euler"] = "euler"

    def __call__(self, problem: Problem, state: SolverState, t: Tensor, s: Tensor) -> SolverState:
        """Step from t to s."""
        (alpha_t, sigma_t), (alpha_s, sigma_s) = problem.schedule.alpha_sigma(t), problem.schedule.alpha_sigma(s)
        x_0 = problem.x_0(state.x, t)
        x_s = alpha_s * x_0 + sigma_s * _eps(state.x, x_0, alpha_t, sigma_t)
        return SolverState(x_s.to(state.x.dtype), x_0, t)


@dataclass(frozen=True)
class Heun:
    """Second order, two evaluations a step (Karras et al., 2022, Algorithm 1, on the ODE of `Euler`).

    First order where x_t is all but pure noise, and in the step that ends at t = 0.
    """

    kind: Literal["heun"] = "heun"

    def __call__(self, problem: Problem, state: SolverState, t: Tensor, s: Tensor) -> SolverState:
        """Step from t to s."""
        (alpha_t, sigma_t), (alpha_s, sigma_s) = problem.schedule.alpha_sigma(t), problem.schedule.alpha_sigma(s)
        x_0 = problem.x_0(state.x, t)
        eps = _eps(state.x, x_0, alpha_t, sigma_t)
        x_s = alpha_s * x_0 + sigma_s * eps
        # The correction is a difference of eps times sigma / alpha: singular at alpha = 0, and beyond any sample's
        # size long before that. At t = 0 eps has no meaning.
        if s > 0 and alpha_t > _PURE_NOISE * sigma_t:
            x_s = x_s.to(state.x.dtype)
            eps_s = _eps(x_s, problem.x_0(x_s, s), alpha_s, sigma_s)
            step = sigma_s - alpha_s * (sigma_t / alpha_t)
            x_s = alpha_s / alpha_t * state.x + step * (eps + eps_s) / 2
        return SolverState(x_s.to(state.x.dtype), x_0, t)


@dataclass(frozen=True)
class DPMpp2M:
    """DPM-Solver++(2M): second order, one evaluation a step (Lu et al., 2022, Algorithm 2).

    The first step and the last one are of first order: there is no past yet, and extrapolating into t = 0, where the
    step in log-SNR is infinite, is unstable.
    """

    kind: Literal["dpmpp_2m"] = "dpmpp_2m"

    def __call__(self, problem: Problem, state: SolverState, t: Tensor, s: Tensor) -> SolverState:
        """Step from t to s."""
        (alpha_t, sigma_t), (alpha_s, sigma_s) = problem.schedule.alpha_sigma(t), problem.schedule.alpha_sigma(s)
        x_0 = problem.x_0(state.x, t)
        step = _half_log_snr(alpha_s, sigma_s) - _half_log_snr(alpha_t, sigma_t)
        direction = x_0
        if state.x_0 is not None and state.t is not None and s > 0:
            last = _half_log_snr(alpha_t, sigma_t) - _half_log_snr(*problem.schedule.alpha_sigma(state.t))
            if torch.isfinite(last):
                direction = x_0 + step / (2 * last) * (x_0 - state.x_0)
        x_s = sigma_s / sigma_t * state.x - alpha_s * torch.expm1(-step) * direction
        return SolverState(x_s.to(state.x.dtype), x_0, t)


def _half_log_snr(alpha: Tensor, sigma: Tensor) -> Tensor:
    return alpha.log() - sigma.log()


def _posterior_share(alpha_t: Tensor, sigma_t: Tensor, alpha_s: Tensor, sigma_s: Tensor) -> Tensor:
    """Return the deviation of q(x_s | x_t, x_0) as a share of sigma_s (Song et al., 2021, equation 16)."""
    return (1 - (alpha_t * sigma_s / (alpha_s * sigma_t)).square()).clamp(min=0).sqrt()


Solver = DDPM | DDIM | Euler | Heun | DPMpp2M

SOLVERS: dict[str, type[Solver]] = {member().kind: member for member in get_args(Solver)}


def solver_by_name(name: str) -> Solver:
    """Return the solver of this name, with its default settings.

    Raises:
        ConfigError: if there is none; the message names the nearest.
    """
    if name not in SOLVERS:
        raise ConfigError(
            f"unknown sampler {name!r}.{did_you_mean(name, SOLVERS)} Samplers: {', '.join(sorted(SOLVERS))}."
        )
    return SOLVERS[name]()
