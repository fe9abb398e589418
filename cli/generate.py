"""``vidiff generate``"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidiff.cli.output import console, note, result, terminated_as_interrupt, warn

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from vidiff.cli.progress import OnStep
    from vidiff.generation import Job, Result, Settings
    from vidiff.model_folder import SamplingConfig
    from vidiff.pipeline import Pipeline
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
    model: Annotated[str, typer.Option(help="Bundled model, model folder, or hub id OWNER/NAME@COMMIT.")] = "sprites",
    download: Annotated[bool, typer.Option("--download", help="Fetch a hub model that is not here yet.")] = False,
    negative: Annotated[str | None, typer.Option(help="What to stay away from.")] = None,
    seed: Annotated[int | None, typer.Option(**_SEED, help="The same seed gives the same clip; default 0.")] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="How strictly to follow the prompt; 1 is off.")] = None,
    sampler: Annotated[str | None, typer.Option(help="ddim, ddpm, dpmpp_2m, euler or heun.")] = None,
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
        Path | None, typer.Option(help="Prompts: .txt, one a line, or .jsonl with prompt, id, negative, seed.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Clips sampled together.")] = 1,
    format: Annotated[str | None, typer.Option(help="mp4, gif, webp, png-sheet or frames.")] = None,
    upscale: Annotated[
        int | None, typer.Option(min=1, help="Repeat pixels N times; small clips default to a visible size.")
    ] = None,
    contact_sheet: Annotated[Path | None, typer.Option(help="Also write all frames as one PNG.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:1; default the best there is.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
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

      vidiff generate "a dark-skinned woman wearing a red robe and black shoes, walking right, on a green background"

      vidiff generate "an orc man wearing plate armor, casting a spell" --num 4 --seed 7 -o orcs/ --format gif

      vidiff generate "an orc" --vary 4 --strength 0.2 -o orcs/

      vidiff generate --from-file prompts.txt -o clips/ --batch 8
    """
    with terminated_as_interrupt():
        from vidiff.cli import jobs as planning
        from vidiff.cli.starts import Ways

        ways = Ways(to_seed, to_prompt, vary, strength, noise)
        planned = planning.plan(prompt, from_file, output, negative, seed, num, format, ways)
        for job in planned:
            planning.check_writable(job.output)
        pipeline = _load(model, device, download)
        shared = _settings(
            pipeline, model, steps, guidance, sampler, frames, fps, size, format, planned, upscale, dtype, stages
        )
        shared = replace(shared, keep_stages=keep_stages)
        if negative is None:
            planned = [job if job.negative else replace(job, negative=shared.sampling.negative) for job in planned]
        waiting = _unfinished(pipeline, planned, shared) if from_file else planned
        made = _make(pipeline, waiting, shared, batch, preview, settings, json, contact_sheet)
        if json:
            result(made, "", as_json=True)


def _unfinished(pipeline: "Pipeline", jobs: "list[Job]", shared: "Settings") -> "list[Job]":
    from vidiff.generation import is_finished, recipe_of

    waiting = [job for job in jobs if not is_finished(job, recipe_of(pipeline, job, shared))]
    if len(waiting) < len(jobs):
        note(f"{len(jobs) - len(waiting)} of {len(jobs)} clips were made before")
    return waiting


def _load(model: str, device: str | None, download: bool) -> "Pipeline":
    from vidiff.cli.devices import chosen_device
    from vidiff.pipeline import find_model, load

    folder = find_model(model, download)
    chosen = chosen_device(device)
    with console.status(f"loading {model}"):
        return load(folder, chosen)


def _settings(
    pipeline: "Pipeline",
    model: str,
    steps: int | None,
    scale: float | None,
    sampler: str | None,
    frames: int | None,
    fps: float | None,
    size: str | None,
    format: str | None,
    jobs: "list[Job]",
    upscale: int | None,
    dtype: str,
    stages: str | None,
) -> "Settings":
    """Fill what the command left open from the model's own defaults."""
    from vidiff.cli.devices import checked_dtype
    from vidiff.data.video_write import format_of
    from vidiff.generation import Settings
    from vidiff.sampling.solvers import solver_by_name
    from vidiff.sizes import final_size, stage_count

    count = stage_count(pipeline, stages)
    sampling, resolved = _defaults(pipeline, jobs[0], frames, fps, size, count)
    sampling = replace(
        sampling,
        solver=sampling.solver if sampler is None else solver_by_name(sampler),
        num_steps=sampling.num_steps if steps is None else steps,
        guidance=sampling.guidance if scale is None else replace(sampling.guidance, scale=scale),
    )
    final = final_size(pipeline, resolved, count)
    visible = max(1, 256 // max(final.height, final.width))
    return Settings(
        model=model,
        size=resolved,
        sampling=sampling,
        format=format_of(jobs[0].output, format),
        upscale=visible if upscale is None else upscale,
        dtype=checked_dtype(dtype),
        device=str(pipeline.device),
        stages=count,
    )


def _defaults(
    pipeline: "Pipeline", job: "Job", frames: int | None, fps: float | None, size: str | None, stages: int
) -> "tuple[SamplingConfig, Size]":
    """Return the sampling and size that the model has, or the noise that the clip starts from."""
    from vidiff.errors import ConfigError
    from vidiff.sizes import resolve_size

    if job.noise is None:
        resolved, warnings = resolve_size(pipeline, frames, fps, size, stages)
        for text in warnings:
            warn(text)
        return pipeline.config.sampling, resolved
    told = job.noise.read()
    if told.model_hash != pipeline.hash:
        raise ConfigError(f"{job.noise.path} was made with another model ({told.model}); give that one with --model")
    if (frames, fps, size) != (None, None, None):
        raise ConfigError("--noise is as long and large as its clip; leave out --frames, --fps and --size")
    return told.sampling, told.size


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
