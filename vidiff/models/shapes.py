"""What a text-to-video model consists of, for plans that are made without its weights."""

from dataclasses import dataclass
from functools import cache

import torch

from vidiff.models.autoencoder import VideoVAE, VideoVAEConfig
from vidiff.models.dit import DiTConfig, SpaceTimeDiT
from vidiff.models.quantize import block_linears


@dataclass(frozen=True)
class ModelShape:
    """The parts of a model."""

    transformers: tuple[DiTConfig, ...]  # several are experts for different times, of which one works at a time
    channels: int  # of the transformer's input and output
    text_dim: int  # width of a text token's state
    text_parameters: int  # of the text encoder
    autoencoder: VideoVAEConfig
    text_length: int = 512  # tokens of a prompt
    image_parameters: int = 0  # of the encoder of pictures whose states the transformer reads, if it does
    image_length: int = 0  # states of a picture


@dataclass(frozen=True)
class WeightCount:
    """Numbers of weights of one transformer."""

    blocks: int  # in the linear layers of the blocks, which `quantize.byte_weights` holds in a byte each
    rows: int  # output channels of those, each with a scale
    lower: int  # others that `quantize.lower_weights` holds in the products' type
    float32: int  # that stay float32
    float32_blocks: int  # of those the ones that move with the blocks
    largest: int  # weights of the largest linear layer of a block

    @property
    def total(self) -> int:
        return self.blocks + self.lower + self.float32


@cache
def transformer_weights(config: DiTConfig, channels: int, text_dim: int) -> WeightCount:
    """Return how many weights a `SpaceTimeDiT` has, built without numbers."""
    with torch.device("meta"):
        network = SpaceTimeDiT(config, channels, text_dim)
    linears = list(block_linears(network.blocks))
    blocks = sum(linear.weight.numel() for linear in linears)
    biases = sum(linear.out_features for linear in linears)
    lower = biases + sum(value.numel() for value in network.text_projection.parameters())
    total = sum(value.numel() for value in network.parameters())
    in_blocks = sum(value.numel() for value in network.blocks.parameters())
    return WeightCount(
        blocks=blocks,
        rows=biases,
        lower=lower,
        float32=total - blocks - lower,
        float32_blocks=in_blocks - blocks - biases,
        largest=max(linear.weight.numel() for linear in linears),
    )


@cache
def autoencoder_weights(config: VideoVAEConfig) -> int:
    """Return how many weights a `VideoVAE` has."""
    with torch.device("meta"):
        return sum(value.numel() for value in VideoVAE(config).parameters())
