"""Muon: momentum whose update is orthogonalized, for matrices and convolution kernels (Jordan et al., 2024).

torch.optim.Muon takes matrices only; a video VAE is made of kernels, which count here as (C_out, C_in k^3) matrices.
Measured on the sprites VAE it needs about half the steps of AdamW, for an eighth more time a step.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

# Coefficients of the quintic Newton-Schulz iteration, Jordan et al., 2024: they push singular values quickly into
# [0.7, 1.2], which trains as well as exact orthogonality.
_A, _B, _C = 3.4445, -4.7750, 2.0315


class Muon(torch.optim.Optimizer):
    """Steps of equal size in every singular direction, scaled to the RMS that AdamW's would have (Liu et al., 2025)."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                nesterov = parameter.grad.lerp(state["momentum"], group["momentum"])
                update = orthogonalized(nesterov.flatten(1)).view_as(parameter)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                scale = 0.2 * max(parameter.shape[0], parameter[0].numel()) ** 0.5
                parameter.add_(update.to(parameter.dtype), alpha=-group["lr"] * scale)


def orthogonalized(matrix: Tensor, steps: int = 5) -> Tensor:
    """Return about U V^T for ``matrix`` = U S V^T, in bfloat16, by Newton-Schulz iteration."""
    x = matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.mT if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return x.mT if tall else x
