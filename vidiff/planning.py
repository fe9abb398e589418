"""What is where in a clip, decided out of the words before anything is denoised: a plan, and its draft.

A clip then begins as its draft under noise, as stroke paintings become pictures in SDEdit (Meng et al., 2022), and the
things of the draft are laid over every estimate of the clip, so that the denoiser makes what is around them: blended
diffusion (Avrahami et al., 2022) with the foreground given.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vidiff.diffusion.denoiser import Denoiser
from vidiff.diffusion.guidance import DenoiseFn, guided
from vidiff.errors import CheckpointError
from vidiff.model_folder import DRAFTER, PLANNER, ModelConfig, load_denoiser, load_drafter, read_config
from vidiff.models.build import Autoencoder
from vidiff.models.drafter import Draft, Drafter
from vidiff.models.plans import PlanCodec
from vidiff.sampling.loop import sample
from vidiff.sampling.noise import SeededNoise, stage_seed
from vidiff.types import Conditioning, Size, TextEmbedding

_PLAN = 500  # plans have the seeds of this stage, which no cascade has


@dataclass(frozen=True)
class Planner:
    """Makes drafts out of prompts."""

    config: ModelConfig  # of the denoiser of plans
    codec: PlanCodec
    denoiser: Denoiser
    drafter: Drafter

    def fits(self, size: Size) -> bool:
        """Return whether clips of ``size`` can be planned; how large their pictures are does not matter."""
        own = self.config.size
        return (size.frames, size.fps) == (own.frames, own.fps)

    @torch.no_grad()
    def plan(self, text: TextEmbedding, seeds: Sequence[int]) -> Tensor:
        """Return a plan for each of B prompts and seeds, (B, K + 1, D)."""
        rows, width = self.codec.config.shape
        sampling, schedule, device = self.config.sampling, self.config.schedule, text.tokens.device
        times = sampling.times(schedule).to(device)
        null = Conditioning(self.denoiser.null_text(len(seeds)))
        denoise = guided(self.denoiser, Conditioning(text), null, sampling.guidance, schedule=schedule, times=times)
        noise = SeededNoise([stage_seed(seed, _PLAN) for seed in seeds])

        def drawn() -> Tensor:
            return noise.randn(width, 1, 1, rows).to(device)

        return self.codec.decode(sample(denoise, schedule, sampling.solver, drawn(), times, randn=drawn))

    @torch.no_grad()
    def draft(self, text: TextEmbedding, seeds: Sequence[int], size: Size) -> Draft:
        """Return the drafts of clips of ``size``, for B prompts and seeds."""
        return self.drafter.draw(self.plan(text, seeds), size.height, size.width)


def around(draft: Draft, autoencoder: Autoencoder, denoise: DenoiseFn) -> DenoiseFn:
    """Return ``denoise`` with the things of a draft laid over what it estimates."""

    def laid(x: Tensor, t: Tensor) -> Tensor:
        return autoencoder.encode(draft.over(autoencoder.decode(denoise(x, t))))

    return laid


def load_planner(folder: Path, base: ModelConfig, device: torch.device | str) -> Planner:
    """Return the planner and the drafter in the folder of a model.

    Raises:
        CheckpointError: if they are not there, damaged, or do not fit the model.
    """
    config: ModelConfig = read_config(ModelConfig, folder / PLANNER)
    if config.makes_plans is None:
        raise CheckpointError(f"{folder / PLANNER}: is no planner (makes_plans is not set)")
    own, size = config.size, base.size
    if (own.frames, own.fps) != (size.frames, size.fps):
        raise CheckpointError(
            f"{folder / PLANNER}: does not fit {folder}: it plans {own.frames} frames at {own.fps:g} a second, "
            f"not {size.frames} at {size.fps:g}"
        )
    if (config.text, config.text_dim) != (base.text, base.text_dim):
        raise CheckpointError(f"{folder / PLANNER}: does not fit {folder}: its text encoder is another one")
    codec = PlanCodec(config.makes_plans)
    denoiser, drafter = load_denoiser(folder / PLANNER, config, codec.latents), load_drafter(folder / DRAFTER)
    if drafter.plans != config.makes_plans:
        raise CheckpointError(f"{folder / DRAFTER}: does not fit {folder / PLANNER}: it draws plans of another kind")
    return Planner(config, codec.to(device), denoiser.to(device), drafter.to(device))
