"""What rays meet: objects by sphere tracing, and how much of the sun objects block.

Rays of a frame are (F, 3, P), F frames of all scenes one after the other, P rays each. Only rays that pass an
object's bounding ball are traced, gathered from all frames at once.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vidiff.data.toyworld.shapes import BOUNDS, SIGNED_DISTANCE, normals

_STEPS = 20
_SHADOW_STEPS = 12
_HIT = 0.012  # distance that counts as touching, in radii


@dataclass(frozen=True)
class Objects:
    """K objects in each of F frames."""

    center: Tensor  # (F, K, 3)
    axes: Tensor  # (F, K, 3, 3), columns are the objects' axes
    scale: Tensor  # (F, K), 0 where there is none
    shape: Tensor  # (F, K), index into SHAPES


@dataclass(frozen=True)
class Hits:
    """The nearest object on each of the N rays that meet one."""

    ray: Tensor  # (N,), index into F x P
    slot: Tensor  # (N,), which of the frame's K objects
    depth: Tensor  # (N,)
    local: Tensor  # (N, 3), where, in the object's own axes and radii
    normal: Tensor  # (N, 3), in the world


def nearest_hits(objects: Objects, eye: Tensor, rays: Tensor, limit: Tensor) -> Hits:
    """Return where ``rays`` (F, 3, P), unit, from ``eye`` (F, 3) meet objects nearer than ``limit`` (F, P)."""
    count = rays.shape[2]
    depth = limit.flatten().clone()
    slot = torch.full_like(depth, -1, dtype=torch.int64)
    bounds = rays.new_tensor(BOUNDS)
    for k in range(objects.scale.shape[1]):
        away = eye - objects.center[:, k]
        radius = objects.scale[:, k] * bounds[objects.shape[:, k]]
        along = torch.bmm(away[:, None], rays)[:, 0]  # minus the distance to the point nearest the center
        spare = along.square() - (away.square().sum(1) - radius.square())[:, None]
        passing = (spare > 0) & (along < 0) & (radius > 0)[:, None]
        ray = passing.flatten().nonzero()[:, 0]
        if not len(ray):
            continue
        frame = ray // count
        half = spare.flatten()[ray].sqrt()
        entry, leave = -along.flatten()[ray] - half, -along.flatten()[ray] + half
        axes, scale = objects.axes[:, k], objects.scale[:, k]
        start = torch.einsum("fi,fij->fj", away, axes)[frame] / scale[frame, None]
        heading = torch.bmm(axes.mT, rays).permute(0, 2, 1).reshape(-1, 3)[ray]
        shape = objects.shape[frame, k]
        for number, distance in enumerate(SIGNED_DISTANCE.values()):
            chosen = (shape == number).nonzero()[:, 0]
            if len(chosen):
                ratio = scale[frame[chosen]]
                t, hit = _traced(distance, start[chosen], heading[chosen], entry[chosen] / ratio, leave[chosen] / ratio)
                t, place = (t * ratio)[hit], ray[chosen[hit]]
                closer = t < depth[place]
                depth[place[closer]] = t[closer]
                slot[place[closer]] = k
    return _described(objects, eye, rays, depth, slot)


def _traced(
    distance: Callable[[Tensor], Tensor], start: Tensor, heading: Tensor, entry: Tensor, leave: Tensor
) -> tuple[Tensor, Tensor]:
    """Walk rays up to a surface; return how far they came and whether they met it."""
    t = entry.clamp(min=0)
    for _ in range(_STEPS):
        step = distance(start + t[:, None] * heading)
        t = t + step
    return t, (step < _HIT) & (t < leave + _HIT) & (t >= 0)  # out of an object around the eye, steps lead backwards


def _described(objects: Objects, eye: Tensor, rays: Tensor, depth: Tensor, slot: Tensor) -> Hits:
    count = rays.shape[2]
    ray = (slot >= 0).nonzero()[:, 0]
    frame, which, t = ray // count, slot[ray], depth[ray]
    heading = rays.permute(0, 2, 1).reshape(-1, 3)[ray]
    axes = objects.axes[frame, which]
    offset = eye[frame] + t[:, None] * heading - objects.center[frame, which]
    local = torch.einsum("ni,nij->nj", offset, axes) / objects.scale[frame, which, None]
    outward = torch.empty_like(local)
    shape = objects.shape[frame, which]
    for number, distance in enumerate(SIGNED_DISTANCE.values()):
        chosen = (shape == number).nonzero()[:, 0]
        if len(chosen):
            outward[chosen] = normals(distance, local[chosen])
    return Hits(ray, which, t, local, torch.einsum("nij,nj->ni", axes, outward))


def sunlit(objects: Objects, points: Tensor, frame: Tensor, toward_sun: Tensor, own: Tensor | None = None) -> Tensor:
    """Return how much of the sun each point sees, (N,) in [0, 1], with penumbras that widen with distance.

    Args:
        objects: what blocks.
        points: in the world, (N, 3).
        frame: of each point, (N,).
        toward_sun: unit vectors of each frame, (F, 3).
        own: the object that each point lies on, (N,); it does not shade itself.
    """
    seen = points.new_ones(len(points))
    bounds = points.new_tensor(BOUNDS)
    sun = toward_sun[frame]
    for k in range(objects.scale.shape[1]):
        radius = (objects.scale[:, k] * bounds[objects.shape[:, k]])[frame]
        toward = objects.center[:, k][frame] - points
        along = (toward * sun).sum(1)
        beside = toward.square().sum(1) - along.square()
        near = (beside < (1.3 * radius).square()) & (along > 0) & (radius > 0)
        if own is not None:
            near &= own != k
        chosen = near.nonzero()[:, 0]
        if len(chosen):
            seen[chosen] *= _unblocked(objects, k, frame[chosen], -toward[chosen], sun[chosen], along[chosen])
    return seen


def _unblocked(objects: Objects, k: int, frame: Tensor, away: Tensor, sun: Tensor, along: Tensor) -> Tensor:
    """Return the visible share of the sun past object k: how close its rays come, against the penumbra's width."""
    axes, scale = objects.axes[frame, k], objects.scale[frame, k]
    start = torch.einsum("ni,nij->nj", away, axes) / scale[:, None]
    heading = torch.einsum("ni,nij->nj", sun, axes)
    middle, shape = along / scale, objects.shape[frame, k]
    width = 0.05 + 0.07 * along
    closest = torch.full_like(along, 9.0)
    for number, distance in enumerate(SIGNED_DISTANCE.values()):
        chosen = (shape == number).nonzero()[:, 0]
        if len(chosen):
            t = (middle[chosen] - BOUNDS[number]).clamp(min=0.02)
            nearest = closest[chosen]
            for _ in range(_SHADOW_STEPS):
                step = distance(start[chosen] + t[:, None] * heading[chosen])
                nearest = torch.minimum(nearest, step)
                t = t + step.abs().clamp(min=0.06)
            closest[chosen] = nearest
    share = (0.5 + 0.5 * closest * scale / width).clamp(0, 1)
    return share.square() * (3 - 2 * share)
