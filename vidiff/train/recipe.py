"""A recipe: stages in order, each starting from what earlier ones left, ending in a model folder."""

import json
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from rich.console import Console

from vidiff import config
from vidiff.checkpoint import model_hash, save_model
from vidiff.data.clips import Clips, ClipsConfig, open_clips
from vidiff.data.dataset import DataConfig
from vidiff.data.fates import write_skipped
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
from vidiff.train.stream import StreamedLatents, StreamedText
from vidiff.train.trainer import train
from vidiff.types import Size

StageConfig = AutoencoderStageConfig | DenoiserStageConfig


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what is trained."""

    name: str
    data: ClipsConfig
    stages: tuple[StageConfig, ...]
    text: TextEncoderConfig = field(default_factory=MiniLMConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        if not self.stages:
            raise ConfigError("stages is empty: nothing to train")
        earlier: dict[str, StageConfig] = {}
        for stage in self.stages:
            if stage.name in earlier or not stage.name.isidentifier():
                raise ConfigError(f"stage names must be unique words, got {stage.name!r}")
            if isinstance(stage, DenoiserStageConfig):
                _check_uses(stage, earlier)
            earlier[stage.name] = stage
        denoisers = [stage for stage in self.stages if isinstance(stage, DenoiserStageConfig)]
        shared = {stage.autoencoder for stage in denoisers}
        if any(stage.refines for stage in denoisers) and len(shared) > 1:
            raise ConfigError(f"stages of a cascade share one autoencoder, got {', '.join(sorted(shared))}")


def _check_uses(stage: DenoiserStageConfig, earlier: dict[str, StageConfig]) -> None:
    """Raise a ConfigError if ``stage`` names an earlier stage that is not there or of the wrong kind."""
    for wanted, kind in ((stage.autoencoder, "autoencoder"), (stage.starts_from, "denoiser")):
        if wanted is not None and (wanted not in earlier or earlier[wanted].kind != kind):
            hint = did_you_mean(wanted, list(earlier))
            raise ConfigError(f"stage {stage.name} needs an earlier {kind} stage {wanted!r}.{hint}")
    if stage.refines is not None and not any(
        isinstance(other, DenoiserStageConfig) and other.refines is None for other in earlier.values()
    ):
        raise ConfigError(f"stage {stage.name} refines clips that no earlier stage makes")


def run(recipe: Recipe, run_dir: Path, console: Console, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Train the stages that are not finished yet and return the model folder of the last one.

    ``run_dir`` then holds the resolved recipe, a folder for each stage (checkpoints, log, pictures, and ``export``,
    its moving average), the cache, and ``model``, in ``dtype``, if the last stage is a denoiser.
    """
    opened: dict[ClipsConfig, Clips] = {}
    with run_lock(run_dir):
        write_text(run_dir / "config.yaml", config.dump(recipe))
        for stage in recipe.stages:
            export = run_dir / stage.name / "export"
            if _finished(export, stage):
                console.print(f"{stage.name}: finished before", highlight=False)
                continue
            settings = stage.data or recipe.data
            if settings not in opened:
                opened[settings] = _opened(settings, run_dir, console)
            match stage:
                case AutoencoderStageConfig():
                    _train_autoencoder(stage, opened[settings], run_dir, console)
                case DenoiserStageConfig():
                    _train_denoiser(stage, recipe, opened[settings], run_dir, console)
            write_text(export / "stage.yaml", config.dump(stage))
        return _assembled(recipe, run_dir, dtype)


def _opened(settings: ClipsConfig, run_dir: Path, console: Console) -> Clips:
    """Open the data and say, on the console and in the run folder, what became of every clip."""
    with console.status("reading clips") as status:
        data = open_clips(settings, lambda done: status.update(f"reading clips: {done}") if done % 50 == 0 else None)
    write_skipped(data.fates, run_dir / "skipped.jsonl")
    write_text(run_dir / "data.json", json.dumps(data.fates.to_dict(), indent=1))
    console.print(f"{_source(settings)}\n{data.fates.table()}", soft_wrap=True, highlight=False, markup=False)
    return data


