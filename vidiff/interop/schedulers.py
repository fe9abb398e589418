"""Samplers of flows by the names and settings that diffusers' schedulers have, read and written."""

from typing import Any, NamedTuple

from vidiff.errors import ConfigError
from vidiff.sampling.multistep import DEIS, DPMpp2M, DPMpp2MSDE, DPMpp3M
from vidiff.sampling.one_step import DDIM, DDPM, LCM, Euler, EulerAncestral
from vidiff.sampling.solvers import Solver
from vidiff.sampling.times import FlowSpacing
from vidiff.sampling.two_stage import DPMpp2S, Heun
from vidiff.sampling.unipc import UniPC

_STEPS = 1000  # networks are told whole ones by schedulers of any noise, and exact times by those of flows alone

# Settings that change what is sampled, with the only value that has a counterpart here.
_ONLY: dict[str, Any] = {
    "predict_x0": True,
    "thresholding": False,
    "final_sigmas_type": "zero",
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "use_dynamic_shifting": False,
    "invert_sigmas": False,
    "shift_terminal": None,
    "scale_factors": None,
    "disable_corrector": [],
    "solver_p": None,
    "s_noise": 1.0,
}
_UNIPC, _DPM = "UniPCMultistepScheduler", "DPMSolverMultistepScheduler"


class Scheduled(NamedTuple):
    """How a scheduler samples: the settings of these names in a model's sampling."""

    solver: Solver
    spacing: FlowSpacing
    told_steps: int


def from_diffusers(config: dict[str, Any]) -> Scheduled:
    """Return what the config of a scheduler says; raises a ConfigError that names what has no counterpart."""
    for name, value in _ONLY.items():
        if config.get(name, value) != value:
            raise ConfigError(f"{name}: {config[name]} is not known; {name}: {value} is")
    kind, shift = config.get("_class_name"), config.get("flow_shift", config.get("shift", 1.0))
    match kind:
        case "FlowMatchEulerDiscreteScheduler":
            stochastic = config.get("stochastic_sampling", False)
            return Scheduled(LCM() if stochastic else Euler(), FlowSpacing(shift=shift, grid="euler"), 0)
        case "FlowMatchHeunDiscreteScheduler":
            return Scheduled(Heun(axis="flow"), FlowSpacing(shift=shift, grid="euler"), 0)
        case "FlowMatchLCMScheduler":
            return Scheduled(LCM(), FlowSpacing(shift=shift, grid="euler"), 0)
        case "FlowMapEulerDiscreteScheduler":
            return Scheduled(Euler(), FlowSpacing(shift=shift, grid="even"), 0)
        case "LTXEulerAncestralRFScheduler":
            solver = EulerAncestral(eta=config.get("eta", 1.0), axis="flow")
            return Scheduled(solver, FlowSpacing(shift=shift, grid="euler"), 0)
        case "UniPCMultistepScheduler":
            return Scheduled(_unipc(_checked(config)), FlowSpacing(shift=shift, grid="reference"), _STEPS)
        case "DEISMultistepScheduler" | "DPMSolverSinglestepScheduler" | "DPMSolverMultistepScheduler":
            return Scheduled(_exponential(_checked(config)), FlowSpacing(shift=shift, grid="native"), _STEPS)
    raise ConfigError(f"{kind} is not known; UniPC, DPM-Solver++, DEIS, Euler, Heun and consistency steps of flows are")


def to_diffusers(solver: Solver, shift: float) -> dict[str, Any]:
    """Return the config of the scheduler that samples as ``solver`` does, or of UniPC where there is none.

    There is none for DEIS: diffusers' never takes the last step of a flow.
    """
    flow = {"num_train_timesteps": _STEPS, "prediction_type": "flow_prediction", "use_flow_sigmas": True}
    alone, any_noise = {"num_train_timesteps": _STEPS, "shift": shift}, {"flow_shift": shift, **flow}
    match solver:
        case Euler():
            return {"_class_name": "FlowMatchEulerDiscreteScheduler", **alone}
        case Heun(axis="flow"):
            return {"_class_name": "FlowMatchHeunDiscreteScheduler", **alone}
        case LCM():
            return {"_class_name": "FlowMatchLCMScheduler", **alone}
        case DDIM(eta=0.0):
            return {"_class_name": _DPM, "solver_order": 1, **any_noise}
        case DDPM(variance="fixed_small"):
            return {"_class_name": _DPM, "solver_order": 1, "algorithm_type": "sde-dpmsolver++", **any_noise}
        case DPMpp2M():
            return {"_class_name": _DPM, **any_noise}
        case DPMpp2MSDE(eta=1.0):
            return {"_class_name": _DPM, "algorithm_type": "sde-dpmsolver++", **any_noise}
        case DPMpp3M(published=True, lower_order_final=lower):
            return {"_class_name": _DPM, "solver_order": 3, "lower_order_final": lower, **any_noise}
        case DPMpp2S(middle="grid"):
            return {"_class_name": "DPMSolverSinglestepScheduler", "lower_order_final": True, **any_noise}
        case UniPC(order=order, variant=variant):
            # Its lower_order_final stays on: without, the last step into 0 is NaN there.
            return {"_class_name": _UNIPC, "solver_order": order, "solver_type": variant, **any_noise}
    return {"_class_name": _UNIPC, **any_noise}


def _checked(config: dict[str, Any]) -> dict[str, Any]:
    if config.get("prediction_type") != "flow_prediction" or not config.get("use_flow_sigmas"):
        raise ConfigError("only schedulers of flows can be read")
    return config


def _unipc(config: dict[str, Any]) -> UniPC:
    order = config.get("solver_order", 2)
    # Up to second order it changes nothing: into t = 0 the first order is taken anyway.
    lower = order > 2 and config.get("lower_order_final", True)
    return UniPC(order=order, variant="bh1" if config.get("solver_type") == "bh1" else "bh2", lower_order_final=lower)


def _exponential(config: dict[str, Any]) -> Solver:
    """Return the solver of a scheduler of DEIS or DPM-Solver++."""
    kind, order, lower = config["_class_name"], config.get("solver_order", 2), config.get("lower_order_final", True)
    if kind == "DEISMultistepScheduler":
        return DEIS(order=order, lower_order_final=lower)
    algorithm, method = config.get("algorithm_type", "dpmsolver++"), config.get("solver_type", "midpoint")
    known: dict[tuple[str, int], Solver] = {("dpmsolver++", 1): DDIM(), ("dpmsolver++", 2): DPMpp2S(middle="grid")}
    if kind == _DPM:
        known |= {
            ("dpmsolver++", 2): DPMpp2M(),
            ("dpmsolver++", 3): DPMpp3M(lower_order_final=lower),
            ("sde-dpmsolver++", 1): DDPM(),
            ("sde-dpmsolver++", 2): DPMpp2MSDE(),
        }
    if (algorithm, order) not in known or (order > 1 and method != "midpoint"):
        orders = ", ".join(f"{name} {number}" for name, number in known)
        raise ConfigError(f"{algorithm} of order {order} ({method}) is not known; those that are: {orders} (midpoint)")
    return known[algorithm, order]
