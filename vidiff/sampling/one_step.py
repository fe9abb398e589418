"""Solvers that need the estimate at t and nothing else: ancestral, first-order and consistency steps."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from vidiff.diffusion.variance import log_variance
from vidiff.errors import ConfigError
from vidiff.sampling.levels import Axis, first_order, fresh_of_flow, fresh_share, level
from vidiff.sampling.loop import Estimate, Problem, SolverState, Traits


def _check_eta(eta: float) -> None:
    if not 0 <= eta <= 1:
        raise ConfigError(f"eta lies in [0, 1], got {eta}")


def _ancestral(
    problem: Problem, state: SolverState, t: Tensor, s: Tensor, eta: float, axis: Axis = "ratio"
) -> SolverState:
    """Step with ``eta`` of the posterior's deviation as fresh noise (Song et al., 2021, equations 12 and 16)."""
    at_t, at_s = level(problem.schedule, t), level(problem.schedule, s)
    x_0 = problem.x_0(state.x, t)
    eps = at_t.eps(state.x, x_0)
    fresh = eta * at_s.sigma * fresh_share(at_t, at_s) if axis == "ratio" else fresh_of_flow(at_t, at_s, eta)
    x_s = at_s.alpha * x_0 + (at_s.sigma.square() - fresh.square()).clamp(min=0).sqrt() * eps
    if eta > 0 and s > 0:
        x_s = x_s + fresh * problem.noise(x_s)
    return SolverState(x_s.to(state.x.dtype), (Estimate(state.x, x_0, t),))


