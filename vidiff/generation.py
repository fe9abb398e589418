"""One generation from request to file: resolved settings, sampled latents kept, frames decoded and written."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import vidiff
from vidiff import checkpoint, config, files
from vidiff.adapting import LoRAFile
from vidiff.candidates import candidate_seeds, scores
from vidiff.data.metadata import read_metadata
from vidiff.data.video_write import format_of, upscaled, write_video
from vidiff.decoding import DECODES, Decode, decode
from vidiff.diffusion.travel import Travel, checked_travel, told_at_once
from vidiff.errors import ConfigError, DataError
from vidiff.inverting import NoiseFile
from vidiff.memory import WEIGHTS, Weights
from vidiff.model_folder import SamplingConfig
from vidiff.models.experts import EXPERTS
from vidiff.pipeline import Pipeline
from vidiff.sampling.interpolation import Arc
from vidiff.sampling.noise import NoiseFrom, stage_seed
from vidiff.sizes import final_size
from vidiff.starting import PictureFile
from vidiff.types import Size

# Of a clip's recipe, all that a user can mean to change; the machine and the versions are not.
_STARTS = ("prompt", "travel", "negative", "seed", "arc", "noise", "noise_from", "picture")
_DECISIVE = (*_STARTS, "model_hash", "sampling", "size", "stages", "upscale", "dtype", "weights")
# What recipes say that were written before these could be anything else.
_OLDER: dict[str, Any] = {
    "stages": [],
    "travel": None,
    "arc": None,
    "noise": None,
    "noise_from": "vidiff",
    "picture": None,
    "weights": "full",
    "decode": "whole",
}
RUNS = ".vidiff"  # beside the outputs: what was sampled, so that it can be decoded again
_SETTINGS, _LATENTS = "settings.json", "latents.safetensors"


@dataclass(frozen=True)
class Job:
    """One clip to make."""

    prompt: str
    seed: int
    output: Path
    negative: str = ""
    travel: Travel | None = None  # makes the prompt several, see `vidiff.diffusion.travel`; None: a bar is text
    arc: Arc | None = None  # on the way to another seed or prompt
    noise: NoiseFile | None = None  # in place of the first draw of the seed
    picture: PictureFile | None = None  # that the clip starts from

    @property
    def plain(self) -> bool:
        """Whether the clip follows from one prompt and one seed alone, so that it may begin from a draft."""
        told = (self.travel, self.arc, self.noise, self.picture)
        return bool(self.prompt) and all(one is None for one in told)

    def seed_of(self, stage: int) -> int:
        """Return the seed of a super-resolution stage: its own until the end of an arc, where it is the other one."""
        seed = self.seed
        if self.arc is not None and self.arc.to_seed is not None and self.arc.share == 1:
            seed = self.arc.to_seed
        return stage_seed(seed, stage)


@dataclass(frozen=True)
class Settings:
    """What a batch of jobs shares."""

    model: str  # as the user gave it
    size: Size  # of the base stage's clip
    sampling: SamplingConfig  # of the base stage; the others use their own
    format: str
    upscale: int
    dtype: str = "float32"
    weights: Weights = "full"  # of the transformer's blocks, in a recipe that is read
    decode: Decode = "whole"  # likewise; what the model's plan wants in less memory goes before it
    device: str = "cpu"
    stages: int = 0  # how many super-resolution stages follow the base
    noise_from: NoiseFrom = "vidiff"  # whose way of drawing the seed's noise
    loras: tuple[LoRAFile, ...] = ()  # that the model has been adapted with
    keep_stages: bool = False  # write the clip of each stage that others follow


@dataclass(frozen=True)
class Result:
    """One finished clip."""

    job: Job
    run: Path  # folder of its latents and settings
    seconds: float
    frames: np.ndarray  # uint8 (F, H, W, 3), before upscaling
    frames_sha256: str


OnStep = Callable[[int, int, Tensor], None]


@contextmanager
def unseen(stage: str) -> Iterator[OnStep]:
    """Show nothing of a stage's progress."""
    yield lambda done, total, x_0: None


