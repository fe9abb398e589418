"""Smaller weights for a transformer that only generates: bf16, or bytes that are widened a layer at a time."""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import nn

from vidiff.errors import ConfigError
from vidiff.models.dit import SpaceTimeBlock, SpaceTimeDiT

INSTALL = "pip install torchao"

Bytes = Literal["int8", "fp8"]
"""A byte a weight, scaled by its row's largest: 255 even steps, or float8_e4m3fn, whose steps grow with the weight."""


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
    """Return whether `byte_weights` can be called: torchao, which does it, is an optional package."""
    return find_spec("torchao") is not None


def byte_weights(module: nn.Module, kind: Bytes) -> None:
    """Hold the Linear weights of all `SpaceTimeBlock`s in ``module`` in a byte each, one scale an output channel.

    In place and weight-only: each is widened for its product, so that speed gains nothing, any device will do and
    memory halves against bf16. Cast to bf16 first where products shall be bf16: widened weights take the type that the
    weights had.

    Raises:
        ConfigError: as `check_available`, or there is no block.
    """
    config = _torchao_config(kind)
    linears = set(block_linears(module))
    if not linears:
        raise ConfigError(f"{kind} weights are for the blocks of a dit; this network has none")
    from torchao.quantization import quantize_

    quantize_(module, config, filter_fn=lambda layer, _: layer in linears)


def check_available(kind: Bytes) -> None:
    """Raise a ConfigError if torchao, which makes weights of ``kind``, is not installed or is too old for them."""
    _torchao_config(kind)


def _torchao_config(kind: Bytes) -> Any:
    if not available():
        raise ConfigError(f"{kind} weights need the torchao package; install it with: {INSTALL}")
    try:
        import torchao.quantization as torchao

        config = torchao.Int8WeightOnlyConfig if kind == "int8" else torchao.Float8WeightOnlyConfig
        # Settings of the compiler are the process's, and older versions change the precision of all products with them.
        return config(set_inductor_config=False)
    except (ImportError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"this torchao does not do for {kind} weights with torch {torch.__version__}: {error}; {INSTALL} -U"
        ) from error


def widened_bytes(kind: Bytes, dtype: torch.dtype) -> int:
    """Return the bytes a weight that a layer takes beside its own while it is widened for products of ``dtype``."""
    if kind == "int8":  # the scale is multiplied into the product
        return dtype.itemsize
    return 8 + (
        dtype.itemsize if dtype != torch.float32 else 0
    )  # float32 without and with its scale, then the product's


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
