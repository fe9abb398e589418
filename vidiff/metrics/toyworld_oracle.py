"""Prompt following in the toy world, measured by rendering the alternatives; no learned model is involved.

Every attribute of a clip is estimated again: the value whose rendering is nearest to the clip wins, by coordinate
descent over the attributes and over what captions never say (places, turns, the side of the light). An attribute is
followed where the value that wins is the one the caption states.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vidiff.data.toyworld.attributes import RELATIONS, SCENE_VALUES, THING_VALUES, Layout, Scene
from vidiff.data.toyworld.light import OBJECT_COLORS
from vidiff.data.toyworld.render import render
from vidiff.errors import ConfigError, DataError

SIDE = 32  # alternatives are compared at this height
MOMENTS = 7  # and at this many moments
_SWEEPS = 4  # at most; truth needs one
_MOVEMENTS = 24  # pairs of camera and motion that are compared closely
_MIN_PSNR = 22.0  # dB
_MAX_SPREAD, _MAX_CHANGE = 5.0, 2.0
_FLOOR, _CHANGE_FLOOR = 10.0, 40.0  # squares of 8-bit pixels that are too small to count: noise
_PLACE_STEPS = (0.2, 0.1, 0.05, 0.025)  # world units
_TURN_STEPS = (0.5, 0.25, 0.12)  # radians


@dataclass(frozen=True)
class Verdict:
    """What one clip shows."""

    scene: Scene  # the nearest one
    psnr: float  # of the clip against it, dB
    followed: dict[str, bool]  # of each stated attribute


def judge(clip: np.ndarray, fps: float, asked: Scene, stated: dict[str, str]) -> Verdict:
    """Return which of the attributes that a caption states a clip shows.

    Args:
        clip: uint8, (F, H, W, 3).
        fps: frames a second.
        asked: the scene that the caption was made from; unstated attributes only tell where the search begins.
        stated: see `vidiff.data.toyworld.captions.Caption`.

    Raises:
        DataError: if the clip is not a clip.
    """
    seen = _Seen.of(clip, fps)
    # Places and turns first, from the middle of their ranges: they are not the caption's to know.
    scene = replace(asked, layout=Layout())
    error = seen.errors([scene])[0]
    for step in range(2):
        scene, error = _settled(seen, scene, error, step)
    scene, error = _movement(seen, scene, asked)
    for _ in range(_SWEEPS):
        before = scene
        for name, options in _questions(scene):
            scene, error = _answered(seen, scene, name, options, value_of(asked, name))
        if scene == before:
            break  # another sweep would ask the same questions
        for step in range(len(_PLACE_STEPS)):
            scene, error = _settled(seen, scene, error, step)
    psnr = 10 * float(np.log10(255**2 / max(error, 1e-3)))
    withheld = _withheld(psnr, seen.frames, seen.rendered([scene])[0])
    followed = {
        name: value_of(scene, name) == value and name.split(".")[0] not in withheld for name, value in stated.items()
    }
    return Verdict(scene, psnr, followed)


def _withheld(psnr: float, clip: Tensor, nearest: Tensor) -> frozenset[str]:
    """Return the attributes that a clip gets no credit for, whatever is nearest.

    Args:
        psnr: of the clip against the nearest scene, dB.
        clip: (T, h, w, 3), 0 to 255.
        nearest: the nearest scene's frames.
    """
    if psnr < _MIN_PSNR:  # near no scene at all: noise, or two scenes at once
        return frozenset((*THING_VALUES, *SCENE_VALUES))
    # Frames are missing, repeated or out of order where some moments fit far worse than others, or where the clip
    # changes far more from moment to moment than its scene.
    errors = (clip - nearest).square().mean((1, 2, 3))
    uneven = errors.max() > _MAX_SPREAD * (errors.median() + _FLOOR)
    changes, expected = (frames.diff(dim=0).square().mean() for frames in (clip, nearest))
    jumpy = changes > _MAX_CHANGE * (expected + _CHANGE_FLOOR)
    return frozenset(("motion", "camera")) if uneven or jumpy else frozenset()


def value_of(scene: Scene, name: str) -> str | None:
    """Return an attribute by its name in a caption's account, such as "camera" or "color.1"."""
    if "." not in name:
        value: str | None = getattr(scene, name)
        return value
    attribute, index = name.split(".")
    value = getattr(scene.objects[int(index)], attribute)
    return value


