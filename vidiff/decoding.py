"""Latents to frames, within the memory there is."""

import re
from collections.abc import Callable, Iterable
from typing import Literal, get_args

import torch
from torch import Tensor

from vidiff.errors import NumericalError, ResourceError
from vidiff.models.build import Autoencoder
from vidiff.sampling.windows import ramp, starts

TILE = 32  # latents a side
OVERLAP = 8  # latents that neighboring tiles share
WHOLE = 1 << 23  # pixels that may be decoded at once

Decode = Literal["whole", "chunks", "tiles"]
"""Ways to decode, each in less memory than the one before; of these tiles alone, which are blended, change frames."""
DECODES: tuple[Decode, ...] = get_args(Decode)

# Of a CPU's allocator, CUDA's where torch has no error of its own, cuBLAS's and cuDNN's.
_OUT_OF_MEMORY = re.compile(r"can't allocate memory|error: out of memory|ALLOC(ATION)?_FAILED")


@torch.no_grad()
def decode(
    autoencoder: Autoencoder,
    latents: Tensor,
    *,
    way: Decode = "whole",
    dtype: torch.dtype = torch.float32,
    note: Callable[[str], None] = print,
) -> Tensor:
    """Return uint8 clips (B, F, H, W, 3) on the CPU of normalized latents (B, C, f, h, w).

    They are decoded in the ``way`` that is planned, but large clips at least chunk by chunk. A decode that runs out of
    memory goes on in chunks, then in tiles, and says so through ``note``.

    Raises:
        ResourceError: if even tiles do not fit.
        NumericalError: if a frame is not finite or a clip is one flat color throughout.
    """
    ways: list[tuple[str, Callable[[Autoencoder, Tensor], Iterable[Tensor]]]] = [
        ("whole clips", lambda vae, z: [vae.decode(z)]),
        ("chunks of frames", lambda vae, z: vae.decode_stream(z)),
        ("tiles", lambda vae, z: [decode_tiled(vae, z)]),
    ]
    del ways[: DECODES.index(way)]
    b, _, f, h, w = latents.shape
    stride, frame_stride = autoencoder.latents.stride, autoencoder.latents.frame_stride
    if way == "whole" and b * f * frame_stride * h * w * stride**2 > WHOLE:
        del ways[0]
    for number, (name, pieces) in enumerate(ways):
        try:
            with torch.autocast(latents.device.type, dtype, enabled=dtype != torch.float32):
                shape = (b, 1 + (f - 1) * frame_stride, h * stride, w * stride, 3)
                clips = _collected(pieces(autoencoder, latents), shape)
                check_shows_something(clips)
                return clips
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if number + 1 == len(ways):
                raise ResourceError(
                    f"decoding ran out of memory even in {name}; make fewer or smaller clips, or on another device"
                ) from error
            note(f"decoding {name} ran out of memory; going on with {ways[number + 1][0]}")
    raise AssertionError("unreachable")


def decode_tiled(autoencoder: Autoencoder, latents: Tensor, tile: int = TILE, overlap: int = OVERLAP) -> Tensor:
    """Decode overlapping squares of ``tile`` latents, streamed in time, and blend them linearly; float32."""
    stride = autoencoder.latents.stride
    b, _, f, h, w = latents.shape
    frames = 1 + (f - 1) * autoencoder.latents.frame_stride
    total = latents.new_zeros(b, 3, frames, h * stride, w * stride, dtype=torch.float32)
    weights = total.new_zeros(1, 1, 1, h * stride, w * stride)
    for y in starts(h, tile, overlap):
        for x in starts(w, tile, overlap):
            piece = latents[..., y : y + tile, x : x + tile]
            video = torch.cat(list(autoencoder.decode_stream(piece)), dim=2).float()
            share = ramp(video.shape[-2], overlap * stride)[:, None] * ramp(video.shape[-1], overlap * stride)
            share = share.to(video)
            at = (..., slice(y * stride, y * stride + video.shape[-2]), slice(x * stride, x * stride + video.shape[-1]))
            total[at] += video * share
            weights[at] += share
    return total / weights


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether ``error`` says that memory ran out, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None


def check_shows_something(clips: Tensor) -> None:
    """Raise a NumericalError if one of the clips, uint8 (B, F, H, W, 3), is one flat color throughout."""
    for clip in clips:
        if all(bool((frame == clip[0, 0, 0]).all()) for frame in clip):
            raise NumericalError("a clip is one flat color throughout: the weights or the settings are broken")


def _collected(pieces: Iterable[Tensor], shape: tuple[int, ...]) -> Tensor:
    """Return pieces of clips, (B, 3, n, H, W) in [-1, 1], as uint8 ``shape`` (B, F, H, W, 3); none is held twice."""
    clips, end = torch.empty(shape, dtype=torch.uint8), 0
    for piece in pieces:
        begin, end = end, end + piece.shape[2]
        clips[:, begin:end] = _bytes(piece)
    return clips


def _bytes(video: Tensor) -> Tensor:
    """Return (B, 3, F, H, W) in [-1, 1] as uint8 (B, F, H, W, 3)."""
    if not torch.isfinite(video).all():
        raise NumericalError("the decoded frames are not finite: the weights or the settings are broken")
    return ((video + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 4, 1).cpu()
