"""Muon: momentum whose update is orthogonalized, for matrices and convolution kernels (Jordan et al., 2024).

torch.optim.Muon takes matrices only; a video VAE is made of kernels, which count here as (C_out, C_in k^3) matrices.
Measured on the sprites VAE it needs about half the steps of AdamW, for an eighth more time a step.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from vidiff.tensors import fast_bfloat16

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
            for parameters in _by_shape(group["params"]):
                updates = orthogonalized(torch.stack([self._nesterov(p, group["momentum"]) for p in parameters]))
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    scale = 0.2 * max(parameter.shape[0], parameter[0].numel()) ** 0.5
                    parameter.add_(update.view_as(parameter).to(parameter.dtype), alpha=-group["lr"] * scale)

    def _nesterov(self, parameter: Tensor, momentum: float) -> Tensor:
        """Return the gradient with momentum as a matrix."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(state["momentum"], momentum).flatten(1)


def _by_shape(parameters: Iterable[Tensor]) -> list[list[Tensor]]:
    """Return the parameters that have a gradient, those of one shape together: few large products beat many small."""
    groups: dict[torch.Size, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            groups.setdefault(parameter.shape, []).append(parameter)
    return list(groups.values())


def orthogonalized(matrices: Tensor, steps: int = 5) -> Tensor:
    """Return about U V^T of each of ``matrices`` = U S V^T, (K, n, m), in bfloat16 where it is fast.

    By Newton-Schulz iteration.
    """
    x = matrices.bfloat16() if fast_bfloat16(matrices.device) else matrices
    tall = x.shape[1] > x.shape[2]
    x = x.mT.contiguous() if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x.mT if tall else x
