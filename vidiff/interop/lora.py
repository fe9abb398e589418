"""Low-rank adapters (LoRA; Hu et al., 2021) of published Wan transformers, added to the weights of a `SpaceTimeDiT`.

Modules go by the names that diffusers gives them, whatever the dialect of the file was.
"""

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vidiff.errors import CheckpointError, ConfigError
from vidiff.interop.lora_export import to_peft
from vidiff.interop.lora_files import Change, LoRA, read_lora
from vidiff.interop.lora_keys import IMAGE_MODULES, Dialect, our_name, split_block, their_name
from vidiff.models.experts import EXPERTS, Expert

__all__ = ["Change", "Coverage", "LoRA", "LoRAInfo", "apply_lora", "describe", "parse_lora", "read_lora", "to_peft"]

# Width of the published transformers that LoRAs are trained for.
BASES = {1536: "Wan 2.1 1.3B", 3072: "Wan 2.2 TI2V 5B", 5120: "Wan 2.1 14B or an expert of Wan 2.2 A14B"}
# An image-to-video transformer's latents: noise, a mask of the frames given and these frames (Wan Team, 2025).
IMAGE_CHANNELS = 16 + 4 + 16

_SHOWN = 3
# A name that goes on behind an @, but not to the end of another file's name.
_WITH_EXPERT = re.compile(r"(.+\.safetensors)(?::[^@]*)?@(?!.*\.safetensors$)[^@]*")
# Which axis of (out, in) is the transformer's width, for the modules where one is.
_WIDE_IN = frozenset({"attn1.to_q", "attn1.to_k", "attn1.to_v", "attn2.to_q", "ffn.net.0.proj"})
_WIDE_OUT = frozenset({"attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ffn.net.2"}) | {
    f"attn2.{part}" for part in ("to_q", "to_k", "to_v", "to_out.0")
}
# What names in a file give away, for files that fit nothing here.
_HINTS = {
    "vace_": "the control branch of Wan VACE",
    "double_blocks": "Flux or HunyuanVideo",
    "single_transformer_blocks": "Flux",
    "transformer_blocks": "another transformer, such as LTX-Video, CogVideoX or SD3",
    "down_blocks": "a Stable Diffusion U-Net",
    "input_blocks": "a Stable Diffusion U-Net",
    "motion_modules": "AnimateDiff",
    "lora_te": "a text encoder",
    "text_model": "a text encoder",
}


@dataclass(frozen=True)
class Coverage:
    """How much of a file went into a model."""

    matched: int  # modules changed
    unmatched: tuple[str, ...]  # modules that the model does not have, as the file names them


@dataclass(frozen=True)
class LoRAInfo:
    """What a file is, judged by its names and shapes."""

    dialect: Dialect
    ranks: tuple[int, ...]  # each that occurs, ascending; empty where there are only differences
    alphas: tuple[float, ...]  # each that occurs, ascending; empty where the scale is 1
    modules: tuple[str, ...]  # each kind of module, without its block
    num_blocks: int  # of the transformer, as far as the file reaches
    differences: int  # modules with a full-rank difference or a bias
    width: int | None  # of the transformer; None if no module tells
    base: str | None  # the published transformer of that width
    image: bool  # has modules or input channels that only image-to-video has; a LoRA of Wan 2.2's may touch neither
    second: bool  # has changes for the second expert of Wan 2.2
    foreign: int  # modules that no Wan transformer here has


def parse_lora(text: str) -> tuple[Path, float, Expert | None]:
    """Read ``FILE[:scale][@high|@low]``; without a scale it is 1, without an expert it is left to the file.

    A colon belongs to the path where a file of the whole name is there, or where what follows is no number; so does an
    @ where such a file is there, or where what follows is no expert and what precedes no safetensors file.

    Raises:
        ConfigError: if no file is named, its scale is no finite number, or there is no such expert.
    """
    head, _, tail = text.rpartition("@")
    expert = next((one for one in EXPERTS if one == tail and not os.path.exists(text)), None)
    path, scale = _file_and_scale(text if expert is None else head)
    wrong = _WITH_EXPERT.fullmatch(path.name)
    if wrong is not None and not os.path.exists(path):
        raise ConfigError(f"a LoRA for one expert is {wrong[1]}@high or {wrong[1]}:SCALE@low, got {text!r}")
    return path, scale, expert


