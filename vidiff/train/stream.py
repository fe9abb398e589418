"""Latents and text states made when they are asked for: for data without end, and for GPUs that wait for no disk."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from vidiff.data.clips import Clips
from vidiff.models.build import Autoencoder
from vidiff.train.autoencoder_stage import to_video
from vidiff.types import TextEmbedding, TextEncoder

_MOST = 1 << 16  # captions of one clip that are used


class Latents(Protocol):
    """Normalized latents of clips by index."""

    def __getitem__(self, index: int) -> Tensor:
        """Return those of one clip, float16 (C, f, h, w)."""
        ...


class StreamedLatents:
    """What `cached_latents` returns, encoded anew at every look at what ``clip`` returns, uint8 (F, H, W, 3)."""

    def __init__(self, autoencoder: Autoencoder, clip: Callable[[int], Tensor]):
        self.autoencoder, self.clip = autoencoder, clip

    def __getitem__(self, index: int) -> Tensor:
        return encoded(self.autoencoder, self.clip(index))


class StreamedText:
    """What `cached_text` returns, encoded anew for every batch."""

    def __init__(self, encoder: TextEncoder, data: Clips):
        self.encoder, self.data = encoder, data

    def of_clip(self, index: int) -> range:
        """Return the numbers of a clip's captions. Other clips are not asked, so that there may be millions."""
        return range(index * _MOST, index * _MOST + min(_MOST, len(self.data.captions(index))))

    def caption(self, number: int) -> str:
        """Return caption ``number`` of all."""
        index, which = divmod(number, _MOST)
        return self.data.captions(index)[which]

    @torch.no_grad()
    def embedding(self, captions: list[int]) -> TextEmbedding:
        """Return the states of these captions, padded to the longest."""
        return self.encoder.encode([self.caption(number) for number in captions]).to("cpu")


@torch.no_grad()
def encoded(autoencoder: Autoencoder, clip: Tensor) -> Tensor:
    """Return the latents of a clip, uint8 (F, H, W, 3): the posterior's means, float16 (C, f, h, w) on the CPU."""
    video = to_video(clip[None]).to(next(autoencoder.buffers()).device)
    return autoencoder.encode(video)[0].half().cpu()
