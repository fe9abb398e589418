"""Learning rates and optimizers."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from vidiff.errors import ConfigError
from vidiff.train.muon import Muon


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter, 2019), Muon for the matrices where wanted, and the course of the learning rate."""

    lr: float = 1e-4
    muon_lr: float | None = None  # matrices and kernels are trained by Muon at this rate; None: by AdamW as the rest
    decay: Literal["constant", "cosine", "linear_tail"] = "constant"  # linear_tail: constant, then down to final_lr
    warmup_steps: int = 100
    tail_steps: int = 0  # linear_tail: steps of the way down
    final_lr: float = 0.0  # as a fraction of lr
    weight_decay: float = 0.0  # on matrices and kernels; never on biases, norms and tables
    betas: tuple[float, float] = (0.9, 0.99)

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ConfigError(f"lr must be positive, got {self.lr}")
        if not 0 <= self.final_lr <= 1:
            raise ConfigError(f"final_lr is a fraction of lr in [0, 1], got {self.final_lr}")
        if self.decay == "linear_tail" and self.tail_steps <= 0:
            raise ConfigError("decay: linear_tail needs tail_steps")


def lr_factor(step: int, max_steps: int, config: OptimizerConfig) -> float:
    """Return the learning rate of ``step`` as a fraction of its peak, a pure function: resuming cannot shift it."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    match config.decay:
        case "constant":
            remaining = 1.0
        case "cosine":
            done = (step - config.warmup_steps) / max(1, max_steps - config.warmup_steps)
            remaining = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        case "linear_tail":
            remaining = min(1.0, max(0, max_steps - step) / config.tail_steps)
    return config.final_lr + (1 - config.final_lr) * remaining


class Optimizers:
    """The optimizers of one model: AdamW and, where wanted, Muon. Only tensors with two or more axes decay."""

    def __init__(self, model: nn.Module, config: OptimizerConfig):
        trained = [p for p in model.parameters() if p.requires_grad]
        matrices, rest = [p for p in trained if p.ndim >= 2], [p for p in trained if p.ndim < 2]
        decay = config.weight_decay
        groups = [{"params": rest, "weight_decay": 0.0}]
        self.members: dict[str, torch.optim.Optimizer] = {}
        if config.muon_lr is None:
            groups.append({"params": matrices, "weight_decay": decay})
        else:
            self.members["muon"] = Muon(matrices, config.muon_lr, weight_decay=decay)
        groups = [group for group in groups if group["params"]]
        if groups:
            self.members["adamw"] = torch.optim.AdamW(groups, config.lr, betas=config.betas, fused=True)
        self._peaks = {"adamw": config.lr, "muon": config.muon_lr or 0.0}

    def step(self, factor: float) -> None:
        """Update the weights at ``factor`` times the peak learning rates and clear the gradients."""
        for name, optimizer in self.members.items():
            for group in optimizer.param_groups:
                group["lr"] = factor * self._peaks[name]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
