"""Settings changed on the command line: ``stages.0.trainer.lr=2e-4``."""

import re
import reprlib
from pathlib import Path
from typing import Any

from vidiff import resources, yaml12
from vidiff.errors import ConfigError
from vidiff.yaml12 import Place


def override(data: Any, text: str, origins: dict[Place, str]) -> Any:
    """Return ``data`` with one ``a.b=value`` set in it, and note in ``origins`` where it came from.

    Args:
        data: plain dicts, lists and scalars; not changed.
        text: the override; its value is YAML.
        origins: file and line, or override, of the value at each place.

    Raises:
        ConfigError: if the text has another form or names no place.
    """
    dotted, equals, value = text.partition("=")
    keys = dotted.strip().split(".")
    origin = f"override {text!r}"
    if not equals or not all(re.fullmatch(r"[\w-]+", key) for key in keys):
        raise ConfigError(f"{origin}: not of the form place=value, for example solver.eta=0.5")
    place = tuple(keys)
    for old in [p for p in origins if p[: len(place)] == place]:
        del origins[old]
    origins[place] = origin
    return _replaced(data, keys, yaml12.parse(value, origin).data, (), origins)


def _replaced(data: Any, keys: list[str], value: Any, place: Place, origins: dict[Place, str]) -> Any:
    if not keys:
        return value
    key, rest = keys[0], keys[1:]
    origin, here = origins[next(p for p in upward((*place, *keys)) if p in origins)], ".".join((*place, key))
    if isinstance(data, str) and data in (shipped := resources.configs()):
        include_origins(place, data, shipped[data], origins)
        data = yaml12.read_yaml(shipped[data])
    if data is None:
        data = {}
    if isinstance(data, list):
        if not key.isdecimal() or int(key) >= len(data):
            have = f"there are items 0 to {len(data) - 1}" if data else "the list is empty"
            raise ConfigError(f"{origin}: {here}: no such item; {have}")
        index = int(key)
        return [*data[:index], _replaced(data[index], rest, value, (*place, key), origins), *data[index + 1 :]]
    if not isinstance(data, dict):
        raise ConfigError(f"{origin}: {here}: {'.'.join(place)} is {reprlib.repr(data)}, which has no keys")
    return {**data, key: _replaced(data.get(key), rest, value, (*place, key), origins)}


def include_origins(place: Place, text: str, path: Path, origins: dict[Place, str]) -> None:
    """Note the lines of an included file as the origins of what it puts at ``place``."""
    for inner, line in yaml12.read_document(path).lines.items():
        if not origins.get((*place, *inner), "").startswith("override "):
            origins[(*place, *inner)] = f"configs/{text}.yaml:{line}"


def upward(place: Place) -> list[Place]:
    """Return a place and all that hold it, innermost first."""
    return [place[:n] for n in range(len(place), -1, -1)]
