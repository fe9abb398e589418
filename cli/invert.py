"""``vidiff invert``"""

from pathlib import Path
from typing import Annotated

import typer

from vidiff.cli.output import result, terminated_as_interrupt, warn
from vidiff.errors import ConfigError
from vidiff.resources import DEFAULT_MODEL


def invert(
    clip: Annotated[Path, typer.Argument(help="Any clip; its beginning is used, at the model's size and rate.")],
    prompt: Annotated[str, typer.Option(help="What the clip shows.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Default: NAME-noise.safetensors beside it.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="Bundled model, model folder, or hub id OWNER/NAME@COMMIT.")
    ] = DEFAULT_MODEL,
    steps: Annotated[int, typer.Option(min=1, help="Sampling steps, there and back.")] = 50,
    iterations: Annotated[int, typer.Option(min=1, help="Evaluations a step; more bring the clip back nearer.")] = 3,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:1; default the best there is.")] = None,
    memory: Annotated[
        str | None, typer.Option(help="Of published models: auto (what the device has free), low, or GiB.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Turn a clip into the noise that it is made of, to make it again under another prompt.

    It is found and sampled back without guidance; the result says how near the latents come.

    Example:

      vidiff invert orc.mp4 --model sprites --prompt "an orc walking left" -o noise.safetensors

      vidiff generate "an elf walking left" --model sprites --noise noise.safetensors
    """
    with terminated_as_interrupt():
        import time

        import torch

        from vidiff.cli.devices import chosen_device
        from vidiff.cli.jobs import check_writable, checked
        from vidiff.cli.placing import strategy_for
        from vidiff.cli.progress import sampling_progress
        from vidiff.diffusion.guidance import Guidance
        from vidiff.inverting import Inverted, invert_clip, read_frames, write_noise
        from vidiff.model_folder import SamplingConfig
        from vidiff.pipeline import find_model, load
        from vidiff.sampling.solvers import DDIM

        started = time.monotonic()
        text = checked(prompt, "the prompt")
        target = output or clip.with_name(f"{clip.stem}-noise.safetensors")
        if target.suffix != ".safetensors":
            raise ConfigError(f"{target}: noise is kept as .safetensors")
        check_writable(target)
        folder, where = find_model(model), chosen_device(device)
        # As exact as can be, since what is found is sampled from again.
        strategy = strategy_for(
            *(folder, memory, where, torch.float32), weights="full", samples=lambda config: 1, inverts=True
        )
        pipeline = load(folder, where, torch.float32, strategy)
        frames, size = read_frames(clip, pipeline)
        fewest, most = pipeline.config.frames
        if not fewest <= size.frames <= most:
            warn(f"{size.frames} frames, but the model was trained on {fewest} to {most}")
        sampling = SamplingConfig(DDIM(), steps, Guidance(scale=1.0))
        with sampling_progress(pipeline, "inverting", False) as on_step:
            noise, near = invert_clip(
                pipeline, frames, text, size, sampling, num_iterations=iterations, on_step=on_step
            )
        write_noise(target, Inverted(noise, model, pipeline.hash, text, size, sampling))
        seconds = round(time.monotonic() - started, 1)
        found = {"path": str(target), "frames": size.frames, "decibels": round(near, 2), "seconds": seconds}
        result(found, f"{target}  {seconds} s  back within {near:.1f} dB", as_json=json)
