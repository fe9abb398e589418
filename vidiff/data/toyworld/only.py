"""Conditions on scenes, such as "motion=left,right": what the first object, or the scene, is to be."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vidiff.data.toyworld.attributes import SCENE_VALUES, THING_VALUES, Scene
from vidiff.errors import ConfigError, did_you_mean

Only = tuple[tuple[str, tuple[str, ...]], ...]  # attributes, each with the values that it may have
_VALUES = THING_VALUES | SCENE_VALUES


def parsed(conditions: Sequence[str]) -> Only:
    """Return what ``NAME=VALUE,VALUE`` conditions mean.

    Raises:
        ConfigError: for an unknown attribute or value; the message says which there are.
    """
    found: dict[str, tuple[str, ...]] = {}
    for condition in conditions:
        name, _, text = (part.strip() for part in condition.partition("="))
        if name not in _VALUES:
            owner = next((known for known, values in _VALUES.items() if condition.strip() in values), None)
            if owner is not None:
                raise ConfigError(f"{condition.strip()!r} is a value; write {owner}={condition.strip()}")
            raise ConfigError(
                f"unknown attribute {name!r}.{did_you_mean(name, _VALUES)} Use one of {', '.join(_VALUES)}."
            )
        values = tuple(value.strip() for value in text.split(","))
        for value in values:
            if value not in _VALUES[name]:
                known = _VALUES[name]
                raise ConfigError(
                    f"unknown {name} {value!r}.{did_you_mean(value, known)} Use one of {', '.join(known)}."
                )
        found[name] = (*found.get(name, ()), *(value for value in values if value not in found.get(name, ())))
    return tuple(found.items())


def narrowed(scene: Scene, only: Only, rng: np.random.Generator) -> Scene:
    """Return ``scene`` with values that ``only`` allows.

    Raises:
        ConfigError: if they contradict what is left of the scene.
    """
    picked: dict[str, Any] = {name: values[int(rng.integers(len(values)))] for name, values in only}
    first = replace(scene.objects[0], **{name: value for name, value in picked.items() if name in THING_VALUES})
    others = {name: value for name, value in picked.items() if name in SCENE_VALUES}
    return replace(scene, objects=(first, *scene.objects[1:]), **others)
