"""The moments of an optimizer as plain tensors, so that a checkpoint needs no pickle."""

import torch
from torch import Tensor

from vidiff.errors import CheckpointError


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the state of an optimizer as ``<i>.<name>`` tensors, not copied, ``i`` the parameter's position.

    Hyperparameters are not part of it: they come from the config and the step.
    """
    flat: dict[str, Tensor] = {}
    for i, parameter in enumerate(_parameters(optimizer)):
        for name, value in optimizer.state.get(parameter, {}).items():
            if value is None:
                continue
            if not isinstance(value, Tensor):
                raise TypeError(f"{type(optimizer).__name__} keeps {name} as {type(value).__name__}, not as a tensor")
            flat[f"{i}.{name}"] = value.detach()
    return flat


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put the state from ``flatten_optimizer`` into an optimizer over the same parameters, bit for bit.

    Raises:
        CheckpointError: if the state is not that of these parameters; the optimizer is untouched.
    """
    parameters = _parameters(optimizer)
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        if not index.isdecimal() or int(index) >= len(parameters) or not name:
            raise CheckpointError(f"optimizer state {key} fits none of {len(parameters)} parameters; another model?")
        shape = parameters[int(index)].shape
        if value.ndim and value.shape != shape:
            raise CheckpointError(f"optimizer state {key} is {tuple(value.shape)}, its parameter {tuple(shape)}")
        # Moments live with their parameter; scalars such as `step` where the optimizer itself creates them.
        device = parameters[int(index)].device if value.ndim or _scalars_on_device(optimizer) else "cpu"
        states.setdefault(int(index), {})[name] = value.to(device, copy=True)
    optimizer.state.clear()
    for i, state in states.items():
        optimizer.state[parameters[i]] = state


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _scalars_on_device(optimizer: torch.optim.Optimizer) -> bool:
    return any(group.get("capturable") or group.get("fused") for group in optimizer.param_groups)
