"""Published networks that turn clips into features, behind one call.

Weights come from files that the user names. transformers' are read as safetensors, every tensor accounted for. The I3D
and Inception that others' numbers are made with exist as TorchScript archives, which are code: one is opened only
where its sha256 is written down.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from vidiff.errors import CheckpointError, ConfigError
from vidiff.files import sha256_of
from vidiff.metrics.archives import open_archive
from vidiff.metrics.preprocess import MeanStd, Preprocess
from vidiff.text import sources
from vidiff.text.encoders import quiet

IMAGENET = MeanStd()
CLIP_PIXELS = MeanStd(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))

# What published numbers were made with.
FVD_ORIGINAL = Preprocess(filter="tf1")  # Unterthiner et al., 2018
FVD_STYLEGAN_V = Preprocess(filter="archive", pixels="raw")  # Skorokhodov et al., 2022: fvd2048_16f
FVD_CD = Preprocess(filter="bilinear")  # Ge et al., 2024: cd-fvd with I3D
FID_ARCHIVE = Preprocess(frames=None, size=299, filter="archive", pixels="raw")  # Karras et al., 2020
FID_CLEAN = Preprocess(frames=None, size=299, filter="pil-bicubic", pixels="raw")  # Parmar et al., 2022
VIDEOMAE = Preprocess(pixels=IMAGENET)  # Tong et al., 2022
DINOV2_EDM2 = Preprocess(frames=None, filter="bicubic-aa", pixels=IMAGENET)  # Karras et al., 2024
CLIP = Preprocess(frames=None, filter="bicubic-aa", crop="center", pixels=CLIP_PIXELS)  # Radford et al., 2021

_FRAMES = 64  # that go through a network at once


class Extractor(Protocol):
    """Turns clips into rows of features. Owns its preprocessing."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str:
        """What changes with the numbers, other than the preprocessing: the sha256 of the weights."""
        ...

    @property
    def preprocess(self) -> Preprocess: ...

    @property
    def dim(self) -> int: ...

    @property
    def per_frame(self) -> bool:
        """Whether each used frame has a row of its own; otherwise each clip has one."""
        ...

    def __call__(self, clips: Iterable[Tensor]) -> Tensor:
        """Return float32 (N, dim), on the CPU, of clips that are each uint8 (F, H, W, 3), whatever their sizes."""
        ...


@dataclass(frozen=True)
class I3DConfig:
    """I3D of Kinetics-400 (Carreira & Zisserman, 2017): one row of 400 logits a clip, the features of the FVD."""

    kind: Literal["i3d"] = "i3d"
    weights: str = ""  # path or URL of a TorchScript archive: forward(x, rescale, resize, return_features)
    sha256: str = ""  # of that file
    preprocess: Preprocess = FVD_STYLEGAN_V
    per_frame: ClassVar[bool] = False

    def __post_init__(self) -> None:
        given = self.preprocess
        # Its last pooling sees two frames at a time, of which eight leave only one.
        if given.frames is None or given.frames < 9 or given.size != 224 or given.pixels not in ("signed", "raw"):
            raise ConfigError(
                f"i3d reads 9 or more frames of size 224, pixels signed, or raw for it to scale; got {given!r}"
            )


@dataclass(frozen=True)
class InceptionConfig:
    """Inception v3 as the FID has it (Heusel et al., 2017): one row of 2048 a frame."""

    kind: Literal["inception"] = "inception"
    weights: str = ""  # a TorchScript archive: forward(x, return_features), x from 0 to 255, resized if it must be
    sha256: str = ""
    preprocess: Preprocess = FID_ARCHIVE
    per_frame: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.preprocess.size != 299 or self.preprocess.pixels != "raw":
            raise ConfigError(f"inception reads frames of size 299, pixels raw; got {self.preprocess!r}")


@dataclass(frozen=True)
class _TransformersConfig:
    preprocess: Preprocess
    source: str = ""  # a folder, or a hub id
    revision: str | None = None  # the commit of a hub id, 40 hexadecimal digits
    allow_download: bool = False

    def __post_init__(self) -> None:
        if self.preprocess.filter == "archive" or self.preprocess.pixels == "raw":
            raise ConfigError("preprocess: only archives resize (filter archive) and scale (pixels raw) by themselves")


