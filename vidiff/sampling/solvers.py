"""All solvers: each takes one step from time t to an earlier time s.

Each is a frozen dataclass, so it is its own configuration, and keeps nothing between steps: whatever a multistep
method remembers travels in `SolverState`. Coefficients are computed in float64.
"""

from dataclasses import fields, replace
from typing import Any, get_args

from vidiff.errors import ConfigError, did_you_mean
from vidiff.sampling.adaptive import RK45
from vidiff.sampling.multistep import DEIS, LMS, PNDM, DPMpp2M, DPMpp2MSDE, DPMpp3M
from vidiff.sampling.one_step import DDIM, DDPM, LCM, Euler, EulerAncestral, PredictorCorrector, ReverseSDE
from vidiff.sampling.two_stage import EDM, DPMpp2S, Heun
from vidiff.sampling.unipc import UniPC

Solver = (
    DDPM
    | DDIM
    | Euler
    | EulerAncestral
    | Heun
    | EDM
    | DPMpp2S
    | DPMpp2M
    | DPMpp3M
    | DPMpp2MSDE
    | UniPC
    | PNDM
    | DEIS
    | LMS
    | LCM
    | ReverseSDE
    | PredictorCorrector
    | RK45
)

SOLVERS: dict[str, type[Solver]] = {member().kind: member for member in get_args(Solver)}


def solver_by_name(name: str, eta: float | None = None, order: int | None = None) -> Solver:
    """Return the solver of this name, with its default settings but those given.

    Raises:
        ConfigError: if there is none, and the message names the nearest; if it has no such setting, and the message
            names those that have; if the setting is out of range.
    """
    if name not in SOLVERS:
        raise ConfigError(
            f"unknown sampler {name!r}.{did_you_mean(name, SOLVERS)} Samplers: {', '.join(sorted(SOLVERS))}."
        )
    return adjusted(SOLVERS[name](), eta, order)


def adjusted(solver: Solver, eta: float | None = None, order: int | None = None) -> Solver:
    """Return ``solver`` with the settings that are given; raises a ConfigError as `solver_by_name` does."""
    changes: dict[str, Any] = {"eta": eta, "order": order}
    changes = {setting: value for setting, value in changes.items() if value is not None}
    for setting in changes:
        if setting not in settings_of(solver):
            having = [name for name, member in SOLVERS.items() if setting in settings_of(member())]
            raise ConfigError(f"sampler {solver.kind} has no {setting}; those that have: {', '.join(sorted(having))}")
    return replace(solver, **changes)


def settings_of(solver: Solver) -> dict[str, Any]:
    """Return what can be set of a solver, with its values."""
    return {field.name: getattr(solver, field.name) for field in fields(solver) if field.name != "kind"}


def check_steps(solver: Solver, num_steps: int) -> None:
    """Raise a ConfigError if ``num_steps`` are too few for the order that ``solver`` is set to."""
    order = settings_of(solver).get("order", 1)
    if order > num_steps:
        raise ConfigError(
            f"sampler {solver.kind} of order {order} needs at least {order} steps, got {num_steps}; "
            f"an order of 1 to {num_steps} is possible"
        )
