"""What the stages of a recipe left, put together as one model folder."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vidiff import config
from vidiff.checkpoint import save_model
from vidiff.metrics.embedded import EvaluatorModelConfig
from vidiff.model_folder import (
    AUTOENCODER,
    DRAFTER,
    PLANNER,
    VERIFIER,
    DrafterModelConfig,
    ModelConfig,
    VerifierModelConfig,
    load_autoencoder,
    load_denoiser,
    read_config,
    save_autoencoder,
)
from vidiff.models.build import Autoencoder
from vidiff.models.pixels import PixelAutoencoder
from vidiff.models.plans import PlanCodec
from vidiff.train.autoencoder_stage import AutoencoderStageConfig
from vidiff.train.denoiser_stage import DenoiserStageConfig
from vidiff.train.distillation_stage import DistillationStageConfig
from vidiff.train.drafter_stage import DrafterStageConfig
from vidiff.train.evaluator_stage import EvaluatorStageConfig
from vidiff.train.verifier_stage import VerifierStageConfig
from vidiff.types import LatentSpec
from vidiff.weights import WEIGHTS_NAME, read_tensors

if TYPE_CHECKING:
    from vidiff.train.recipe import Recipe


def assembled(recipe: "Recipe", run_dir: Path, dtype: torch.dtype) -> Path:
    """Put the base denoiser, its autoencoder and the stages that refine together as one self-contained folder."""
    denoisers = [stage for stage in recipe.stages if isinstance(stage, DenoiserStageConfig)]
    planners = [stage for stage in denoisers if stage.makes_plans is not None]
    bases = [stage for stage in denoisers if stage.refines is None and stage.makes_plans is None]
    folder, last = run_dir / "model", run_dir / recipe.stages[-1].name / "export"
    if isinstance(recipe.stages[-1], DistillationStageConfig):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(last, folder, ignore=shutil.ignore_patterns("stage.json"))
        settings = read_config(ModelConfig, last)
        save_model(folder, config.to_dict(settings), read_tensors(last / WEIGHTS_NAME), dtype=dtype)
        return folder
    if not bases and not isinstance(recipe.stages[-1], EvaluatorStageConfig):
        return last
    shutil.rmtree(folder, ignore_errors=True)
    if not bases:
        found = read_config(EvaluatorModelConfig, last)
        save_model(folder, config.to_dict(found), read_tensors(last / WEIGHTS_NAME), dtype=dtype)
        return folder
    base = bases[-1]
    starts = {stage.starts_from for stage in denoisers}
    refiners = [stage for stage in denoisers if stage.refines is not None and stage.name not in starts]
    for stage in (base, *refiners):
        if stage.pixels is None and not (folder / AUTOENCODER).exists():
            decoder = decoders_of(stage.autoencoder, recipe)[-1]
            save_autoencoder(folder / AUTOENCODER, load_autoencoder(run_dir / decoder / "export"), dtype)
    drafters = [stage.name for stage in recipe.stages if isinstance(stage, DrafterStageConfig)]
    drafts = bool(planners and drafters)
    if drafts:
        export = run_dir / drafters[-1] / "export"
        drafter: DrafterModelConfig = read_config(DrafterModelConfig, export)
        save_model(folder / DRAFTER, config.to_dict(drafter), read_tensors(export / WEIGHTS_NAME), dtype=dtype)
    verifiers = [stage.name for stage in recipe.stages if isinstance(stage, VerifierStageConfig)]
    for name in verifiers[-1:]:
        export = run_dir / name / "export"
        read: VerifierModelConfig = read_config(VerifierModelConfig, export)
        save_model(folder / VERIFIER, config.to_dict(read), read_tensors(export / WEIGHTS_NAME), dtype=dtype)
    parts = [(base, folder), *((stage, folder / stage.name) for stage in refiners)]
    parts += [(stage, folder / PLANNER) for stage in planners[-1:] if drafts]
    for stage, target in parts:
        export = run_dir / stage.name / "export"
        trained: ModelConfig = read_config(ModelConfig, export)
        weights = load_denoiser(export, trained, _latents_of(stage, run_dir)).state_dict()
        settings = replace(trained, sampling=stage.sampling or recipe.sampling, refines=stage.refines)
        if stage is base:
            names = tuple(refiner.name for refiner in refiners)
            settings = replace(settings, stages=names, verifier=bool(verifiers), drafts=drafts)
        save_model(target, config.to_dict(settings), weights, dtype=dtype)
    return folder


def decoders_of(autoencoder: str, recipe: "Recipe") -> list[str]:
    """Return the stage that trains an autoencoder, and those that train its decoder on from there, newest last."""
    decoders = [autoencoder]
    for other in recipe.stages:
        if isinstance(other, AutoencoderStageConfig) and other.decoder_of in decoders:
            decoders.append(other.name)
    return decoders


def trained_autoencoder(stage: DenoiserStageConfig, run_dir: Path) -> Autoencoder:
    """Return what the latents of a stage that makes clips are made with."""
    return (
        load_autoencoder(run_dir / stage.autoencoder / "export")
        if stage.pixels is None
        else PixelAutoencoder(stage.pixels)
    )


def _latents_of(stage: DenoiserStageConfig, run_dir: Path) -> LatentSpec:
    if stage.makes_plans is not None:
        return PlanCodec(stage.makes_plans).latents
    return trained_autoencoder(stage, run_dir).latents