def generate(
    pipeline: Pipeline,
    jobs: list[Job],
    settings: Settings,
    *,
    progress: Callable[[str], AbstractContextManager[OnStep]] = unseen,
    note: Callable[[str], None] = print,
) -> list[Result]:
    """Make the clips of ``jobs`` as one batch, keep their latents, and write their files.

    Args:
        pipeline: the model.
        jobs: what to make.
        settings: what the jobs share.
        progress: opened with each stage's name, gives what is called after each of its steps.
        note: hears about decoding in smaller pieces.

    Raises:
        ConfigError: if candidates or drafts are wanted, and the model has nothing to choose or to plan with.
        NumericalError: if what was sampled or decoded is not finite or shows nothing.
        ResourceError: if memory or disk run out; latents already sampled stay in the run folders.
    """
    if settings.sampling.draft_t < 1 and pipeline.planner is None:
        raise ConfigError(
            f"draft_t {settings.sampling.draft_t:g}: this model has no planner, so no draft; leave it at 1"
        )
    started = time.monotonic()
    with progress("base") as on_step:
        latents = _sampled(pipeline, jobs, settings, on_step)
    recipes = [recipe_of(pipeline, job, settings) for job in jobs]
    runs = [save_run(job, recipe, one) for job, recipe, one in zip(jobs, recipes, latents.split(1), strict=True)]
    clips = _finished(pipeline, jobs, settings, latents, progress, note)
    seconds = time.monotonic() - started
    return [
        write_result(job, run, clip, recipe, settings, seconds)
        for job, run, clip, recipe in zip(jobs, runs, clips, recipes, strict=True)
    ]


def _sampled(pipeline: Pipeline, jobs: list[Job], settings: Settings, on_step: OnStep) -> Tensor:
    """Return the base's latents (B, C, f, h, w), of each clip the best candidate."""
    count = settings.sampling.candidates
    if count == 1:
        return _drawn(pipeline, jobs, settings, on_step)
    if pipeline.verifier is None:
        raise ConfigError(f"candidates: {count}, but this model has no verifier to choose with")
    kept = []
    for number, job in enumerate(jobs):  # those of one clip together, whatever is made beside it

        def on_each(done: int, total: int, x_0: Tensor, before: int = number) -> None:
            on_step(before * total + done, len(jobs) * total, x_0)

        tried = [replace(job, seed=seed) for seed in candidate_seeds(job.seed, count)]
        latents = _drawn(pipeline, tried, settings, on_each)
        found = scores(pipeline.verifier, latents, pipeline.text([told_at_once(job.prompt, job.travel)]))
        kept.append(latents[found.argmax()])
    return torch.stack(kept)


def _drawn(pipeline: Pipeline, jobs: list[Job], settings: Settings, on_step: OnStep) -> Tensor:
    """Return latents (B, C, f, h, w), one clip for each job."""
    drafted = [_is_drafted(pipeline, job, settings) for job in jobs]
    if len(set(drafted)) > 1:  # these take other steps than those
        parts = {way: [job for job, own in zip(jobs, drafted, strict=True) if own is way] for way in (True, False)}
        made = {way: iter(_drawn(pipeline, part, settings, on_step)) for way, part in parts.items()}
        return torch.stack([next(made[way]) for way in drafted])
    return pipeline.sample(
        [job.prompt for job in jobs],
        [job.seed for job in jobs],
        settings.size,
        settings.sampling,
        negatives=[job.negative for job in jobs],
        travels=[job.travel for job in jobs],
        arcs=[job.arc for job in jobs],
        noise=[None if job.noise is None else job.noise.read().noise for job in jobs],
        noise_from=settings.noise_from,
        pictures=None if jobs[0].picture is None else [job.picture.read() for job in jobs if job.picture],
        drafted=drafted[0],
        dtype=getattr(torch, settings.dtype),
        on_step=on_step,
    )


def _is_drafted(pipeline: Pipeline, job: Job, settings: Settings) -> bool:
    return job.plain and settings.noise_from == "vidiff" and pipeline.can_draft(settings.size, settings.sampling)


