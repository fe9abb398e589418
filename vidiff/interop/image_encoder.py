"""What an image-to-video transformer is told of its picture: states of a CLIP vision tower (Radford et al., 2021)."""

import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vidiff.component_configs import named_in
from vidiff.components import read_json
from vidiff.errors import CheckpointError


@dataclass(frozen=True)
class ImageEncoder:
    """A loaded vision tower with the way its pictures are prepared."""

    model: nn.Module
    side: int  # pixels
    mean: Tensor  # (3,), of values in [0, 1]
    std: Tensor  # (3,)

    @torch.no_grad()
    def encode(self, picture: np.ndarray) -> Tensor:
        """Return the states before the last layer, (M, D), float32, of an RGB picture, uint8 (H, W, 3).

        Published image-to-video models read the last layer but one.
        """
        image = Image.fromarray(picture)
        scale = self.side / min(image.size)
        width, height = (max(self.side, int(length * scale)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - self.side) // 2, (height - self.side) // 2
        pixels = torch.from_numpy(np.array(image.crop((left, top, left + self.side, top + self.side)))).float() / 255
        normalized = ((pixels - self.mean) / self.std).permute(2, 0, 1)[None]
        weight = next(self.model.parameters())
        states: Tensor = self.model(normalized.to(weight), output_hidden_states=True).hidden_states[-2]
        return states[0].float()


def load_image_encoder(
    folder: Path, preparing: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> ImageEncoder:
    """Return the vision tower of ``folder``, whose pictures are prepared as ``preparing`` says.

    Raises:
        CheckpointError: if weights or settings are missing or do not fit, or a number is not finite; it is named.
    """
    from transformers.models.clip.modeling_clip import CLIPVisionModel

    from vidiff.text.encoders import quiet
    from vidiff.text.pretrained import load_pretrained

    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{folder}: holds no safetensors weights; pickled weights are never read")
    kind = read_json(folder / "config.json").get("model_type")
    if kind not in (None, *_KINDS):
        raise CheckpointError(f"{folder}: is a {reprlib.repr(kind)}, which cannot be read; {' or '.join(_KINDS)} can")
    path = preparing / "preprocessor_config.json"
    side, mean, std = _preparation(path)
    with quiet():
        model = load_pretrained(CLIPVisionModel, folder, "vision_model.", _BESIDE, dtype=dtype)
    if side != model.config.image_size:
        raise CheckpointError(f"{path}: pictures of {side} pixels a side, but {folder} sees {model.config.image_size}")
    return ImageEncoder(model.to(device).eval().requires_grad_(False), side, mean, std)


_KINDS = ("clip_vision_model", "clip")
# What a whole CLIP holds beside the vision tower.
_BESIDE = r"(^|\.)position_ids$|^(text_model|visual_projection|text_projection)\.|^logit_scale$"


def _preparation(path: Path) -> tuple[int, Tensor, Tensor]:
    """Return the side of pictures in pixels and the mean and deviation of each color, (3,), of values in [0, 1]."""
    settings = read_json(path)
    with named_in(path, "does not say how pictures are prepared"):
        size: Any = settings["crop_size"]
        side = size["height"] if isinstance(size, dict) else size
        mean, std = (torch.tensor(settings[f"image_{name}"], dtype=torch.float32) for name in ("mean", "std"))
        if not isinstance(side, int) or mean.shape != (3,) or std.shape != (3,):
            raise ValueError(f"crop_size must be a whole number, image_mean and image_std three numbers; got {side}")
        if not (bool(torch.isfinite(torch.cat([mean, std])).all()) and bool((std > 0).all())):
            raise ValueError("image_mean must be finite, image_std above 0")
    return side, mean, std
