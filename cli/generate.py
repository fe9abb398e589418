"""``vidiff generate``"""

from dataclasses import replace
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


def generate(
    prompt: Annotated[str | None, typer.Argument(help="What the clip shows.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="File, or folder for many clips.")] = None,
    model: Annotated[str, typer.Option(help="Bundled model, model folder, or hub id OWNER/NAME@COMMIT.")] = "sprites",
    download: Annotated[bool, typer.Option("--download", help="Fetch a hub model that is not here yet.")] = False,
    negative: Annotated[str | None, typer.Option(help="What to stay away from.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="The same seed gives the same clip.")] = 0,
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
    sampler: Annotated[str | None, typer.Option(help="ddim, ddpm, dpmpp_2m, euler or heun.")] = None,
    frames: Annotated[int | None, typer.Option(help="Number of frames.")] = None,
    fps: Annotated[float | None, typer.Option(help="Frames a second of the file.")] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels.")] = None,
    num: Annotated[int, typer.Option(min=1, help="Clips of this prompt, at seeds SEED, SEED + 1, ...")] = 1,
    from_file: Annotated[
        Path | None, typer.Option(help="Prompts: .txt, one a line, or .jsonl with prompt, id, negative, seed, travel.")
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

      vidiff generate --from-file prompts.txt -o clips/ --batch 8

      vidiff generate "an orc walking right | a skeleton walking right" --guidance 6@0:0.7,1
    """
    with terminated_as_interrupt():
        from vidiff.cli import jobs as planning

        planned = planning.plan(prompt, from_file, output, negative, seed, num, format, travel)
        for job in planned:
            planning.check_writable(job.output)
        pipeline = _load(model, device, download)
        sampling = _sampling(pipeline, steps, guidance, guidance_rescale, temperature, sampler, set or [])
        shared = _settings(pipeline, model, sampling, frames, fps, size, format, planned, upscale, dtype, stages)
        shared = replace(shared, keep_stages=keep_stages)
        if negative is None:
            planned = [job if job.negative else replace(job, negative=shared.sampling.negative) for job in planned]
        waiting = _unfinished(pipeline, planned, shared) if from_file else planned
        made = _make(pipeline, waiting, shared, batch, preview, settings, json, contact_sheet)
        if json:
            result(made, "", as_json=True)


def _load(model: str, device: str | None, download: bool) -> "Pipeline":
    from vidiff.cli.devices import chosen_device
    from vidiff.pipeline import find_model, load

    folder = find_model(model, download)
    chosen = chosen_device(device)
    with console.status(f"loading {model}"):
        return load(folder, chosen)


def _sampling(
    pipeline: "Pipeline",
    steps: int | None,
    guidance: str | None,
    rescale: float | None,
    temperature: float | None,
    sampler: str | None,
    overrides: list[str],
) -> "SamplingConfig":
    """Return the model's own way of sampling with what the command changes in it; ``overrides`` come last."""
    from vidiff import config
    from vidiff.models.build import check_skippable
    from vidiff.sampling.solvers import solver_by_name

    sampling = pipeline.config.sampling
    guide = sampling.guidance if guidance is None else sampling.guidance.with_scale(guidance)
    sampling = replace(
        sampling,
        solver=sampling.solver if sampler is None else solver_by_name(sampler),
        num_steps=sampling.num_steps if steps is None else steps,
        guidance=guide if rescale is None else replace(guide, rescale=rescale),
        temperature=sampling.temperature if temperature is None else temperature,
    )
    sampling = config.overridden(sampling, overrides)
    check_skippable(pipeline.config.backbone, sampling.guidance.skip.layers)
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
    dtype: str,
    stages: str | None,
) -> "Settings":
    """Fill what the command left open from the model's own defaults."""
    from vidiff.cli.devices import checked_dtype
    from vidiff.cli.jobs import check_travels
    from vidiff.data.video_write import format_of
    from vidiff.generation import Settings, final_size, resolve_size, stage_count

    count = stage_count(pipeline, stages)
    resolved, warnings = resolve_size(pipeline, frames, fps, size, count)
    for text in warnings:
        warn(text)
    check_travels(pipeline, jobs, resolved, len(sampling.times()) - 1)
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


def _unfinished(pipeline: "Pipeline", jobs: "list[Job]", shared: "Settings") -> "list[Job]":
    """Return the jobs whose clips an earlier run has not made."""
    from vidiff.generation import is_finished, recipe_of

    waiting = [job for job in jobs if not is_finished(job, recipe_of(pipeline, job, shared))]
    if len(waiting) < len(jobs):
        note(f"{len(jobs) - len(waiting)} of {len(jobs)} clips were made before")
    return waiting


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
        "seconds": round(one.seconds, 3),
        "run": str(one.run),
        "frames_sha256": one.frames_sha256,
    }