def _file_and_scale(text: str) -> tuple[Path, float]:
    head, colon, tail = text.rpartition(":")
    if not text.strip() or text.startswith(":"):
        raise ConfigError(f"a LoRA is FILE or FILE:SCALE, such as style.safetensors:0.8, got {text!r}")
    if not colon or os.path.exists(text):  # unlike Path.exists, false for a name too long
        return Path(text), 1.0
    try:
        scale = float(tail)
    except ValueError:
        if Path(head).suffix != ".safetensors" or "/" in tail or "\\" in tail or "." in tail.strip("."):
            return Path(text), 1.0
        scale = math.nan
    if not math.isfinite(scale):
        raise ConfigError(f"the scale of the LoRA {head} must be a number, such as 0.8, got {tail!r}")
    return Path(head), scale


def apply_lora(model: nn.Module, lora: LoRA, scale: float = 1.0, *, second: bool = False) -> Coverage:
    """Add ``scale * factor * B @ A``, and ``scale`` times each difference, to the weights in place.

    Sums are taken in float32 and rounded once to the weight's type. All shapes are checked before any weight changes.

    Args:
        model: a `SpaceTimeDiT`, or a module whose ``backbone`` is one.
        lora: the changes.
        scale: of all changes; 0 changes nothing.
        second: the model is the second expert of Wan 2.2: of a file with changes for both, it gets those.

    Raises:
        CheckpointError: if the model has none of the modules, or a shape does not fit.
        ConfigError: if ``scale`` is not finite.
    """
    if not math.isfinite(scale):
        raise ConfigError(f"the scale of the LoRA {lora.path} must be a finite number, got {scale}")
    backbone = getattr(model, "backbone", model)
    parameters: dict[str, nn.Parameter] = dict(backbone.named_parameters())
    # A file for one expert alone is written as if there were no other.
    use_second = second and bool(lora.second)
    changes, others = (lora.second, lora.changes) if use_second else (lora.changes, lora.second)
    matched: list[tuple[Change, nn.Parameter, nn.Parameter | None]] = []
    unmatched = [change.source for change in others.values()]
    for name, change in changes.items():
        ours = our_name(name)
        weight = parameters.get(f"{ours}.weight", parameters.get(ours)) if ours is not None else None
        if weight is None:
            unmatched.append(change.source)
            continue
        bias = parameters.get(f"{ours}.bias")
        _check_shapes(lora, change, weight, bias, backbone)
        matched.append((change, weight, bias))
    if not matched:
        raise CheckpointError(_nothing_matched(lora, backbone))
    if scale != 0:
        for change, weight, bias in matched:
            _add(weight, _difference(change, weight.device), scale)
            _add(bias, change.bias, scale)
    return Coverage(len(matched), (*unmatched, *lora.foreign))


def describe(lora: LoRA) -> LoRAInfo:
    """Return what a LoRA is for, as far as its names and shapes tell."""
    everything = [*lora.changes.items(), *lora.second.items()]
    kinds = dict.fromkeys(split_block(name)[1] for name, _ in everything)
    blocks = {split_block(name)[0] for name, _ in everything} - {""}
    changes = [change for _, change in everything]
    width = _width(everything)
    return LoRAInfo(
        dialect=lora.dialect,
        ranks=tuple(sorted({change.rank for change in changes if change.rank is not None})),
        alphas=tuple(sorted({change.alpha for change in changes if change.alpha is not None})),
        modules=tuple(kinds),
        num_blocks=max((int(block.split(".")[1]) + 1 for block in blocks), default=0),
        differences=sum(change.diff is not None or change.bias is not None for change in changes),
        width=width,
        base=BASES.get(width) if width is not None else None,
        image=_is_image(everything),
        second=bool(lora.second),
        foreign=len(lora.foreign),
    )


