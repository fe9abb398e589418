"""LoRAs in the format that diffusers reads, whatever dialect they came in."""

from pathlib import Path

import torch
from torch import Tensor

from vidiff.errors import CheckpointError
from vidiff.interop.lora_files import Change, LoRA


def to_peft(lora: LoRA) -> dict[str, Tensor]:
    """Return the LoRA as diffusers' ``load_lora_weights`` reads it: A (rank, in) and B (out, rank) of each module.

    The factor is multiplied into B, as diffusers reads no alpha beside keys of its own. A difference becomes exact
    factors, one of which is the identity. B has a bias everywhere if it has one anywhere, since PEFT asks for it.

    Raises:
        CheckpointError: if a change has no place in that format: that of a norm or a table, or a module unknown here.
    """
    if lora.foreign:
        shown = ", ".join(lora.foreign[:3])
        raise CheckpointError(f"{lora.path}: {shown}: no such module in diffusers' Wan transformer, cannot be written")
    exported: dict[str, Tensor] = {}
    for prefix, changes in (("transformer.", lora.changes), ("transformer_2.", lora.second)):
        with_bias = any(change.bias is not None for change in changes.values())
        for name, change in changes.items():
            factors = _factors(lora.path, name, change)
            if factors is None:
                continue
            down, up = factors
            exported[f"{prefix}{name}.lora_A.weight"] = down
            exported[f"{prefix}{name}.lora_B.weight"] = up
            if with_bias:
                zero = torch.zeros(up.shape[0], dtype=up.dtype)
                exported[f"{prefix}{name}.lora_B.bias"] = zero if change.bias is None else change.bias.to(up.dtype)
    return exported


def _factors(path: Path, name: str, change: Change) -> tuple[Tensor, Tensor] | None:
    """Return (A, B) whose product is the whole change of the weight; None for a change that is none."""
    if change.down is None and (change.diff is None or change.diff.ndim < 2 or name.endswith("scale_shift_table")):
        # Norms come with differences of zero (Wan LoRAs extracted from whole models), which change nothing.
        if any(bool(part.any()) for part in (change.diff, change.bias) if part is not None):
            raise CheckpointError(
                f"{path}: {change.source}: diffusers reads no change of a norm, a table or a bias alone"
            )
        return None
    pairs: list[tuple[Tensor, Tensor]] = []
    if change.down is not None and change.up is not None:
        down, up = change.down.flatten(1), change.up.flatten(1)
        # In half precision a small factor would round B.
        pairs.append((down, up) if change.factor == 1 else (down.float(), change.factor * up.float()))
    if change.diff is not None:
        diff = change.diff.flatten(1)
        eye = torch.eye(min(diff.shape), dtype=diff.dtype)
        pairs.append((diff, eye) if diff.shape[0] < diff.shape[1] else (eye, diff))
    dtype = pairs[0][0].dtype if len(pairs) == 1 else torch.float32
    down = torch.cat([pair[0].to(dtype) for pair in pairs], dim=0)
    up = torch.cat([pair[1].to(dtype) for pair in pairs], dim=1)
    if name == "patch_embedding":  # a convolution there; every published Wan has patches of (1, 2, 2)
        return down.unflatten(1, (-1, 1, 2, 2)).contiguous(), up[..., None, None, None].contiguous()
    return down.contiguous(), up.contiguous()