@dataclass(frozen=True)
class VideoMAEConfig(_TransformersConfig):
    """VideoMAE (Tong et al., 2022): one row a clip, the mean of its tokens, normalized where the weights have a norm.

    cd-fvd (Ge et al., 2024) gives it pixels from 0 to 1, though it was trained with ImageNet's mean, as here.
    """

    kind: Literal["videomae"] = "videomae"
    preprocess: Preprocess = VIDEOMAE
    per_frame: ClassVar[bool] = False


@dataclass(frozen=True)
class Dinov2Config(_TransformersConfig):
    """DINOv2 (Oquab et al., 2024): one row a frame, the state of its class token.

    transformers interpolates positions without the offset of 0.1 that the published code has.
    """

    kind: Literal["dinov2"] = "dinov2"
    preprocess: Preprocess = DINOV2_EDM2
    per_frame: ClassVar[bool] = True


@dataclass(frozen=True)
class CLIPConfig(_TransformersConfig):
    """CLIP (Radford et al., 2021): one row a frame, projected to where its prompts lie."""

    kind: Literal["clip"] = "clip"
    preprocess: Preprocess = CLIP
    per_frame: ClassVar[bool] = True


ArchiveConfig = I3DConfig | InceptionConfig
TransformersConfig = VideoMAEConfig | Dinov2Config | CLIPConfig
ExtractorConfig = ArchiveConfig | TransformersConfig


@dataclass(frozen=True)
class PretrainedExtractor:
    """A published network as an `Extractor`."""

    config: ExtractorConfig
    network: Any
    rows: Callable[[Any, Tensor], Tensor]  # of the network and clips (B, F, 3, H, W), or frames (N, 3, H, W)
    dim: int
    path: Path  # of the weights, a file or a folder
    version: str

    @property
    def name(self) -> str:
        return self.config.kind

    @property
    def preprocess(self) -> Preprocess:
        return self.config.preprocess

    @property
    def per_frame(self) -> bool:
        return self.config.per_frame

    @torch.no_grad()
    def __call__(self, clips: Iterable[Tensor]) -> Tensor:
        """Return float32 (N, dim), on the CPU: a row for each clip, or with ``per_frame`` for each used frame.

        Args:
            clips: each uint8 (F, H, W, 3), of any size; a tensor (B, F, H, W, 3) will do.

        Raises:
            DataError: if one is not a clip, or has too few frames.
            CheckpointError: if the network returns something else than ``dim`` numbers.
        """
        device = next(self.network.parameters(), torch.empty(0)).device
        found = [torch.empty(0, self.dim)]
        for _, group in groupby(map(self.preprocess, clips), key=lambda clip: clip.shape):
            alike = list(group)
            for batch in torch.cat(alike).split(_FRAMES) if self.per_frame else [torch.stack(alike)]:
                rows = self.rows(self.network, batch.to(device)).float().cpu()
                if rows.shape != (len(batch), self.dim):
                    raise CheckpointError(
                        f"{self.path}: returns {tuple(rows.shape)} where {self.name} returns {(len(batch), self.dim)}"
                    )
                found.append(rows)
        return torch.cat(found)


