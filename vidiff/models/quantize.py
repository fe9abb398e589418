"""Smaller weights for a transformer that only generates: bf16, or int8 that is widened a layer at a time."""

from collections.abc import Iterator
from importlib.util import find_spec

import torch
from torch import nn

from vidiff.errors import ConfigError
from vidiff.models.dit import SpaceTimeBlock, SpaceTimeDiT

INSTALL = "pip install torchao"


def lower_weights(backbone: SpaceTimeDiT, dtype: torch.dtype) -> None:
    """Hold the weights of the blocks and of the text projection in ``dtype``, in place; run the network under autocast.

    Time embedding, modulation, norms and both ends stay float32, as in the published models: they are a few percent
    of the weights and decide the scale of everything else.
    """
    for linear in (
        backbone.text_projection.linear_1,
        backbone.text_projection.linear_2,
        *block_linears(backbone.blocks),
    ):
        for name, value in list(linear.named_parameters(recurse=False)):
            setattr(linear, name, nn.Parameter(value.detach().to(dtype), value.requires_grad))


def available() -> bool:
    """Return whether `int8_weights` can be called: torchao, which does it, is an optional package."""
    return find_spec("torchao") is not None


def int8_weights(module: nn.Module) -> None:
    """Hold the Linear weights of all `SpaceTimeBlock`s in ``module`` in int8, one scale an output channel, in place.

    Weight-only: each is widened for its product, so that speed gains nothing and memory halves against bf16. Cast to
    bf16 first where products shall be bf16: the scales and the widened weights take the type that the weights had.

    Raises:
        ConfigError: if torchao is not installed, or is too old for this torch, or there is no block.
    """
    if not available():
        raise ConfigError(f"int8 weights need the torchao package; install it with: {INSTALL}")
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise ConfigError(f"this torchao does not fit torch {torch.__version__}: {error}; {INSTALL} -U") from error
    linears = set(block_linears(module))
    if not linears:
        raise ConfigError("int8 weights are for the blocks of a dit; this network has none")
    quantize_(module, Int8WeightOnlyConfig(), filter_fn=lambda layer, _: layer in linears)


def block_linears(module: nn.Module) -> Iterator[nn.Linear]:
    """Yield the layers that hold nearly all weights; modulation, which autocast must not touch, is not among them."""
    for block in module.modules():
        if isinstance(block, SpaceTimeBlock):
            for attention in (block.attention, block.time_attention, block.cross_attention):
                if attention is not None:
                    yield from (attention.query, attention.key, attention.value, attention.out)
                    if attention.image:
                        yield from (attention.image_key, attention.image_value)
            yield from (block.mlp_in, block.mlp_out)
