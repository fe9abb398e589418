"""A recipe: stages in order, each starting from what earlier ones left, ending in a model folder."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console

from vidiff import config
from vidiff.checkpoint import model_hash, save_model
from vidiff.data.dataset import ClipDataset, DataConfig, write_skipped
from vidiff.errors import ConfigError, did_you_mean
from vidiff.files import run_lock, write_text
from vidiff.model_folder import (
    AUTOENCODER,
    ModelConfig,
    SamplingConfig,
    load_autoencoder,
    load_denoiser,
    read_config,
    save_autoencoder,
)
from vidiff.models.autoencoder import VideoVAE
from vidiff.text.encoders import MiniLMConfig, TextEncoderConfig, build_text_encoder
from vidiff.train.autoencoder_stage import AutoencoderStage, AutoencoderStageConfig
from vidiff.train.cache import cached_latents, cached_text
from vidiff.train.denoiser_stage import DenoiserStage, DenoiserStageConfig
from vidiff.train.trainer import train
from vidiff.types import Size

StageConfig = AutoencoderStageConfig | DenoiserStageConfig


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what is trained."""

    name: str
    data: DataConfig
    stages: tuple[StageConfig, ...]
    text: TextEncoderConfig = field(default_factory=MiniLMConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        names: list[str] = []
        kinds: dict[str, str] = {}
        for stage in self.stages:
            if stage.name in names or not stage.name.isidentifier():
                raise ConfigError(f"stage names must be unique words, got {stage.name!r}")
            if isinstance(stage, DenoiserStageConfig):
                for wanted, kind in ((stage.autoencoder, "autoencoder"), (stage.starts_from, "denoiser")):
                    if wanted is not None and kinds.get(wanted) != kind:
                        hint = did_you_mean(wanted, names)
                        raise ConfigError(f"stage {stage.name} needs an earlier {kind} stage {wanted!r}.{hint}")
            names.append(stage.name)
            kinds[stage.name] = stage.kind
        if not self.stages:
            raise ConfigError("stages is empty: nothing to train")


def run(recipe: Recipe, run_dir: Path, console: Console, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Train the stages that are not finished yet and return the model folder of the last one.

    ``run_dir`` then holds the resolved recipe, a folder for each stage (checkpoints, log, pictures, and ``export``,
    its moving average), the cache, and ``model``, in ``dtype``, if the last stage is a denoiser.
    """
    with run_lock(run_dir):
        write_text(run_dir / "config.yaml", config.dump(recipe))
        data = _opened(recipe.data, run_dir, console)
        for stage in recipe.stages:
            export = run_dir / stage.name / "export"
            if _finished(export, stage):
                console.print(f"{stage.name}: finished before", highlight=False)
                continue
            match stage:
                case AutoencoderStageConfig():
                    _train_autoencoder(stage, data, run_dir, console)
                case DenoiserStageConfig():
                    _train_denoiser(stage, recipe, data, run_dir, console)
            write_text(export / "stage.yaml", config.dump(stage))
        return _assembled(recipe, run_dir, dtype)


def _opened(settings: DataConfig, run_dir: Path, console: Console) -> ClipDataset:
    """Open the data and say, on the console and in the run folder, what became of every clip."""
    with console.status("reading clips") as status:
        data = ClipDataset(settings, lambda done: status.update(f"reading clips: {done}") if done % 50 == 0 else None)
    write_skipped(data, run_dir / "skipped.jsonl")
    write_text(run_dir / "data.json", json.dumps(data.fates.to_dict(), indent=1))
    console.print(f"{settings.path}\n{data.fates.table()}", soft_wrap=True, highlight=False, markup=False)
    return data


def _finished(export: Path, stage: StageConfig) -> bool:
    """Return whether a stage's export is that of this very config; written last, so a killed export does not count."""
    done = export / "stage.yaml"
    return done.is_file() and done.read_text() == config.dump(stage)


def _train_autoencoder(config: AutoencoderStageConfig, data: ClipDataset, run_dir: Path, console: Console) -> None:
    stage = AutoencoderStage(config, data)
    ema = train(stage, config.trainer, run_dir / config.name, console)
    stage.finish(ema.shadow)
    assert isinstance(ema.shadow, VideoVAE)
    save_autoencoder(run_dir / config.name / "export", ema.shadow)


def _train_denoiser(
    stage_config: DenoiserStageConfig, recipe: Recipe, data: ClipDataset, run_dir: Path, console: Console
) -> None:
    vae_folder = run_dir / stage_config.autoencoder / "export"
    vae = load_autoencoder(vae_folder)
    encoder = build_text_encoder(recipe.text)
    cache = run_dir / "cache"
    latents = cached_latents(cache, vae, model_hash(vae_folder), data, console)
    text = cached_text(cache, encoder, encoder.fingerprint, data, console)
    model_config = _model_config(stage_config, recipe, encoder.dim, data)
    stage = DenoiserStage(stage_config, model_config, data, latents, text, vae)
    if stage_config.starts_from is not None:
        start = load_denoiser(run_dir / stage_config.starts_from / "export", model_config, vae.latents)
        stage.denoiser.load_state_dict(start.state_dict())
    ema = train(stage, stage_config.trainer, run_dir / stage_config.name, console)
    save_model(run_dir / stage_config.name / "export", config.to_dict(model_config), ema.state_dict())


def _model_config(stage: DenoiserStageConfig, recipe: Recipe, text_dim: int, data: ClipDataset) -> ModelConfig:
    size = data.config
    return ModelConfig(
        name=recipe.name,
        backbone=stage.backbone,
        text=recipe.text,
        text_dim=text_dim,
        schedule=stage.schedule,
        predicts=stage.predicts,
        sampling=recipe.sampling,
        size=Size(size.frames, size.height, size.width, size.fps or data.fps),
        frames=(1 if stage.single_frames or stage.starts_from else size.frames, size.frames),
    )


def _assembled(recipe: Recipe, run_dir: Path, dtype: torch.dtype) -> Path:
    """Put the last stage and its autoencoder together as one self-contained folder."""
    last = recipe.stages[-1]
    if isinstance(last, AutoencoderStageConfig):
        return run_dir / last.name / "export"
    folder, export = run_dir / "model", run_dir / last.name / "export"
    shutil.rmtree(folder, ignore_errors=True)
    vae = load_autoencoder(run_dir / last.autoencoder / "export")
    save_autoencoder(folder / AUTOENCODER, vae, dtype)
    settings: ModelConfig = read_config(ModelConfig, export)
    save_model(folder, config.to_dict(settings), load_denoiser(export, settings, vae.latents).state_dict(), dtype=dtype)
    return folder