@dataclass(frozen=True)
class _Seen:
    """A clip made small, and the moments that were kept of it."""

    frames: Tensor  # (T, h, w, 3), 0 to 255
    times: np.ndarray  # seconds

    @staticmethod
    def of(clip: np.ndarray, fps: float) -> "_Seen":
        if clip.ndim != 4 or clip.shape[3] != 3 or clip.dtype != np.uint8 or min(clip.shape) < 1:
            raise DataError(f"a clip is uint8 (F, H, W, 3), got {clip.dtype} {clip.shape}")
        kept = np.unique(np.linspace(0, len(clip) - 1, MOMENTS).round().astype(int))
        pixels = torch.from_numpy(clip[kept]).permute(0, 3, 1, 2).float()
        width = round(SIDE * clip.shape[2] / clip.shape[1])
        small = F.interpolate(pixels, (SIDE, width), mode="area")
        return _Seen(small.permute(0, 2, 3, 1).contiguous(), kept / fps)

    def errors(self, scenes: Sequence[Scene], samples: int = 2) -> list[float]:
        """Return the mean squared error of the clip against each rendered scene."""
        return [float((frames - self.frames).square().mean()) for frames in self.rendered(scenes, samples)]

    def rendered(self, scenes: Sequence[Scene], samples: int = 2) -> Tensor:
        """Return the scenes at the same moments and size, (S, T, h, w, 3)."""
        height, width = self.frames.shape[1:3]
        return render(list(scenes), self.times, height, width, samples=samples).float()


def _questions(scene: Scene) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield every attribute with its values, what fills the picture first."""
    for name in ("light", "ground", "camera", "weather"):
        yield name, SCENE_VALUES[name]
    if scene.relation is not None:
        yield "relation", SCENE_VALUES["relation"]
    for index in range(len(scene.objects)):
        for name in ("motion", "color", "shape", "size", "material"):
            yield f"{name}.{index}", THING_VALUES[name]


def _answered(seen: _Seen, scene: Scene, name: str, options: tuple[str, ...], asked: str | None) -> tuple[Scene, float]:
    """Return ``scene`` with the nearest value of one attribute. Ties go against the caption."""
    return _nearest(seen, [(value == asked, one) for value in options for one in _variants(scene, name, value)])


def _movement(seen: _Seen, scene: Scene, asked: Scene) -> tuple[Scene, float]:
    """Return ``scene`` with the nearest pair of camera and first object's motion: one can look like the other."""
    filmed = [one for camera in SCENE_VALUES["camera"] for one in _variants(scene, "camera", camera)]
    candidates = [
        ((camera.camera == asked.camera) + (motion == asked.objects[0].motion), one)
        for camera in filmed
        for motion in THING_VALUES["motion"]
        for one in _variants(camera, "motion.0", motion)
    ]
    # Most are far off, which one ray a pixel shows at a quarter of the cost.
    rough = seen.errors([one for _, one in candidates], samples=1)
    kept = np.argsort(rough, kind="stable")[:_MOVEMENTS]
    return _nearest(seen, [candidates[i] for i in kept])


def _nearest(seen: _Seen, candidates: Sequence[tuple[int, Scene]]) -> tuple[Scene, float]:
    """Return the candidate nearest to the clip and its error; of equal ones, that which is asked for least."""
    errors = seen.errors([scene for _, scene in candidates])
    error, _, number = min(
        (error, wanted, i) for i, (error, (wanted, _)) in enumerate(zip(errors, candidates, strict=True))
    )
    return candidates[number][1], error


