"""A recipe: stages in order, each starting from what earlier ones left, ending in a model folder."""

import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from vidiff import config
from vidiff.checkpoint import model_hash, save_model
from vidiff.data.clips import Clips, ClipsConfig, open_clips
from vidiff.data.dataset import DataConfig
from vidiff.data.fates import write_skipped
from vidiff.data.toyworld.dataset import ToyWorld, ToyWorldConfig
from vidiff.data.toyworld.statements import STATEMENTS
from vidiff.diffusion.denoiser import Denoiser
from vidiff.errors import ConfigError, did_you_mean
from vidiff.files import run_lock, sha256_of, write_text
from vidiff.metrics.embedded import EvaluatorModelConfig
from vidiff.model_folder import (
    ModelConfig,
    SamplingConfig,
    VerifierModelConfig,
    load_autoencoder,
    load_denoiser,
    read_config,
    save_autoencoder,
)
from vidiff.models.autoencoder import VideoVAE
from vidiff.models.build import Autoencoder
from vidiff.models.two_level import TwoLevelDiTConfig
from vidiff.text.encoders import MiniLMConfig, TextEncoderConfig, build_text_encoder
from vidiff.train.assembly import assembled, trained_autoencoder
from vidiff.train.autoencoder_stage import AutoencoderStage, AutoencoderStageConfig
from vidiff.train.cache import cached_clips, cached_latents, cached_text
from vidiff.train.contrast import ContrastCaptions
from vidiff.train.denoiser_stage import DenoiserStage, DenoiserStageConfig
from vidiff.train.distillation import ProgressiveDistillation
from vidiff.train.distillation_stage import DistillationStageConfig, teacher_folder, train_student
from vidiff.train.evaluator_stage import EvaluatorStage, EvaluatorStageConfig
from vidiff.train.held_out import HeldOutEvaluation, check_evaluated
from vidiff.train.stream import Latents, StreamedLatents, StreamedText
from vidiff.train.trainer import device, differences, is_main_process, train
from vidiff.train.verifier_stage import VerifierStage, VerifierStageConfig
from vidiff.types import LatentSpec, Size, TextEncoder
from vidiff.weights import WEIGHTS_NAME

StageConfig = (
    AutoencoderStageConfig | DenoiserStageConfig | DistillationStageConfig | EvaluatorStageConfig | VerifierStageConfig
)


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
                _check_sizes(stage, stage.data or self.data)
                if stage.evaluate is not None:
                    check_evaluated(stage.name, stage.evaluate, stage.data or self.data)
            elif isinstance(stage, AutoencoderStageConfig) and stage.decoder_of is not None:
                _check_decoder(stage, earlier)
            elif isinstance(stage, DistillationStageConfig):
                _check_teacher(stage, earlier)
            elif isinstance(stage, VerifierStageConfig):
                _check_judged(stage, earlier, stage.data or self.data)
            earlier[stage.name] = stage
        denoisers = [stage for stage in self.stages if isinstance(stage, DenoiserStageConfig)]
        shared = {stage.autoencoder for stage in denoisers if stage.pixels is None}
        if any(stage.refines for stage in denoisers) and len(shared) > 1:
            raise ConfigError(
                f"stages of a cascade that denoise latents share one autoencoder, got {', '.join(sorted(shared))}"
            )


def _check_uses(stage: DenoiserStageConfig, earlier: dict[str, StageConfig]) -> None:
    """Raise a ConfigError if ``stage`` names an earlier stage that is not there or of the wrong kind."""
    autoencoder = stage.autoencoder if stage.pixels is None else None
    for wanted, kind in ((autoencoder, "autoencoder"), (stage.starts_from, "denoiser")):
        if wanted is not None and (wanted not in earlier or earlier[wanted].kind != kind):
            hint = did_you_mean(wanted, list(earlier))
            raise ConfigError(f"stage {stage.name} needs an earlier {kind} stage {wanted!r}.{hint}")
    if stage.refines is not None and not any(
        isinstance(other, DenoiserStageConfig) and other.refines is None for other in earlier.values()
    ):
        raise ConfigError(f"stage {stage.name} refines clips that no earlier stage makes")


def _check_judged(stage: VerifierStageConfig, earlier: dict[str, StageConfig], data: ClipsConfig) -> None:
    """Raise a ConfigError unless a verifier judges a denoiser of latents, by clips that say what they show."""
    judged = earlier.get(stage.judges)
    if not isinstance(judged, DenoiserStageConfig) or judged.pixels is not None:
        hint = did_you_mean(stage.judges, list(earlier))
        raise ConfigError(f"stage {stage.name} needs an earlier stage {stage.judges!r} that denoises latents.{hint}")
    if not isinstance(data, ToyWorldConfig):
        raise ConfigError(f"stage {stage.name} learns from scenes of the toy world; set data: {{kind: toyworld, ...}}")
    size, pictures = (data.height, data.width), stage.pictures or data
    if (pictures.height, pictures.width) != size:
        raise ConfigError(f"stage {stage.name}: pictures are as large as its clips, {data.width}x{data.height}")


