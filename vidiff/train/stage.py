"""What the training loop asks of a stage."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vidiff.types import Batch


class Evaluation(Protocol):
    """What a stage may hold as ``evaluation``: measured every ``every`` steps and at the last one."""

    every: int

    def measure(self, model: nn.Module, step: int) -> dict[str, float]:
        """Return values by name, of ``model`` (the moving average) after ``step`` steps.

        Nothing that training depends on may change. A UserError is noted, and training goes on.
        """
        ...


class Stage(Protocol):
    """One stage of a recipe: the modules to train, the samples they see, and the losses.

    A stage may hold an ``evaluation``, and as ``state`` tensors by name that its losses change, such as what it
    remembers of earlier ones: checkpoints hold them, so that a resumed run equals an unbroken one.
    """

    name: str
    models: dict[str, nn.Module]
    """The modules that are trained, each with its own optimizer. ``model`` comes first and is the one that ships."""

    size: int
    """Samples in an epoch."""

    groups: list[int] | None
    """The group of each sample, where batches must not mix groups; None if any samples go together."""

    identity: dict[str, Any]
    """Whatever a checkpoint must agree with to be resumed: configs and the fingerprint of the data."""

    def batch(self, indices: list[int], seed: int) -> Batch:
        """Return these samples; whatever is random about them follows from ``seed``."""
        ...

    def loss(self, player: str, batch: Batch, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return scalar losses of one of the models; ``total`` is minimized, the rest are logged."""
        ...

    def preview(self, model: nn.Module) -> dict[str, Tensor]:
        """Return clips to look at, by name, uint8 (F, H, W, 3), made by ``model`` (the moving average)."""
        ...

    def finish(self, model: nn.Module) -> None:
        """Complete the trained ``model`` before it is exported (statistics, previews)."""
        ...