def _variants(scene: Scene, name: str, value: str) -> list[Scene]:
    """Return ``scene`` with this value: none where it contradicts the others, several where it needs a relation."""
    changes: dict[str, Any] = {name: value}
    if "." in name:
        attribute, index = name.split(".")
        things = list(scene.objects)
        things[int(index)] = replace(things[int(index)], **{attribute: value})
        changes = {"objects": tuple(things)}
    # Only an orbit is without a relation, so that entering or leaving one means trying all of them.
    orbit = name == "motion.0" and len(scene.objects) > 1 and "orbit" in (value, scene.objects[0].motion)
    # Places were fitted to the way things move and stand now; another way gets a fair start.
    layouts = [scene.layout, Layout()] if name == "relation" or name.startswith("motion") else [scene.layout]
    found = []
    for relation in (None, *RELATIONS) if orbit else (scene.relation,):
        for layout in layouts:
            with suppress(ConfigError):
                found.append(replace(scene, **({"relation": relation, "layout": layout} | changes)))
    return found


def _settled(seen: _Seen, scene: Scene, error: float, step: int) -> tuple[Scene, float]:
    """Return ``scene`` with places, turns and the sides of light and turning that fit better, and its error."""
    while True:
        candidates = [replace(scene, layout=layout) for layout in _neighbors(scene, step)]
        errors = seen.errors(candidates)
        best = int(np.argmin(errors))
        if errors[best] >= error:
            return scene, error
        scene, error = candidates[best], errors[best]


def _neighbors(scene: Scene, step: int) -> Iterator[Layout]:
    layout = scene.layout
    yield replace(layout, sun=-layout.sun)
    yield replace(layout, direction=-layout.direction)
    place, turn = _PLACE_STEPS[step], _TURN_STEPS[min(step, len(_TURN_STEPS) - 1)]
    for index in range(len(scene.objects)):
        for dx, dz in ((place, 0.0), (-place, 0.0), (0.0, place), (0.0, -place)):
            x, z = layout.shifts[index]
            yield replace(layout, shifts=_put(layout.shifts, index, (x + dx, z + dz)))
        for change in (turn, -turn):
            yield replace(layout, turns=_put(layout.turns, index, layout.turns[index] + change))


def _put(values: tuple[Any, ...], index: int, value: Any) -> tuple[Any, ...]:
    return (*values[:index], value, *values[index + 1 :])


def accuracy(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Return the share of stated attributes that were followed: each kind, their mean, and clips with all right."""
    counts: dict[str, list[int]] = {}
    for verdict in verdicts:
        for name, right in verdict.followed.items():
            kind = counts.setdefault(name.split(".")[0], [0, 0])
            kind[0] += right
            kind[1] += 1
    each = {name: right / total for name, (right, total) in sorted(counts.items())}
    return {
        "clips": len(verdicts),
        "per_attribute": each,
        "stated": {name: total for name, (_, total) in sorted(counts.items())},
        "mean": float(np.mean(list(each.values()))),
        "all_right": float(np.mean([all(verdict.followed.values()) for verdict in verdicts])),
        "psnr": float(np.mean([verdict.psnr for verdict in verdicts])),
    }


def color_share(clip: np.ndarray, color: str) -> np.ndarray:
    """Return the share of pixels of each frame nearer to ``color`` than to any other object color, (F,)."""
    return _nearest_color(clip, color).mean((1, 2))


def centroid_track(clip: np.ndarray, color: str) -> np.ndarray:
    """Return the center of the pixels nearest to ``color``, (F, 2): x, y from -1 to 1, NaN where there are none."""
    mask = _nearest_color(clip, color)
    height, width = mask.shape[1:]
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None]
    count = mask.sum((1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack([(mask * axis).sum((1, 2)) / count for axis in (x, y)], 1)


def _nearest_color(clip: np.ndarray, color: str) -> np.ndarray:
    """Return which pixels (F, H, W) have the hue of ``color`` and are as colorful as an object."""
    palette = np.array(list(OBJECT_COLORS.values()), np.float32)
    pixels = clip.astype(np.float32)
    shades = palette / palette.sum(1, keepdims=True)
    own = pixels / np.maximum(pixels.sum(3, keepdims=True), 1)
    distance = ((own[..., None, :] - shades) ** 2).sum(-1)
    colorful = pixels.max(3) - pixels.min(3) > 60
    return (distance.argmin(-1) == list(OBJECT_COLORS).index(color)) & colorful
