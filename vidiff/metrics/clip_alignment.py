"""Text alignment: how near CLIP finds the frames of a clip to its prompt (CLIPSIM; Wu et al., 2021).

A cosine says little alone, for those of CLIP lie close together. So the same clips are measured against one another's
prompts too: what a model gains over that, it owes to its text.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vidiff.errors import ConfigError, DataError
from vidiff.metrics.extractors import CLIPConfig, PretrainedExtractor
from vidiff.text.encoders import CLIPTextConfig, PretrainedTextEncoder

_PROMPTS = 64  # encoded at once


@dataclass(frozen=True)
class Alignment:
    """Of every clip the mean over its frames, float64."""

    name: str  # with the scale: "cosine" or "100 * cosine"; neither is clipped at 0
    own: Tensor  # (N,), with the clip's prompt
    shuffled: Tensor | None  # (N,), with that of another clip; None where over half of the clips share one

    @property
    def mean(self) -> float:
        return self.own.mean().item()


class PromptEncoder:
    """The text side of a CLIP whose image side is an extractor; the weights are shared."""

    def __init__(self, extractor: PretrainedExtractor) -> None:
        if not isinstance(extractor.config, CLIPConfig):
            raise ConfigError(f"text alignment needs an extractor of kind clip, got {extractor.name}")
        text = extractor.network.config.text_config
        config = CLIPTextConfig(source=str(extractor.path), max_tokens=text.max_position_embeddings)
        words = extractor.path / "tokenizer.json"
        self._tower = PretrainedTextEncoder(
            config, extractor.path, words, extractor.network.text_model, text.hidden_size
        )
        self._projection = extractor.network.text_projection

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Return where prompts lie among the frames, float32 (N, D), on the CPU.

        One that is longer than the model reads raises a `TruncationWarning` with the words that were cut.
        """
        different = list(dict.fromkeys(prompts))
        rows = []
        for start in range(0, len(different), _PROMPTS):
            states = self._tower.encode(different[start : start + _PROMPTS])
            end = states.mask.sum(1) - 1  # the end-of-text token has read all others
            last = states.tokens[torch.arange(len(end), device=end.device), end]
            rows.append(self._projection(last).float().cpu())
        place = {prompt: number for number, prompt in enumerate(different)}
        return torch.cat(rows)[[place[prompt] for prompt in prompts]]


def text_alignment(
    frames: Iterable[Tensor],
    prompts: Sequence[str],
    encode: Callable[[Sequence[str]], Tensor],
    *,
    seed: int = 0,
    percent: bool = False,
) -> Alignment:
    """Return the cosine of each clip's frames with its prompt, and with the prompt of another clip.

    Args:
        frames: of each clip the features of its frames, (F, D), as ``features_of`` yields them.
        prompts: of each clip.
        encode: a `PromptEncoder`, or what else returns (N, D) of prompts.
        seed: of the shuffling.
        percent: 100 times the cosine, as torchmetrics has it.

    Raises:
        DataError: if there are not as many clips as prompts, or none.
    """
    if not prompts:
        raise DataError("text alignment needs at least one clip with its prompt")
    words = F.normalize(encode(prompts).double(), dim=1)
    others = derangement(prompts, seed)
    means = []
    for rows in frames:
        # The mean of cosines is one product with the mean direction.
        means.append(F.normalize(rows.double(), dim=1).mean(0))
    if len(means) != len(prompts):
        raise DataError(f"{len(means)} clips and {len(prompts)} prompts; each clip needs its own prompt")
    seen = torch.stack(means)
    scale = 100 if percent else 1
    return Alignment(
        "100 * cosine" if percent else "cosine",
        scale * (seen * words).sum(1),
        None if others is None else scale * (seen * words[others]).sum(1),
    )


def derangement(prompts: Sequence[str], seed: int) -> list[int] | None:
    """Return for each clip another clip with another prompt, each used once; None if more than half share one."""
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed)).tolist()
    groups: dict[str, list[int]] = {}
    for index in order:
        groups.setdefault(prompts[index], []).append(index)
    # On a ring with equal prompts side by side, a step as long as the largest group leaves every group.
    ring = [index for group in groups.values() for index in group]
    step = max(map(len, groups.values()))
    if 2 * step > len(ring):
        return None
    others = [0] * len(ring)
    for place, index in enumerate(ring):
        others[index] = ring[(place + step) % len(ring)]
    return others
