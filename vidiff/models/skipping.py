"""A transformer without some of its blocks, for guidance away from what it then says."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vidiff.errors import ConfigError
from vidiff.tensors import expand_as
from vidiff.types import Conditioning


def passed(
    blocks: nn.ModuleList, tokens: Tensor, context: Any, cond: Conditioning, first: int = 0, recompute: bool = False
) -> Tensor:
    """Return tokens (B, N, D) after ``blocks``, except those that ``cond`` skips.

    Args:
        blocks: each maps tokens and ``context`` to tokens.
        tokens: of the video.
        context: what the blocks are told.
        cond: says which blocks are skipped, and for which samples.
        first: number of the first block.
        recompute: compute each block again in the backward pass, to save memory.
    """
    for number, block in enumerate(blocks, first):
        skipped = number in cond.skip_layers
        if skipped and cond.skips is None:
            continue
        if recompute and torch.is_grad_enabled():
            after = checkpoint(block, tokens, context, use_reentrant=False)
        else:
            after = block(tokens, context)
        tokens = (
            torch.where(expand_as(cond.skips, after), tokens, after) if skipped and cond.skips is not None else after
        )
    return tokens


def check_layers(layers: tuple[int, ...], count: int) -> None:
    """Raise a ConfigError if a network of ``count`` blocks that can be skipped has none of these numbers."""
    if layers and not count:
        raise ConfigError(f"skip.layers {list(layers)}: this network has no blocks to leave out; a dit has")
    if layers and max(layers) >= count:
        raise ConfigError(f"skip.layers {list(layers)}: this network has the blocks 0 to {count - 1}")
