"""Networks from their configs."""

from torch import nn

from vidiff.models.dit import DiTConfig, SpaceTimeDiT
from vidiff.types import LatentSpec

BackboneConfig = DiTConfig


def build_backbone(config: BackboneConfig, latents: LatentSpec, text_dim: int) -> nn.Module:
    """Return the untrained backbone that denoises ``latents`` under text states of width ``text_dim``."""
    match config:
        case DiTConfig():
            return SpaceTimeDiT(config, latents.channels, text_dim)
