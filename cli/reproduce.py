"""``vidiff reproduce``"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from vidiff.cli.output import note, result, terminated_as_interrupt, warn
from vidiff.errors import ConfigError, DataError


def reproduce(
    clip: Annotated[Path, typer.Argument(help="A file that generate made.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Default: NAME-again beside it.")] = None,
    model: Annotated[str | None, typer.Option(help="Where the model lies now, if it has moved.")] = None,
    noise: Annotated[Path | None, typer.Option(help="Where the noise lies now that it starts from.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:1. Default: the one that made it.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Make a clip again from the recipe inside it, and say whether the frames are the same.

    Example:

      vidiff reproduce orc.mp4
    """
    with terminated_as_interrupt():
        import torch

        from vidiff.adapting import adapted
        from vidiff.cli.devices import chosen_device
        from vidiff.cli.jobs import samples
        from vidiff.cli.placing import strategy_for
        from vidiff.cli.progress import sampling_progress
        from vidiff.data.metadata import read_metadata
        from vidiff.generation import generate, job_and_settings
        from vidiff.pipeline import find_model, load

        recipe = read_metadata(clip)
        if recipe is None or "model_hash" not in recipe:
            raise DataError(f"{clip}: holds no recipe of vidiff generate")
        target = output or clip.with_name(f"{clip.stem}-again{clip.suffix}")
        job, settings = job_and_settings(recipe, target, clip)
        if noise is not None and job.noise is None:
            raise ConfigError(f"{clip} starts from a seed; leave out --noise")
        if job.noise is not None:
            job = replace(job, noise=replace(job.noise, path=noise or job.noise.path))
            job.noise.read()
        folder, precision = find_model(model or settings.model), getattr(torch, settings.dtype)
        where = chosen_device(device or settings.device)
        settings, weights = replace(settings, device=str(where)), settings.weights
        strategy = strategy_for(
            *(folder, None, where, precision, settings.size),
            weights=weights,
            picture=job.picture is not None,
            samples=lambda config: samples([job], settings.sampling.guidance, 1),
        )
        pipeline = load(folder, where, precision, strategy)
        pipeline = adapted(pipeline, settings.loras, note)
        if pipeline.hash != recipe["model_hash"]:
            warn(f"the model {settings.model} is not the one that made {clip}; the frames will differ")
        (made,) = generate(
            pipeline, [job], settings, progress=lambda stage: sampling_progress(pipeline, stage, False), note=note
        )
        same = made.frames_sha256 == recipe.get("frames_sha256")
        result(
            {"path": str(target), "same_frames": same, "frames_sha256": made.frames_sha256},
            f"{target}  {'the same frames' if same else 'not the same frames'}",
            as_json=json,
        )
