"""What an image-to-video transformer is told of its picture: states of a CLIP vision tower (Radford et al., 2021)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vidiff.errors import CheckpointError
from vidiff.interop.component import read_json


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
        CheckpointError: if weights or settings are missing or do not fit.
    """
    from transformers.models.clip.modeling_clip import CLIPVisionModel

    from vidiff.text.encoders import quiet

    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{folder}: holds no safetensors weights; pickled weights are never read")
    settings = read_json(preparing / "preprocessor_config.json")
    try:
        size: Any = settings["crop_size"]
        side = int(size["height"] if isinstance(size, dict) else size)
        mean, std = (torch.tensor(settings[f"image_{name}"], dtype=torch.float32) for name in ("mean", "std"))
        with quiet():
            read: Any = CLIPVisionModel.from_pretrained
            model, report = read(
                str(folder), use_safetensors=True, local_files_only=True, output_loading_info=True, dtype=dtype
            )
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{preparing}: does not say how pictures are prepared ({error})") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder}: cannot be read as a vision tower: {error}") from error
    if report["missing_keys"] or report["mismatched_keys"]:
        raise CheckpointError(f"{folder}: weights do not fit: missing {', '.join(sorted(report['missing_keys'])[:3])}")
    return ImageEncoder(model.to(device).eval().requires_grad_(False), side, mean, std)
