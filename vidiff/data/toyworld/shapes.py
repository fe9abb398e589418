"""Signed distances of the six shapes, all of radius about 1 around the origin and standing along y.

Each is at most the true distance, so a ray may safely go that far (sphere tracing; Hart, 1996).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vidiff.data.toyworld.attributes import SHAPES

BOUNDS = (1.0, 1.386, 1.134, 1.243, 1.601, 1.0)  # radius of the ball around the origin that holds each of SHAPES

_CONE_SLOPE = math.hypot(1.8, 0.95)
_PYRAMID_SLOPE = math.hypot(1.6, 1.0)


def sphere(p: Tensor) -> Tensor:
    """Radius 1."""
    x, y, z = p.unbind(-1)  # many times faster than a norm over three numbers
    return (x * x + y * y + z * z).sqrt() - 1.0


def cube(p: Tensor) -> Tensor:
    """Half edges of 0.8."""
    return p.abs().amax(-1) - 0.8


def cylinder(p: Tensor) -> Tensor:
    """Radius 0.75, half height 0.85."""
    x, y, z = p.unbind(-1)
    return torch.maximum(torch.hypot(x, z) - 0.75, y.abs() - 0.85)


def cone(p: Tensor) -> Tensor:
    """Base of radius 0.95 at y = -0.8, tip at y = 1."""
    x, y, z = p.unbind(-1)
    side = (1.8 * torch.hypot(x, z) + 0.95 * (y - 1.0)) / _CONE_SLOPE
    return torch.maximum(side, -0.8 - y)


def pyramid(p: Tensor) -> Tensor:
    """Square base with half edges of 1 at y = -0.75, tip at y = 0.85."""
    x, y, z = p.unbind(-1)
    side = (1.6 * torch.maximum(x.abs(), z.abs()) + 1.0 * (y - 0.85)) / _PYRAMID_SLOPE
    return torch.maximum(side, -0.75 - y)


def torus(p: Tensor) -> Tensor:
    """An upright ring about z: radius 0.72, thickness 0.28."""
    x, y, z = p.unbind(-1)
    return torch.hypot(torch.hypot(x, y) - 0.72, z) - 0.28


SIGNED_DISTANCE: dict[str, Callable[[Tensor], Tensor]] = dict(
    zip(SHAPES, (sphere, cube, cylinder, cone, pyramid, torus), strict=True)
)


def normals(distance: Callable[[Tensor], Tensor], p: Tensor) -> Tensor:
    """Return the outward unit normals (N, 3) at points ``p`` (N, 3) of a surface, from four nearby distances."""
    corners = p.new_tensor([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]])
    values = distance(p[:, None] + 2e-3 * corners)
    return torch.nn.functional.normalize(values @ corners, dim=-1)
