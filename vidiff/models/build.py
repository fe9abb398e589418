"""Networks from their configs."""

from torch import nn

from vidiff.models.autoencoder import VideoVAE
from vidiff.models.dit import DiTConfig, SpaceTimeDiT
from vidiff.models.experts import Experts, ExpertsConfig
from vidiff.models.pixels import PixelAutoencoder
from vidiff.models.skipping import check_layers
from vidiff.models.two_level import TwoLevelDiT, TwoLevelDiTConfig
from vidiff.models.unet3d import UNet3D, UNet3DConfig
from vidiff.types import LatentSpec

BackboneConfig = DiTConfig | TwoLevelDiTConfig | UNet3DConfig | ExpertsConfig
Autoencoder = VideoVAE | PixelAutoencoder


def build_backbone(config: BackboneConfig, latents: LatentSpec, text_dim: int) -> nn.Module:
    """Return the untrained backbone that denoises ``latents`` under text states of width ``text_dim``."""
    match config:
        case DiTConfig():
            return SpaceTimeDiT(config, latents.channels, text_dim)
        case TwoLevelDiTConfig():
            return TwoLevelDiT(config, latents.channels, text_dim)
        case UNet3DConfig():
            return UNet3D(config, latents.channels, text_dim)
        case ExpertsConfig():
            return Experts(config, latents.channels, text_dim)


def check_skippable(config: BackboneConfig, layers: tuple[int, ...]) -> None:
    """Raise a ConfigError if the backbone does not have the blocks ``layers``, or none that can be left out."""
    match config:
        case DiTConfig():
            check_layers(layers, config.depth)
        case TwoLevelDiTConfig():
            check_layers(layers, config.coarse.depth + config.depth)
        case UNet3DConfig():
            check_layers(layers, 0)
        case ExpertsConfig():
            check_layers(layers, config.expert.depth)


def token_patch(config: BackboneConfig) -> tuple[int, int, int]:
    """Return how many latents along (f, h, w) clips are made in multiples of."""
    match config:
        case DiTConfig():
            return config.patch_size
        case TwoLevelDiTConfig():
            return config.coarse.patch_size
        case ExpertsConfig():
            return config.expert.patch_size
        case UNet3DConfig():
            return (1, 1, 1)