def _check_decoder(stage: AutoencoderStageConfig, earlier: dict[str, StageConfig]) -> None:
    """Raise a ConfigError if the stage whose decoder is to be trained on is not there or of another shape."""
    before = earlier.get(stage.decoder_of or "")
    if not isinstance(before, AutoencoderStageConfig):
        hint = did_you_mean(stage.decoder_of or "", list(earlier))
        raise ConfigError(f"stage {stage.name} needs an earlier autoencoder stage {stage.decoder_of!r}.{hint}")
    if before.autoencoder != stage.autoencoder:
        raise ConfigError(f"stage {stage.name}: autoencoder must be that of {before.name}, whose decoder it trains on")


def _check_teacher(stage: DistillationStageConfig, earlier: dict[str, StageConfig]) -> None:
    """Raise a ConfigError if there is no teacher of that name, or an earlier stage of that name is none."""
    teacher = earlier.get(stage.teacher)
    if teacher is None:
        teacher_folder(stage.teacher)
    elif not isinstance(teacher, DistillationStageConfig):
        raise ConfigError(
            f"stage {stage.name}: its teacher {stage.teacher} is a stage and no whole model; give the model folder "
            "that a recipe leaves, or an earlier distillation stage"
        )
    elif isinstance(stage.method, ProgressiveDistillation):
        before, steps = teacher.sampling, stage.method.teacher_steps(stage.sampling)
        if (before.num_steps, before.last_t) != (steps, stage.sampling.last_t):
            raise ConfigError(
                f"stage {stage.name}: its {stage.sampling.num_steps} steps with last_t {stage.sampling.last_t:g} halve "
                f"{steps} of {stage.teacher} with the same last_t, got {before.num_steps} with {before.last_t:g}"
            )


def _check_sizes(stage: DenoiserStageConfig, data: ClipsConfig) -> None:
    """Raise a ConfigError if the clips of a super-resolution stage are not what it can make."""
    if stage.refines is not None:
        try:
            stage.refines.before(Size(data.frames, data.height, data.width, data.fps or 1.0))
        except ConfigError as error:
            raise ConfigError(f"{stage.name}: {error}") from error


