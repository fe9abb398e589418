"""Published models in the diffusers layout, read into our own classes.

model_index.json  transformer/  [transformer_2/]  vae/  text_encoder/  tokenizer/  scheduler/  [image_encoder/]
"""

import hashlib
import math
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidiff.component_configs import named_in
from vidiff.components import Component, open_component, read_json
from vidiff.diffusion.denoiser import Denoiser
from vidiff.diffusion.guidance import Guidance
from vidiff.diffusion.schedule import FlowSchedule
from vidiff.digests import remembered
from vidiff.errors import CheckpointError, ConfigError
from vidiff.files import sha256_of
from vidiff.interop import schedulers, wan_autoencoder, wan_transformer
from vidiff.interop.component import fill
from vidiff.interop.wan_published import MANY_PIXELS, Published, published
from vidiff.model_folder import ModelConfig, Pictures, SamplingConfig
from vidiff.models.autoencoder import VideoVAE, VideoVAEConfig
from vidiff.models.dit import DiTConfig
from vidiff.models.experts import Experts, ExpertsConfig
from vidiff.models.shapes import ModelShape, autoencoder_weights, transformer_weights
from vidiff.sampling.times import FlowSpacing
from vidiff.sampling.unipc import UniPC
from vidiff.text.encoders import T5Config
from vidiff.text.pretrained import WHOLE
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
    vae_config: VideoVAEConfig

    def shape(self) -> ModelShape:
        """Return what a plan of memory has to know; raises a CheckpointError if an encoder is not whole."""
        text = open_component(self.folder / "text_encoder", WHOLE)
        image_parameters, image_length = self._image_encoder()
        return ModelShape(
            transformers=(_expert(self.config),) * len(self.transformers),
            channels=self.vae_config.latent_channels,
            text_dim=self.config.text_dim,
            text_parameters=_parameters(text),
            autoencoder=self.vae_config,
            text_length=_TEXT_TOKENS,
            image_parameters=image_parameters,
            image_length=image_length,
        )

    def _image_encoder(self) -> tuple[int, int]:
        """Return the parameters of the image encoder and how many states it makes of a picture."""
        if _expert(self.config).image_dim is None:
            return 0, 0
        found = open_component(self.folder / "image_encoder", WHOLE)
        with named_in(found.folder):
            return _parameters(found), 1 + (found.config["image_size"] // found.config["patch_size"]) ** 2

    def autoencoder(self, device: torch.device | str = "cpu") -> VideoVAE:
        """Return the autoencoder, float32; raises a CheckpointError if a tensor is not as it should be."""
        config = self.vae_config
        with named_in(self.vae.folder), torch.device("meta"):
            vae = VideoVAE(config)
        fill(vae, self.vae, wan_autoencoder.to_diffusers, device)
        with named_in(self.vae.folder):
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
        with named_in(self.folder), torch.device("meta"):
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
    check_architecture(folder, index)
    names = ["transformer", *(["transformer_2"] if _has(index, "transformer_2") else [])]
    transformers = tuple(_opened(folder, name) for name in names)
    vae = _opened(folder, "vae")
    found = []
    for one in transformers:
        with named_in(one.folder):
            found.append(wan_transformer.config_from_diffusers(one.config))
            transformer_weights(*found[-1])  # for what cannot be built is damaged, too
    with named_in(vae.folder):
        vae_config = wan_autoencoder.config_from_diffusers(vae.config)
        autoencoder_weights(vae_config)
    if any(one != found[0] for one in found):
        raise CheckpointError(f"{folder}: transformer and transformer_2 are of different shapes")
    dit, channels, text_dim = found[0]
    _check_widths(folder, text_dim, dit.image_dim)
    with named_in(folder / INDEX):
        boundary = None if index.get("boundary_ratio") is None else float(index["boundary_ratio"])
        backbone = dit if boundary is None else ExpertsConfig(expert=dit, boundaries=(boundary,))
    if (boundary is None) != (len(transformers) == 1):
        raise CheckpointError(f"{folder / INDEX}: two transformers need a boundary_ratio, and one has none")
    pictures: Pictures = "known" if index.get("expand_timesteps") else "concat" if dit.concat_channels else "none"
    known_as = published(dit, channels, boundary, str(folder.resolve()))
    with named_in(folder / "scheduler"):
        sampling = _scheduled(folder) if known_as is None else _as_published(known_as)
    config = ModelConfig(
        name=folder.resolve().name if known_as is None else known_as.name,
        backbone=backbone,
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
    return DiffusersFolder(folder, config, known_as, transformers, vae, vae_config)


def _opened(folder: Path, name: str) -> Component:
    """Open one network of a published model; raises a CheckpointError if its config is that of another class."""
    component = open_component(folder / name)
    found = component.config.get("_class_name")
    if found is not None and found not in _PARTS[name]:
        raise CheckpointError(f"{folder / name}: {_is_a(found, _PARTS[name])}")
    return component


def _check_widths(folder: Path, text_dim: int, image_dim: int | None) -> None:
    """Raise a CheckpointError if the config of an encoder, where there is one, is not of the width that is read."""
    for name, key, width in (("text_encoder", "d_model", text_dim), ("image_encoder", "hidden_size", image_dim)):
        path = folder / name / "config.json"
        found = read_json(path).get(key) if width is not None and path.is_file() else None
        if found is not None and found != width:
            raise CheckpointError(
                f"{folder / name}: {key} is {reprlib.repr(found)}, but the transformer reads states of width {width}; "
                "take the encoder that belongs to it"
            )


def _is_a(found: Any, known: tuple[str, ...]) -> str:
    name = found if isinstance(found, str) and found.isprintable() else reprlib.repr(found)
    return f"is a {name}, which cannot be read; {' or '.join(known)} can"


def folder_hash(folder: Path) -> str:
    """Return the SHA-256 over all configs and weights of a published model, in hexadecimal.

    A large file that was hashed before and has not changed since is not read again.
    """
    digest = hashlib.sha256()
    parts = [path for kind in ("*.json", "*.safetensors") for path in folder.rglob(kind)]
    for path in sorted(parts):
        digest.update(f"{_sha256_of(path)}  {path.relative_to(folder).as_posix()}\n".encode())
    return digest.hexdigest()


def _sha256_of(path: Path) -> str:
    """Return a file's SHA-256; in the hub's cache files are links to what is named by it, and need not be read."""
    target = path.resolve()
    named = path.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", target.name)
    return target.name if named else remembered(target, sha256_of)


def check_architecture(folder: Path | str, index: dict[str, Any]) -> None:
    """Raise a CheckpointError unless the ``model_index.json`` of a folder, or of a hub id, is of a model known here."""
    kind = index.get("_class_name")
    if kind not in _PIPELINES:
        raise CheckpointError(f"{folder}: is a {kind}, which cannot be read; those that can: {', '.join(_PIPELINES)}")
    for name, found in index.items():
        if isinstance(found, list) and found and found[0] not in (None, "diffusers", "transformers"):
            raise CheckpointError(f"{folder}: its {name} needs code of its own ({found[0]}), which is never run")
    for name, kinds in _PARTS.items():
        found = index.get(name)
        if found is None:
            continue
        if not isinstance(found, list) or len(found) != 2 or not all(isinstance(one, str | None) for one in found):
            shown = reprlib.repr(found)
            raise CheckpointError(f"{folder}: in {INDEX} {name} is {shown}, but must be a library and a class")
        if found[1] is not None and found[1] not in kinds:
            raise CheckpointError(f"{folder}: its {name} {_is_a(found[1], kinds)}")


def _parameters(component: Component) -> int:
    return sum(math.prod(shape) for shape in component.shapes.values())


def _has(index: dict[str, Any], name: str) -> bool:
    found = index.get(name)
    return found is not None and found[0] is not None


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
