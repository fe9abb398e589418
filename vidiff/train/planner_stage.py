"""Training a planner: a denoiser of plans, of scenes that need not be rendered."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidiff.data.toyworld.dataset import ToyWorld
from vidiff.model_folder import ModelConfig
from vidiff.models.plans import PlanCodec, sketched
from vidiff.train.cache import CachedText
from vidiff.train.denoiser_stage import DenoiserStage, DenoiserStageConfig
from vidiff.train.stream import StreamedText
from vidiff.types import Batch

_VARIANTS = 8  # of a scene: as many plans that its captions mean just as well


class PlannerStage(DenoiserStage):
    """Denoising loss over plans and captions."""

    def __init__(
        self,
        config: DenoiserStageConfig,
        model_config: ModelConfig,
        data: ToyWorld,
        text: CachedText | StreamedText,
        codec: PlanCodec,
        identity: dict[str, Any],
    ):
        """Build the stage; see `DenoiserStage`, whose latents are plans, and whose autoencoder a codec of them."""
        self.world, self.codec = data, codec
        self._variants: dict[tuple[int, int], Tensor] = {}
        super().__init__(config, model_config, data, _Plans(self), text, codec, identity)

    def batch(self, indices: list[int], seed: int) -> Batch:
        """Return plans with a caption each; a scene's plan is one of several."""
        rng = np.random.default_rng(seed)
        variants = rng.integers(_VARIANTS, size=len(indices)).tolist()
        captions = [int(rng.integers(of.start, of.stop)) for of in map(self.text.of_clip, indices)]
        return Batch(
            [self.data.key(index) for index in indices],
            latents=torch.stack([self.latent(*both) for both in zip(indices, variants, strict=True)]),
            text=self.text.embedding(captions),
            captions=[self.text.caption(number) for number in captions],
        )

    def latent(self, index: int, variant: int = 0) -> Tensor:
        """Return a plan as latents, (C, 1, 1, K + 1)."""
        if (index, variant) not in self._variants:  # poses take a millisecond
            self._variants[index, variant] = self.codec.encode(self.world.plan(index, variant)[None])[0]
        return self._variants[index, variant]

    def _video(self, latents: Tensor) -> Tensor:
        return sketched(self.codec.decode(latents), self.codec.config)


class _Plans:
    """The first plan of each scene, as `vidiff.train.stream.Latents`."""

    def __init__(self, stage: PlannerStage):
        self.stage = stage

    def __getitem__(self, index: int) -> Tensor:
        return self.stage.latent(index)
