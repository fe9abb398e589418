"""``vidiff generate``"""

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidiff.cli.output import console, note, result, terminated_as_interrupt, warn
from vidiff.resources import DEFAULT_MODEL, fast_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from vidiff.adapting import LoRAFile
    from vidiff.cli.progress import OnStep
    from vidiff.generation import Job, Result, Settings
    from vidiff.model_folder import ModelConfig, SamplingConfig
    from vidiff.pipeline import Pipeline
    from vidiff.sampling.times import Spacing
    from vidiff.types import Size

_SEED = {"min": 0, "max": 2**32 - 1}

ToSeed = Annotated[int | None, typer.Option(**_SEED, help="Make --num clips on the way from --seed to this one.")]
ToPrompt = Annotated[str | None, typer.Option(help="Make --num clips on the way from PROMPT to this one.")]
Vary = Annotated[int | None, typer.Option(min=1, help="Make this many variations of the seed's clip.")]
Strength = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="How far variations go: 0 is the clip itself, 1 another seed's; default 0.3."),
]
Noise = Annotated[
    Path | None, typer.Option(help="Start from the noise that invert made of a clip, with its steps and sampler.")
]


def generate(
    prompt: Annotated[str | None, typer.Argument(help="What the clip shows.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="File, or folder for many clips.")] = None,
    model: Annotated[str, typer.Option(help="Bundled model, folder, or hub id of `vidiff models`.")] = DEFAULT_MODEL,
    fast: Annotated[bool, typer.Option("--fast", help="The model's version of few steps.")] = False,
    download: Annotated[bool, typer.Option("--download", help="Fetch a hub model that is not here yet.")] = False,
    negative: Annotated[str | None, typer.Option(help="What to stay away from.")] = None,
    seed: Annotated[int | None, typer.Option(**_SEED, help="The same seed gives the same clip; default 0.")] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps.")] = None,
    guidance: Annotated[
        str | None,
        typer.Option(help="How strictly to follow the prompt; 1 is off. Over time: 6@0:0.7,1 or 8..2 or 15/1."),
    ] = None,
    guidance_rescale: Annotated[float | None, typer.Option(help="Share of the contrast to restore, 0 to 1.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Times all noise; below 1 is plainer.")] = None,
    set: Annotated[
        list[str] | None, typer.Option("--set", help="Any setting of sampling: guidance.projection.eta=0.5")
    ] = None,
    travel: Annotated[str, typer.Option(help="What prompts parted by | depend on: frames, time or blend.")] = "frames",
    sampler: Annotated[str | None, typer.Option(help="One of `vidiff samplers`.")] = None,
    eta: Annotated[float | None, typer.Option(help="Fresh noise, 0 to 1, of samplers that can add it.")] = None,
    order: Annotated[int | None, typer.Option(help="Order of samplers that have several.")] = None,
    spacing: Annotated[
        str | None, typer.Option(help="Where steps fall: uniform, trailing, karras, beta...; see docs/samplers.md.")
    ] = None,
    times: Annotated[str | None, typer.Option(help="The times of the steps instead: 1,0.8,0.5,0.")] = None,
    frames: Annotated[int | None, typer.Option(help="Number of frames.")] = None,
    fps: Annotated[float | None, typer.Option(help="Frames a second of the file.")] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels.")] = None,
    num: Annotated[int, typer.Option(min=1, help="Clips of this prompt, at seeds SEED, SEED + 1, ...")] = 1,
    to_seed: ToSeed = None,
    to_prompt: ToPrompt = None,
    vary: Vary = None,
    strength: Strength = None,
    noise: Noise = None,
    from_file: Annotated[
        Path | None, typer.Option(help="Prompts: .txt, one a line, or .jsonl with prompt, id, negative, seed, travel.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Clips sampled together.")] = 1,
    candidates: Annotated[
        int | None,
        typer.Option(min=1, help="Clips to try for each one, of which the best is kept; default what the model has."),
    ] = None,
    format: Annotated[str | None, typer.Option(help="mp4, gif, webp, png-sheet or frames.")] = None,
    upscale: Annotated[
        int | None, typer.Option(min=1, help="Repeat pixels N times; default what makes clips without stages visible.")
    ] = None,
    contact_sheet: Annotated[Path | None, typer.Option(help="Also write all frames as one PNG.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:1; default the best there is.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; default what the model was published in.")
    ] = None,
    image: Annotated[Path | None, typer.Option(help="Picture that the clip starts from.")] = None,
    memory: Annotated[
        str | None, typer.Option(help="Of published models: auto (what the device has free), low, or GiB.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Of published models: full, int8 or fp8; default what --memory has room for.")
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option("--lora", help="FILE[:scale] of a LoRA to add; @high or @low: to one of two experts. Repeatable."),
    ] = None,
    noise_from: Annotated[
        str, typer.Option(help="vidiff, or reference: draw a seed's noise as diffusers does.")
    ] = "vidiff",
    stages: Annotated[
        str | None, typer.Option(help="Stop early: base, or base,temporal_sr; default all that the model has.")
    ] = None,
    keep_stages: Annotated[bool, typer.Option("--keep-stages", help="Also write the clip of each stage.")] = False,
    preview: Annotated[bool, typer.Option("--preview", help="Show the clip in the terminal while it forms.")] = False,
    settings: Annotated[bool, typer.Option("--settings", help="Print every resolved setting on stderr.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Make clips that show what the prompt says.

    Examples:

      vidiff generate "a shiny red ball rolls right across green grass at sunset while the camera moves forward"

      vidiff generate "a large green cube spins on sand" --num 4 --seed 7 -o cubes/ --format gif --stages base

      vidiff generate --from-file prompts.txt -o clips/ --batch 8

      vidiff generate "an orc man wearing plate armor, casting a spell" --model sprites --fast

      vidiff generate "an orc walking right | a skeleton walking right" --model sprites --guidance 6@0:0.7,1
    """
    with terminated_as_interrupt():
        from vidiff.candidates import resolved
        from vidiff.cli import jobs as planning
        from vidiff.cli.placing import fetched, fitting_size
        from vidiff.cli.starts import Ways
        from vidiff.pipeline import find_model

        ways = Ways(to_seed, to_prompt, vary, strength, noise)
        drawn_as = planning.noise_origin(noise_from)
        planned = planning.plan(prompt, from_file, output, negative, seed, num, format, travel, ways)
        for job in planned:
            planning.check_writable(job.output)
        if image is not None:
            from vidiff.starting import picture_file

            planned = [replace(job, picture=picture_file(image)) for job in planned]
        model = fast_model(model) if fast else model
        told = _Sampler(sampler, eta, order, spacing, times)
        sampled = partial(_sampling, planned[0], steps, guidance, guidance_rescale, temperature, told, set or [])

        def samples(config: "ModelConfig") -> int:
            own = sampled(config)
            return planning.samples(planned, own.guidance, batch, own.negative if negative is None else "")

        folder = find_model(model, fetched if download else None)
        planning.check_stages(folder, stages)
        size = fitting_size(folder, size, None if noise is not None else image)
        room = _Room(memory, weights, frames, size, batch, image is not None, samples)
        pipeline, loras = _load(folder, model, device, dtype, lora or [], room)
        sampling = sampled(pipeline.config)
        shared = _settings(pipeline, model, sampling, frames, fps, size, format, planned, upscale, dtype, stages)
        drawn = all(job.noise is None and job.arc is None for job in planned)
        settled = resolved(pipeline, shared.sampling, shared.size, candidates, drawn)
        shared = replace(shared, sampling=settled, keep_stages=keep_stages, noise_from=drawn_as, loras=loras)
        if negative is None:
            planned = [job if job.negative else replace(job, negative=shared.sampling.negative) for job in planned]
        waiting = _unfinished(pipeline, planned, shared) if from_file else planned
        made = _make(pipeline, waiting, shared, batch, preview, settings, json, contact_sheet)
        if json:
            result(made, "", as_json=True)


def _unfinished(pipeline: "Pipeline", jobs: "list[Job]", shared: "Settings") -> "list[Job]":
    """Return the jobs whose clips an earlier run has not made."""
    from vidiff.generation import is_finished, recipe_of

    waiting = [job for job in jobs if not is_finished(job, recipe_of(pipeline, job, shared))]
    if len(waiting) < len(jobs):
        note(f"{len(jobs) - len(waiting)} of {len(jobs)} clips were made before")
    return waiting


@dataclass(frozen=True)
class _Room:
    """What the command says of memory, and of what is to be made in it."""

    memory: str | None
    weights: str | None
    frames: int | None
    size: str | None
    clips: int
    picture: bool
    samples: "Callable[[ModelConfig], int]"


def _load(
    folder: Path, model: str, device: str | None, dtype: str | None, loras: list[str], room: _Room
) -> "tuple[Pipeline, tuple[LoRAFile, ...]]":
    """Return the model with ``loras`` in its weights."""
    import torch

    from vidiff.adapting import adapted, lora_file
    from vidiff.cli.devices import checked_dtype, chosen_device
    from vidiff.cli.placing import checked_weights, sized, strategy_for
    from vidiff.pipeline import load

    found = tuple(lora_file(text) for text in loras)
    chosen = chosen_device(device)
    precision = None if dtype is None else getattr(torch, checked_dtype(dtype))
    size = sized(folder, room.frames, room.size, room.picture)
    weights = checked_weights(room.weights)
    strategy = strategy_for(
        folder, room.memory, chosen, precision, size, room.clips, weights, room.picture, room.samples
    )
    with console.status(f"loading {model}"):
        pipeline = load(folder, chosen, precision, strategy)
        return adapted(pipeline, found, note), found


@dataclass(frozen=True)
class _Sampler:
    """What the command says of the sampler and its steps."""

    name: str | None
    eta: float | None
    order: int | None
    spacing: str | None
    times: str | None

    def grid(self, own: "SamplingConfig", steps: int | None) -> "tuple[Spacing, int]":
        """Return where steps fall and how many there are; raises a ConfigError if what was given contradicts itself."""
        from vidiff.errors import ConfigError
        from vidiff.sampling.times import listed_spacing, spacing_by_name

        if self.times is None:
            spacing = own.spacing if self.spacing is None else spacing_by_name(self.spacing)
            return spacing, own.num_steps if steps is None else steps
        if self.spacing is not None:
            raise ConfigError("--times says where steps fall, and so does --spacing; give one of the two")
        listed = listed_spacing(self.times)
        return listed, len(listed.listed) - 1 if steps is None else steps


def _sampling(
    job: "Job",
    steps: int | None,
    guidance: str | None,
    rescale: float | None,
    temperature: float | None,
    sampler: "_Sampler",
    overrides: list[str],
    model: "ModelConfig",
) -> "SamplingConfig":
    """Return the sampling of the model, or of the noise that the clip starts from, with what the command changes in it.

    ``overrides`` come last.
    """
    from vidiff import config
    from vidiff.models.build import check_skippable
    from vidiff.sampling.solvers import adjusted, solver_by_name

    own = model.sampling if job.noise is None else job.noise.read().sampling
    guide = own.guidance if guidance is None else own.guidance.with_scale(guidance)
    solver = own.solver if sampler.name is None else solver_by_name(sampler.name)
    spacing, num_steps = sampler.grid(own, steps)
    sampling = replace(
        own,
        solver=adjusted(solver, sampler.eta, sampler.order),
        spacing=spacing,
        num_steps=num_steps,
        guidance=guide if rescale is None else replace(guide, rescale=rescale),
        temperature=own.temperature if temperature is None else temperature,
    )
    sampling = config.overridden(sampling, overrides)
    check_skippable(model.backbone, sampling.guidance.skip.layers)
    return sampling


def _settings(
    pipeline: "Pipeline",
    model: str,
    sampling: "SamplingConfig",
    frames: int | None,
    fps: float | None,
    size: str | None,
    format: str | None,
    jobs: "list[Job]",
    upscale: int | None,
    dtype: str | None,
    stages: str | None,
) -> "Settings":
    """Fill what the command left open from the model's own defaults."""
    from vidiff.cli.devices import checked_dtype
    from vidiff.cli.jobs import check_travels
    from vidiff.data.video_write import format_of
    from vidiff.generation import Settings
    from vidiff.sizes import final_size, stage_count

    count = stage_count(pipeline, stages)
    resolved = _size(pipeline, jobs[0], frames, fps, size, count)
    check_travels(pipeline, jobs, resolved, len(pipeline.times(resolved, sampling)) - 1)
    final = final_size(pipeline, resolved, count)
    # Pixels of small models are repeated to be seen; what a cascade makes may go through its stages later.
    visible = 1 if pipeline.refiners else max(1, 256 // max(final.height, final.width))
    return Settings(
        model=model,
        size=resolved,
        sampling=pipeline.config.sized(sampling, resolved),
        format=format_of(jobs[0].output, format),
        upscale=visible if upscale is None else upscale,
        dtype=checked_dtype(dtype or pipeline.config.dtype, pipeline.device),
        device=str(pipeline.device),
        stages=count,
    )


def _size(
    pipeline: "Pipeline", job: "Job", frames: int | None, fps: float | None, size: str | None, stages: int
) -> "Size":
    """Return the size of the base's clip, as the command says or as the noise is that it starts from."""
    from vidiff.errors import ConfigError
    from vidiff.sizes import resolve_size

    if job.noise is not None:
        told = job.noise.read()
        if told.model_hash != pipeline.hash:
            raise ConfigError(
                f"{job.noise.path} was made with another model ({told.model}); give that one with --model"
            )
        if (frames, fps, size) != (None, None, None):
            raise ConfigError("--noise is as long and large as its clip; leave out --frames, --fps and --size")
        return told.size
    resolved, warnings = resolve_size(pipeline, frames, fps, size, stages)
    for text in warnings:
        warn(text)
    return resolved


def _make(
    pipeline: "Pipeline",
    jobs: "list[Job]",
    shared: "Settings",
    batch: int,
    preview: bool,
    show_settings: bool,
    as_json: bool,
    contact_sheet: Path | None,
) -> list[dict[str, Any]]:
    """Generate ``batch`` clips at a time and report each as soon as its file is there."""
    from vidiff.cli.progress import sampling_progress
    from vidiff.generation import generate as make
    from vidiff.generation import recipe_of

    made = []
    for start in range(0, len(jobs), batch):
        now = jobs[start : start + batch]
        if show_settings:
            from vidiff import yaml12

            note(yaml12.dump(recipe_of(pipeline, now[0], shared)))

        def progress(stage: str, number: int = start + 1) -> "AbstractContextManager[OnStep]":
            return sampling_progress(pipeline, f"clip {number} of {len(jobs)}: {stage}", preview, stage)

        finished = make(pipeline, now, shared, progress=progress, note=note)
        for one in finished:
            if contact_sheet is not None and len(jobs) == 1:
                _write_sheet(one, contact_sheet)
            made.append(_report(one))
            if not as_json:
                result(None, f"{one.job.output}  {one.seconds:.1f} s  seed {one.job.seed}", as_json=False)
    return made


def _write_sheet(one: "Result", path: Path) -> None:
    from vidiff.data.video_write import contact_sheet, write_png

    write_png(path, contact_sheet(one.frames))


def _report(one: "Result") -> dict[str, Any]:
    return {
        "path": str(one.job.output),
        "prompt": one.job.prompt,
        "negative": one.job.negative,
        "seed": one.job.seed,
        "arc": None if one.job.arc is None else asdict(one.job.arc),
        "seconds": round(one.seconds, 3),
        "run": str(one.run),
        "frames_sha256": one.frames_sha256,
    }