def _difference(change: Change, device: torch.device) -> Tensor | None:
    """Return the float32 change of a weight, flat after its first axis, (out, in)."""
    total = None if change.diff is None else change.diff.to(device, torch.float32)
    if change.down is None or change.up is None:
        return total
    down, up = (factor.to(device, torch.float32).flatten(1) for factor in (change.down, change.up))
    product = change.factor * (up @ down)
    return product if total is None else product + total.flatten(1)


def _add(parameter: nn.Parameter | None, difference: Tensor | None, scale: float) -> None:
    if parameter is None or difference is None:
        return
    with torch.no_grad():
        difference = difference.to(parameter.device, torch.float32).reshape(parameter.shape)
        parameter.copy_(parameter.float() + scale * difference)


def _check_shapes(
    lora: LoRA, change: Change, weight: nn.Parameter, bias: nn.Parameter | None, backbone: nn.Module
) -> None:
    for what, shape, target in _shapes(change, weight, bias):
        if shape != target:
            info, own = describe(lora), getattr(getattr(backbone, "config", None), "dim", None)
            why = "it was trained for another model"
            if info.width is not None and own is not None and info.width != own:
                base = f" ({info.base})" if info.base else ""
                why = f"a LoRA for width {info.width}{base}, this model is {own} wide"
            elif info.image:
                why = "it was trained for an image-to-video transformer"
            raise CheckpointError(
                f"{lora.path}: {change.source}: {what} {shape} does not fit the model's {target}: {why}"
            )


def _shapes(
    change: Change, weight: nn.Parameter, bias: nn.Parameter | None
) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...] | None]]:
    """Yield each part's name, its shape, and the shape that it must have."""
    target = tuple(weight.shape)
    if change.down is not None and change.up is not None:
        yield "B @ A", (change.up.shape[0], math.prod(change.down.shape[1:])), target
    if change.diff is not None:
        flat = change.diff.flatten(1) if change.diff.ndim > 3 else change.diff  # a convolution over patches
        yield "the difference", tuple(flat.shape), target
    if change.bias is not None:
        yield "the bias", tuple(change.bias.shape), None if bias is None else tuple(bias.shape)


def _width(changes: list[tuple[str, Change]]) -> int | None:
    """Return the transformer's width, which every linear module of a block shows."""
    for name, change in changes:
        kind = split_block(name)[1]
        if kind in _WIDE_OUT:
            known = change.up if change.up is not None else change.diff
            if known is not None:
                return known.shape[0]
        if kind in _WIDE_IN:
            known = change.down if change.down is not None else change.diff
            if known is not None and known.ndim == 2:
                return known.shape[1]
    return None


def _is_image(changes: list[tuple[str, Change]]) -> bool:
    for name, change in changes:
        if split_block(name)[1] in IMAGE_MODULES:
            return True
        patch = change.down if change.down is not None else change.diff
        if name == "patch_embedding" and patch is not None and patch.ndim == 5 and patch.shape[1] == IMAGE_CHANNELS:
            return True
    return False


def _nothing_matched(lora: LoRA, backbone: nn.Module) -> str:
    info = describe(lora)
    sources = [change.source for change in (*lora.changes.values(), *lora.second.values())] + list(lora.foreign)
    guess = next((what for mark, what in _HINTS.items() if any(mark in name for name in sources)), None)
    if lora.second and not lora.changes:
        guess = "the second expert of Wan 2.2 (transformer_2)"
    elif info.image:
        guess = "the image branch of an image-to-video Wan"
    elif lora.changes:
        guess = info.base or "a Wan transformer of another depth"
    own = [their_name(name) or name for name, module in backbone.named_modules() if isinstance(module, nn.Linear)]
    return (
        f"{lora.path}: no module of this LoRA is in the model; it seems to be for {guess or 'another model'}: it "
        f"names {_listed(sources)}, the model has {_listed(own)}"
    )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
