"""``vidiff decode``"""

from pathlib import Path
from typing import Annotated

import typer

from vidiff.cli.output import note, result, terminated_as_interrupt


def decode(
    run: Annotated[Path, typer.Argument(help="Folder that generate kept, .vidiff/NAME beside its output.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="File; default where it was to go.")] = None,
    model: Annotated[str | None, typer.Option(help="Default: the model it was sampled with.")] = None,
    format: Annotated[str | None, typer.Option(help="mp4, gif, webp, png-sheet or frames.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:1; default the best there is.")] = None,
) -> None:
    """Decode the latents of an earlier generate again: after a crash, or into another format.

    Example:

      vidiff decode clips/.vidiff/orc-0-1a2b3c4d -o orc.gif
    """
    with terminated_as_interrupt():
        import torch

        from vidiff.adapting import adapted
        from vidiff.cli.devices import chosen_device
        from vidiff.cli.placing import strategy_for
        from vidiff.cli.progress import sampling_progress
        from vidiff.generation import job_and_settings, read_run, redecode
        from vidiff.pipeline import find_model, load

        recipe, latents = read_run(run)
        _, settings = job_and_settings(recipe, Path(recipe["output"]), run)
        folder, precision = find_model(model or settings.model), getattr(torch, settings.dtype)
        strategy = strategy_for(folder, None, chosen_device(device), precision, settings.size)
        pipeline = load(folder, chosen_device(device), precision, strategy)
        pipeline = adapted(pipeline, settings.loras, note)
        made = redecode(
            pipeline,
            recipe,
            latents,
            run,
            output,
            format,
            progress=lambda stage: sampling_progress(pipeline, stage, False),
            note=note,
        )
        result(None, str(made.job.output), as_json=False)
