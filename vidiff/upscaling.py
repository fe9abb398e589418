"""Any clip through a model's super-resolution stages: more frames a second, more pixels."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from vidiff.errors import ConfigError
from vidiff.generation import OnStep, unseen
from vidiff.pipeline import Pipeline
from vidiff.refinement import SpatialSR, TemporalSR
from vidiff.refining import Refiner
from vidiff.sampling.noise import stage_seed
from vidiff.sizes import check_limits
from vidiff.types import Size

_MAX_REPEATS = 3  # of one stage


def plan(refiners: Sequence[Refiner], have: Size, height: int, width: int, fps: float) -> list[Refiner]:
    """Return the stages, in time first, that bring a clip of size ``have`` to the wanted size and rate.

    Raises:
        ConfigError: if they cannot, and the message lists what they reach; or if the result is too large.
    """
    temporal = next((refiner for refiner in refiners if isinstance(refiner.refines, TemporalSR)), None)
    rates = _reached(temporal, have.fps)
    times = next((n for n, rate in enumerate(rates) if math.isclose(rate, fps, rel_tol=0.01)), None)
    if times is None:
        reached = ", ".join(f"{rate:g}" for rate in rates) + " fps"
        raise _out_of_reach(temporal, "temporal_sr", f"{have.fps:g} fps", reached, f"{fps:g}; without --fps it stays")
    spatial = next((refiner for refiner in refiners if isinstance(refiner.refines, SpatialSR)), None)
    scales = _reached(spatial, 1)
    wanted = (height, width)
    grown = next((n for n, scale in enumerate(scales) if (have.height * scale, have.width * scale) == wanted), None)
    if grown is None:
        sizes = ", ".join(f"{have.width * scale:g}x{have.height * scale:g}" for scale in scales)
        raise _out_of_reach(spatial, "spatial_sr", f"{have.width}x{have.height}", sizes, f"{width}x{height}")
    chosen = [stage for stage, count in ((temporal, times), (spatial, grown)) for _ in range(count) if stage]
    for stage in chosen:
        have = stage.size(have)
    check_limits(have)
    return chosen


@torch.no_grad()
def upscale(
    pipeline: Pipeline,
    refiners: Sequence[Refiner],
    clip: Tensor,
    prompt: str,
    seed: int,
    *,
    noise: float | None = None,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[str], AbstractContextManager[OnStep]] = unseen,
) -> Tensor:
    """Return a clip after super-resolution.

    Args:
        pipeline: embeds the prompt.
        refiners: the stages, in their order.
        clip: uint8 (F, H, W, 3).
        prompt: what it shows.
        seed: the same one gives the same clip.
        noise: how much each stage may repair and invent, see `Refiner.refine`; None is each stage's own.
        dtype: precision of the networks.
        progress: opened with each stage's name, gives what is called after each of its steps.

    Returns:
        The finer clip, uint8 (F', H', W', 3).

    Raises:
        ConfigError: if ``noise`` is more than a stage was trained with.
        NumericalError: if what was made is not finite or shows nothing.
    """
    for refiner in refiners:
        refiner.level(noise)  # before the first is at work for minutes
    for number, refiner in enumerate(refiners, 1):
        size = refiner.size(Size(clip.shape[0], clip.shape[1], clip.shape[2], 1.0))
        padded = _on_grid(clip, refiner)
        text = pipeline.text([prompt], refiner.denoiser)
        null = pipeline.text([refiner.config.sampling.negative], refiner.denoiser)
        with progress(refiner.name) as on_step:
            (finer,) = refiner.refine(
                padded[None],
                text,
                null,
                [stage_seed(seed, number)],
                refiner.config.sampling,
                noise=noise,
                dtype=dtype,
                on_step=on_step,
            )
        clip = finer[: size.frames, : size.height, : size.width]
    return clip


def _on_grid(clip: Tensor, refiner: Refiner) -> Tensor:
    """Repeat the last frame, row and column of a clip that is shorter than a window until it has whole latents."""
    spec = refiner.pixels.latents
    grids, firsts = (spec.frame_stride, spec.stride, spec.stride), (1, 0, 0)
    finer = refiner.size(Size(clip.shape[0], clip.shape[1], clip.shape[2], 1.0))
    sizes, indices = refiner.windows((finer.frames, finer.height, finer.width)).size, []
    for count, factor, grid, first, window in zip(
        clip.shape[:3], refiner.refines.factors, grids, firsts, sizes, strict=True
    ):
        fits = factor * (count - first) + first >= window
        more = 0 if fits else (first - count) % (grid // math.gcd(grid, factor))
        indices.append(torch.arange(count + more).clamp(max=count - 1))
    f, h, w = indices
    if (len(f), len(h), len(w)) == clip.shape[:3]:
        return clip
    return clip[f[:, None, None], h[:, None], w]


def _reached(refiner: Refiner | None, start: float) -> list[float]:
    return [start * (refiner.refines.factor**n if refiner else 1) for n in range(_MAX_REPEATS + 1 if refiner else 1)]


def _out_of_reach(stage: Refiner | None, kind: str, have: str, reached: str, wanted: str) -> ConfigError:
    if stage is None:
        return ConfigError(f"the model has no {kind} stage, so {have} cannot become {wanted}")
    return ConfigError(f"{have} can become {reached}, not {wanted}")
