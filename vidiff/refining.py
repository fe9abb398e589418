"""A super-resolution stage at work: a clip of any size and length in, a finer one out.

Memory holds the result, its latents and one window; nothing else grows with the clip.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vidiff.decoding import decode
from vidiff.diffusion.denoiser import Denoiser
from vidiff.diffusion.guidance import guided
from vidiff.diffusion.schedule import noised
from vidiff.model_folder import ModelConfig, SamplingConfig
from vidiff.models.autoencoder import VideoVAE
from vidiff.refinement import Refinement, TemporalSR
from vidiff.sampling.loop import sample
from vidiff.sampling.noise import SeededNoise
from vidiff.sampling.times import uniform_times
from vidiff.sampling.windows import Place, Windows, windowed
from vidiff.types import Conditioning, Size, TextEmbedding

WINDOWS = Windows(size=(9, 32, 32), overlap=(2, 8, 8))  # latents that the network sees at once


@dataclass(frozen=True)
class Refiner:
    """A loaded super-resolution stage."""

    name: str
    config: ModelConfig
    refines: Refinement
    denoiser: Denoiser
    autoencoder: VideoVAE

    def size(self, size: Size) -> Size:
        """Return the size that clips of ``size`` become."""
        return self.refines.size(size)

    @torch.no_grad()
    def refine(
        self,
        clips: Tensor,
        text: TextEmbedding,
        negative: TextEmbedding,
        seeds: Sequence[int],
        sampling: SamplingConfig,
        *,
        windows: Windows = WINDOWS,
        dtype: torch.dtype = torch.float32,
        on_step: Callable[[int, int, Tensor], None] | None = None,
        note: Callable[[str], None] = print,
    ) -> Tensor:
        """Return finer clips, uint8 (B, F', H', W', 3), on the CPU.

        Args:
            clips: of the stage before, uint8 (B, F, H, W, 3).
            text: what the clips show, of B samples.
            negative: what guidance leads away from, of B samples.
            seeds: B of them; every sample has its own noise.
            sampling: solver, steps and guidance.
            windows: how much the network sees at once.
            dtype: precision of the networks.
            on_step: called as (steps done, num_steps, estimate of x_0).
            note: hears about decoding in smaller pieces.

        Raises:
            ConfigError: if the finer clip is not on the latent grid.
            NumericalError: if what was made is not finite or shows nothing.
        """
        device, schedule = self.denoiser.null_tokens.device, self.config.schedule
        noise = SeededNoise(seeds)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            pieces = (piece.to(device) for piece in guesses(self.refines, clips, self.autoencoder.latents.frame_stride))
            guess = torch.cat([latents.float() for latents in self.autoencoder.encode_pieces(pieces)], dim=2)
            shape = tuple(guess.shape[1:])
            t = torch.full((len(seeds),), self.refines.noise, device=device)
            guess = noised(schedule, guess, noise.randn(*shape).to(device), t)

            def denoise(x_t: Tensor, time: Tensor, place: Place) -> Tensor:
                cond = Conditioning(text, low_res=guess[(..., *place)], low_res_t=t)
                return guided(self.denoiser, cond, cond.with_text(negative), sampling.guidance)(x_t, time)

            latents = sample(
                windowed(denoise, windows),
                schedule,
                sampling.solver,
                noise.randn(*shape).to(device),
                uniform_times(sampling.num_steps).to(device),
                randn=lambda: noise.randn(*shape).to(device),
                on_step=on_step,
            ).float()
        return self.refines.restored(decode(self.autoencoder, latents, dtype=dtype, note=note), clips)


def guesses(refines: Refinement, clips: Tensor, frame_stride: int) -> Iterator[Tensor]:
    """Yield the plain guess at the finer clips piece by piece: the first frame, then ``frame_stride`` frames each.

    Args:
        refines: what is guessed.
        clips: uint8 (B, F, H, W, 3).
        frame_stride: frames of a piece.

    Yields:
        (B, 3, n, H', W') in [-1, 1].
    """
    factor = refines.factor if isinstance(refines, TemporalSR) else 1
    total = factor * (clips.shape[1] - 1) + 1
    for first in (0, *range(1, total, frame_stride)):
        last = first if first == 0 else min(first + frame_stride, total) - 1
        # The known frames around these, and where among their guesses these lie.
        begin, end = first // factor, -(-last // factor)
        known = clips[:, begin : end + 1].permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        guess = refines.up(known)
        yield guess[:, :, first - begin * factor : last - begin * factor + 1]
