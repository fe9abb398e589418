"""Published models in the diffusers layout, read into our own classes.

model_index.json  transformer/  [transformer_2/]  vae/  text_encoder/  tokenizer/  scheduler/  [image_encoder/]
"""

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidiff.diffusion.denoiser import Denoiser
from vidiff.diffusion.guidance import Guidance
from vidiff.diffusion.schedule import FlowSchedule
from vidiff.errors import CheckpointError, ConfigError, UserError
from vidiff.files import sha256_of
from vidiff.interop import schedulers, wan_autoencoder, wan_transformer
from vidiff.interop.component import Component, fill, open_component, read_json
from vidiff.interop.wan_published import MANY_PIXELS, Published, published
from vidiff.model_folder import ModelConfig, Pictures, SamplingConfig
from vidiff.models.autoencoder import VideoVAE
from vidiff.models.dit import DiTConfig
from vidiff.models.experts import Experts, ExpertsConfig
from vidiff.models.shapes import ModelShape
from vidiff.sampling.times import FlowSpacing
from vidiff.sampling.unipc import UniPC
from vidiff.text.encoders import T5Config
from vidiff.types import Size

INDEX = "model_index.json"
_PIPELINES = ("WanPipeline", "WanImageToVideoPipeline")
_TEXT_TOKENS = 512  # of every prompt, zeros behind the real ones
_PARTS = {
    "transformer": ("WanTransformer3DModel",),
    "transformer_2": ("WanTransformer3DModel",),
    "vae": ("AutoencoderKLWan",),
    "text_encoder": ("UMT5EncoderModel",),
    "image_encoder": ("CLIPVisionModel", "CLIPVisionModelWithProjection"),
}


