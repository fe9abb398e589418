"""Which sizes of clips a model makes."""

import math
from collections.abc import Sequence

from vidiff.data.video_io import MAX_FRAMES, MAX_PIXELS, MAX_TOTAL
from vidiff.errors import ConfigError
from vidiff.interop.wan_sizes import SIZES
from vidiff.models.build import token_patch
from vidiff.pipeline import Pipeline
from vidiff.types import Size


def resolve_size(
    pipeline: Pipeline, frames: int | None, fps: float | None, size: str | None, stages: int = 0
) -> tuple[Size, list[str]]:
    """Return the base stage's size for the wanted result, and warnings for what the model was not trained on.

    Args:
        pipeline: its own size stands where nothing is said.
        frames: of the result, after ``stages`` super-resolution stages.
        fps: of the result.
        size: of the result, ``WIDTHxHEIGHT``.
        stages: how many super-resolution stages follow the base.

    Raises:
        ConfigError: if the size is malformed, too large or not one that the stages reach; the message names the
            nearest that they do.
    """
    own = pipeline.config.size
    wanted = final_size(pipeline, own, stages)
    height, width = (wanted.height, wanted.width) if size is None else parsed_size(size)
    wanted = Size(wanted.frames if frames is None else frames, height, width, wanted.fps if fps is None else fps)
    if not 0 < wanted.fps <= 240:
        raise ConfigError(f"fps must lie above 0 and up to 240, got {wanted.fps}")
    check_limits(wanted)
    check_grid(wanted, *_steps(pipeline, stages))
    for refiner in reversed(pipeline.refiners[:stages]):
        wanted = refiner.refines.before(wanted)
    warnings = []
    fewest, most = pipeline.config.frames
    if not fewest <= wanted.frames <= most:
        warnings.append(f"{wanted.frames} frames, but the model was trained on {fewest} to {most}")
    trained_on = [(one.height, one.width) for one in (own, *SIZES.get(pipeline.config.name, ()))]
    upright = [shape[::-1] for shape in trained_on] if pipeline.config.name in SIZES else []
    if (wanted.height, wanted.width) not in (*trained_on, *upright):
        trained = f"{own.width}x{own.height}"
        warnings.append(f"{wanted.width}x{wanted.height} pixels, but the model was trained on {trained}")
    if not math.isclose(wanted.fps, own.fps, rel_tol=0.01):
        warnings.append(
            f"{wanted.fps:g} frames a second, but the model was trained on {own.fps:g}: speeds change with it"
        )
    return wanted, warnings


def check_limits(size: Size) -> None:
    """Raise a ConfigError if a clip of ``size`` is larger than vidiff itself reads."""
    pixels = size.height * size.width
    if pixels > MAX_PIXELS or size.frames > min(MAX_FRAMES, MAX_TOTAL // (3 * pixels)):
        raise ConfigError(
            f"{size.frames} frames of {size.width}x{size.height} are too much for one clip; the most are {MAX_FRAMES} "
            f"frames, {MAX_PIXELS} pixels a frame and {MAX_TOTAL >> 30} GiB in all"
        )


def check_grid(wanted: Size, step: int, side: int) -> None:
    """Raise a ConfigError that names the nearest size unless ``wanted`` has step * n + 1 frames and such sides."""
    frames = max(0, round((wanted.frames - 1) / step)) * step + 1
    height, width = (max(1, round(pixels / side)) * side for pixels in (wanted.height, wanted.width))
    wrong = []
    if frames != wanted.frames:
        wrong.append(f"frames must be {step} * n + 1, got {wanted.frames}; try {frames}")
    if (height, width) != (wanted.height, wanted.width):
        got = f"{wanted.width}x{wanted.height}"
        wrong.append(f"width and height must be multiples of {side}, got {got}; try {width}x{height}")
    if wrong:
        raise ConfigError("; ".join(wrong))


def _steps(pipeline: Pipeline, stages: int) -> tuple[int, int]:
    """Return the grid of results, (s, p): s * n + 1 frames whose sides are multiples of p pixels.

    Every stage's clip is whole in its own folded pixels.
    """
    spec, patch = pipeline.autoencoder.latents, token_patch(pipeline.config.backbone)
    step, side = spec.frame_stride, spec.stride * math.lcm(*patch[1:])
    for refiner in pipeline.refiners[:stages]:
        finer, spec = refiner.size(Size(step + 1, side, side, 1.0)), refiner.pixels.latents
        step, side = math.lcm(finer.frames - 1, spec.frame_stride), math.lcm(finer.height, spec.stride)
    return step, side


def stage_count(pipeline: Pipeline, stages: str | None) -> int:
    """Return how many super-resolution stages ``stages`` asks for, such as "base,temporal_sr"; None is all.

    Raises:
        ConfigError: if they are not the model's first stages in its order; the message names those.
    """
    return count_of([refiner.name for refiner in pipeline.refiners], stages)


def count_of(refiners: Sequence[str], stages: str | None) -> int:
    """Return what `stage_count` does for a model with super-resolution stages of such names."""
    own = ["base", *refiners]
    names = own if stages is None else [name.strip() for name in stages.split(",")]
    if names != own[: len(names)]:
        raise ConfigError(f"stages must be the first of {','.join(own)}, got {stages!r}")
    return len(names) - 1


def final_size(pipeline: Pipeline, base: Size, stages: int) -> Size:
    """Return what a base clip of size ``base`` becomes after ``stages`` super-resolution stages."""
    for refiner in pipeline.refiners[:stages]:
        base = refiner.size(base)
    return base


def parsed_size(size: str) -> tuple[int, int]:
    """Return (height, width) of ``WIDTHxHEIGHT``; raises ConfigError if it is not that."""
    parts = size.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise ConfigError(f"size is WIDTHxHEIGHT in pixels, such as 64x64; got {size!r}")
    return int(parts[1]), int(parts[0])
