"""Plans: which things a clip shows, and where each of them is at every moment.

What stands open in a sentence is decided once, in a few hundred numbers, and not in every latent of a clip by itself: a
small denoiser makes a plan out of the words (`PlanCodec`: plans as its latents), a `Drafter` draws it. Layouts that are
generated first and then filled by a video model are known from VideoDirectorGPT (Lin et al., 2023) and LVD (Lian et
al., 2023), things with a place and a heading in space from MagicDrive (Gao et al., 2024).

A plan is (B, K + 1, D) numbers: a row for each of K things and one for the scene. A thing's row holds its words as 0 or
1, then for each of F frames its place in the world: middle (x, y, z), radius, two of its axes. The scene's row holds
its words, filled up with zeros, then where the camera is: eye, 0, and the directions of the picture's right and up. The
row of a thing that is not there is zero. What goes where and how the camera moves are said apart, so that any two of
them go together; `seen` puts them together.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidiff.errors import ConfigError
from vidiff.types import LatentSpec

PLACE = 10  # numbers a frame
_NEAREST = 0.5  # depth that things closer to the camera, or behind it, are drawn at


@dataclass(frozen=True)
class PlanConfig:
    """What plans hold."""

    words: tuple[int, ...] = (1, 6, 10, 2, 2, 14)  # of a thing, in groups: one of each holds, or of one word, maybe
    scene_words: tuple[int, ...] = (10, 6, 4, 3, 1, 1)  # of the whole clip
    things: int = 3
    frames: int = 17  # of a clip
    scales: tuple[float, ...] = (1.5, 1.5, 1.5, 4.0, *(2.0,) * 6)  # of the numbers of a place, to bring them to about 1
    eye: tuple[float, float, float] = (0.0, 2.4, 6.6)  # about where the camera is, for the same reason
    reach: float = 0.364  # half a picture's height, one unit before the camera
    far: float = 6.8  # depth that counts as 1 when it is drawn

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
        if len(self.scales) != PLACE or min(self.scales) <= 0:
            raise ConfigError(f"scales are {PLACE} numbers above 0, got {self.scales}")
        if min(self.reach, self.far) <= 0:
            raise ConfigError(f"reach and far must be above 0, got {self.reach} and {self.far}")

    @property
    def word_count(self) -> int:
        """Return how many numbers of a row are words."""
        return sum(self.words)

    @property
    def shape(self) -> tuple[int, int]:
        """Return (K + 1, D)."""
        return self.things + 1, self.word_count + PLACE * self.frames


class PlanCodec(nn.Module):
    """Plans as latents (B, D, 1, 1, K + 1) of about unit variance, and back: an autoencoder that loses nothing."""

    scales: Tensor
    usual: Tensor  # places, (K + 1, P F)

    def __init__(self, config: PlanConfig):
        super().__init__()
        self.config = config
        self.latents = LatentSpec(config.shape[1], 1, 1)
        self.register_buffer("scales", torch.tensor(config.scales).repeat(config.frames), persistent=False)
        usual = torch.zeros(config.things + 1, config.frames, PLACE)
        usual[-1, :, :3] = torch.tensor(config.eye)
        self.register_buffer("usual", usual.flatten(1), persistent=False)

    def encode(self, plan: Tensor) -> Tensor:
        """Return the latents of plans (B, K + 1, D)."""
        words, places = plan.split([self.config.word_count, len(self.scales)], dim=2)
        return torch.cat([2 * words - 1, (places - self.usual) * self.scales], dim=2).mT[:, :, None, None]

    def decode(self, latents: Tensor) -> Tensor:
        """Return the plans that latents are nearest to: of each group of words one holds."""
        numbers = latents[:, :, 0, 0].mT.float()
        words, places = numbers.split([self.config.word_count, len(self.scales)], dim=2)
        things, scene = (
            self._chosen(words[:, :-1], self.config.words),
            self._chosen(words[:, -1:], self.config.scene_words),
        )
        scene = F.pad(scene, (0, words.shape[2] - scene.shape[2]))
        rows = torch.cat([torch.cat([things, scene], dim=1), places / self.scales + self.usual], dim=2)
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


def seen(plan: Tensor, config: PlanConfig) -> Tensor:
    """Return plans (B, K + 1, D) as the camera sees them, in the same shape.

    Places of things become x and y from the middle of the picture, to the right and down, and radius, all in half
    heights; log of the depth over ``far``; and two axes along the picture's right, up and depth. That of the camera
    becomes its eye over ``far``, the directions of right and up, and 0.
    """
    words, places = plan.tensor_split([config.word_count], dim=2)
    places = places.unflatten(2, (-1, PLACE))  # of as many frames as there are
    eye = places[:, -1, :, :3]
    right = F.normalize(places[:, -1, :, 4:7], dim=-1)
    up = places[:, -1, :, 7:]
    up = F.normalize(up - (up * right).sum(-1, keepdim=True) * right, dim=-1)
    view = torch.stack([right, up, torch.linalg.cross(up, right)], dim=-2)  # (B, F, 3, 3)
    middle = torch.einsum("bfij,bkfj->bkfi", view, places[:, :-1, :, :3] - eye[:, None])
    depth = middle[..., 2:].clamp(min=_NEAREST)
    flat = middle[..., :2] * plan.new_tensor([1.0, -1.0]) / (depth * config.reach)
    radius = places[:, :-1, :, 3:4] / (depth * config.reach)
    axes = torch.einsum("bfij,bkfja->bkfia", view, places[:, :-1, :, 4:].unflatten(-1, (3, 2))).flatten(-2)
    things = torch.cat([flat, radius, (depth / config.far).log(), axes], dim=-1) * (words[:, :-1, None, :1] > 0)
    camera = torch.cat([eye / config.far, right, up, torch.zeros_like(eye[..., :1])], dim=-1)
    return torch.cat([words, torch.cat([things, camera[:, None]], dim=1).flatten(2)], dim=2)


def sketched(plan: Tensor, config: PlanConfig, side: int = 64) -> Tensor:
    """Return plans (B, K + 1, D) as clips to look at, (B, 3, F, side, side) in [-1, 1]: a disc for each thing."""
    places = seen(plan, config)[:, :-1, config.word_count :].unflatten(-1, (config.frames, -1))
    line = (2 * torch.arange(side, device=plan.device) + 1 - side) / side
    middle = torch.stack([line.expand(side, side), line[:, None].expand(side, side)], dim=-1)
    away = (middle - places[:, :, :, None, None, :2]).square().sum(-1)
    inside = (away < places[..., None, None, 2].square()) & (plan[:, :-1, None, None, None, 0] > 0)
    hues = torch.arange(config.things, device=plan.device) / config.things
    colors = torch.stack([torch.cos(2 * math.pi * (hues - third / 3)) for third in range(3)], dim=1)  # (K, 3)
    return torch.einsum("bkfhw,kc->bcfhw", inside.float(), colors + 1).clamp(max=2) - 1
