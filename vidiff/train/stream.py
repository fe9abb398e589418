"""Latents and text states made when they are asked for: for data without end, and for GPUs that wait for no disk."""

import torch
from torch import Tensor

from vidiff.data.clips import Clips
from vidiff.models.autoencoder import VideoVAE
from vidiff.refinement import Refinement
from vidiff.train.autoencoder_stage import to_video
from vidiff.types import TextEmbedding, TextEncoder


class StreamedLatents:
    """What `cached_latents` returns, encoded anew at every look."""

    def __init__(self, vae: VideoVAE, data: Clips, guessed: Refinement | None = None):
        self.vae, self.data, self.guessed = vae, data, guessed

    @torch.no_grad()
    def __getitem__(self, index: int) -> Tensor:
        return encoded(self.vae, self.data, index, self.guessed)


class StreamedText:
    """What `cached_text` returns, of each clip's main caption, encoded anew for every batch."""

    def __init__(self, encoder: TextEncoder, data: Clips):
        self.encoder, self.data = encoder, data
        self.first = range(len(data) + 1)

    def caption(self, number: int) -> str:
        """Return the caption of clip ``number``."""
        return self.data.captions(number)[0]

    @torch.no_grad()
    def embedding(self, captions: list[int]) -> TextEmbedding:
        """Return the states of these captions, padded to the longest."""
        return self.encoder.encode([self.caption(number) for number in captions]).to("cpu")


def encoded(vae: VideoVAE, data: Clips, index: int, guessed: Refinement | None) -> Tensor:
    """Return the normalized latents of a clip, float16 (C, f, h, w), the posterior's mean, on the CPU.

    With ``guessed``, of the clip as that refinement's network is given it.
    """
    video = to_video(data.clip(index)[None]).to(vae.latent_mean.device)
    video = video if guessed is None else guessed.up(guessed.down(video))
    return vae.encode(video)[0].half().cpu()
