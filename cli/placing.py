"""Plans of memory on the command line: made, shown, and kept to."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vidiff.cli.output import console

if TYPE_CHECKING:
    import torch

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
                raise ConfigError(f"{name} is for published models; this one is small and goes to the device as it is")
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


def sized(folder: Path, frames: int | None, size: str | None) -> "Size | None":
    """Return the size that a command names, with the model's own for what it leaves open; None without such a model."""
    from dataclasses import replace

    from vidiff.diffusers_folder import is_diffusers_folder, open_diffusers_folder
    from vidiff.sizes import parsed_size

    if not is_diffusers_folder(folder) or (frames is None and size is None):
        return None
    own = open_diffusers_folder(folder).config.size
    height, width = (own.height, own.width) if size is None else parsed_size(size)
    return replace(own, frames=own.frames if frames is None else frames, height=height, width=width)


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
