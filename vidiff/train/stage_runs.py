"""Each kind of stage trained: from its data, through the loop that all share, to its export."""

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from vidiff import config
from vidiff.checkpoint import model_hash, save_model
from vidiff.data.clips import Clips, ClipsConfig, open_clips
from vidiff.data.dataset import DataConfig
from vidiff.data.fates import write_skipped
from vidiff.data.toyworld.dataset import ToyWorld
from vidiff.data.toyworld.statements import STATEMENTS
from vidiff.diffusion.denoiser import Denoiser
from vidiff.files import write_text
from vidiff.metrics.embedded import EvaluatorModelConfig
from vidiff.model_folder import (
    DrafterModelConfig,
    ModelConfig,
    VerifierModelConfig,
    load_autoencoder,
    load_denoiser,
    load_drafter,
    read_config,
    save_autoencoder,
)
from vidiff.models.autoencoder import VideoVAE
from vidiff.models.build import Autoencoder
from vidiff.models.plans import PlanCodec
from vidiff.models.two_level import TwoLevelDiTConfig
from vidiff.text.encoders import build_text_encoder
from vidiff.train.assembly import trained_autoencoder
from vidiff.train.autoencoder_stage import AutoencoderStage, AutoencoderStageConfig
from vidiff.train.cache import cached_clips, cached_latents, cached_text
from vidiff.train.contrast import ContrastCaptions
from vidiff.train.denoiser_stage import DenoiserStage, DenoiserStageConfig
from vidiff.train.drafted import cached_drafts
from vidiff.train.drafter_stage import DrafterStage, DrafterStageConfig
from vidiff.train.evaluator_stage import EvaluatorStage, EvaluatorStageConfig
from vidiff.train.held_out import HeldOutEvaluation
from vidiff.train.planner_stage import PlannerStage
from vidiff.train.stage import Stage
from vidiff.train.stream import Latents, StreamedLatents, StreamedText
from vidiff.train.trainer import TrainerConfig, device, is_main_process, train
from vidiff.train.verifier_stage import VerifierStage, VerifierStageConfig
from vidiff.types import LatentSpec, Size, TextEncoder

if TYPE_CHECKING:
    from vidiff.train.recipe import Recipe


def open_source(settings: ClipsConfig, run_dir: Path, suffix: str, console: Console) -> Clips:
    """Open the data and say, on the console and in the run folder, what became of every clip."""
    with console.status("reading clips") as status:
        data = open_clips(settings, lambda done: status.update(f"reading clips: {done}") if done % 50 == 0 else None)
    write_skipped(data.fates, run_dir / f"skipped{suffix}.jsonl")
    write_text(run_dir / f"data{suffix}.json", json.dumps(data.fates.to_dict(), indent=1))
    console.print(f"{_source(settings)}\n{data.fates.table()}", soft_wrap=True, highlight=False, markup=False)
    return data


def _source(settings: ClipsConfig) -> str:
    return str(settings.path) if isinstance(settings, DataConfig) else f"toy world, seed {settings.seed}"


def train_autoencoder(
    config: AutoencoderStageConfig, data: Clips, run_dir: Path, console: Console, identity: dict[str, Any]
) -> None:
    """Train an autoencoder, or the decoder of one."""
    trained = None if config.decoder_of is None else load_autoencoder(run_dir / config.decoder_of / "export")
    stage = AutoencoderStage(config, data, identity, trained)
    ema = train(stage, config.trainer, run_dir / config.name, console)
    stage.finish(ema.shadow)
    assert isinstance(ema.shadow, VideoVAE)
    save_autoencoder(run_dir / config.name / "export", ema.shadow)


