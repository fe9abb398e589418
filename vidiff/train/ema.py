"""Exponential moving average of weights."""

from copy import deepcopy

import torch
from torch import Tensor, nn


class EMA:
    """Keeps ``shadow``, a frozen float32 copy of a model whose weights trail the model's."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.shadow = deepcopy(model).eval().requires_grad_(False).float()

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the shadow towards ``model`` after the ``step``-th update, counted from 1."""
        # Shorter at first, so that the start is forgotten.
        decay = min(self.decay, (1 + step) / (10 + step))
        shadow, live = _floating(self.shadow), _floating(model)
        torch._foreach_lerp_(shadow, [value.float() for value in live], 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        return self.shadow.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.shadow.load_state_dict(state)


def _floating(module: nn.Module) -> list[Tensor]:
    return [value for value in module.state_dict().values() if value.is_floating_point()]
