"""A model folder of ours from a published one in the diffusers layout, and back."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vidiff import __version__, checkpoint, config, files
from vidiff.components import read_json
from vidiff.diffusers_folder import INDEX, DiffusersFolder, open_diffusers_folder
from vidiff.errors import CheckpointError, ConfigError
from vidiff.interop import schedulers, wan_autoencoder, wan_transformer
from vidiff.model_folder import (
    AUTOENCODER,
    ModelConfig,
    autoencoder_folder,
    load_autoencoder,
    load_denoiser,
    read_config,
    save_autoencoder,
)
from vidiff.models.dit import DiTConfig
from vidiff.models.experts import Experts, ExpertsConfig
from vidiff.sampling.times import FlowSpacing
from vidiff.text.encoders import T5Config, build_text_encoder
from vidiff.weights import write_tensors

# Beside the networks, what comes with them as it is.
_COPIED = ("text_encoder", "tokenizer", "image_encoder", "image_processor")


def from_diffusers(source: Path, target: Path, dtype: torch.dtype = torch.float32) -> ModelConfig:
    """Write a published model as a folder of ours, ``target``, and return its config.

    Args:
        source: in the diffusers layout.
        target: must not be there yet.
        dtype: of the weights that are written.

    Raises:
        CheckpointError: if ``source`` is damaged or of no kind that is known.
        ConfigError: if ``target`` is there.
    """
    opened = open_diffusers_folder(source)
    _check_free(target)
    vae = opened.autoencoder()
    null = build_text_encoder(opened.config.text).encode([""]).tokens[0]
    settings = _own(opened)
    weights = opened.denoiser(vae, null, dtype=dtype).state_dict()
    _copy(source, target)
    save_autoencoder(target / AUTOENCODER, vae)
    checkpoint.save_model(target, config.to_dict(settings), weights)
    return settings


def to_diffusers(source: Path, target: Path) -> None:
    """Write a model folder of ours in the diffusers layout.

    Raises:
        ConfigError: if the layout has no place for a part of the model, which is named; or ``target`` is there.
        CheckpointError: if ``source`` is damaged.
    """
    settings: ModelConfig = read_config(ModelConfig, source)
    text = _t5_folder(settings, source)
    _check_kind(settings)
    _check_free(target)
    vae = load_autoencoder(autoencoder_folder(source, settings))
    vae_config = wan_autoencoder.config_to_diffusers(vae.config, vae.latent_mean.tolist(), vae.latent_std.tolist())
    denoiser = load_denoiser(source, settings, vae.latents)
    backbone = denoiser.backbone
    networks = list(backbone.experts) if isinstance(backbone, Experts) else [backbone]
    dit = _dit(settings)
    dit_config = wan_transformer.config_to_diffusers(dit, vae.config.latent_channels, settings.text_dim)
    for name, network in zip(("transformer", "transformer_2"), networks, strict=False):
        weights = wan_transformer.to_diffusers(network.state_dict(), dit.patch_size)
        _write(target / name, dit_config, "diffusion_pytorch_model.safetensors", weights)
    vae_weights = wan_autoencoder.to_diffusers(vae.state_dict())
    _write(target / "vae", vae_config, "diffusion_pytorch_model.safetensors", vae_weights)
    _copy(text, target)
    scheduler = _scheduler(settings)
    files.write_text(_made(target / "scheduler") / "scheduler_config.json", json.dumps(scheduler, indent=2))
    index = _index(settings, scheduler, target)
    files.write_text(target / INDEX, json.dumps(index, indent=2))  # last: it makes the folder a model


def _own(opened: DiffusersFolder) -> ModelConfig:
    text = opened.config.text
    assert isinstance(text, T5Config)
    return replace(opened.config, text=replace(text, source="."))


def _check_free(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target}: is there already; name a new folder")


def _t5_folder(settings: ModelConfig, source: Path) -> Path:
    text = settings.text
    if not isinstance(text, T5Config):
        raise ConfigError(f"the diffusers layout of Wan has no place for the text encoder {text.kind}; it holds a UMT5")
    root = source if text.source == "." else Path(text.source)
    if not (root / "text_encoder").is_dir() or not (root / "tokenizer").is_dir():
        raise CheckpointError(f"{root}: holds no text_encoder and tokenizer; they go into the diffusers layout")
    return root


def _check_kind(settings: ModelConfig) -> None:
    told = {
        "predicts": (settings.predicts, "flow"),
        "schedule": (config.to_dict(settings.schedule), {"kind": "flow", "shift": 1.0}),
        "stages": (list(settings.stages), []),
        "drafts": (settings.drafts, False),
        "verifier": (settings.verifier, False),
        "pixels": (settings.pixels, None),
        "learned_variance": (settings.learned_variance, False),
    }
    for name, (found, wanted) in told.items():
        if found != wanted:
            raise ConfigError(f"the diffusers layout of Wan has no place for {name}: {found}; it holds {wanted}")
    _dit(settings)


def _dit(settings: ModelConfig) -> DiTConfig:
    backbone = settings.backbone
    found = backbone.expert if isinstance(backbone, ExpertsConfig) else backbone
    if not isinstance(found, DiTConfig):
        raise ConfigError(f"the diffusers layout of Wan has no place for a {backbone.kind}; it holds a dit")
    if isinstance(backbone, ExpertsConfig) and len(backbone.boundaries) != 1:
        raise ConfigError(f"the diffusers layout of Wan holds 1 or 2 experts, not {len(backbone.boundaries) + 1}")
    return found


def _scheduler(settings: ModelConfig) -> dict[str, Any]:
    sampling = settings.sampling
    shift = sampling.spacing.shift if isinstance(sampling.spacing, FlowSpacing) else 1.0
    return schedulers.to_diffusers(sampling.solver, shift)


def _index(settings: ModelConfig, scheduler: dict[str, Any], target: Path) -> dict[str, Any]:
    transformer = ["diffusers", "WanTransformer3DModel"]
    experts = isinstance(settings.backbone, ExpertsConfig)
    # What also takes a picture as its first frame, as Wan 2.2 TI2V 5B, is published as a text-to-video pipeline.
    shown = settings.pictures == "concat"
    tokenizer = read_json(target / "tokenizer" / "tokenizer_config.json").get("tokenizer_class", "T5TokenizerFast")
    index: dict[str, Any] = {
        "_class_name": "WanImageToVideoPipeline" if shown else "WanPipeline",
        "_vidiff_version": __version__,
        "boundary_ratio": settings.backbone.boundaries[0] if isinstance(settings.backbone, ExpertsConfig) else None,
        "expand_timesteps": settings.pictures == "known",
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", tokenizer],
        "transformer": transformer,
        "transformer_2": transformer if experts else [None, None],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }
    if shown:
        seen = (target / "image_encoder").is_dir()
        index["image_encoder"] = ["transformers", "CLIPVisionModel"] if seen else [None, None]
        index["image_processor"] = ["transformers", "CLIPImageProcessor"] if seen else [None, None]
    return index


def _write(folder: Path, settings: dict[str, Any], name: str, weights: dict[str, torch.Tensor]) -> None:
    path = _made(folder) / name
    with files.os_errors_named(path), files.atomic_path(path) as temporary:
        write_tensors(temporary, weights)
    files.write_text(folder / "config.json", json.dumps(settings, indent=2))


def _copy(source: Path, target: Path) -> None:
    """Copy what stays as it is, without pickled weights and code."""
    for name in _COPIED:
        for path in sorted((source / name).rglob("*")):
            if path.suffix in (".json", ".safetensors", ".model", ".txt"):
                place = target / path.relative_to(source)
                _made(place.parent)
                with files.os_errors_named(place), files.atomic_path(place) as temporary:
                    shutil.copyfile(path, temporary)


def _made(folder: Path) -> Path:
    with files.os_errors_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder
