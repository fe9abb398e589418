"""Captions that are wrong about a scene in one attribute: what a network must tell from true ones."""

from dataclasses import replace
from typing import Any

import numpy as np

from vidiff.data.toyworld.attributes import SCENE_VALUES, THING_VALUES, Scene
from vidiff.data.toyworld.captions import caption
from vidiff.errors import ConfigError


def altered_captions(scene: Scene, seed: int, index: int, count: int) -> list[str]:
    """Return ``count`` captions, each of a scene that differs in one attribute, which it states; always the same."""
    rng = np.random.default_rng((seed, index, 4))
    return [_altered(scene, rng) for _ in range(count)]


def _altered(scene: Scene, rng: np.random.Generator) -> str:
    places: list[tuple[int | None, str]] = []
    places += [(number, name) for number in range(len(scene.objects)) for name in THING_VALUES]
    places += [(None, name) for name in SCENE_VALUES if getattr(scene, name) is not None]
    while True:  # another shape is always possible and always said
        number, name = places[int(rng.integers(len(places)))]
        values = (THING_VALUES | SCENE_VALUES)[name]
        value = values[int(rng.integers(len(values)))]
        try:
            other = _with(scene, number, name, value)
        except ConfigError:
            continue  # the attributes contradict each other
        said = caption(other, rng)
        if other != scene and (name if number is None else f"{name}.{number}") in said.stated:
            return said.text


def _with(scene: Scene, number: int | None, name: str, value: str) -> Scene:
    """Return ``scene`` with another value of one attribute: its own, or that of object ``number``."""
    change: dict[str, Any] = {name: value}
    if number is None:
        return replace(scene, **change)
    things = list(scene.objects)
    things[number] = replace(things[number], **change)
    return replace(scene, objects=tuple(things))
