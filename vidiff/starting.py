"""How a clip starts from a picture: as more channels beside the noise, or as its first latents."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from vidiff.data.video_io import MAX_PIXELS
from vidiff.errors import ConfigError, DataError
from vidiff.interop.image_encoder import ImageEncoder
from vidiff.model_folder import Pictures
from vidiff.models.build import Autoencoder
from vidiff.types import Size

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")


@dataclass(frozen=True)
class PictureFile:
    """A picture that a clip starts from."""

    path: Path
    sha256: str

    def read(self) -> np.ndarray:
        """Return the picture, RGB, uint8 (H, W, 3).

        Raises:
            DataError: if it cannot be read, is too large, or is not what it was.
        """
        return _opened(self.path, self.sha256)[0]


def picture_file(path: Path) -> PictureFile:
    """Return a picture that can be read; raises as `PictureFile.read`."""
    return PictureFile(path, _opened(path)[1])


def _opened(path: Path, sha256: str | None = None) -> tuple[np.ndarray, str]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    digest = hashlib.sha256(data).hexdigest()
    if sha256 is not None and digest != sha256:
        raise DataError(f"{path}: not the picture that the clip was made from (SHA-256 differs)")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{path}: {image.width}x{image.height} pixels are too many; {MAX_PIXELS} are the most")
            return np.array(ImageOps.exif_transpose(image).convert("RGB")), digest
    except DataError:
        raise
    except Exception as error:  # damaged pictures raise many kinds
        raise DataError(f"{path}: not a picture that can be read ({', '.join(_FORMATS)} can): {error}") from error


@torch.no_grad()
def started_from(
    pictures: Sequence[np.ndarray] | None,
    kind: Pictures,
    autoencoder: Autoencoder,
    encoder: ImageEncoder | None,
    size: Size,
    device: torch.device,
) -> dict[str, Any]:
    """Return the parts of a `Conditioning` that say what clips of ``size`` start from.

    Args:
        pictures: one for each clip, RGB, uint8 (H, W, 3) of any size; None is none.
        kind: how the model starts from them.
        autoencoder: of the model.
        encoder: of the model, if it has one.
        size: of the clips.
        device: where the parts go.

    Raises:
        ConfigError: if the model starts from no pictures, or from nothing else.
    """
    check_pictures(kind, pictures is not None)
    if pictures is None:
        return {}
    fitted_ones = torch.stack([fitted(picture, size.height, size.width) for picture in pictures]).to(device)
    first = fitted_ones[:, :, None]
    if kind == "known":
        return {"known": autoencoder.encode(first)}
    # The frames that are to be made are gray to the encoder.
    gray = first.new_zeros(()).expand(*first.shape[:2], size.frames - 1, *first.shape[3:])
    pieces = [first, *gray.split(autoencoder.latents.frame_stride, dim=2)] if size.frames > 1 else [first]
    latents = torch.cat(list(autoencoder.encode_pieces(pieces)), dim=2)
    mask = latents.new_zeros(len(latents), autoencoder.latents.frame_stride, *latents.shape[2:])
    mask[:, :, 0] = 1
    parts: dict[str, Any] = {"concat": torch.cat([mask, latents], dim=1)}
    if encoder is not None:
        parts["image"] = torch.stack([encoder.encode(picture) for picture in pictures]).to(device)
    return parts


def check_pictures(kind: Pictures, given: bool) -> None:
    """Raise a ConfigError if a model of this kind needs a picture that is not given, or takes none that is."""
    if kind == "concat" and not given:
        raise ConfigError("this model makes clips out of a picture; give one with --image")
    if kind == "none" and given:
        raise ConfigError("this model takes no picture; it makes clips out of text alone")


def fitted(picture: np.ndarray, height: int, width: int) -> Tensor:
    """Return the middle of a picture, uint8 (H, W, 3), that has the shape of a clip, (3, height, width) in [-1, 1]."""
    have_height, have_width = picture.shape[:2]
    scale = min(have_height / height, have_width / width)
    part_height, part_width = (
        min(round(side * scale), have) for side, have in ((height, have_height), (width, have_width))
    )
    top, left = (have_height - part_height) // 2, (have_width - part_width) // 2
    part = Image.fromarray(picture[top : top + part_height, left : left + part_width])
    resized = np.array(part.resize((width, height), Image.Resampling.LANCZOS))
    return torch.from_numpy(resized).permute(2, 0, 1).float() / 127.5 - 1


def given(drawn: Tensor, noise: Sequence[Tensor | None] | None) -> Tensor:
    """Return ``drawn`` (B, C, f, h, w) with the samples replaced for which there is other noise."""
    if noise is None:
        return drawn
    for one in noise:
        if one is not None and one.shape != drawn.shape[1:]:
            raise ConfigError(f"noise of shape {tuple(one.shape)} does not fit latents {tuple(drawn.shape[1:])}")
    return torch.stack([own if one is None else one.to(own) for own, one in zip(drawn, noise, strict=True)])
