"""Learning rates and the optimizer."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from vidiff.errors import ConfigError


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter, 2019) and the course of its learning rate."""

    lr: float = 1e-4
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


def lr_at(step: int, max_steps: int, config: OptimizerConfig) -> float:
    """Return the learning rate of ``step``, a pure function, so that resuming cannot shift it."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    match config.decay:
        case "constant":
            remaining = 1.0
        case "cosine":
            done = (step - config.warmup_steps) / max(1, max_steps - config.warmup_steps)
            remaining = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        case "linear_tail":
            remaining = min(1.0, max(0, max_steps - step) / config.tail_steps)
    return config.lr * (config.final_lr + (1 - config.final_lr) * remaining)


def adamw(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Return the optimizer of ``model``; only tensors with two or more axes decay."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], config.lr, betas=config.betas, fused=True)
