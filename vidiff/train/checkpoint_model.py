"""Checkpoints of a run as models: what a denoiser knew after so many steps, in a folder that `pipeline` loads."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidiff import checkpoint, config
from vidiff.checkpoint import MANIFEST, Checkpoint, model_hash, save_model
from vidiff.data.clips import open_clips
from vidiff.errors import CheckpointError, ConfigError, did_you_mean
from vidiff.files import atomic_path, os_errors_named, remove, sha256_of, write_text
from vidiff.model_folder import AUTOENCODER, load_autoencoder, save_autoencoder
from vidiff.train.assembly import decoders_of
from vidiff.train.denoiser_stage import DenoiserStageConfig
from vidiff.train.distillation_stage import DistillationStageConfig, save_student, teacher_folder
from vidiff.train.recipe import Recipe, decisive
from vidiff.train.stage_runs import model_config_of
from vidiff.train.trainer import differences
from vidiff.weights import CONFIG_NAME, WEIGHTS_NAME

_STEP = re.compile(r"step-(\d+)")
_SOURCE = "checkpoint.json"

ClipMaker = DenoiserStageConfig | DistillationStageConfig


@dataclass(frozen=True)
class TrainedModel:
    """A model, and if it is a checkpoint's the step."""

    label: str  # as the user named it
    folder: Path
    step: int | None = None


def checkpoint_models(names: Sequence[str], out: Path) -> tuple[list[str], dict[str, TrainedModel]]:
    """Return names in which all checkpoints of a stage stand for its folder, and the models of the checkpoints.

    They are made at once, since training that goes on removes old checkpoints.

    Args:
        names: RUN/STAGE/step-N, RUN/STAGE, or anything else, which is returned as it is.
        out: folder for the models' folders; those that are there and whole are kept.

    Raises:
        CheckpointError: if a checkpoint is missing, damaged or of another recipe than its run's, or the stage makes no
            clips by itself.
        ConfigError: if the run's recipe cannot be read.
        ResourceError: if a model cannot be written.
    """
    found: list[str] = []
    models: dict[str, TrainedModel] = {}
    for name in names:
        paths = _checkpoints(Path(name))
        for path in paths or ():
            models[str(path)] = TrainedModel(str(path), _as_model(path, out), int(path.name.removeprefix("step-")))
        found += [name] if paths is None else map(str, paths)
    return found, models


def _checkpoints(path: Path) -> list[Path] | None:
    """Return the checkpoints that ``path`` means, in their order; None if it means something else."""
    if match := _STEP.fullmatch(path.name):
        return _checkpoint(path, int(match[1]))
    if not path.is_dir() or (path / CONFIG_NAME).exists() or not (path.parent / CONFIG_NAME).is_file():
        return None
    steps = list(_steps(path).values())
    if not steps and (path / "tensorboard").is_dir():
        raise CheckpointError(f"{path}: this stage has saved no checkpoint yet")
    return steps or None


def _checkpoint(path: Path, step: int) -> list[Path] | None:
    """Return the checkpoint of one step, however many digits ``path`` gives it; None if it lies in no stage."""
    stage = path.parent
    if path.is_dir() and (path / MANIFEST).is_file():
        return [path]
    if not stage.is_dir() or not (stage.parent / CONFIG_NAME).is_file():  # a folder of clips may be called so, too
        return None
    steps = _steps(stage)
    if step not in steps:
        others = ", ".join(other.name for other in steps.values()) or "none"
        raise CheckpointError(f"{path}: no such checkpoint; in {stage} there are: {others}")
    return [steps[step]]


def _steps(stage: Path) -> dict[int, Path]:
    """Return the checkpoints of a stage by their step, in order."""
    matches = [(match, path) for path in stage.iterdir() if (match := _STEP.fullmatch(path.name)) and path.is_dir()]
    return dict(sorted((int(match[1]), path) for match, path in matches))


def _as_model(path: Path, out: Path) -> Path:
    """Return the model folder of a checkpoint, written into ``out`` unless it is there."""
    run_dir = path.parent.parent
    recipe = _recipe(run_dir)
    stage = _stage(path, recipe)
    base = _base(path, stage, recipe)
    with os_errors_named(path):
        manifest = (path / MANIFEST).read_bytes() if (path / MANIFEST).is_file() else b""
    settings = config.to_dict((decisive(stage, recipe), stage.sampling or recipe.sampling, stage.data or recipe.data))
    made_of = (settings, recipe.name, base and model_hash(base), hashlib.sha256(manifest).hexdigest())
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
    target = out / f"{stage.name}-{path.name}-{digest[:12]}"
    if manifest and _is_whole(target):
        return target
    found = checkpoint.read(path)
    _check_identity(found, stage, recipe, run_dir)
    remove(target)
    with os_errors_named(target), atomic_path(target) as temporary:
        _write(temporary, found, stage, recipe, base)
        source = {"checkpoint": str(path.resolve()), "step": found.step, "model_hash": model_hash(temporary)}
        write_text(temporary / _SOURCE, json.dumps(source, indent=1))
    return target


