"""Training a drafter: colors of points of rendered scenes, most of them where things are."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from vidiff.data.toyworld.dataset import ToyWorld, ToyWorldConfig
from vidiff.errors import ConfigError
from vidiff.model_folder import DrafterModelConfig
from vidiff.models.drafter import Drafter, DrafterConfig
from vidiff.models.plans import PLACE, PlanConfig, seen
from vidiff.train.autoencoder_stage import to_uint8, to_video
from vidiff.train.trainer import TrainerConfig
from vidiff.types import Batch

_AROUND = 1.4  # radii from the middle of a thing, along each axis, that count as where it is


@dataclass(frozen=True)
class DrafterStageConfig:
    """A stage that trains a `Drafter`."""

    kind: Literal["drafter"] = "drafter"
    name: str = "drafter"
    drafter: DrafterConfig = field(default_factory=DrafterConfig)
    plans: PlanConfig = field(default_factory=PlanConfig)
    data: ToyWorldConfig | None = None  # the stage's own clips, best few frames of many scenes; None: the recipe's
    points: int = 192  # of one frame of each clip of a batch
    near: float = 0.75  # share of them that is drawn where a thing is
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    def __post_init__(self) -> None:
        if self.points < 1:
            raise ConfigError(f"points must be at least 1, got {self.points}")
        if not 0 <= self.near <= 1:
            raise ConfigError(f"near is a share in [0, 1], got {self.near}")


class DrafterStage:
    """Squared error of the colors of points."""

    groups: list[int] | None = None

    def __init__(
        self,
        config: DrafterStageConfig,
        model_config: DrafterModelConfig,
        data: ToyWorld,
        clips: list[Tensor],
        identity: dict[str, Any],
    ):
        """Build the stage.

        Args:
            config: of the stage.
            model_config: of what it trains.
            data: the scenes.
            clips: their frames, each uint8 (F, H, W, 3).
            identity: see `vidiff.train.stage.Stage`.
        """
        self.config, self.data, self.clips, self.identity = config, data, clips, identity
        self.name, self.size = config.name, len(data)
        self._plans: dict[int, Tensor] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.trainer.seed)
            self.drafter = model_config.build()
        self.models: dict[str, nn.Module] = {"model": self.drafter}

    def batch(self, indices: list[int], seed: int) -> Batch:
        """Return a frame of each clip, (B, 3, 1, H, W), and its moment of the plan, (B, K + 1, W + P)."""
        rng = np.random.default_rng(seed)
        frames = [int(rng.integers(len(self.clips[index]))) for index in indices]
        pictures = torch.stack([self.clips[index][frame][None] for index, frame in zip(indices, frames, strict=True)])
        words, moments = self.config.plans.word_count, []
        for index, frame in zip(indices, frames, strict=True):
            plan, begin = self._seen(index), words + PLACE * frame
            moments.append(torch.cat([plan[:, :words], plan[:, begin : begin + PLACE]], dim=1))
        return Batch([self.data.key(index) for index in indices], video=to_video(pictures), plan=torch.stack(moments))

    def loss(self, player: str, batch: Batch, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        assert batch.video is not None and batch.plan is not None
        height, width = batch.video.shape[3:]
        words, places = batch.plan.tensor_split([self.config.plans.word_count], dim=2)
        count, device = len(words) * self.config.points, generator.device
        row = torch.arange(len(words), device=device).repeat_interleave(self.config.points)
        shares = torch.rand(count, 4, generator=generator, device=device)
        # Of the things that are there, which come first, one; then a point around it, or else one anywhere.
        which = (shares[:, 0] * words[row, :-1, 0].sum(1)).long()
        place = places[row, which]
        around = place[:, :2] + (2 * shares[:, 1:3] - 1) * place[:, 2:3] * _AROUND
        size = torch.tensor([width, height], device=device)
        pixel, anywhere = ((around * height + size - 1) / 2).round().long(), (shares[:, 1:3] * size).long()
        inside = ((pixel >= 0) & (pixel < size)).all(1) & (shares[:, 3] < self.config.near)
        pixel = torch.where(inside[:, None], pixel, anywhere)
        colors = batch.video[row, :, 0, pixel[:, 1], pixel[:, 0]]
        layers = self.drafter(words, places, row, (2 * pixel + 1 - size) / height)
        return {"total": (self.drafter.laid(layers) - colors).square().mean()}

    def _seen(self, index: int) -> Tensor:
        """Return a clip's plan as the camera sees it, (K + 1, D)."""
        if index not in self._plans:  # poses take milliseconds
            self._plans[index] = seen(self.data.plan(index)[None], self.config.plans)[0]
        return self._plans[index]

    @torch.no_grad()
    def preview(self, model: nn.Module) -> dict[str, Tensor]:
        """Return drafts of the first scenes."""
        assert isinstance(model, Drafter)
        count, (height, width) = min(2, self.size), self.clips[0].shape[1:3]
        plans = torch.stack([self.data.plan(index) for index in range(count)]).to(next(model.parameters()).device)
        drawn = to_uint8(model.draw(plans, height, width).mean).cpu()
        return {self.data.key(index): drawn[index] for index in range(count)}

    def finish(self, model: nn.Module) -> None:
        """Nothing is left to do: the moving average is what ships."""
