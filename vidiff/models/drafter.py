"""Draws what a plan says: for every point of a picture the color that things and background have there on average.

Things are small fields in coordinates of their own (x and y from the middle of a thing, in its radii), so that one form
serves wherever and however large a thing is; they say color and coverage, as layers that are laid over one another from
far to near (Lu et al., 2020; Kasten et al., 2021: layered neural atlases). What a field cannot know, such as where the
drops of rain are, comes out as its mean: a denoiser goes on from the draft.

Axes: N points, B plans, K things.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vidiff.errors import ConfigError
from vidiff.models.plans import PLACE, PlanConfig, seen

_REACH = 3.0  # radii around a thing within which it, or its shadow, is drawn
_THING_WAVES, _SCENE_WAVES = (2.0, 4.0, 8.0), (1.0, 2.0, 4.0, 8.0, 16.0)  # radians for a radius, for half a height
_RARE = 2.0  # logits by which things cover less when training begins
_AT_ONCE = 1 << 14  # points
_DEPTH = 3  # of the numbers of a place


@dataclass(frozen=True)
class DrafterConfig:
    """Width and depth of the fields."""

    dim: int = 192  # of things
    depth: int = 4  # hidden layers
    scene_dim: int = 128  # of the background
    scene_depth: int = 4

    def __post_init__(self) -> None:
        for name in ("dim", "depth", "scene_dim", "scene_depth"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Draft:
    """Clips as they are planned: a background, and things that lie over it."""

    background: Tensor  # (B, 3, F, H, W)
    things: Tensor  # times their coverage, (B, 3, F, H, W)
    cover: Tensor  # in [0, 1], (B, 1, F, H, W)

    @property
    def mean(self) -> Tensor:
        """Return the clips, (B, 3, F, H, W) in [-1, 1]."""
        return self.over(self.background)

    def over(self, video: Tensor) -> Tensor:
        """Return ``video`` (B, 3, F, H, W) with the things laid over it."""
        return (video * (1 - self.cover) + self.things).clamp(-1, 1)


class Drafter(nn.Module):
    """Plans to colors."""

    def __init__(self, config: DrafterConfig, plans: PlanConfig):
        super().__init__()
        self.config, self.plans = config, plans
        words, scene = plans.word_count, sum(plans.scene_words)
        self.thing = _layers(words + scene + 2 + 4 * len(_THING_WAVES) + PLACE - 2, config.dim, config.depth, 4)
        self.scene = _layers(scene + PLACE + 2 + 4 * len(_SCENE_WAVES), config.scene_dim, config.scene_depth, 3)

    def forward(self, words: Tensor, places: Tensor, row: Tensor, xy: Tensor) -> Tensor:
        """Return the background and what things lay over it, (N, 7).

        Args:
            words: of B plans, (B, K + 1, W).
            places: at one moment of each, as the camera sees them (`seen`), (B, K + 1, P).
            row: to which of them a point belongs, (N,).
            xy: where it is: from the middle of the picture to the right and down, in half heights, (N, 2).

        Returns:
            Colors of the background, about [-1, 1], then those of things times their coverage, then their coverage.
        """
        scene = words[row, -1, : sum(self.plans.scene_words)]
        background = self.scene(torch.cat([scene, places[row, -1], xy, _waves(xy, _SCENE_WAVES)], dim=1))
        things, place = words[row, :-1], places[row, :-1]
        own = (xy[:, None] - place[..., :2]) / place[..., 2:3].clamp(min=1e-3)
        near = (things[..., 0] > 0) & (own.abs().amax(-1) < _REACH)
        point, which = near.nonzero(as_tuple=True)
        where = own[point, which]
        seen = [things[point, which], scene[point], where, _waves(where, _THING_WAVES), place[point, which][:, 2:]]
        found = self.thing(torch.cat(seen, dim=1))
        drawn = torch.cat([found[:, :3], torch.sigmoid(found[:, 3:] - _RARE)], dim=1)
        layers = background.new_zeros(*near.shape, 4).index_put((point, which), drawn.to(background.dtype))
        from_far = place[..., _DEPTH].masked_fill(~near, torch.inf).argsort(dim=1, descending=True)
        over = background.new_zeros(len(xy), 4)
        for layer in layers.gather(1, from_far[..., None].expand(-1, -1, 4)).unbind(1):
            color, cover = layer[:, :3], layer[:, 3:]
            over = over * (1 - cover) + torch.cat([color * cover, cover], dim=1)
        return torch.cat([background, over], dim=1)

    @staticmethod
    def laid(layers: Tensor) -> Tensor:
        """Return the colors (N, 3) of what `forward` returns."""
        return layers[:, :3] * (1 - layers[:, 6:]) + layers[:, 3:6]

    def draw(self, plan: Tensor, height: int, width: int) -> Draft:
        """Return the drafts of plans (B, K + 1, D)."""
        words, places = seen(plan, self.plans).tensor_split([self.plans.word_count], dim=2)
        rows = (2 * torch.arange(height, device=plan.device) + 1 - height) / height
        columns = (2 * torch.arange(width, device=plan.device) + 1 - width) / height
        xy = torch.stack([columns.expand(height, width), rows[:, None].expand(height, width)], dim=-1).view(-1, 2)
        own = torch.zeros(_AT_ONCE, dtype=torch.int64, device=plan.device)
        layers = [
            self(words[clip : clip + 1], place[None], own[: len(part)], part)
            for clip in range(len(plan))
            for place in places[clip].unflatten(-1, (-1, PLACE)).unbind(1)
            for part in xy.split(_AT_ONCE)
        ]
        drawn = torch.cat(layers).float().view(len(plan), -1, height, width, 7).permute(0, 4, 1, 2, 3)
        return Draft(*drawn.split([3, 3, 1], dim=1))


def _waves(x: Tensor, frequencies: tuple[float, ...]) -> Tensor:
    return torch.cat([wave for f in frequencies for wave in ((f * x).sin(), (f * x).cos())], dim=-1)


def _layers(dim_in: int, dim: int, depth: int, dim_out: int) -> nn.Sequential:
    parts: list[nn.Module] = []
    for width in (dim_in, *(dim,) * (depth - 1)):
        parts += [nn.Linear(width, dim), nn.SiLU()]
    return nn.Sequential(*parts, nn.Linear(dim, dim_out))
