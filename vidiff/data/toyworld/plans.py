"""A scene of the toy world as a plan: what each thing is, and where the camera sees it at every moment of a clip.

A plan is (K + 1, D) numbers. Rows 0 to K - 1 are the things: words of `THING_WORDS` as 0 or 1, then for each of F
frames `PLACE` numbers. The last row is the scene: words of `SCENE_WORDS`, filled up with zeros, then where the camera
is in each frame. A thing that a scene lacks is all zeros.
"""

import math

import numpy as np
import torch
from torch import Tensor

from vidiff.data.toyworld.attributes import MAX_OBJECTS, SCENE_VALUES, THING_VALUES, Scene
from vidiff.data.toyworld.motion import poses
from vidiff.data.toyworld.render import FIELD_OF_VIEW

PLACE = 10  # x, y of the center and radius, in half picture heights; log of the depth; two axes as the camera sees them
_NEAREST = 0.5  # depth that things closer to the camera, or behind it, are given
_FAR = 6.8  # depth of the middle of the scene

THING_WORDS = ("there", *(f"{name} {value}" for name, values in THING_VALUES.items() for value in values))
SCENE_WORDS = (
    *(f"{name} {value}" for name, values in SCENE_VALUES.items() if name != "relation" for value in values),
    "sun right",
    "counter-clockwise",
)


def plan_shape(frames: int) -> tuple[int, int]:
    """Return the (K + 1, D) of plans of this many frames."""
    return MAX_OBJECTS + 1, len(THING_WORDS) + PLACE * frames


def plan(scene: Scene, times: np.ndarray) -> Tensor:
    """Return the plan of a scene at ``times`` (F,), seconds since it began, float32 (K + 1, D)."""
    posed = poses(scene, times)
    rows = np.zeros(plan_shape(len(times)), dtype=np.float32)
    half = math.tan(FIELD_OF_VIEW / 2)
    for index, thing in enumerate(scene.objects):
        rows[index, 0] = 1
        for name in THING_VALUES:
            rows[index, THING_WORDS.index(f"{name} {getattr(thing, name)}")] = 1
        right, up, forward = np.einsum("tij,tj->ti", posed.view, posed.center[:, index] - posed.eye).T
        depth = np.maximum(forward, _NEAREST)
        axes = np.einsum("tij,tjk->tik", posed.view, posed.axes[:, index])[..., :2].reshape(len(times), 6)
        numbers = (right / depth / half, -up / depth / half, posed.scale[:, index] / depth / half, np.log(depth / _FAR))
        rows[index, len(THING_WORDS) :] = np.concatenate([np.stack(numbers, 1), axes], 1).ravel()
    for name in SCENE_VALUES:
        if name != "relation":
            rows[-1, SCENE_WORDS.index(f"{name} {getattr(scene, name)}")] = 1
    rows[-1, len(SCENE_WORDS) - 2] = scene.layout.sun > 0
    rows[-1, len(SCENE_WORDS) - 1] = scene.layout.direction > 0
    camera = (posed.eye / _FAR, posed.view[:, 0], posed.view[:, 1], np.zeros((len(times), 1)))
    rows[-1, len(THING_WORDS) :] = np.concatenate(camera, 1).ravel()
    return torch.from_numpy(rows)