def _finished(
    pipeline: Pipeline,
    jobs: list[Job],
    settings: Settings,
    latents: Tensor,
    progress: Callable[[str], AbstractContextManager[OnStep]],
    note: Callable[[str], None],
) -> np.ndarray:
    """Decode the base stage's latents and refine the clips; return them as uint8 (B, F, H, W, 3)."""
    dtype, size = getattr(torch, settings.dtype), settings.size
    with pipeline.coding():
        way = _way(pipeline, settings)
        clips, name = decode(pipeline.autoencoder, latents, way=way, dtype=dtype, note=note), "base"
    prompts, negatives = [told_at_once(job.prompt, job.travel) for job in jobs], [job.negative for job in jobs]
    for number, refiner in enumerate(pipeline.refiners[: settings.stages], 1):
        if settings.keep_stages:
            for job, clip in zip(jobs, clips.numpy(), strict=True):
                path = job.output.with_name(f"{job.output.stem}-{name}{job.output.suffix}")
                write_video(path, upscaled(clip, settings.upscale), size.fps, format=settings.format)
        size, name = refiner.size(size), refiner.name
        with progress(name) as on_step:
            clips = refiner.refine(
                clips,
                pipeline.text(prompts, refiner.denoiser, [job.arc for job in jobs]),
                pipeline.text(negatives, refiner.denoiser),
                [job.seed_of(number) for job in jobs],
                refiner.config.sampling,
                dtype=dtype,
                on_step=on_step,
            )
    return clips.numpy()


def _way(pipeline: Pipeline, settings: Settings) -> Decode:
    return max(settings.decode, pipeline.decode, key=DECODES.index)


def recipe_of(pipeline: Pipeline, job: Job, settings: Settings) -> dict[str, Any]:
    """Return everything that decides the frames, as plain data: embedded in the file, read by `reproduce`."""
    return {
        "vidiff": vidiff.__version__,
        "prompt": job.prompt,
        "travel": job.travel,
        "negative": job.negative,
        "seed": job.seed,
        "arc": None if job.arc is None else asdict(job.arc),
        "noise": None if job.noise is None else {"path": str(job.noise.path), "sha256": job.noise.sha256},
        "noise_from": settings.noise_from,
        "picture": None if job.picture is None else {"path": str(job.picture.path), "sha256": job.picture.sha256},
        "model": settings.model,
        "model_hash": pipeline.hash,
        "loras": [asdict(one) | {"path": str(one.path)} for one in settings.loras],
        "sampling": config.to_dict(settings.sampling) | {"negative": job.negative},
        "times": pipeline.times(settings.size, settings.sampling, _is_drafted(pipeline, job, settings)).tolist(),
        "size": asdict(settings.size),
        "stages": [refiner.name for refiner in pipeline.refiners[: settings.stages]],
        "fps": final_size(pipeline, settings.size, settings.stages).fps,
        "upscale": settings.upscale,
        "dtype": settings.dtype,
        "weights": pipeline.weights,
        "decode": _way(pipeline, settings),
        "device": settings.device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "numpy": np.__version__,  # super-resolution's noise
    }


def is_finished(job: Job, recipe: dict[str, Any]) -> bool:
    """Return whether the file is there already and was made by the same model with the same settings.

    Args:
        job: what is to be made.
        recipe: what `recipe_of` says of the job.
    """
    if not job.output.exists():
        return False
    found = _OLDER | (read_metadata(job.output) or {})
    try:
        found["sampling"] = config.to_dict(config.from_dict(SamplingConfig, found["sampling"]))  # older ones say less
    except (KeyError, ConfigError):
        return False
    return all(found.get(key) == value for key, value in json.loads(json.dumps(recipe)).items() if key in _DECISIVE)


def save_run(job: Job, recipe: dict[str, Any], latents: Tensor) -> Path:
    """Write latents and settings beside the output before anything can go wrong with them."""
    checkpoint.check_finite({"latents": latents}, f"{job.prompt!r}, seed {job.seed}: ")
    name = f"{job.output.stem}-{job.seed}-{hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:8]}"
    run = job.output.absolute().parent / RUNS / name
    with files.os_errors_named(run):
        run.mkdir(parents=True, exist_ok=True)
        with files.atomic_path(run / _LATENTS) as temporary:
            checkpoint.write_tensors(temporary, {"latents": latents.cpu()})
    files.write_text(run / _SETTINGS, json.dumps(recipe | {"output": str(job.output)}, indent=1))
    return run