def build_extractor(config: ExtractorConfig, device: torch.device | str = "cpu") -> PretrainedExtractor:
    """Return the network that ``config`` names, ready to be called.

    Raises:
        ConfigError: if weights are not named, not allowed or not there, or do not fit the preprocessing.
        CheckpointError: if they are damaged, incomplete or of another network.
    """
    if isinstance(config, ArchiveConfig):
        network = open_archive(config.kind, config.weights, config.sha256, *_ARCHIVES[config.kind], device)
        path, version = Path(config.weights), config.sha256.lower()
    else:
        network, path = load_transformers(config, device)
        version = _digest(path)
    given = config.preprocess
    rows: Callable[[Any, Tensor], Tensor]
    match config:
        case I3DConfig():
            rows = partial(_i3d, rescale=given.pixels == "raw", resize=given.filter == "archive")
            dim = 400
        case InceptionConfig():
            rows, dim = _inception, 2048
        case VideoMAEConfig():
            _check_read(path, given, size=network.config.image_size, frames=network.config.num_frames)
            rows, dim = _videomae, network.config.hidden_size
        case Dinov2Config():
            patch = network.config.patch_size
            _check_read(path, given, size=max(given.size // patch, 1) * patch)
            rows, dim = _dinov2, network.config.hidden_size
        case CLIPConfig():
            _check_read(path, given, size=network.config.vision_config.image_size)
            rows, dim = _clip, network.config.projection_dim
    return PretrainedExtractor(config, network, rows, dim, path, version)


_ARCHIVES = {
    "i3d": (
        "i3d_torchscript.pt, with which StyleGAN-V measures the FVD,",
        frozenset({"rescale", "resize", "return_features"}),
    ),
    "inception": (
        "inception-2015-12-05.pt, with which StyleGAN2-ADA measures the FID,",
        frozenset({"return_features"}),
    ),
}

# By what a folder's config says it holds: only so is no tensor left over.
_CLASSES = {
    "videomae": ("VideoMAEModel", "VideoMAEForVideoClassification", "VideoMAEForPreTraining"),
    "dinov2": ("Dinov2Model",),
    "clip": ("CLIPModel",),
}


def load_transformers(config: TransformersConfig, device: torch.device | str = "cpu") -> tuple[Any, Path]:
    """Return a network of transformers in float32 and its folder.

    Raises:
        ConfigError: if the source is neither a folder nor a hub id at a pinned revision.
        CheckpointError: if the weights are missing, not safetensors, incomplete or of another network.
    """
    folder = _folder(config)
    if (found := sources.model_type(folder)) != config.kind:
        raise CheckpointError(f"{folder}: model_type {found} does not fit extractor kind {config.kind}")
    known = _CLASSES[config.kind]
    name = (json.loads((folder / "config.json").read_text()).get("architectures") or known)[0]
    if name not in known:
        raise CheckpointError(f"{folder}: holds a {name}; extractor kind {config.kind} reads {', '.join(known)}")
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{folder}: holds no safetensors weights; pickled weights are never read")
    try:
        import transformers
        from safetensors import SafetensorError
    except ImportError as error:
        raise ConfigError(f"extractor {config.kind} needs transformers; run: pip install 'vidiff[eval]'") from error
    try:
        with quiet():
            network, report = getattr(transformers, name).from_pretrained(
                str(folder),
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                dtype=torch.float32,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: cannot be read as {name}: {error}") from error
    keys = {what: sorted(map(str, report[f"{what}_keys"])) for what in ("missing", "unexpected", "mismatched")}
    problems = [f"{what} {', '.join(names[:5])}" for what, names in keys.items() if names]
    if problems:  # left alone, transformers makes up what is missing
        raise CheckpointError(f"{folder}: weights do not fit {name}: {'; '.join(problems)}; get the published folder")
    return network.to(device).eval().requires_grad_(False), folder


def _folder(config: TransformersConfig) -> Path:
    if Path(config.source).is_dir() and config.source:
        return Path(config.source)
    if not sources.is_hub_id(config.source):
        raise ConfigError(f"{config.kind}.source: {config.source!r} is neither a folder nor a hub id, OWNER/NAME")
    by_hand = f"hf download {config.source} --revision {config.revision}"
    return sources.hub_folder(config.source, config.revision, config.allow_download, by_hand)


def _check_read(folder: Path, given: Preprocess, **wanted: int) -> None:
    for name, value in wanted.items():
        if getattr(given, name) != value:
            raise ConfigError(f"preprocess.{name}: {folder} reads {value}, got {getattr(given, name)}")


def _digest(folder: Path) -> str:
    parts = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    return hashlib.sha256("".join(f"{sha256_of(part)}  {part.name}\n" for part in parts).encode()).hexdigest()


def _i3d(network: Any, clips: Tensor, *, rescale: bool, resize: bool) -> Tensor:
    return network(clips.transpose(1, 2).contiguous(), rescale=rescale, resize=resize, return_features=True)


def _inception(network: Any, frames: Tensor) -> Tensor:
    return network(frames, return_features=True).flatten(1)


def _videomae(network: Any, clips: Tensor) -> Tensor:
    tokens = getattr(network, "videomae", network)(pixel_values=clips).last_hidden_state
    norm = getattr(network, "fc_norm", None)  # classifiers have one behind the mean
    return tokens.mean(1) if norm is None else norm(tokens.mean(1))


def _dinov2(network: Any, frames: Tensor) -> Tensor:
    return network(pixel_values=frames).pooler_output


def _clip(network: Any, frames: Tensor) -> Tensor:
    features = network.get_image_features(pixel_values=frames)
    return features if isinstance(features, Tensor) else features.pooler_output  # the latter since transformers 5