@dataclass(frozen=True)
class DiffusersFolder:
    """A published model, read no further than its configs and the names of its tensors."""

    folder: Path
    config: ModelConfig
    known_as: Published | None  # None: a model of the same kind that is not among the published ones
    transformers: tuple[Component, ...]
    vae: Component

    def shape(self) -> ModelShape:
        """Return what a plan of memory has to know; raises a CheckpointError if an encoder is not whole."""
        text = open_component(self.folder / "text_encoder")
        image_parameters, image_length = self._image_encoder()
        return ModelShape(
            transformers=(_expert(self.config),) * len(self.transformers),
            channels=wan_autoencoder.config_from_diffusers(self.vae.config).latent_channels,
            text_dim=self.config.text_dim,
            text_parameters=_parameters(text),
            autoencoder=wan_autoencoder.config_from_diffusers(self.vae.config),
            text_length=_TEXT_TOKENS,
            image_parameters=image_parameters,
            image_length=image_length,
        )

    def _image_encoder(self) -> tuple[int, int]:
        """Return the parameters of the image encoder and how many states it makes of a picture."""
        if _expert(self.config).image_dim is None:
            return 0, 0
        found = open_component(self.folder / "image_encoder")
        with _named_in(found.folder):
            return _parameters(found), 1 + (found.config["image_size"] // found.config["patch_size"]) ** 2

    def autoencoder(self, device: torch.device | str = "cpu") -> VideoVAE:
        """Return the autoencoder, float32; raises a CheckpointError if a tensor is not as it should be."""
        config = wan_autoencoder.config_from_diffusers(self.vae.config)
        with torch.device("meta"):
            vae = VideoVAE(config)
        fill(vae, self.vae, wan_autoencoder.to_diffusers, device)
        with _named_in(self.vae.folder):
            mean, std = (torch.tensor(self.vae.config[f"latents_{name}"]).float() for name in ("mean", "std"))
        channels = config.latent_channels
        if mean.shape != (channels,) or std.shape != (channels,):
            raise CheckpointError(f"{self.vae.folder}: latents_mean and latents_std are not of {channels} channels")
        vae.latent_mean, vae.latent_std = mean.to(device), std.to(device)
        vae.preview_weight, vae.preview_bias = torch.zeros(3, channels).to(device), torch.zeros(3).to(device)
        return vae.eval().requires_grad_(False)

    def denoiser(
        self, vae: VideoVAE, null: Tensor, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Denoiser:
        """Return the denoiser.

        Args:
            vae: what it denoises the latents of.
            null: states of the empty prompt, (L, D), which guidance leads away from; on the device that it shall say.
            device: where its networks go; meta leaves them to be `read` later.
            dtype: of most of its weights.

        Raises:
            CheckpointError: if a tensor is missing, left over or misshapen; it is named.
        """
        with torch.device("meta"):
            denoiser = self.config.denoiser(vae.latents)
        self.read(denoiser, device, dtype)
        denoiser.null_tokens = torch.nn.Parameter(null, requires_grad=False)
        return denoiser.eval().requires_grad_(False)

    def read(self, denoiser: Denoiser, device: torch.device | str, dtype: torch.dtype = torch.float32) -> None:
        """Give a denoiser's networks, which are on the meta device, their weights; arguments are `denoiser`'s."""
        backbone = denoiser.backbone
        networks = list(backbone.experts) if isinstance(backbone, Experts) else [backbone]
        for network, component in zip(networks, self.transformers, strict=True):
            fill(network, component, self._named, device, dtype)

    def _named(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return wan_transformer.to_diffusers(weights, _expert(self.config).patch_size)


def is_diffusers_folder(folder: Path) -> bool:
    """Return whether ``folder`` has the diffusers layout."""
    return (folder / INDEX).is_file()


def open_diffusers_folder(folder: Path) -> DiffusersFolder:
    """Read a published model's configs and the names of its tensors, but no weights.

    Raises:
        CheckpointError: if the architecture is unknown, or something is missing or damaged.
        ConfigError: if a network is of a kind that our classes do not hold.
    """
    index = read_json(folder / INDEX)
    _check_architecture(folder, index)
    names = ["transformer", *(["transformer_2"] if _has(index, "transformer_2") else [])]
    transformers = tuple(open_component(folder / name) for name in names)
    vae = open_component(folder / "vae")
    with _named_in(transformers[0].folder):
        found = [wan_transformer.config_from_diffusers(one.config) for one in transformers]
    if any(one != found[0] for one in found):
        raise CheckpointError(f"{folder}: transformer and transformer_2 are of different shapes")
    dit, channels, text_dim = found[0]
    boundary = index.get("boundary_ratio")
    if (boundary is None) != (len(transformers) == 1):
        raise CheckpointError(f"{folder / INDEX}: two transformers need a boundary_ratio, and one has none")
    pictures: Pictures = "known" if index.get("expand_timesteps") else "concat" if dit.concat_channels else "none"
    known_as = published(dit, channels, boundary)
    with _named_in(folder / "scheduler"):
        sampling = _scheduled(folder) if known_as is None else _as_published(known_as)
    config = ModelConfig(
        name=folder.resolve().name if known_as is None else known_as.name,
        backbone=dit if boundary is None else ExpertsConfig(expert=dit, boundaries=(float(boundary),)),
        text=T5Config(
            source=str(folder), subfolder="text_encoder", tokenizer="../tokenizer", max_tokens=_TEXT_TOKENS, pad="max"
        ),
        text_dim=text_dim,
        null_tokens=_TEXT_TOKENS,
        schedule=FlowSchedule(),
        predicts="flow",
        sampling=sampling,
        size=Size(81, 480, 832, 16.0) if known_as is None else known_as.size,
        frames=(1, 81 if known_as is None else known_as.size.frames),
        pictures=pictures,
        large_shift=None if known_as is None or known_as.large_shift is None else (MANY_PIXELS, known_as.large_shift),
        dtype="float32" if known_as is None else "bfloat16",
    )
    return DiffusersFolder(folder, config, known_as, transformers, vae)


@contextmanager
def _named_in(folder: Path) -> Iterator[None]:
    """Turn what a config of the wrong kind raises into a CheckpointError that names its folder."""
    try:
        yield
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder}: its config is damaged: {type(error).__name__} {error}") from error


def folder_hash(folder: Path) -> str:
    """Return the SHA-256 over all configs and weights of a published model, in hexadecimal."""
    digest = hashlib.sha256()
    parts = [path for kind in ("*.json", "*.safetensors") for path in folder.rglob(kind)]
    for path in sorted(parts):
        digest.update(f"{_sha256_of(path)}  {path.relative_to(folder).as_posix()}\n".encode())
    return digest.hexdigest()


def _sha256_of(path: Path) -> str:
    """Return a file's SHA-256; in the hub's cache files are links to what is named by it, and need not be read."""
    target = path.resolve().name
    return target if path.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", target) else sha256_of(path)


def _check_architecture(folder: Path, index: dict[str, Any]) -> None:
    kind = index.get("_class_name")
    if kind not in _PIPELINES:
        raise CheckpointError(f"{folder}: is a {kind}, which cannot be read; those that can: {', '.join(_PIPELINES)}")
    for name, found in index.items():
        if isinstance(found, list) and found and found[0] not in (None, "diffusers", "transformers"):
            raise CheckpointError(f"{folder}: its {name} needs code of its own ({found[0]}), which is never run")
    for name, kinds in _PARTS.items():
        found = index.get(name)
        cls = found[1] if isinstance(found, list) and len(found) == 2 else None
        if cls is not None and cls not in kinds:
            raise CheckpointError(f"{folder}: its {name} is a {cls}, which cannot be read; {' or '.join(kinds)} can")


def _parameters(component: Component) -> int:
    return sum(math.prod(shape) for shape in component.shapes.values())


def _has(index: dict[str, Any], name: str) -> bool:
    found = index.get(name)
    return isinstance(found, list) and found[0] is not None


def _as_published(one: Published) -> SamplingConfig:
    return SamplingConfig(
        solver=UniPC(),
        num_steps=one.num_steps,
        guidance=Guidance(scale=one.guidance),
        negative=one.negative,
        spacing=FlowSpacing(shift=one.shift),
        told_steps=1000,
    )


def _scheduled(folder: Path) -> SamplingConfig:
    """Return how the folder's own scheduler samples; raises a ConfigError if it is none that is known here."""
    try:
        found = schedulers.from_diffusers(read_json(folder / "scheduler" / "scheduler_config.json"))
    except ConfigError as error:
        raise ConfigError(f"{folder / 'scheduler'}: {error}") from error
    return SamplingConfig(num_steps=50, guidance=Guidance(scale=5.0), **found._asdict())


def _expert(config: ModelConfig) -> DiTConfig:
    backbone = config.backbone
    found = backbone.expert if isinstance(backbone, ExpertsConfig) else backbone
    assert isinstance(found, DiTConfig)
    return found