@dataclass(frozen=True)
class DDPM:
    """Ancestral sampling from the posterior q(x_s | x_t, x_0) (Ho et al., 2020, equations 6 and 7).

    ``variance`` is the posterior's (fixed_small), that of the noise between s and t (fixed_large), or what the network
    has learned, for which it is asked once more (Nichol & Dhariwal, 2021).
    """

    kind: Literal["ddpm"] = "ddpm"
    variance: Literal["fixed_small", "fixed_large", "learned"] = "fixed_small"
    traits: ClassVar[Traits] = Traits("1", "1", True, "Ho et al., 2020, equations 6 and 7")

    def __call__(self, problem: Problem, state: SolverState, t: Tensor, s: Tensor) -> SolverState:
        """Step from t to s."""
        at_t, at_s = level(problem.schedule, t), level(problem.schedule, s)
        x_0 = problem.x_0(state.x, t)
        kept = at_t.alpha / at_s.alpha  # what is left at t of the signal at s
        variance = at_t.sigma.square() - kept.square() * at_s.sigma.square()  # of the noise that came in between
        mean = (kept * at_s.sigma.square() * state.x + at_s.alpha * variance * x_0) / at_t.sigma.square()
        x_s = mean
        if s > 0:
            x_s = x_s + self._deviation(problem, state.x, t, s) * problem.noise(x_s)
        return SolverState(x_s.to(state.x.dtype), (Estimate(state.x, x_0, t),))

    def _deviation(self, problem: Problem, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Return the deviation of the noise that is added, () or (B, C, f, h, w)."""
        at_t, at_s = level(problem.schedule, t), level(problem.schedule, s)
        if self.variance == "fixed_small":
            return at_s.sigma * fresh_share(at_t, at_s)
        if self.variance == "fixed_large":
            return at_t.sigma * fresh_share(at_t, at_s)
        if problem.variance is None:
            raise ConfigError("ddpm: this model has learned no variance; use fixed_small or fixed_large")
        share = problem.variance(x, t.expand(len(x)))
        return (log_variance(problem.schedule, share, t.expand(len(x)), s.expand(len(x))) / 2).exp()


@dataclass(frozen=True)
class DDIM:
    """``eta`` 0 is the probability-flow ODE, 1 the ancestral sampler."""

    kind: Literal["ddim"] = "ddim"
    eta: float = 0.0
    traits: ClassVar[Traits] = Traits("1", "1", False, "Song et al., 2021, equation 12")

    def __post_init__(self) -> None:
        _check_eta(self.eta)

    def __call__(self, problem: Problem, state: SolverState, t: Tensor, s: Tensor) -> SolverState:
        """Step from t to s."""
        return _ancestral(problem, state, t, s, self.eta)


@dataclass(frozen=True)
class EulerAncestral:
    """Euler to a lower noise, then fresh noise up to s, in x / alpha; ``eta`` 0 is `Euler`.

    Written out, it is DDIM with the same ``eta``; both names are in use. With ``axis`` flow, how much lower is counted
    in the time of a flow, and less noise is fresh.
    """

    kind: Literal["euler_ancestral"] = "euler_ancestral"
    eta: float = 1.0
    axis: Axis = "ratio"
    traits: ClassVar[Traits] = Traits("1", "1", True, "Song et al., 2021, equations 12 and 16")

    def __post_init__(self) -> None:
        _check_eta(self.eta)

    def __call__(self, problem: Problem, state: SolverState, t: Tensor, s: Tensor) -> SolverState:
        """Step from t to s."""
        return _ancestral(problem, state, t, s, self.eta, self.axis)


@dataclass(frozen=True)
class Euler:
    """First order on the probability-flow ODE d(x / alpha) = eps d(sigma / alpha).

    A step keeps x_0 and eps, so it is written without dividing by alpha and may start where alpha is 0.
    """

    kind: Literal["euler"] = "euler"
    traits: ClassVar[Traits] = Traits("1", "1", False, "Karras et al., 2022, equation 4")

    def __call__(self, problem: Problem, state: SolverState, t: Tensor, s: Tensor) -> SolverState:
        """Step from t to s."""
        at_t, at_s = level(problem.schedule, t), level(problem.schedule, s)
        x_0 = problem.x_0(state.x, t)
        x_s = first_order(at_s, x_0, at_t.eps(state.x, x_0))
        return SolverState(x_s.to(state.x.dtype), (Estimate(state.x, x_0, t),))


@dataclass(frozen=True)
class LCM:
    """Multistep consistency sampling: the estimate, noised anew to s. For networks trained by consistency."""

    kind: Literal["lcm"] = "lcm"
    traits: ClassVar[Traits] = Traits("-", "1", True, "Song et al., 2023, Algorithm 1; Luo et al., 2023, Algorithm 3")

    def __call__(self, problem: Problem, state: SolverState, t: Tensor, s: Tensor) -> SolverState:
        """Step from t to s."""
        at_s = level(problem.schedule, s)
        x_0 = problem.x_0(state.x, t)
        x_s = at_s.alpha * x_0
        if s > 0:
            x_s = x_s + at_s.sigma * problem.noise(x_s)
        return SolverState(x_s.to(state.x.dtype), (Estimate(state.x, x_0, t),))


@dataclass(frozen=True)
class ReverseSDE:
    """Euler-Maruyama on the reverse SDE of x / alpha, stepped in its variance, without noise in the last step.

    A step adds all noise that the SDE has between t and s at once, so it wants many steps. Where x_t is pure noise
    that would be without bound: there it is ancestral.
    """

    kind: Literal["reverse_sde"] = "reverse_sde"
    traits: ClassVar[Traits] = Traits("1", "1", True, "Song et al., 2021b, equations 6 and 9")

    def __call__(self, problem: Problem, state: SolverState, t: Tensor, s: Tensor) -> SolverState:
        """Step from t to s."""
        at_t, at_s = level(problem.schedule, t), level(problem.schedule, s)
        if at_t.is_pure_noise:
            return _ancestral(problem, state, t, s, eta=1.0)
        x_0 = problem.x_0(state.x, t)
        x_s = first_order(at_s, x_0, at_t.eps(state.x, x_0) * at_s.ratio / at_t.ratio)
        if s > 0:
            variance = at_t.ratio.square() - at_s.ratio.square()
            x_s = x_s + at_s.alpha * variance.clamp(min=0).sqrt() * problem.noise(x_s)
        return SolverState(x_s.to(state.x.dtype), (Estimate(state.x, x_0, t),))


@dataclass(frozen=True)
class PredictorCorrector:
    """An ancestral step, then ``corrections`` steps of annealed Langevin dynamics at s.

    ``snr`` sets the length of those, r of the paper. It multiplies the ratio of the norms of noise and score, which is
    sigma where the score is that of the noise; measured over a batch, a clip would depend on its neighbors.
    """

    kind: Literal["predictor_corrector"] = "predictor_corrector"
    snr: float = 0.16
    corrections: int = 1
    traits: ClassVar[Traits] = Traits("1", "1 + corrections", True, "Song et al., 2021b, Algorithms 1 and 5")

    def __post_init__(self) -> None:
        if not self.snr > 0:
            raise ConfigError(f"snr must be positive, got {self.snr}")
        if self.corrections < 1:
            raise ConfigError(f"corrections must be at least 1, got {self.corrections}; without, it is ddpm")

    def __call__(self, problem: Problem, state: SolverState, t: Tensor, s: Tensor) -> SolverState:
        """Step from t to s."""
        state = _ancestral(problem, state, t, s, eta=1.0)
        if s <= 0:
            return state
        at_s, x, x_0 = level(problem.schedule, s), state.x, state.past[0].x_0
        for _ in range(self.corrections):
            x_0 = problem.x_0(x, s)
            score, noise = -at_s.eps(x, x_0) / at_s.sigma, problem.noise(x)
            length = 2 * (self.snr * at_s.sigma).square()
            x = (x + length * score + (2 * length).sqrt() * noise).to(x.dtype)
        return SolverState(x, (Estimate(state.x, x_0, s),))
