"""Scenes by number: scene ``index`` of a seed is always the same one."""

from dataclasses import replace

import numpy as np

from vidiff.data.toyworld.attributes import (
    CAMERAS,
    COLORS,
    GROUNDS,
    HELD_OUT,
    LIGHTS,
    MATERIALS,
    MAX_OBJECTS,
    MOTIONS,
    RELATIONS,
    SHAPES,
    SIZES,
    WEATHERS,
    Layout,
    Scene,
    Thing,
)
from vidiff.data.toyworld.captions import Caption, caption
from vidiff.data.toyworld.only import Only, narrowed
from vidiff.errors import ConfigError

_COUNTS = (0.55, 0.35, 0.1)  # how often a scene has one, two, three objects
_OTHERS_STAND = 0.75  # how often an object that is not the first stands still
_CAMERA_STILL, _CLEAR = 0.3, 0.6
_HELD_OUT = sorted(HELD_OUT)
# How often each held-out pair is tried: a handful are enough for most, but conditions may contradict the first pair.
_TRIES = (2000, *(100,) * 50)


def draw_scene(seed: int, index: int, heldout: bool = False, only: Only = ()) -> Scene:
    """Return scene ``index`` of ``seed``, under the conditions of ``only``.

    Without ``heldout`` it holds none of the pairs of `HELD_OUT`; with it, at least one.

    Raises:
        ConfigError: if no scene meets the conditions.
    """
    rng = np.random.default_rng((seed, index, heldout))
    for tries in _TRIES:
        wanted = _HELD_OUT[int(rng.integers(len(_HELD_OUT)))] if heldout else None
        for _ in range(tries):
            try:
                scene = _drawn(rng)
                if wanted is not None:
                    scene = _with_pair(scene, wanted)
                if only:
                    scene = narrowed(scene, only, rng)
            except ConfigError:
                continue  # the attributes contradict each other
            if bool(scene.pairs() & HELD_OUT) == heldout:
                return scene
    asked = "; ".join(f"{name}={','.join(values)}" for name, values in only)
    kind, other = ("held-out", "without") if heldout else ("training", "with")
    raise ConfigError(
        f"no {kind} scene was found with {asked}; allow more values, or try {other} --heldout: pairs that are held out "
        "come with it alone"
    )


def draw_captions(scene: Scene, seed: int, index: int, count: int = 1) -> list[Caption]:
    """Return ``count`` descriptions of a scene, the same ones every time."""
    rng = np.random.default_rng((seed, index, 2))
    return [caption(scene, rng) for _ in range(count)]


def draw_layout(rng: np.random.Generator) -> Layout:
    """Return what captions do not speak of, at random."""
    return Layout(
        tuple((float(x), float(z)) for x, z in rng.uniform(-0.2, 0.2, (MAX_OBJECTS, 2))),
        tuple(float(turn) for turn in rng.uniform(-0.75, 0.75, MAX_OBJECTS)),
        int(rng.choice((-1, 1))),
        int(rng.choice((-1, 1))),
    )


def _drawn(rng: np.random.Generator) -> Scene:
    def pick(values: tuple[str, ...]) -> str:
        return values[int(rng.integers(len(values)))]

    count = 1 + int(rng.choice(MAX_OBJECTS, p=_COUNTS))
    things = []
    for number in range(count):
        stands = number > 0 and rng.random() < _OTHERS_STAND
        motion = "still" if stands else pick(MOTIONS)
        things.append(Thing(pick(SHAPES), pick(COLORS), pick(SIZES), pick(MATERIALS), motion))
    relation = pick(RELATIONS) if count > 1 and things[0].motion != "orbit" else None
    layout = draw_layout(rng)
    camera = "still" if rng.random() < _CAMERA_STILL else pick(CAMERAS[1:])
    weather = WEATHERS[0] if rng.random() < _CLEAR else pick(WEATHERS[1:])
    return Scene(tuple(things), relation, camera, pick(GROUNDS), pick(LIGHTS), weather, layout)


def _with_pair(scene: Scene, pair: tuple[str, str, str, str]) -> Scene:
    """Return ``scene`` with the first object, and the camera if the pair says so, showing a held-out pair."""
    first, a, second, b = pair
    if second == "camera":
        scene = replace(scene, camera=b)
        changed = replace(scene.objects[0], motion=a)
    else:
        changed = replace(scene.objects[0], **{first: a, second: b})
    return replace(scene, objects=(changed, *scene.objects[1:]))
