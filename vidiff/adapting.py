"""LoRA files on top of a loaded model."""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import nn

from vidiff.errors import CheckpointError, ConfigError
from vidiff.files import sha256_of
from vidiff.interop.lora import LoRA, apply_lora, describe, parse_lora, read_lora
from vidiff.models.dit import SpaceTimeDiT
from vidiff.models.experts import Expert, Experts
from vidiff.pipeline import Pipeline

_SHOWN = 3
_NAMED = re.compile(r"(?:^|[_\W])(high|low)[_\W]?noise")  # as files that come in pairs are named


@dataclass(frozen=True)
class LoRAFile:
    """A LoRA and how much of it is added."""

    path: Path
    scale: float
    sha256: str
    expert: Expert | None = None  # that it is added to; None is those that the file is for, or all


def lora_file(text: str) -> LoRAFile:
    """Return what ``FILE[:scale][@high|@low]`` names; raises a ConfigError or CheckpointError if it names nothing."""
    path, scale, expert = parse_lora(text)
    if not path.exists():
        raise CheckpointError(f"{path}: no such LoRA file")
    return LoRAFile(path, scale, _digest(path), expert)


def adapted(pipeline: Pipeline, loras: Sequence[LoRAFile], note: Callable[[str], None]) -> Pipeline:
    """Add ``loras`` to the weights of ``pipeline``, in their order, and return it with the hash of both.

    Of two experts, the second gets what a file has for it alone, or else what it has for both; one that the user does
    not name gets nothing.

    Args:
        pipeline: the model; its weights change.
        loras: the files.
        note: hears how much of each went into the model.

    Raises:
        CheckpointError: if a file is damaged, has changed, or nothing of it fits.
        ConfigError: if the model has no transformer that LoRAs are made for, or no experts where one is named.
    """
    digest = hashlib.sha256(pipeline.hash.encode())
    for one in loras:
        if _digest(one.path) != one.sha256:
            raise CheckpointError(f"{one.path}: not the LoRA that the clip was made with (SHA-256 differs)")
        lora = read_lora(one.path)
        for number, network, where in _targets(pipeline.denoiser.backbone, one, lora):
            if not isinstance(network, SpaceTimeDiT):
                raise ConfigError(f"LoRAs are for transformers; this model's network is a {type(network).__name__}")
            apply = partial(apply_lora, network, lora, one.scale, second=number > 0)
            found = apply()
            if pipeline.placement is not None:  # which reads the weights later, and maybe more than once
                pipeline.placement.changes.append(apply)
            total = found.matched + len(found.unmatched)
            rest = f"; without a place: {', '.join(found.unmatched[:_SHOWN])}" if found.unmatched else ""
            note(f"{one.path.name}: {found.matched} of {total} modules{where}, {describe(lora).dialect} names{rest}")
        if (side := _side(pipeline.denoiser.backbone, one)) is not None:
            note(f"{one.path.name}: added to all experts, but its name says {side} noise; if so, add @{side} to it")
        expert = "" if one.expert is None else f"@{one.expert}"
        digest.update(f"{one.sha256} {one.scale}{expert}\n".encode())
    return replace(pipeline, hash=digest.hexdigest()) if loras else pipeline


def _targets(backbone: nn.Module, one: LoRAFile, lora: LoRA) -> Iterator[tuple[int, nn.Module, str]]:
    """Yield the number of each network that gets the LoRA, the network, and what it is called."""
    if not isinstance(backbone, Experts):
        if one.expert is not None:
            raise ConfigError(f"{one.path}: this model has no experts, so leave out @{one.expert}")
        yield 0, backbone, ""
        return
    numbers = range(len(backbone.experts)) if one.expert is None else [backbone.number_of(one.expert)]
    if one.expert is None and lora.second and not lora.changes:
        numbers = numbers[1:]
    for number in numbers:
        yield number, backbone.experts[number], f" of {backbone.described(number)}"


def _side(backbone: nn.Module, one: LoRAFile) -> Expert | None:
    """Return the expert that a file is for by its name alone, where it went to all."""
    named = _NAMED.search(one.path.name.lower())
    if named is None or one.expert is not None or not isinstance(backbone, Experts):
        return None
    return "high" if named[1] == "high" else "low"


def _digest(path: Path) -> str:
    if path.is_file():
        return sha256_of(path)
    parts = [sha256_of(part) for part in sorted(path.glob("*.safetensors"))]
    return hashlib.sha256("".join(parts).encode()).hexdigest()
