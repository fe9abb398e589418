"""Plans: which things a clip shows, and where each of them is at every moment.

What stands open in a sentence is decided once, in a few hundred numbers, and not in every latent of a clip by itself: a
small denoiser makes a plan out of the words (`PlanCodec`: plans as its latents), a `Drafter` draws it. Layouts that are
generated first and then filled by a video model are known from VideoDirectorGPT (Lin et al., 2023) and LVD (Lian et
al., 2023), things with a place and a heading in space from MagicDrive (Gao et al., 2024).

A plan is (B, K + 1, D) numbers: a row for each of K things and one for the scene. A thing's row holds its words as 0 or
1, then for each of F frames its place: x and y from the middle of the picture and radius, all in half heights, log of
its depth, and how it is turned. The scene's row holds its words, filled up with zeros, and the camera's place. The row
of a thing that is not there is zero.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidiff.errors import ConfigError
from vidiff.types import LatentSpec


@dataclass(frozen=True)
class PlanConfig:
    """What plans hold."""

    words: tuple[int, ...] = (1, 6, 10, 2, 2, 14)  # of a thing, in groups: one of each holds, or of one word, maybe
    scene_words: tuple[int, ...] = (10, 6, 4, 3, 1, 1)  # of the whole clip
    things: int = 3
    frames: int = 17  # of a clip
    scales: tuple[float, ...] = (1.5, 1.5, 4.0, 3.0, *(1.0,) * 6)  # of the numbers of a place, to bring them to about 1

    def __post_init__(self) -> None:
        for name in ("things", "frames"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if min(*self.words, *self.scene_words, 1) < 1 or self.words[:1] != (1,):
            raise ConfigError(f"words are groups, the first the one word that a thing is there, got {self.words}")
        if sum(self.scene_words) > sum(self.words):
            raise ConfigError(
                f"a scene has at most as many words as a thing, {sum(self.words)}, got {self.scene_words}"
            )
        if len(self.scales) < 4 or min(self.scales) <= 0:
            raise ConfigError(f"scales are above 0, those of x, y, radius, depth and turns, got {self.scales}")

    @property
    def word_count(self) -> int:
        """Return how many numbers of a row are words."""
        return sum(self.words)

    @property
    def shape(self) -> tuple[int, int]:
        """Return (K + 1, D)."""
        return self.things + 1, self.word_count + len(self.scales) * self.frames


class PlanCodec(nn.Module):
    """Plans as latents (B, D, 1, 1, K + 1) of about unit variance, and back: an autoencoder that loses nothing."""

    scales: Tensor

    def __init__(self, config: PlanConfig):
        super().__init__()
        self.config = config
        self.latents = LatentSpec(config.shape[1], 1, 1)
        self.register_buffer("scales", torch.tensor(config.scales).repeat(config.frames), persistent=False)

    def encode(self, plan: Tensor) -> Tensor:
        """Return the latents of plans (B, K + 1, D)."""
        words, places = plan.split([self.config.word_count, len(self.scales)], dim=2)
        return torch.cat([2 * words - 1, places * self.scales], dim=2).mT[:, :, None, None]

    def decode(self, latents: Tensor) -> Tensor:
        """Return the plans that latents are nearest to: of each group of words one holds."""
        numbers = latents[:, :, 0, 0].mT.float()
        words, places = numbers.split([self.config.word_count, len(self.scales)], dim=2)
        things, scene = (
            self._chosen(words[:, :-1], self.config.words),
            self._chosen(words[:, -1:], self.config.scene_words),
        )
        scene = F.pad(scene, (0, words.shape[2] - scene.shape[2]))
        rows = torch.cat([torch.cat([things, scene], dim=1), places / self.scales], dim=2)
        return rows * torch.cat([things[:, :, :1], torch.ones_like(scene[:, :, :1])], dim=1)

    def _chosen(self, words: Tensor, groups: tuple[int, ...]) -> Tensor:
        parts = words[..., : sum(groups)].split(groups, dim=-1)
        return torch.cat(
            [
                (part > 0).float() if part.shape[-1] == 1 else F.one_hot(part.argmax(-1), part.shape[-1]).float()
                for part in parts
            ],
            dim=-1,
        )


def sketched(plan: Tensor, config: PlanConfig, side: int = 64) -> Tensor:
    """Return plans (B, K + 1, D) as clips to look at, (B, 3, F, side, side) in [-1, 1]: a disc for each thing."""
    places = plan[:, :-1, config.word_count :].unflatten(-1, (config.frames, -1))
    line = (2 * torch.arange(side, device=plan.device) + 1 - side) / side
    middle = torch.stack([line.expand(side, side), line[:, None].expand(side, side)], dim=-1)
    away = (middle - places[:, :, :, None, None, :2]).square().sum(-1)
    inside = (away < places[..., None, None, 2].square()) & (plan[:, :-1, None, None, None, 0] > 0)
    hues = torch.arange(config.things, device=plan.device) / config.things
    colors = torch.stack([torch.cos(2 * math.pi * (hues - third / 3)) for third in range(3)], dim=1)  # (K, 3)
    return torch.einsum("bkfhw,kc->bcfhw", inside.float(), colors + 1).clamp(max=2) - 1