def train_denoiser(
    stage_config: DenoiserStageConfig,
    recipe: "Recipe",
    data: Clips,
    run_dir: Path,
    console: Console,
    identity: dict[str, Any],
) -> None:
    """Train a denoiser of clips, or of what a super-resolution stage adds to them."""
    # Put where training will run once and for all: previews and streamed batches use it from two threads.
    autoencoder = trained_autoencoder(stage_config, run_dir).to(device())
    encoder = build_text_encoder(recipe.text, device())
    model_config = model_config_of(stage_config, recipe, encoder.dim, data.config, data.fps)
    cache = run_dir / "cache"
    latents: Latents
    if stage_config.stream:
        latents = StreamedLatents(autoencoder, data.clip)
    elif stage_config.pixels is not None:  # folding costs nothing; reading or rendering does
        latents = StreamedLatents(autoencoder, cached_clips(cache, data, console).__getitem__)
    else:
        folder = run_dir / stage_config.autoencoder / "export"
        latents = cached_latents(cache, autoencoder, model_hash(folder), data, console)
    text = (
        StreamedText(encoder, data)
        if stage_config.stream
        else cached_text(cache, encoder, encoder.fingerprint, data, console)
    )
    drafts = None
    if stage_config.drafts is not None:
        assert isinstance(data, ToyWorld)
        folders = [run_dir / name / "export" for name in (stage_config.autoencoder, stage_config.drafts.drafter)]
        drafter = load_drafter(folders[1]).to(device())
        drafts = cached_drafts(cache, autoencoder, drafter, " ".join(map(model_hash, folders)), data, console)
    stage = DenoiserStage(stage_config, model_config, data, latents, text, autoencoder, identity, drafts)
    if stage_config.evaluate is not None and is_main_process():
        stage.evaluation = _evaluation(stage_config, model_config, autoencoder, encoder, run_dir, console)
    if stage_config.starts_from is not None:
        start_from(run_dir / stage_config.starts_from / "export", stage.denoiser, model_config, autoencoder.latents)
    _train_and_export(stage, stage_config.trainer, model_config, run_dir, console)


def _evaluation(
    stage: DenoiserStageConfig,
    model_config: ModelConfig,
    autoencoder: Autoencoder,
    encoder: TextEncoder,
    run_dir: Path,
    console: Console,
) -> HeldOutEvaluation:
    """Return what measures the model of ``stage`` on held-out clips while it is trained."""
    assert stage.evaluate is not None
    data = open_source(stage.evaluate.data, run_dir, f"-{stage.name}-evaluation", console)
    note = partial(console.print, soft_wrap=True, highlight=False, markup=False)
    folder = run_dir / stage.name / "evaluation"
    with console.status("preparing the evaluation"):
        return HeldOutEvaluation(stage.evaluate, model_config, autoencoder, encoder, data, folder, note)


def start_from(folder: Path, denoiser: Denoiser, settings: ModelConfig, latents: LatentSpec) -> None:
    """Give ``denoiser`` the weights of an earlier stage, which may be the coarse level of one of two levels."""
    earlier: ModelConfig = read_config(ModelConfig, folder)
    if isinstance(settings.backbone, TwoLevelDiTConfig) and settings.backbone.coarse == earlier.backbone:
        start = load_denoiser(folder, earlier, latents)
        coarse = {f"coarse.{name}": weight for name, weight in start.backbone.state_dict().items()}
        denoiser.backbone.load_state_dict(denoiser.backbone.state_dict() | coarse)
        denoiser.null_tokens.data.copy_(start.null_tokens)
    else:
        denoiser.load_state_dict(load_denoiser(folder, settings, latents).state_dict())


def train_evaluator(
    stage_config: EvaluatorStageConfig,
    recipe: "Recipe",
    sources: list[Clips],
    run_dir: Path,
    console: Console,
    identity: dict[str, Any],
) -> None:
    """Train what measures clips against captions."""
    encoder = build_text_encoder(recipe.text, device())
    model_config = EvaluatorModelConfig(evaluator=stage_config.evaluator, text=recipe.text, text_dim=encoder.dim)
    data, cache = ContrastCaptions(sources), run_dir / "cache"
    clips = [clip for source in sources for clip in cached_clips(cache, source, console)]
    text = cached_text(cache, encoder, encoder.fingerprint, data, console)
    stage = EvaluatorStage(stage_config, model_config, data, clips, text, identity)
    _train_and_export(stage, stage_config.trainer, model_config, run_dir, console)


