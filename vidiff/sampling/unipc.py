"""UniPC: a multistep predictor, corrected by the estimate that the next step makes anyway."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from vidiff.sampling.levels import PLACES, WEIGHTS, Level, first_order, level, scaled_back
from vidiff.sampling.loop import Estimate, Problem, SolverState, Traits
from vidiff.sampling.multistep import check_order, with_signal


@dataclass(frozen=True)
class UniPC:
    """Predictor UniP and corrector UniC on x_0; one evaluation a step.

    A step first corrects x_t with the estimate at the uncorrected one, then predicts x_s. Of first order out of pure
    noise and into t = 0, where steps in log-SNR are infinite.
    """

    kind: Literal["unipc"] = "unipc"
    order: int = 2  # of the predictor; the corrector adds one
    variant: Literal["bh1", "bh2"] = "bh2"  # the paper's B(h): h, or exp(h) - 1
    lower_order_final: bool = False  # no higher order than the number of steps left, as in the authors' code
    traits: ClassVar[Traits] = Traits("2 to 4: order + 1", "1", False, "Zhao et al., 2023, Algorithms 1 and 2")

    def __post_init__(self) -> None:
        check_order(self.order, 3)

    def __call__(self, problem: Problem, state: SolverState, t: Tensor, s: Tensor) -> SolverState:
        """Step from t to s."""
        at_t, at_s = level(problem.schedule, t), level(problem.schedule, s)
        x_0 = problem.x_0(state.x, t)
        x, before = state.x, with_signal(problem, state.past[: self.order])
        order, last_order = self.order, self.order  # of the predictor, and of the one that is corrected
        if self.lower_order_final:
            order, last_order = (min(self.order, left) for left in (problem.steps_left, problem.steps_left + 1))
        if before:
            x = self._step(before[0][0].x, before[:last_order], at_t, x_0).to(state.x.dtype)
        here = Estimate(x, x_0, t)
        if s > 0 and not at_t.has_no_signal:
            x_s = self._step(x, [(here, at_t), *before][:order], at_s, None)
        else:
            x_s = first_order(at_s, x_0, at_t.eps(x, x_0))
        return SolverState(x_s.to(state.x.dtype), (here, *state.past)[: self.order])

    def _step(self, x: Tensor, past: list[tuple[Estimate, Level]], at_s: Level, arrived: Tensor | None) -> Tensor:
        """Return x_s from ``x`` at the newest of ``past``, with the estimate ``arrived`` at s if there is one."""
        (newest, at_t), earlier = past[0], past[1:]
        step = at_s.half_log_snr - at_t.half_log_snr
        x_s = scaled_back(at_t, at_s) * x - at_s.alpha * torch.expm1(-step) * newest.x_0
        places = [((at.half_log_snr - at_t.half_log_snr) / step).item() for _, at in earlier]
        estimates = [one.x_0 for one, _ in earlier]
        if arrived is not None:
            places, estimates = [*places, 1.0], [*estimates, arrived]
        weights = _weights(places, step.item(), self.variant)
        scale = -step if self.variant == "bh1" else torch.expm1(-step)
        for weight, place, x_0 in zip(weights, places, estimates, strict=True):
            x_s = x_s - at_s.alpha * scale * weight * (x_0 - newest.x_0) / place
        return x_s


def _weights(places: list[float], step: float, variant: str) -> list[float]:
    """Return the a_m of the paper's equation 10 for estimates at ``places``, in units of the step from t on."""
    if len(places) < 2:
        return [0.5] * len(places)  # any value gives the right order; the authors take this one
    powers = np.arange(1, len(places) + 1)[:, None]
    scale = -step if variant == "bh1" else np.expm1(-step)
    moments = -step * (PLACES**powers * np.exp(-(1 - PLACES) * step) * WEIGHTS).sum(1) / scale
    return [float(a) for a in np.linalg.solve(np.array(places) ** (powers - 1), moments)]
