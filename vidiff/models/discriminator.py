"""Patch discriminator for video autoencoders, with the hinge losses."""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Shape of a `PatchDiscriminator`."""

    dim: int = 32
    depth: int = 3  # strided convolutions; each doubles the patch that one score sees


class PatchDiscriminator(nn.Module):
    """Scores overlapping space-time patches (Isola et al., 2017, in three dimensions); a clip of one frame is fine."""

    def __init__(self, config: DiscriminatorConfig):
        super().__init__()
        layers: list[nn.Module] = []
        dims = [3, *(config.dim * 2**i for i in range(config.depth))]
        for dim_in, dim_out in itertools.pairwise(dims):
            layers += [
                nn.Conv3d(dim_in, dim_out, (3, 4, 4), stride=(1, 2, 2), padding=1),
                nn.GroupNorm(8, dim_out),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv3d(dims[-1], 1, 3, padding=1))

    def forward(self, video: Tensor) -> Tensor:
        """Return the scores (B, 1, F, h, w), high where (B, 3, F, H, W) looks real."""
        return self.layers(video.contiguous(memory_format=torch.channels_last_3d))


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return the hinge loss of the discriminator (Lim & Ye, 2017)."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def generator_loss(fake: Tensor) -> Tensor:
    """Return what the autoencoder minimizes to look real."""
    return -fake.mean()
