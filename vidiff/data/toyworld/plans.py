"""A scene of the toy world as a plan: what each thing is, and where it is at every moment of a clip.

`vidiff.models.plans` says which numbers a plan has; the words are `THING_WORDS` and `SCENE_WORDS`.
"""

import numpy as np
import torch
from torch import Tensor

from vidiff.data.toyworld.attributes import MAX_OBJECTS, SCENE_VALUES, THING_VALUES, Scene
from vidiff.data.toyworld.motion import poses
from vidiff.models.plans import PLACE

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
    for index, thing in enumerate(scene.objects):
        rows[index, 0] = 1
        for name in THING_VALUES:
            rows[index, THING_WORDS.index(f"{name} {getattr(thing, name)}")] = 1
        axes = posed.axes[:, index, :, :2].reshape(len(times), 6)
        place = (posed.center[:, index], posed.scale[:, index, None], axes)
        rows[index, len(THING_WORDS) :] = np.concatenate(place, 1).ravel()
    for name in SCENE_VALUES:
        if name != "relation":
            rows[-1, SCENE_WORDS.index(f"{name} {getattr(scene, name)}")] = 1
    rows[-1, len(SCENE_WORDS) - 2] = scene.layout.sun > 0
    rows[-1, len(SCENE_WORDS) - 1] = scene.layout.direction > 0
    camera = (posed.eye, np.zeros((len(times), 1)), posed.view[:, 0], posed.view[:, 1])
    rows[-1, len(THING_WORDS) :] = np.concatenate(camera, 1).ravel()
    return torch.from_numpy(rows)