def train_verifier(
    stage_config: VerifierStageConfig,
    recipe: "Recipe",
    sources: list[Clips],
    run_dir: Path,
    console: Console,
    identity: dict[str, Any],
) -> None:
    """Train what picks among candidates."""
    worlds = [source for source in sources if isinstance(source, ToyWorld)]
    judged = next(stage for stage in recipe.stages if stage.name == stage_config.judges)
    assert isinstance(judged, DenoiserStageConfig)
    autoencoder, export = trained_autoencoder(judged, run_dir).to(device()), run_dir / judged.name / "export"
    denoiser = load_denoiser(export, read_config(ModelConfig, export), autoencoder.latents).to(device())
    encoder, cache = build_text_encoder(recipe.text, device()), run_dir / "cache"
    hashed = model_hash(run_dir / judged.autoencoder / "export")
    latents = [cached_latents(cache, autoencoder, hashed, world, console) for world in worlds]
    text = cached_text(cache, encoder, encoder.fingerprint, worlds[0], console)
    c, f, h, w = latents[0][0].shape
    counts = tuple(len(values) for values in STATEMENTS.values())
    model_config = VerifierModelConfig(stage_config.verifier, (c, f, h, w), counts, recipe.text, encoder.dim)
    pictures = (worlds[1], latents[1]) if len(worlds) > 1 else None
    stage = VerifierStage(stage_config, model_config, worlds[0], latents[0], text, pictures, denoiser, identity)
    _train_and_export(stage, stage_config.trainer, model_config, run_dir, console)


def model_config_of(
    stage: DenoiserStageConfig, recipe: "Recipe", text_dim: int, size: ClipsConfig, fps: float
) -> ModelConfig:
    """Return what a folder says about the model that ``stage`` trains on clips of ``size`` at ``fps``."""
    return ModelConfig(
        name=recipe.name,
        backbone=stage.backbone,
        text=recipe.text,
        text_dim=text_dim,
        schedule=stage.schedule,
        predicts=stage.predicts,
        sigma_data=stage.sigma_data or 1.0,
        learned_variance=stage.learned_variance is not None,
        sampling=stage.sampling or recipe.sampling,
        size=Size(size.frames, size.height, size.width, fps),
        frames=(1 if stage.single_frames or stage.starts_from else size.frames, size.frames),
        pixels=stage.pixels,
        refines=stage.refines,
        makes_plans=stage.makes_plans,
    )


def train_planner(
    stage_config: DenoiserStageConfig,
    recipe: "Recipe",
    data: Clips,
    run_dir: Path,
    console: Console,
    identity: dict[str, Any],
) -> None:
    """Train a denoiser of the plans of scenes; nothing is rendered."""
    assert isinstance(data, ToyWorld) and stage_config.makes_plans is not None
    codec = PlanCodec(stage_config.makes_plans).to(device())
    encoder = build_text_encoder(recipe.text, device())
    model_config = model_config_of(stage_config, recipe, encoder.dim, data.config, data.fps)
    text = cached_text(run_dir / "cache", encoder, encoder.fingerprint, data, console)
    stage = PlannerStage(stage_config, model_config, data, text, codec, identity)
    _train_and_export(stage, stage_config.trainer, model_config, run_dir, console)


def train_drafter(
    stage_config: DrafterStageConfig, data: Clips, run_dir: Path, console: Console, identity: dict[str, Any]
) -> None:
    """Train what draws plans."""
    assert isinstance(data, ToyWorld)
    model_config = DrafterModelConfig(stage_config.drafter, stage_config.plans)
    clips = cached_clips(run_dir / "cache", data, console)
    stage = DrafterStage(stage_config, model_config, data, clips, identity)
    _train_and_export(stage, stage_config.trainer, model_config, run_dir, console)


def _train_and_export(stage: Stage, trainer: TrainerConfig, model_config: Any, run_dir: Path, console: Console) -> None:
    """Train ``stage`` and write the moving average of its weights as a model folder."""
    ema = train(stage, trainer, run_dir / stage.name, console)
    save_model(run_dir / stage.name / "export", config.to_dict(model_config), ema.state_dict())
