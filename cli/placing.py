"""Published models on the command line: fetched, checked and planned before anything is loaded."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vidiff.cli.output import console, note

if TYPE_CHECKING:
    import torch
    from rich.progress import TaskID

    from vidiff.diffusers_folder import DiffusersFolder
    from vidiff.memory import Strategy, Weights
    from vidiff.model_folder import ModelConfig
    from vidiff.types import Size


def strategy_for(
    folder: Path,
    memory: str | None,
    device: "torch.device",
    dtype: "torch.dtype | None",
    size: "Size | None" = None,
    clips: int = 1,
    weights: "Weights | None" = None,
    picture: bool = False,
    samples: "Callable[[ModelConfig], int]" = lambda config: config.sampling.guidance.samples(),
    inverts: bool = False,
) -> "Strategy | None":
    """Return how a published model goes to the device, and print the plan; None for a model that goes there whole.

    Args:
        folder: of the model.
        memory: auto, low or a number of GiB; None is auto on a GPU and nothing on a CPU.
        device: where it goes.
        dtype: of its weights, by default as published.
        size: of the clips; None is the model's own.
        clips: made at once.
        weights: of the transformer's blocks; None is what the plan finds best.
        picture: whether clips start from one.
        samples: that each clip is in one call of the transformer; by default as the model's own guidance has it.
        inverts: whether a clip is encoded, and none is decoded.

    Raises:
        ConfigError: if nothing fits, the model is one of ours, or torchao does not do for the weights.
    """
    import torch

    from vidiff.diffusers_folder import is_diffusers_folder, open_diffusers_folder
    from vidiff.errors import ConfigError
    from vidiff.memory import plan
    from vidiff.memory_table import table
    from vidiff.models.quantize import check_available

    narrow = None if weights == "full" else weights
    if not is_diffusers_folder(folder):
        for name, given in (("--memory", memory), ("--weights", narrow)):
            if given is not None:
                raise ConfigError(
                    f"{name} is for published models in the diffusers layout; one of ours goes to the device as a whole"
                )
        return None
    if memory is None and narrow is None and device.type == "cpu":
        return None
    opened = open_diffusers_folder(folder)
    found = plan(
        opened.shape(),
        size or opened.config.size,
        budget=_budget(memory or "auto"),
        clips=clips,
        samples=samples(opened.config),
        dtype=getattr(torch, opened.config.dtype) if dtype is None else dtype,
        device=device,
        weights=None if weights is None else (weights,),
        picture=picture,
        inverts=inverts,
    )
    if found.strategy.weights != "full":
        check_available(found.strategy.weights)
    console.print(table(found))
    return found.strategy


def fetched(name: str) -> Path:
    """Return the folder of a model that is fetched from the hub, with a bar for each large file."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from vidiff.hub import pull

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        tasks: dict[str, TaskID] = {}

        def on_bytes(path: str, done: int, size: int) -> None:
            if path not in tasks:
                tasks[path] = progress.add_task(path)
            progress.update(tasks[path], completed=done, total=size)

        return pull(name, note, on_bytes).folder


def sized(folder: Path, frames: int | None, size: str | None, picture: bool) -> "Size | None":
    """Return the size that a command names, with the model's own for what it leaves open; None for a model of ours.

    Raises:
        ConfigError: if a published model makes no such clips, or not out of what is given, before it is loaded.
    """
    from dataclasses import replace

    from vidiff.diffusers_folder import is_diffusers_folder, open_diffusers_folder
    from vidiff.sizes import check_grid, check_limits, parsed_size
    from vidiff.starting import check_pictures

    if not is_diffusers_folder(folder):
        return None
    opened = open_diffusers_folder(folder)
    check_pictures(opened.config.pictures, picture)
    own = opened.config.size
    height, width = (own.height, own.width) if size is None else parsed_size(size)
    wanted = replace(own, frames=own.frames if frames is None else frames, height=height, width=width)
    check_limits(wanted)
    check_grid(wanted, *_grid(opened))
    return wanted


def fitting_size(folder: Path, size: str | None, image: Path | None) -> str | None:
    """Return ``size``, or for None how large clips of a published model become that start from ``image``.

    They have the picture's shape and at most the model's own number of pixels, as published.
    """
    from vidiff.diffusers_folder import is_diffusers_folder, open_diffusers_folder
    from vidiff.starting import picture_file

    if size is not None or image is None or not is_diffusers_folder(folder):
        return size
    opened = open_diffusers_folder(folder)
    own, (_, side) = opened.config.size, _grid(opened)
    high, wide = picture_file(image).read().shape[:2]
    sides = (math.sqrt(own.height * own.width * shape) for shape in (high / wide, wide / high))
    height, width = (max(side, round(one) // side * side) for one in sides)
    if (height, width) != (own.height, own.width):
        note(f"{width}x{height}, since the picture is {wide}x{high}; --size says otherwise")
    return f"{width}x{height}"


def _grid(opened: "DiffusersFolder") -> tuple[int, int]:
    """Return (s, p): clips have s * n + 1 frames, and sides that are multiples of p pixels."""
    from vidiff.models.build import token_patch

    autoencoder = opened.vae_config
    return autoencoder.frame_stride, autoencoder.stride * math.lcm(*token_patch(opened.config.backbone)[1:])


def checked_weights(name: str | None) -> "Weights | None":
    """Return the type of weights that ``--weights`` names; raises a ConfigError if it names none."""
    from vidiff.errors import ConfigError
    from vidiff.memory import WEIGHTS

    for known in WEIGHTS:
        if name == known:
            return known
    if name is not None:
        raise ConfigError(f"--weights is {', '.join(WEIGHTS[:-1])} or {WEIGHTS[-1]}, got {name!r}")
    return None


def _budget(memory: str) -> "float | str":
    from vidiff.errors import ConfigError

    if memory in ("auto", "low"):
        return memory
    try:
        found = float(memory)
    except ValueError:
        found = 0.0
    if not 0 < found < 10_000:
        raise ConfigError(f"--memory is auto, low or a number of GiB, got {memory!r}")
    return found
