"""Any clip through a model's super-resolution stages: more frames a second, more pixels."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn import functional as F

from vidiff.errors import ConfigError
from vidiff.generation import OnStep, unseen
from vidiff.pipeline import Pipeline
from vidiff.refinement import SpatialSR, TemporalSR
from vidiff.refining import Refiner
from vidiff.types import Size

_MAX_REPEATS = 3  # of one stage


def plan(refiners: Sequence[Refiner], have: Size, height: int, width: int, fps: float) -> list[Refiner]:
    """Return the stages, in time first, that bring a clip of size ``have`` to the wanted size and rate.

    Raises:
        ConfigError: if they cannot; the message lists what they reach.
    """
    chosen: list[Refiner] = []
    temporal = next((refiner for refiner in refiners if isinstance(refiner.refines, TemporalSR)), None)
    rates = _reached(temporal, have.fps)
    times = next((n for n, rate in enumerate(rates) if math.isclose(rate, fps, rel_tol=0.01)), None)
    if times is None:
        raise ConfigError(f"{have.fps:g} fps can become {', '.join(f'{rate:g}' for rate in rates)} fps, not {fps:g}")
    spatial = next((refiner for refiner in refiners if isinstance(refiner.refines, SpatialSR)), None)
    scales = _reached(spatial, 1)
    wanted = (height, width)
    grown = next((n for n, scale in enumerate(scales) if (have.height * scale, have.width * scale) == wanted), None)
    if grown is None:
        sizes = ", ".join(f"{have.width * scale:g}x{have.height * scale:g}" for scale in scales)
        raise ConfigError(f"{have.width}x{have.height} can become {sizes}, not {width}x{height}")
    for stage, repeats in ((temporal, times), (spatial, grown)):
        chosen += [stage] * repeats if stage is not None else []
    return chosen


@torch.no_grad()
def upscale(
    pipeline: Pipeline,
    refiners: Sequence[Refiner],
    clip: Tensor,
    prompt: str,
    seed: int,
    *,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[str], AbstractContextManager[OnStep]] = unseen,
    note: Callable[[str], None] = print,
) -> Tensor:
    """Return ``clip``, uint8 (F, H, W, 3), after the stages ``refiners``.

    Raises:
        NumericalError: if what was made is not finite or shows nothing.
        ResourceError: if memory runs out.
    """
    for number, refiner in enumerate(refiners):
        size = refiner.size(Size(clip.shape[0], clip.shape[1], clip.shape[2], 1.0))
        padded = _on_grid(clip, refiner)
        text = pipeline.text([prompt], refiner.denoiser)
        null = pipeline.text([refiner.config.sampling.negative], refiner.denoiser)
        with progress(refiner.name) as on_step:
            (finer,) = refiner.refine(
                padded[None],
                text,
                null,
                [seed + ((number + 1) << 32)],
                refiner.config.sampling,
                dtype=dtype,
                on_step=on_step,
                note=note,
            )
        clip = finer[: size.frames, : size.height, : size.width]
    return clip


def _on_grid(clip: Tensor, refiner: Refiner) -> Tensor:
    """Repeat the last frame, row and column until the finer clip has whole latents."""
    spec = refiner.autoencoder.latents
    frames, height, width = clip.shape[:3]
    one = refiner.size(Size(2, 1, 1, 1.0))
    frame_step = spec.frame_stride // math.gcd(spec.frame_stride, one.frames - 1)
    step = spec.stride // math.gcd(spec.stride, one.height)
    more = (-(frames - 1) % frame_step, -height % step, -width % step)
    pixels = clip.permute(3, 0, 1, 2)[None].float()
    pixels = F.pad(pixels, (0, more[2], 0, more[1], 0, more[0]), mode="replicate")
    return pixels[0].permute(1, 2, 3, 0).to(torch.uint8)


def _reached(refiner: Refiner | None, start: float) -> list[float]:
    return [start * (refiner.refines.factor**n if refiner else 1) for n in range(_MAX_REPEATS + 1 if refiner else 1)]
