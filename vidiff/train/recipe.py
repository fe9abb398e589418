"""A recipe: stages in order, each starting from what earlier ones left, ending in a model folder."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from vidiff import config
from vidiff.checkpoint import model_hash
from vidiff.data.clips import Clips, ClipsConfig
from vidiff.data.toyworld.dataset import ToyWorldConfig
from vidiff.data.toyworld.plans import plan_shape
from vidiff.errors import ConfigError, did_you_mean
from vidiff.files import run_lock, sha256_of, write_text
from vidiff.model_folder import SamplingConfig
from vidiff.models.build import token_patch
from vidiff.models.plans import PlanConfig
from vidiff.text.encoders import MiniLMConfig, TextEncoderConfig
from vidiff.train.assembly import assembled
from vidiff.train.autoencoder_stage import AutoencoderStageConfig
from vidiff.train.denoiser_stage import DenoiserStageConfig
from vidiff.train.distillation import ProgressiveDistillation
from vidiff.train.distillation_stage import DistillationStageConfig, teacher_folder, train_student
from vidiff.train.drafter_stage import DrafterStageConfig
from vidiff.train.evaluator_stage import EvaluatorStageConfig
from vidiff.train.held_out import check_evaluated
from vidiff.train.stage_runs import (
    open_source,
    train_autoencoder,
    train_denoiser,
    train_drafter,
    train_evaluator,
    train_planner,
    train_verifier,
)
from vidiff.train.trainer import differences
from vidiff.train.verifier_stage import VerifierStageConfig
from vidiff.types import Size
from vidiff.weights import WEIGHTS_NAME

StageConfig = (
    AutoencoderStageConfig
    | DenoiserStageConfig
    | DistillationStageConfig
    | DrafterStageConfig
    | EvaluatorStageConfig
    | VerifierStageConfig
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
                if stage.drafts is not None:
                    drafter = earlier[stage.drafts.drafter]
                    assert isinstance(drafter, DrafterStageConfig)
                    _check_plans(stage.name, drafter.plans, stage.data or self.data)
                if stage.makes_plans is not None:
                    _check_plans(stage.name, stage.makes_plans, stage.data or self.data)
                    if stage.stream or stage.starts_from or token_patch(stage.backbone) != (1, 1, 1):
                        raise ConfigError(
                            f"stage {stage.name} makes plans: leave out stream and starts_from, and set the backbone's "
                            "patch_size to [1, 1, 1]"
                        )
                if stage.evaluate is not None:
                    check_evaluated(stage.name, stage.evaluate, stage.data or self.data)
            elif isinstance(stage, AutoencoderStageConfig) and stage.decoder_of is not None:
                _check_decoder(stage, earlier)
            elif isinstance(stage, DistillationStageConfig):
                _check_teacher(stage, earlier)
            elif isinstance(stage, DrafterStageConfig):
                _check_plans(stage.name, stage.plans, stage.data or self.data, own_frames=True)
            elif isinstance(stage, VerifierStageConfig):
                _check_judged(stage, earlier, stage.data or self.data)
            earlier[stage.name] = stage
        denoisers = [stage for stage in self.stages if isinstance(stage, DenoiserStageConfig)]
        planned = [stage.makes_plans for stage in denoisers if stage.makes_plans is not None]
        drawn = [stage.plans for stage in self.stages if isinstance(stage, DrafterStageConfig)]
        if planned[-1:] != drawn[-1:]:
            raise ConfigError("a stage that makes_plans and a drafter stage go together, with the same plans")
        shared = {stage.autoencoder for stage in denoisers if stage.pixels is None and stage.makes_plans is None}
        if any(stage.refines for stage in denoisers) and len(shared) > 1:
            raise ConfigError(
                f"stages of a cascade that denoise latents share one autoencoder, got {', '.join(sorted(shared))}"
            )


def _check_uses(stage: DenoiserStageConfig, earlier: dict[str, StageConfig]) -> None:
    """Raise a ConfigError if ``stage`` names an earlier stage that is not there or of the wrong kind."""
    autoencoder = stage.autoencoder if stage.pixels is None and stage.makes_plans is None else None
    drafter = None if stage.drafts is None else stage.drafts.drafter
    for wanted, kind in ((autoencoder, "autoencoder"), (stage.starts_from, "denoiser"), (drafter, "drafter")):
        if wanted is not None and (wanted not in earlier or earlier[wanted].kind != kind):
            hint = did_you_mean(wanted, list(earlier))
            raise ConfigError(f"stage {stage.name} needs an earlier {kind} stage {wanted!r}.{hint}")
    if stage.refines is not None and not any(
        isinstance(other, DenoiserStageConfig) and not (other.refines or other.makes_plans)
        for other in earlier.values()
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


def _check_plans(name: str, plans: PlanConfig, data: ClipsConfig, own_frames: bool = False) -> None:
    """Raise a ConfigError unless the plans that a stage learns from are of scenes that have them.

    With ``own_frames`` its clips may have another number of frames than plans have.
    """
    if not isinstance(data, ToyWorldConfig):
        raise ConfigError(f"stage {name} learns from scenes of the toy world; set data: {{kind: toyworld, ...}}")
    frames = plans.frames if own_frames else data.frames
    (things, numbers), (rows, width) = plan_shape(frames), plans.shape
    if (things, numbers) != (rows, width):
        raise ConfigError(
            f"stage {name}: its plans are of {rows - 1} things with {width} numbers, those of its scenes, "
            f"with {frames} frames, of {things - 1} with {numbers}"
        )


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
                    opened[settings] = open_source(settings, run_dir, suffix, console)
            data = [opened[settings] for settings in sources]
            identity = _identity(stage, recipe, data, run_dir)
            record = {"identity": identity, "trainer": config.to_dict(stage.trainer)}
            done = run_dir / stage.name / "export" / "stage.json"  # written last: a killed export does not count
            if done.is_file() and not any(differences(json.loads(done.read_text()), record)):
                console.print(f"{stage.name}: finished before", highlight=False)
                continue
            match stage:
                case AutoencoderStageConfig():
                    train_autoencoder(stage, data[0], run_dir, console, identity)
                case DrafterStageConfig():
                    train_drafter(stage, data[0], run_dir, console, identity)
                case DenoiserStageConfig() if stage.makes_plans is not None:
                    train_planner(stage, recipe, data[0], run_dir, console, identity)
                case DenoiserStageConfig():
                    train_denoiser(stage, recipe, data[0], run_dir, console, identity)
                case DistillationStageConfig():
                    train_student(stage, recipe.name, data[0], run_dir, console, identity)
                case EvaluatorStageConfig():
                    train_evaluator(stage, recipe, data, run_dir, console, identity)
                case VerifierStageConfig():
                    train_verifier(stage, recipe, data, run_dir, console, identity)
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
        own = stage.pixels is not None or stage.makes_plans is not None
        drafter = None if stage.drafts is None else stage.drafts.drafter
        uses = (None if own else stage.autoencoder, stage.starts_from, drafter)
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
    if not isinstance(stage, AutoencoderStageConfig | DrafterStageConfig):
        found["text"] = config.to_dict(recipe.text)
    return found
