"""LoRA files on top of a loaded model."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vidiff.errors import CheckpointError, ConfigError
from vidiff.files import sha256_of
from vidiff.interop.lora import apply_lora, describe, parse_lora, read_lora
from vidiff.models.dit import SpaceTimeDiT
from vidiff.models.experts import Experts
from vidiff.pipeline import Pipeline

_SHOWN = 3


@dataclass(frozen=True)
class LoRAFile:
    """A LoRA and how much of it is added."""

    path: Path
    scale: float
    sha256: str


def lora_file(text: str) -> LoRAFile:
    """Return what ``FILE[:scale]`` names; raises a ConfigError or CheckpointError if it names nothing."""
    path, scale = parse_lora(text)
    if not path.exists():
        raise CheckpointError(f"{path}: no such LoRA file")
    return LoRAFile(path, scale, _digest(path))


def adapted(pipeline: Pipeline, loras: Sequence[LoRAFile], note: Callable[[str], None]) -> Pipeline:
    """Add ``loras`` to the weights of ``pipeline``, in their order, and return it with the hash of both.

    Of two experts, the second gets what a file has for it alone, or else what it has for both.

    Args:
        pipeline: the model; its weights change.
        loras: the files.
        note: hears how much of each went into the model.

    Raises:
        CheckpointError: if a file is damaged, has changed, or nothing of it fits.
        ConfigError: if the model has no transformer that LoRAs are made for.
    """
    digest = hashlib.sha256(pipeline.hash.encode())
    for one in loras:
        if _digest(one.path) != one.sha256:
            raise CheckpointError(f"{one.path}: not the LoRA that the clip was made with (SHA-256 differs)")
        backbone = pipeline.denoiser.backbone
        networks = list(backbone.experts) if isinstance(backbone, Experts) else [backbone]
        lora = read_lora(one.path)
        for number, network in enumerate(networks):
            if not isinstance(network, SpaceTimeDiT):
                raise ConfigError(f"LoRAs are for transformers; this model's network is a {type(network).__name__}")
            found = apply_lora(network, lora, one.scale, second=number > 0)
            total = found.matched + len(found.unmatched)
            where = f" of expert {number + 1}" if len(networks) > 1 else ""
            rest = f"; without a place: {', '.join(found.unmatched[:_SHOWN])}" if found.unmatched else ""
            note(f"{one.path.name}: {found.matched} of {total} modules{where}, {describe(lora).dialect} names{rest}")
        digest.update(f"{one.sha256} {one.scale}\n".encode())
    return replace(pipeline, hash=digest.hexdigest()) if loras else pipeline


def _digest(path: Path) -> str:
    if path.is_file():
        return sha256_of(path)
    parts = [sha256_of(part) for part in sorted(path.glob("*.safetensors"))]
    return hashlib.sha256("".join(parts).encode()).hexdigest()
