"""The networks that an evaluation measures with: ours, and published ones from files that the user names."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import torch

from vidiff.errors import CheckpointError, ConfigError, did_you_mean
from vidiff.files import sha256_of
from vidiff.metrics.archives import open_archive
from vidiff.metrics.clip_alignment import PromptEncoder
from vidiff.metrics.clip_metrics import Aligner
from vidiff.metrics.embedded import EmbeddedConfig, EmbeddedPromptEncoder, build_embedded, find_evaluator
from vidiff.metrics.evaluate import Tools
from vidiff.metrics.extractors import (
    FVD_CD,
    FVD_ORIGINAL,
    FVD_STYLEGAN_V,
    ArchiveConfig,
    CLIPConfig,
    Dinov2Config,
    ExtractorConfig,
    I3DConfig,
    InceptionConfig,
    TransformersConfig,
    VideoMAEConfig,
    build_extractor,
)
from vidiff.metrics.flow import DIS, RAFTFlow
from vidiff.metrics.pairwise import LPIPS
from vidiff.metrics.preprocess import Filter, Preprocess
from vidiff.metrics.random_pyramid import RandomPyramid

KINDS: dict[str, type[ArchiveConfig] | type[TransformersConfig]] = {
    "i3d": I3DConfig,
    "inception": InceptionConfig,
    "videomae": VideoMAEConfig,
    "dinov2": Dinov2Config,
    "clip": CLIPConfig,
}
PROTOCOLS = {"styleganv": FVD_STYLEGAN_V, "original": FVD_ORIGINAL, "cdfvd": FVD_CD}
_OWN = ("evaluator", "lpips", "raft")


@dataclass(frozen=True)
class Reading:
    """What the user changes about how published networks read clips; None leaves it as it was published."""

    protocol: str = "styleganv"  # of I3D, see `PROTOCOLS`
    frames: int | None = None
    stride: int | None = None
    size: int | None = None
    filter: str | None = None
    crop: str | None = None

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            hint = did_you_mean(self.protocol, PROTOCOLS)
            raise ConfigError(f"unknown protocol {self.protocol!r}.{hint} There are: {', '.join(PROTOCOLS)}.")
        filters = (*get_args(Filter), "archive")
        if self.filter is not None and self.filter not in filters:
            raise ConfigError(f"unknown filter {self.filter!r}.{did_you_mean(self.filter, filters)} "
                              f"There are: {', '.join(filters)}.")  # fmt: skip
        if self.crop not in (None, "squash", "center"):
            raise ConfigError(f"crop is squash or center, got {self.crop!r}")

    @property
    def i3d_ddof(self) -> int:
        """Return the divisor of covariances that the protocol has: N - 1 for the original, N for the others."""
        return 1 if self.protocol == "original" else 0

    def of(self, published: Preprocess) -> Preprocess:
        """Return a network's preprocessing with the changes."""
        names = ("frames", "stride", "size", "filter", "crop")
        changes = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return replace(published, **changes)


def build_tools(weights: Mapping[str, str], reading: Reading = Reading(), device: torch.device | str = "cpu") -> Tools:
    """Return the networks to measure with: random filters, the evaluator if it is there, and those in ``weights``.

    Args:
        weights: PATH of a kind; of a TorchScript archive PATH@SHA256 or URL@SHA256.
        reading: how published networks read clips.
        device: where they go.

    Raises:
        ConfigError: for an unknown kind, or weights that are not there.
        CheckpointError: if weights are damaged or of another network.
    """
    for kind in weights:
        if kind not in KINDS and kind not in _OWN:
            known = (*KINDS, *_OWN)
            raise ConfigError(
                f"weights {kind!r}: no such network.{did_you_mean(kind, known)} One of {', '.join(known)}."
            )
    tools = Tools(
        extractors={"random-clips": RandomPyramid(), "random-frames": RandomPyramid(per_frame=True)},
        lpips=LPIPS(Path(weights["lpips"])) if "lpips" in weights else None,
        lpips_hash=sha256_of(weights["lpips"])[:12] if "lpips" in weights else "",
        i3d_ddof=reading.i3d_ddof,
        flow=_raft(weights["raft"], device) if "raft" in weights else DIS,
    )
    if "evaluator" in weights or _bundles_evaluator():
        evaluator = build_embedded(EmbeddedConfig(source=weights.get("evaluator", "")), device)
        tools.extractors[evaluator.name] = evaluator
        aligner = Aligner(evaluator, EmbeddedPromptEncoder(evaluator), evaluator.among_prompts)
        tools.aligners["alignment-evaluator"] = aligner
    for kind in KINDS:
        if kind in weights:
            extractor = build_extractor(_config(kind, weights[kind], reading), device)
            tools.extractors[kind] = extractor
            if kind == "clip":
                tools.aligners["clipsim"] = Aligner(extractor, PromptEncoder(extractor))
    return tools


def _bundles_evaluator() -> bool:
    try:
        return find_evaluator().is_dir()
    except CheckpointError:
        return False


def _raft(given: str, device: torch.device | str) -> RAFTFlow:
    path, digest = _located(given)
    wanted = "torchvision's raft_large, scripted and saved,"
    return RAFTFlow(open_archive("raft", path, digest, wanted, frozenset(), device), digest.lower())


def _config(kind: str, given: str, reading: Reading) -> ExtractorConfig:
    path, digest = _located(given)
    match kind:
        case "i3d":
            return I3DConfig(weights=path, sha256=digest, preprocess=reading.of(PROTOCOLS[reading.protocol]))
        case "inception":
            return InceptionConfig(weights=path, sha256=digest, preprocess=reading.of(InceptionConfig.preprocess))
    transformers = KINDS[kind]
    assert issubclass(transformers, TransformersConfig)
    # A hub id keeps its commit: OWNER/NAME@COMMIT.
    return transformers(source=path, revision=digest or None, preprocess=reading.of(transformers.preprocess))


def _located(given: str) -> tuple[str, str]:
    """Return a path, URL or hub id, and the hash or commit behind its last @."""
    if "@" not in given or Path(given).exists():  # a name may hold one, too
        return given, ""
    path, _, digest = given.rpartition("@")
    return path, digest
