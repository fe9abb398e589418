"""Prompt following in the toy world, measured by rendering the alternatives; no learned model is involved.

Every attribute of a clip is estimated again: the value whose rendering is nearest to the clip wins, by coordinate
descent over the attributes and over what captions never say (places, turns, the side of the light). An attribute is
followed where the value that wins is the one the caption states.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vidiff.data.toyworld.attributes import RELATIONS, SCENE_VALUES, THING_VALUES, Layout, Scene, value_of
from vidiff.data.toyworld.light import OBJECT_COLORS
from vidiff.data.toyworld.render import render
from vidiff.errors import ConfigError, DataError

SIDE = 32  # alternatives are compared closely at this height, with four rays a pixel,
MOMENTS = 7  # at this many moments
_SWEEPS = 4  # at most
_GAIN = 0.02  # share of the error that a sweep has to win for another one
# A rough look, at half the height with one ray a pixel, costs a tenth of a close one. In 16 questions about generated
# clips it put the nearest alternative first or second. How many get a close look:
_ANSWERS, _MOVEMENTS = 3, 8  # of one question, and of all pairs of camera and motion,
_MARGIN = 1.1  # but none whose rough error is this many times the smallest
_FITTED = (12, 3)  # shapes and sizes that are given their own best places roughly, in two rounds
HUES = tuple(color for color in OBJECT_COLORS if color not in ("white", "black"))  # snow and night are those too
_MIN_PSNR = 22.0  # dB
_MAX_SPREAD, _MAX_CHANGE = 5.0, 2.0
_FLOOR, _CHANGE_FLOOR = 10.0, 40.0  # squares of 8-bit pixels that are too small to count: noise
_PLACE_STEPS = (0.16, 0.05)  # world units
_TURN_STEPS = (0.4, 0.12)  # radians

_Option = tuple[int, Scene]  # how many of the values in question are the caption's; ties go against it


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
    scene = _settled(seen, replace(asked, layout=Layout()))
    # One movement can look like another.
    scene = _nearest(seen, _near(seen, _alternatives(scene, ("camera", "motion.0"), asked), _MOVEMENTS))
    error = float("inf")
    for sweep in range(_SWEEPS):
        swept, last = _swept(seen, scene, asked, thorough=sweep == 1), error
        before, scene = scene, _settled(seen, swept)
        error = seen.close.errors([scene])[0]
        if sweep and (swept == before or error > (1 - _GAIN) * last):
            break  # another sweep would ask the same questions
    psnr = 10 * float(np.log10(255**2 / max(error, 1e-3)))
    withheld = _withheld(psnr, seen.close.frames, seen.close.rendered([scene])[0])
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


@dataclass(frozen=True)
class _Look:
    """A clip made small, the moments that were kept of it, and what it was compared with."""

    frames: Tensor  # (T, h, w, 3), 0 to 255
    times: np.ndarray  # seconds
    samples: int  # rays a pixel along each side
    known: dict[Scene, float] = field(default_factory=dict)  # errors: many a scene comes up again

    def errors(self, scenes: Sequence[Scene]) -> list[float]:
        """Return the mean squared error of the clip against each rendered scene."""
        new = [scene for scene in dict.fromkeys(scenes) if scene not in self.known]
        if new:
            errors = (self.rendered(new) - self.frames).square().mean((1, 2, 3, 4))
            self.known.update(zip(new, errors.tolist(), strict=True))
        return [self.known[scene] for scene in scenes]

    def rendered(self, scenes: Sequence[Scene]) -> Tensor:
        """Return the scenes at the same moments and size, (S, T, h, w, 3)."""
        height, width = self.frames.shape[1:3]
        return render(list(scenes), self.times, height, width, samples=self.samples).float()


@dataclass(frozen=True)
class _Seen:
    """A clip, to be looked at closely or roughly."""

    close: _Look
    rough: _Look

    @staticmethod
    def of(clip: np.ndarray, fps: float) -> "_Seen":
        if clip.ndim != 4 or clip.shape[3] != 3 or clip.dtype != np.uint8 or min(clip.shape) < 1:
            raise DataError(f"a clip is uint8 (F, H, W, 3), got {clip.dtype} {clip.shape}")
        kept = np.unique(np.linspace(0, len(clip) - 1, MOMENTS).round().astype(int))
        pixels = torch.from_numpy(clip[kept]).permute(0, 3, 1, 2).float()

        def look(side: int, samples: int) -> _Look:
            width = max(1, round(side * clip.shape[2] / clip.shape[1]))
            small = F.interpolate(pixels, (side, width), mode="area")
            return _Look(small.permute(0, 2, 3, 1).contiguous(), kept / fps, samples)

        return _Seen(look(SIDE, 2), look(SIDE // 2, 1))


def _swept(seen: _Seen, scene: Scene, asked: Scene, thorough: bool) -> Scene:
    """Return ``scene`` with the nearest value of every attribute, asked one after the other."""
    # Few scenes cost hardly less than many rendered together, and most answers leave the scene as it is.
    seen.rough.errors([one for names in _questions(scene) for _, one in _alternatives(scene, names, asked)])
    for names in _questions(scene):
        options = _alternatives(scene, names, asked)
        kept = _near(seen, options, _ANSWERS)
        if thorough and names[0].startswith("shape"):
            # A large cube where a small torus was fitted looks worst of all, and best where it belongs.
            for count in _FITTED:
                options = _fitted(seen, _near(seen, options, count, float("inf")), int(names[0].split(".")[1]))
            kept += _near(seen, options, _ANSWERS)
        scene = _nearest(seen, kept)
    return scene


def _questions(scene: Scene) -> Iterator[tuple[str, ...]]:
    """Yield every attribute, what fills the picture first; together those of which one can look like the other."""
    yield from (("light", "weather"), ("ground",), ("camera",))
    if scene.relation is not None:
        yield ("relation",)
    for index in range(len(scene.objects)):
        yield (f"motion.{index}",)
        yield f"color.{index}", f"material.{index}"
        yield f"shape.{index}", f"size.{index}"


def _alternatives(scene: Scene, names: tuple[str, ...], asked: Scene) -> list[_Option]:
    """Return ``scene`` with all values of these attributes."""
    found = [(0, scene)]
    for name in names:
        values, wanted = (THING_VALUES | SCENE_VALUES)[name.split(".")[0]], value_of(asked, name)
        pairs = [(count + (value == wanted), before, value) for count, before in found for value in values]
        found = [(count, one) for count, before, value in pairs for one in _variants(before, name, value)]
    return found


def _near(seen: _Seen, options: list[_Option], count: int, margin: float = _MARGIN) -> list[_Option]:
    """Return the ``count`` options that are roughly nearest, and those that were closely looked at before."""
    errors = seen.rough.errors([scene for _, scene in options])
    ranked = sorted((error, wanted, i) for i, (error, (wanted, _)) in enumerate(zip(errors, options, strict=True)))
    near = {i for error, _, i in ranked[:count] if error <= margin * ranked[0][0]}
    return [one for i, one in enumerate(options) if i in near or one[1] in seen.close.known]


def _nearest(seen: _Seen, options: list[_Option]) -> Scene:
    """Return the option nearest to the clip; of equal ones, that which is asked for least."""
    errors = seen.close.errors([scene for _, scene in options])
    return min(zip(errors, options, strict=True), key=lambda one: (one[0], one[1][0]))[1][1]


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


def _settled(seen: _Seen, scene: Scene) -> Scene:
    """Return ``scene`` with places, turns and the sides of light and turning that fit better."""
    while True:
        candidates = [scene, *_moved(seen, scene, range(len(scene.objects)))]
        best = int(np.argmin(seen.close.errors(candidates)))
        if best == 0:
            return scene
        scene = candidates[best]


def _moved(seen: _Seen, scene: Scene, things: Sequence[int]) -> list[Scene]:
    """Return ``scene`` with the layouts that fit best roughly: all moves that help at once, then the best two."""
    start = _numbers(scene.layout)
    moves = [(number, -start[number]) for number in (0, 1)]
    for number in (2 + 3 * thing + axis for thing in things for axis in range(3)):
        steps = _TURN_STEPS if number % 3 == 1 else _PLACE_STEPS
        moves += [(number, start[number] + sign * step) for step in steps for sign in (1, -1)]
    moved = [replace(scene, layout=_layout(_put(start, *move))) for move in moves]
    here, *errors = seen.rough.errors([scene, *moved])
    order = [int(i) for i in np.argsort(errors, kind="stable") if errors[i] != here]  # equal: nothing to be seen
    together = start
    for i in reversed(order):  # so that the best move of each number comes last
        if errors[i] < here:
            together = _put(together, *moves[i])
    return [replace(scene, layout=_layout(together)), *(moved[i] for i in order[:2])]


def _fitted(seen: _Seen, options: list[_Option], thing: int) -> list[_Option]:
    """Return each option with the layout of one thing that fits best roughly."""
    layouts = [[scene, *_moved(seen, scene, [thing])] for _, scene in options]
    seen.rough.errors([scene for scenes in layouts for scene in scenes])
    best = [min(scenes, key=seen.rough.known.__getitem__) for scenes in layouts]
    return [(wanted, scene) for (wanted, _), scene in zip(options, best, strict=True)]


def _numbers(layout: Layout) -> tuple[float, ...]:
    """Return the sides of light and turning, then x, z and turn of each object."""
    places = zip(layout.shifts, layout.turns, strict=True)
    return (layout.sun, layout.direction, *(number for (x, z), turn in places for number in (x, z, turn)))


def _layout(numbers: tuple[float, ...]) -> Layout:
    places = tuple(zip(numbers[2::3], numbers[3::3], strict=True))
    return Layout(places, numbers[4::3], direction=int(numbers[1]), sun=int(numbers[0]))


def _put(values: tuple[float, ...], index: int, value: float) -> tuple[float, ...]:
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
    """Return the share of pixels of each frame nearer to ``color`` than to any other object color, (F,).

    Raises:
        ConfigError: unless ``color`` is one of `HUES`.
    """
    return _nearest_color(clip, color).mean((1, 2))


def centroid_track(clip: np.ndarray, color: str) -> np.ndarray:
    """Return the center of the pixels nearest to ``color``, (F, 2): x, y from -1 to 1, NaN where there are none.

    Raises:
        ConfigError: unless ``color`` is one of `HUES`.
    """
    mask = _nearest_color(clip, color)
    height, width = mask.shape[1:]
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None]
    count = mask.sum((1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack([(mask * axis).sum((1, 2)) / count for axis in (x, y)], 1)


def _nearest_color(clip: np.ndarray, color: str) -> np.ndarray:
    """Return which pixels (F, H, W) have the hue of ``color`` and are as colorful as an object."""
    if color not in HUES:
        raise ConfigError(f"{color!r} cannot be told by its hue. Use one of {', '.join(HUES)}.")
    palette = np.array([OBJECT_COLORS[hue] for hue in HUES], np.float32)
    pixels = clip.astype(np.float32)
    shades = palette / palette.sum(1, keepdims=True)
    own = pixels / np.maximum(pixels.sum(3, keepdims=True), 1)
    distance = ((own[..., None, :] - shades) ** 2).sum(-1)
    colorful = pixels.max(3) - pixels.min(3) > 60
    return (distance.argmin(-1) == HUES.index(color)) & colorful