def _is_whole(folder: Path) -> bool:
    try:
        written: Any = json.loads((folder / _SOURCE).read_text())["model_hash"]
        return bool(written == model_hash(folder))
    except (OSError, ValueError, KeyError, TypeError):  # not there, or damaged; CheckpointError is a ValueError
        return False


def _recipe(run_dir: Path) -> Recipe:
    path = run_dir / CONFIG_NAME
    if not path.is_file():
        raise CheckpointError(f"{run_dir}: no run here ({CONFIG_NAME} is missing), so nothing says what was trained")
    try:
        return config.load(Recipe, path)
    except ConfigError as error:
        *_, last = str(error).splitlines()
        raise ConfigError(f"{path}: not a recipe that can be read: {last.strip()}") from error


def _stage(path: Path, recipe: Recipe) -> ClipMaker:
    """Return the stage of a checkpoint; raises CheckpointError if it makes no clips by itself."""
    stages = {stage.name: stage for stage in recipe.stages}
    name = path.parent.name
    if name not in stages:
        raise CheckpointError(f"{path}: the run's recipe has no stage {name!r}.{did_you_mean(name, stages)}")
    stage = stages[name]
    if isinstance(stage, DistillationStageConfig):
        return stage
    if not isinstance(stage, DenoiserStageConfig):
        raise CheckpointError(
            f"{path}: {name} is a stage of kind {stage.kind}; only denoisers and their students make clips"
        )
    if stage.refines is not None:
        raise CheckpointError(
            f"{path}: {name} refines clips of another stage; evaluate the whole cascade: --model RUN/model --stages all"
        )
    if stage.single_frames == 1:
        raise CheckpointError(f"{path}: {name} was trained on single frames and makes no clips")
    return stage


def _base(path: Path, stage: ClipMaker, recipe: Recipe) -> Path | None:
    """Return the folder that the rest of the model comes from, if there is a rest.

    It is a student's teacher, or the export of a denoiser's autoencoder: of the last finished stage that trained its
    decoder on.
    """
    if isinstance(stage, DistillationStageConfig):
        return teacher_folder(stage.teacher, path.parent.parent)
    if stage.pixels is not None:
        return None
    exports = [path.parent.parent / name / "export" for name in decoders_of(stage.autoencoder, recipe)]
    if not (exports[0] / CONFIG_NAME).is_file():
        raise CheckpointError(f"{path}: its autoencoder is not there ({exports[0] / CONFIG_NAME} is missing)")
    return [exports[0], *(export for export in exports[1:] if (export / "stage.json").is_file())][-1]


def _check_identity(found: Checkpoint, stage: ClipMaker, recipe: Recipe, run_dir: Path) -> None:
    """Refuse a checkpoint of other settings, or of other latents, than the run folder tells of now."""
    now, saved = decisive(stage, recipe), found.meta.get("identity")
    if not isinstance(saved, dict):
        raise CheckpointError(f"{found.path}: does not say what it is of; it is no checkpoint of vidiff train")
    if isinstance(stage, DistillationStageConfig):
        now["weights of its teacher"] = model_hash(teacher_folder(stage.teacher, run_dir))
    elif stage.pixels is None:
        weights = f"weights of {stage.autoencoder}"
        now[weights] = sha256_of(run_dir / stage.autoencoder / "export" / WEIGHTS_NAME)
    differing = list(differences({key: saved.get(key) for key in now}, now))
    if differing:
        raise CheckpointError(f"{found.path}: does not fit its run any more: {'; '.join(differing)}")


def _write(folder: Path, found: Checkpoint, stage: ClipMaker, recipe: Recipe, base: Path | None) -> None:
    weights = found.tensors("ema")
    if "null_tokens" not in weights:
        raise CheckpointError(f"{found.path}: holds no denoiser")
    if isinstance(stage, DistillationStageConfig):
        assert base is not None
        save_student(folder, stage, base, recipe.name, weights)
        return
    data = stage.data or recipe.data
    fps = data.fps or open_clips(data).fps  # the rate of clips that are taken as they are is known from them alone
    settings = model_config_of(stage, recipe, weights["null_tokens"].shape[1], data, fps)
    if base is not None:
        save_autoencoder(folder / AUTOENCODER, load_autoencoder(base))
    save_model(folder, config.to_dict(settings), weights)