def _source(settings: ClipsConfig) -> str:
    return str(settings.path) if isinstance(settings, DataConfig) else f"toy world, seed {settings.seed}"


def _finished(export: Path, stage: StageConfig) -> bool:
    """Return whether a stage's export is that of this very config; written last, so a killed export does not count."""
    done = export / "stage.yaml"
    return done.is_file() and done.read_text() == config.dump(stage)


def _train_autoencoder(config: AutoencoderStageConfig, data: Clips, run_dir: Path, console: Console) -> None:
    stage = AutoencoderStage(config, data)
    ema = train(stage, config.trainer, run_dir / config.name, console)
    stage.finish(ema.shadow)
    assert isinstance(ema.shadow, VideoVAE)
    save_autoencoder(run_dir / config.name / "export", ema.shadow)


def _train_denoiser(
    stage_config: DenoiserStageConfig, recipe: Recipe, data: Clips, run_dir: Path, console: Console
) -> None:
    vae_folder = run_dir / stage_config.autoencoder / "export"
    vae = load_autoencoder(vae_folder)
    encoder = build_text_encoder(recipe.text)
    model_config = _model_config(stage_config, recipe, encoder.dim, data)
    refines, low_res = stage_config.refines, None
    if stage_config.stream:
        stage = DenoiserStage(
            stage_config,
            model_config,
            data,
            StreamedLatents(vae, data),
            StreamedText(encoder, data),
            vae,
            None if refines is None else StreamedLatents(vae, data, refines),
        )
    else:
        cache, vae_hash = run_dir / "cache", model_hash(vae_folder)
        latents = cached_latents(cache, vae, vae_hash, data, console)
        if refines is not None:
            low_res = cached_latents(cache, vae, vae_hash, data, console, refines)
        text = cached_text(cache, encoder, encoder.fingerprint, data, console)
        stage = DenoiserStage(stage_config, model_config, data, latents, text, vae, low_res)
    if stage_config.starts_from is not None:
        start = load_denoiser(run_dir / stage_config.starts_from / "export", model_config, vae.latents)
        stage.denoiser.load_state_dict(start.state_dict())
    ema = train(stage, stage_config.trainer, run_dir / stage_config.name, console)
    save_model(run_dir / stage_config.name / "export", config.to_dict(model_config), ema.state_dict())


def _model_config(stage: DenoiserStageConfig, recipe: Recipe, text_dim: int, data: Clips) -> ModelConfig:
    size = data.config
    return ModelConfig(
        name=recipe.name,
        backbone=stage.backbone,
        text=recipe.text,
        text_dim=text_dim,
        schedule=stage.schedule,
        predicts=stage.predicts,
        sampling=stage.sampling or recipe.sampling,
        size=Size(size.frames, size.height, size.width, size.fps or data.fps),
        frames=(1 if stage.single_frames or stage.starts_from else size.frames, size.frames),
        refines=stage.refines,
    )


def _assembled(recipe: Recipe, run_dir: Path, dtype: torch.dtype) -> Path:
    """Put the base denoiser, its autoencoder and the stages that refine together as one self-contained folder."""
    denoisers = [stage for stage in recipe.stages if isinstance(stage, DenoiserStageConfig)]
    bases = [stage for stage in denoisers if stage.refines is None]
    if not bases:
        return run_dir / recipe.stages[-1].name / "export"
    base, refiners = bases[-1], [stage for stage in denoisers if stage.refines is not None]
    folder = run_dir / "model"
    shutil.rmtree(folder, ignore_errors=True)
    vae = load_autoencoder(run_dir / base.autoencoder / "export")
    save_autoencoder(folder / AUTOENCODER, vae, dtype)
    for stage, target in ((base, folder), *((stage, folder / stage.name) for stage in refiners)):
        export = run_dir / stage.name / "export"
        settings: ModelConfig = read_config(ModelConfig, export)
        weights = load_denoiser(export, settings, vae.latents).state_dict()
        if stage is base:
            settings = replace(settings, stages=tuple(refiner.name for refiner in refiners))
        save_model(target, config.to_dict(settings), weights, dtype=dtype)
    return folder
