"""Diffusion on pixels: the interface of a video autoencoder with nothing lost and nothing to learn."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from vidiff.errors import ConfigError
from vidiff.types import LatentSpec


@dataclass(frozen=True)
class PixelAutoencoderConfig:
    """How pixels are folded into the channels of "latents"."""

    kind: Literal["pixels"] = "pixels"
    patch_size: int = 4  # pixels a side
    patch_frames: int = 4  # frames folded in with them; the first frame stands for a whole group
    std: float = 0.5  # of pixels in [-1, 1], about; dividing by it gives the unit variance that schedules expect

    def __post_init__(self) -> None:
        for name in ("patch_size", "patch_frames", "std"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be above 0, got {getattr(self, name)}")


class PixelAutoencoder(nn.Module):
    """Folds patches of pixels into channels and back; see `vidiff.models.autoencoder.VideoVAE` for its methods.

    Like that one it is causal, an image is a clip of one frame, and pieces of a clip add up to the whole.
    """

    def __init__(self, config: PixelAutoencoderConfig):
        super().__init__()
        self.config = config
        p, t = config.patch_size, config.patch_frames
        self.latents = LatentSpec(3 * t * p * p, p, t)
        preview = torch.eye(3).repeat_interleave(t * p * p, dim=1) * config.std / (t * p * p)
        self.preview_weight: Tensor
        self.register_buffer("preview_weight", preview, persistent=False)

    def encode(self, video: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the folded pixels (B, C, f, h, w) of a clip (B, 3, F, H, W) in [-1, 1]; nothing is drawn.

        Raises:
            ConfigError: if the clip's size is not on the latent grid.
        """
        self.latents.shape(*video.shape[2:])
        return self._folded(video, first=True)

    def decode(self, latents: Tensor) -> Tensor:
        """Return the clip (B, 3, F, H, W) in [-1, 1] of folded pixels (B, C, f, h, w)."""
        return self._unfolded(latents, first=True)

    def encode_pieces(self, pieces: Iterable[Tensor], generator: torch.Generator | None = None) -> Iterator[Tensor]:
        """Encode a clip that comes in pieces: its first frame, then any whole number of latent frames each."""
        for index, piece in enumerate(pieces):
            yield self._folded(piece, first=index == 0)

    def decode_stream(self, latents: Tensor, chunk: int = 1) -> Iterator[Tensor]:
        """Decode ``chunk`` latent frames at a time; the pieces add up to `decode`."""
        for index, piece in enumerate(latents.split(chunk, dim=2)):
            yield self._unfolded(piece, first=index == 0)

    def preview(self, latents: Tensor) -> Tensor:
        """Return the mean color of every latent, (B, 3, f, h, w) in [-1, 1]."""
        return reduce(latents, "b (c n) f h w -> b c f h w", "mean", c=3).mul(self.config.std).clamp(-1, 1)

    def fold(self, pixels: Tensor) -> Tensor:
        """Return numbers of pixels, (B, 3, patch_frames * f, H, W), in the layout of latents, (B, C, f, h, w)."""
        p, t = self.config.patch_size, self.config.patch_frames
        return rearrange(pixels, "b c (f t) (h q) (w r) -> b (c t q r) f h w", t=t, q=p, r=p)

    def _folded(self, video: Tensor, first: bool) -> Tensor:
        copies = self.config.patch_frames - 1
        if first and copies:
            video = torch.cat([video[:, :, :1].expand(-1, -1, copies, -1, -1), video], dim=2)
        return self.fold(video).float() / self.config.std

    def _unfolded(self, latents: Tensor, first: bool) -> Tensor:
        p, t = self.config.patch_size, self.config.patch_frames
        video = rearrange(latents, "b (c t q r) f h w -> b c (f t) (h q) (w r)", t=t, q=p, r=p) * self.config.std
        if first and t > 1:  # the first frame was repeated: the mean of its copies is the best guess
            video = torch.cat([video[:, :, :t].mean(2, keepdim=True), video[:, :, t:]], dim=2)
        return video.float().clamp(-1, 1)
