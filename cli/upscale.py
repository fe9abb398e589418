"""``vidiff upscale``"""

from pathlib import Path
from typing import Annotated

import typer

from vidiff.cli.output import result, terminated_as_interrupt
from vidiff.errors import ConfigError


def upscale(
    clip: Annotated[Path, typer.Argument(help="Any clip.")],
    to: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT; default as it is.")] = None,
    fps: Annotated[float | None, typer.Option(help="Frames a second; default as it is.")] = None,
    prompt: Annotated[str, typer.Option(help="What the clip shows.")] = "",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Default: NAME-upscaled.mp4 beside it.")] = None,
    model: Annotated[str, typer.Option(help="Bundled model or model folder with super-resolution.")] = "toyworld",
    noise: Annotated[
        float | None,
        typer.Option(help="How much to repair and invent: from 0, keep all that is there, to what the model allows."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="The same seed gives the same clip.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:1; default the best there is.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Give a clip more pixels and more frames a second with a model's super-resolution stages.

    Example:

      vidiff upscale small.mp4 --to 256x256 --fps 24 --prompt "a red ball rolls right"
    """
    with terminated_as_interrupt():
        import time

        import torch

        from vidiff.cli.devices import checked_dtype, chosen_device
        from vidiff.cli.jobs import check_writable
        from vidiff.cli.progress import sampling_progress
        from vidiff.data.video_io import inspect, read_clip
        from vidiff.data.video_write import format_of, write_video
        from vidiff.pipeline import find_model, load
        from vidiff.sizes import parsed_size
        from vidiff.types import Size
        from vidiff.upscaling import plan
        from vidiff.upscaling import upscale as run

        started = time.monotonic()
        target = output or clip.with_name(f"{clip.stem}-upscaled.mp4")
        format_of(target)
        if target.resolve() == clip.resolve():
            raise ConfigError(f"{target} is the clip itself; name another file with -o")
        check_writable(target)
        precision = getattr(torch, checked_dtype(dtype))
        info = inspect(clip, name=str(clip))
        have = Size(info.frames, info.height, info.width, info.fps)
        height, width = (have.height, have.width) if to is None else parsed_size(to)
        rate = have.fps if fps is None else fps
        pipeline = load(find_model(model), chosen_device(device))
        stages = plan(pipeline.refiners, have, height, width, rate)
        if not stages:
            now = f"{have.width}x{have.height} at {have.fps:g} fps"
            raise ConfigError(f"{clip} is {now} already; say with --to, --fps or both what it should become")
        frames = torch.from_numpy(read_clip(clip, name=str(clip), info=info).frames)
        made = run(
            pipeline,
            stages,
            frames,
            prompt,
            seed,
            noise=noise,
            dtype=precision,
            progress=lambda stage: sampling_progress(pipeline, stage, False),
        )
        made_of = {"upscaled": clip.name, "prompt": prompt, "seed": seed, "noise": noise, "dtype": dtype}
        write_video(target, made.numpy(), rate, metadata=made_of | {"model": model, "model_hash": pipeline.hash})
        seconds = time.monotonic() - started
        found = {"path": str(target), "frames": len(made), "height": height, "width": width, "fps": rate}
        result(found | {"seconds": round(seconds, 3)}, f"{target}  {seconds:.1f} s  seed {seed}", as_json=json)