def read_run(run: Path) -> tuple[dict[str, Any], Tensor]:
    """Return the settings and latents of a run folder; raises DataError if it is none."""
    try:
        recipe = json.loads((run / _SETTINGS).read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{run}: no run folder of generate ({_SETTINGS} cannot be read)") from error
    return recipe, checkpoint.read_tensors(run / _LATENTS)["latents"]


def write_result(
    job: Job, run: Path, clip: np.ndarray, recipe: dict[str, Any], settings: Settings, seconds: float
) -> Result:
    """Write one clip (F, H, W, 3) with its recipe inside."""
    digest = hashlib.sha256(clip.ravel().data).hexdigest()
    metadata = recipe | {"frames_sha256": digest}
    frames = upscaled(clip, settings.upscale)
    write_video(job.output, frames, recipe["fps"], format=settings.format, metadata=metadata)
    return Result(job, run, seconds, clip, digest)


def redecode(
    pipeline: Pipeline,
    recipe: dict[str, Any],
    latents: Tensor,
    run: Path,
    output: Path | None,
    format: str | None,
    *,
    progress: Callable[[str], AbstractContextManager[OnStep]] = unseen,
    note: Callable[[str], None] = print,
) -> Result:
    """Decode the latents of a run folder again and write them to ``output``, by default where they were to go.

    Raises:
        DataError: if the settings in the folder are damaged.
        ConfigError: if the model is not the one that sampled them.
    """
    started = time.monotonic()
    target = output or Path(recipe["output"])
    job, settings = job_and_settings(recipe, target, run)
    settings = replace(settings, format=format_of(target, format))
    if pipeline.hash != recipe["model_hash"]:
        raise ConfigError(f"{run}: these latents are of another model ({recipe['model']}); give it with --model")
    latents = latents.to(pipeline.device)
    clips = _finished(pipeline, [job], settings, latents, progress, note)
    # Older recipes, without stages, have no rate of the result: it is the base's.
    recipe = {"fps": settings.size.fps} | {key: value for key, value in recipe.items() if key != "output"}
    return write_result(job, run, clips[0], recipe, settings, time.monotonic() - started)


def _lora(one: dict[str, Any]) -> LoRAFile:
    expert = one.get("expert")  # older recipes name none
    return LoRAFile(
        *(Path(one["path"]), float(one["scale"]), str(one["sha256"])),
        expert=None if expert is None else EXPERTS[EXPERTS.index(expert)],
    )


def job_and_settings(recipe: dict[str, Any], output: Path, source: Path) -> tuple[Job, Settings]:
    """Return what a stored recipe asks for, to be written to ``output``; ``source`` is where it was read.

    Raises:
        DataError: if a part of the recipe is missing or not what `recipe_of` writes.
    """
    try:
        recipe = _OLDER | recipe
        travel, noise, picture = recipe["travel"], recipe["noise"], recipe["picture"]
        job = Job(
            *(str(recipe["prompt"]), int(recipe["seed"]), output, str(recipe["negative"])),
            travel=None if travel is None else checked_travel(travel),
            arc=None if recipe["arc"] is None else config.from_dict(Arc, recipe["arc"]),
            noise=None if noise is None else NoiseFile(Path(noise["path"]), str(noise["sha256"])),
            picture=None if picture is None else PictureFile(Path(picture["path"]), str(picture["sha256"])),
        )
        settings = Settings(
            model=str(recipe["model"]),
            size=config.from_dict(Size, recipe["size"]),
            sampling=config.from_dict(SamplingConfig, recipe["sampling"]),
            format=format_of(output),
            upscale=int(recipe["upscale"]),
            dtype=str(recipe["dtype"]),
            weights=WEIGHTS[WEIGHTS.index(recipe["weights"])],
            decode=DECODES[DECODES.index(recipe["decode"])],
            device=str(recipe["device"]),
            stages=len(recipe["stages"]),
            loras=tuple(_lora(one) for one in recipe["loras"]),
            noise_from="reference" if recipe["noise_from"] == "reference" else "vidiff",
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{source}: its recipe is damaged: {error}") from error
    return job, settings
