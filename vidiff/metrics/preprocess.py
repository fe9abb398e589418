"""From the frames of a clip to what a published network reads: which frames, how large, in which range.

Numbers compare only where this was done alike: another filter moves a Frechet distance by more than another model does
(Parmar et al., 2022). So each choice has a name, and the names are printed beside the numbers.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vidiff.errors import ConfigError, DataError

Filter = Literal["tf1", "bilinear", "bilinear-aa", "bicubic-aa", "pil-bicubic"]
Crop = Literal["squash", "center"]


@dataclass(frozen=True)
class MeanStd:
    """(x / 255 - mean) / std in each of red, green and blue."""

    kind: Literal["mean_std"] = "mean_std"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of ImageNet, as the deviations
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if min(self.std) <= 0:
            raise ConfigError(f"std must be above 0, got {self.std}")


Pixels = Literal["signed", "unit", "raw"] | MeanStd  # 2 x / 255 - 1, x / 255, x


@dataclass(frozen=True)
class Preprocess:
    """The way of a clip into a network. As text it is the part of a protocol line: ``16f,stride 1,224 tf1 squash``."""

    frames: int | None = 16  # None: all that there are
    stride: int = 1
    start: int = 0  # the first frame that is used
    size: int = 224  # pixels a side
    filter: Filter | Literal["archive"] = "bilinear"  # archive: the network's own code resizes
    crop: Crop = "squash"  # center: the shorter side becomes size
    pixels: Pixels = "signed"

    def __post_init__(self) -> None:
        for name, least in (("frames", 1), ("stride", 1), ("start", 0), ("size", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} must be at least {least}, got {value}")
        if self.filter == "archive" and self.crop != "squash":
            raise ConfigError(
                "filter archive needs crop squash, for no published archive crops; give another --filter, such as "
                "pil-bicubic"
            )

    def __str__(self) -> str:
        frames = "all frames" if self.frames is None else f"{self.frames}f"
        start = f",start {self.start}" if self.start else ""
        return f"{frames},stride {self.stride}{start},{self.size} {self.filter} {self.crop}"

    def indices(self, num_frames: int) -> range:
        """Return which frames of a clip are used. None is repeated.

        Raises:
            DataError: if there are too few.
        """
        needed = self.start + ((self.frames or 1) - 1) * self.stride + 1
        if num_frames < needed:
            raise DataError(f"the clip has {num_frames} frames, but {self} needs {needed}; use longer clips")
        return range(self.start, num_frames if self.frames is None else needed, self.stride)

    def __call__(self, clip: Tensor) -> Tensor:
        """Return what the network reads of a clip, uint8 (F, H, W, 3).

        Returns:
            float32 (F', 3, size, size); if an archive resizes, (F', 3, H, W), and uint8 if it also scales.

        Raises:
            DataError: if it is not a clip, or has too few frames.
        """
        if clip.ndim != 4 or clip.shape[3] != 3 or clip.dtype != torch.uint8 or min(clip.shape) < 1:
            raise DataError(f"a clip is uint8 (F, H, W, 3), got {clip.dtype} {tuple(clip.shape)}")
        used = self.indices(len(clip))
        clip = clip[used.start : used.stop : used.step]
        if self.filter == "archive":
            return scaled(clip.permute(0, 3, 1, 2).contiguous(), self.pixels)
        return scaled(resized(clip, self.size, self.filter, self.crop), self.pixels)


def resized(clip: Tensor, size: int, filter: Filter, crop: Crop) -> Tensor:
    """Return uint8 (F, H, W, 3) as float32 (F, 3, size, size), still from 0 to 255; bicubic filters overshoot.

    Args:
        clip: the frames.
        size: pixels a side.
        filter: tf1 is TensorFlow 1's resize_bilinear, as the first FVD had it (Unterthiner et al., 2018): no
            half-pixel centers, no antialiasing. bilinear has the centers, names in -aa are antialiased too, all by
            torch. pil-bicubic is PIL's on float planes (clean-fid; Parmar et al., 2022).
        crop: squash ignores the aspect ratio; center makes the shorter side ``size``, the longer one what the ratio
            asks for, rounded down as CLIP does, and cuts out the middle.

    Raises:
        ConfigError: if there is no such filter.
    """
    frames = clip.permute(0, 3, 1, 2).float()
    sides = frames.shape[-2:]
    height, width = (size, size) if crop == "squash" else (size * side // min(sides) for side in sides)
    match filter:
        case "tf1":
            frames = _lerp(_lerp(frames, width, -1), height, -2)
        case "pil-bicubic":
            frames = _by_pil(frames, height, width)
        case "bilinear" | "bilinear-aa" | "bicubic-aa":
            mode, _, antialias = filter.partition("-")
            frames = F.interpolate(frames, (height, width), mode=mode, align_corners=False, antialias=bool(antialias))
        case _:
            raise ConfigError(f"filter must be one of {', '.join(get_args(Filter))}, got {filter}")
    top, left = (height - size) // 2, (width - size) // 2
    return frames[..., top : top + size, left : left + size].contiguous()


def scaled(frames: Tensor, pixels: Pixels) -> Tensor:
    """Return frames (..., 3, H, W) from 0 to 255 in the range ``pixels``, float32; raw ones stay as they are.

    Raises:
        ConfigError: if there is no such range.
    """
    match pixels:
        case "raw":
            return frames
        case "unit":
            return frames.float() / 255
        case "signed":
            return 2 * frames.float() / 255 - 1
        case MeanStd(mean=mean, std=std):
            return (frames.float() / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    raise ConfigError(f"pixels must be signed, unit, raw or a mean and std, got {pixels}")


def _lerp(frames: Tensor, length: int, axis: int) -> Tensor:
    """Resize one axis as TensorFlow 1: target pixel i lies at i * in / out, beyond the last pixel is the last one."""
    last = frames.shape[axis] - 1
    place = torch.arange(length) * torch.tensor((last + 1) / length)  # in float32, as TensorFlow's kernel
    near = place.long()
    share = (place - near).reshape(-1, *(1,) * (-1 - axis))
    low, high = frames.index_select(axis, near), frames.index_select(axis, (near + 1).clamp(max=last))
    return low + (high - low) * share


def _by_pil(frames: Tensor, height: int, width: int) -> Tensor:
    from PIL import Image

    planes = (Image.fromarray(plane) for plane in frames.flatten(0, 1).contiguous().numpy())
    small = [np.asarray(plane.resize((width, height), Image.Resampling.BICUBIC)) for plane in planes]
    return torch.from_numpy(np.stack(small)).unflatten(0, frames.shape[:2])
