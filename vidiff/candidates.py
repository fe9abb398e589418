"""Several candidates for each clip, of which the model's verifier keeps the one that shows most of what was said.

Noise decides what a prompt leaves open, and some of what it does not. To draw several times and keep the best is the
plainest search there is at inference (Ma et al., 2025, "random search"): it costs as many times the base's sampling.
"""

from dataclasses import replace

import torch
from torch import Tensor

from vidiff.errors import ConfigError
from vidiff.model_folder import SamplingConfig
from vidiff.models.verifier import Verifier
from vidiff.pipeline import Pipeline
from vidiff.sampling.noise import stage_seed
from vidiff.types import Size, TextEmbedding

_FIRST = 1000  # further candidates' seeds are those of stages from here on, which no cascade has


def candidate_seeds(seed: int, count: int) -> list[int]:
    """Return the seeds of a clip's candidates: its own, then others that no seed nearby has."""
    return [seed, *(stage_seed(seed, _FIRST + number) for number in range(1, count))]


@torch.no_grad()
def scores(verifier: Verifier, latents: Tensor, text: TextEmbedding) -> Tensor:
    """Return how many of the things that a prompt says each candidate is expected to show, (N,), float32.

    Args:
        verifier: on the device of the latents.
        latents: normalized, of N candidates for one prompt, (N, C, f, h, w).
        text: states of the prompt, (1, L, text_dim).

    Raises:
        ConfigError: if the verifier reads latents of another size.
    """
    again = TextEmbedding(text.tokens.expand(len(latents), -1, -1), text.mask.expand(len(latents), -1))
    return verifier(latents.float(), again)


def resolved(
    pipeline: Pipeline, sampling: SamplingConfig, size: Size, asked: int | None = None, drawn: bool = True
) -> SamplingConfig:
    """Return ``sampling`` with as many candidates as are asked for, or as many as the model has where they make sense.

    Args:
        pipeline: the model.
        sampling: as it is without.
        size: of the base's clips.
        asked: how many the user wants; None leaves it to the model.
        drawn: whether the noise that clips start from is drawn from their seeds.

    Raises:
        ConfigError: if several are asked for where there is nothing to choose, or nothing to choose with.
    """
    problem = _problem(pipeline, size, drawn)
    if problem is None:
        return sampling if asked is None else replace(sampling, candidates=asked)
    if asked is not None and asked > 1:
        raise ConfigError(f"--candidates {asked}: {problem}")
    return replace(sampling, candidates=1)


def _problem(pipeline: Pipeline, size: Size, drawn: bool) -> str | None:
    if pipeline.verifier is None:
        return "this model has no verifier to choose with; --num makes several clips to choose from"
    if pipeline.autoencoder.latents.shape(size.frames, size.height, size.width) != pipeline.verifier.shape:
        own = pipeline.config.size
        return (
            f"the verifier reads clips of {own.frames} frames at {own.width}x{own.height}, not of {size.frames} at "
            f"{size.width}x{size.height}"
        )
    if not drawn:
        return "the noise of these clips is given, so there is nothing to choose"
    return None