def run(recipe: Recipe, run_dir: Path, console: Console, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Train the stages that are not finished yet and return the model folder of the last one.

    ``run_dir`` then holds the resolved recipe, a folder for each stage (checkpoints, log, pictures, and ``export``,
    its moving average), the cache, and ``model``, in ``dtype``, if there is a denoiser or the last stage an evaluator.
    """
    opened: dict[ClipsConfig, Clips] = {}
    with run_lock(run_dir):
        write_text(run_dir / "config.yaml", config.dump(recipe))
        for stage in recipe.stages:
            sources = _sources(stage, recipe)
            for settings, suffix in sources.items():
                if settings not in opened:
                    opened[settings] = _opened(settings, run_dir, suffix, console)
            data = [opened[settings] for settings in sources]
            identity = _identity(stage, recipe, data, run_dir)
            record = {"identity": identity, "trainer": config.to_dict(stage.trainer)}
            done = run_dir / stage.name / "export" / "stage.json"  # written last: a killed export does not count
            if done.is_file() and not any(differences(json.loads(done.read_text()), record)):
                console.print(f"{stage.name}: finished before", highlight=False)
                continue
            match stage:
                case AutoencoderStageConfig():
                    _train_autoencoder(stage, data[0], run_dir, console, identity)
                case DenoiserStageConfig():
                    _train_denoiser(stage, recipe, data[0], run_dir, console, identity)
                case DistillationStageConfig():
                    train_student(stage, recipe.name, data[0], run_dir, console, identity)
                case EvaluatorStageConfig():
                    _train_evaluator(stage, recipe, data, run_dir, console, identity)
                case VerifierStageConfig():
                    _train_verifier(stage, recipe, data, run_dir, console, identity)
            write_text(done, json.dumps(record, indent=1))
        return assembled(recipe, run_dir, dtype)


def _sources(stage: StageConfig, recipe: Recipe) -> dict[ClipsConfig, str]:
    """Return what a stage learns from, each with what its files in the run folder are called by."""
    sources = {stage.data or recipe.data: "" if stage.data is None else f"-{stage.name}"}
    if isinstance(stage, EvaluatorStageConfig) and stage.also is not None:
        sources.setdefault(stage.also, f"-{stage.name}-also")
    if isinstance(stage, VerifierStageConfig) and stage.pictures is not None:
        sources[stage.pictures] = f"-{stage.name}-pictures"
    return sources


def _identity(stage: StageConfig, recipe: Recipe, data: list[Clips], run_dir: Path) -> dict[str, Any]:
    """Return all that decides what ``stage`` learns: checkpoints and exports of anything else are of no use to it."""
    identity = decisive(stage, recipe) | {"data": " ".join(source.fingerprint for source in data)}
    uses: tuple[str | None, ...] = ()
    if isinstance(stage, DenoiserStageConfig):
        uses = (stage.autoencoder if stage.pixels is None else None, stage.starts_from)
    elif isinstance(stage, AutoencoderStageConfig):
        uses = (stage.decoder_of,)
    elif isinstance(stage, VerifierStageConfig):
        uses = (stage.judges,)
    elif isinstance(stage, DistillationStageConfig):
        identity["weights of its teacher"] = model_hash(teacher_folder(stage.teacher, run_dir))
    for name in uses:
        if name is not None:
            identity[f"weights of {name}"] = sha256_of(run_dir / name / "export" / WEIGHTS_NAME)
    return identity


def decisive(stage: StageConfig, recipe: Recipe) -> dict[str, Any]:
    """Return the settings that decide what ``stage`` learns, as plain data."""
    settings = config.to_dict(stage)
    del settings["trainer"]
    found: dict[str, Any] = {"stage": settings}
    if isinstance(stage, DenoiserStageConfig):
        del settings["sampling"], settings["evaluate"]  # may be chosen when all is trained, as may this noise
        if stage.refines is not None:
            del settings["refines"]["noise"]
    if isinstance(stage, DistillationStageConfig):  # where its steps fall is what it learns; how they are taken is not
        for name in ("solver", "guidance", "negative"):
            del settings["sampling"][name]
    if not isinstance(stage, AutoencoderStageConfig):
        found["text"] = config.to_dict(recipe.text)
    return found


def _opened(settings: ClipsConfig, run_dir: Path, suffix: str, console: Console) -> Clips:
    """Open the data and say, on the console and in the run folder, what became of every clip."""
    with console.status("reading clips") as status:
        data = open_clips(settings, lambda done: status.update(f"reading clips: {done}") if done % 50 == 0 else None)
    write_skipped(data.fates, run_dir / f"skipped{suffix}.jsonl")
    write_text(run_dir / f"data{suffix}.json", json.dumps(data.fates.to_dict(), indent=1))
    console.print(f"{_source(settings)}\n{data.fates.table()}", soft_wrap=True, highlight=False, markup=False)
    return data


def _source(settings: ClipsConfig) -> str:
    return str(settings.path) if isinstance(settings, DataConfig) else f"toy world, seed {settings.seed}"


def _train_autoencoder(
    config: AutoencoderStageConfig, data: Clips, run_dir: Path, console: Console, identity: dict[str, Any]
) -> None:
    trained = None if config.decoder_of is None else load_autoencoder(run_dir / config.decoder_of / "export")
    stage = AutoencoderStage(config, data, identity, trained)
    ema = train(stage, config.trainer, run_dir / config.name, console)
    stage.finish(ema.shadow)
    assert isinstance(ema.shadow, VideoVAE)
    save_autoencoder(run_dir / config.name / "export", ema.shadow)


def _train_denoiser(
    stage_config: DenoiserStageConfig,
    recipe: Recipe,
    data: Clips,
    run_dir: Path,
    console: Console,
    identity: dict[str, Any],
) -> None:
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
    stage = DenoiserStage(stage_config, model_config, data, latents, text, autoencoder, identity)
    if stage_config.evaluate is not None and is_main_process():
        stage.evaluation = _evaluation(stage_config, model_config, autoencoder, encoder, run_dir, console)
    if stage_config.starts_from is not None:
        start_from(run_dir / stage_config.starts_from / "export", stage.denoiser, model_config, autoencoder.latents)
    ema = train(stage, stage_config.trainer, run_dir / stage_config.name, console)
    save_model(run_dir / stage_config.name / "export", config.to_dict(model_config), ema.state_dict())


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
    data = _opened(stage.evaluate.data, run_dir, f"-{stage.name}-evaluation", console)
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


def _train_evaluator(
    stage_config: EvaluatorStageConfig,
    recipe: Recipe,
    sources: list[Clips],
    run_dir: Path,
    console: Console,
    identity: dict[str, Any],
) -> None:
    encoder = build_text_encoder(recipe.text, device())
    model_config = EvaluatorModelConfig(evaluator=stage_config.evaluator, text=recipe.text, text_dim=encoder.dim)
    data, cache = ContrastCaptions(sources), run_dir / "cache"
    clips = [clip for source in sources for clip in cached_clips(cache, source, console)]
    text = cached_text(cache, encoder, encoder.fingerprint, data, console)
    stage = EvaluatorStage(stage_config, model_config, data, clips, text, identity)
    ema = train(stage, stage_config.trainer, run_dir / stage_config.name, console)
    save_model(run_dir / stage_config.name / "export", config.to_dict(model_config), ema.state_dict())


def _train_verifier(
    stage_config: VerifierStageConfig,
    recipe: Recipe,
    sources: list[Clips],
    run_dir: Path,
    console: Console,
    identity: dict[str, Any],
) -> None:
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
    ema = train(stage, stage_config.trainer, run_dir / stage_config.name, console)
    save_model(run_dir / stage_config.name / "export", config.to_dict(model_config), ema.state_dict())


def model_config_of(
    stage: DenoiserStageConfig, recipe: Recipe, text_dim: int, size: ClipsConfig, fps: float
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
    )
