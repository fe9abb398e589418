"""Dataclasses from YAML and back, strictly.

A field's annotation decides what its value may be. Where several classes may stand in one place, the annotation is a
union of dataclasses and the mapping's ``kind`` picks the one whose own ``kind`` matches. What a mapping leaves out
stays as in the default of its field. The walk over dataclasses, unions and lists is here, because it owes the user
places, lines, nearest names and all errors at once; every other value is checked by pydantic in strict mode.
"""

import dataclasses
import functools
import json
import re
import reprlib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, overload

from pydantic import ConfigDict, TypeAdapter, ValidationError

from vidiff import resources, yaml12
from vidiff.errors import ConfigError, did_you_mean
from vidiff.overrides import include_origins, override, upward
from vidiff.yaml12 import Place, read_yaml

__all__ = ["dump", "from_dict", "load", "overridden", "read_yaml", "to_dict"]

T = TypeVar("T")

_INVALID = object()  # stands for a value whose errors are already noted
_STRICT = ConfigDict(strict=True, allow_inf_nan=False)


@overload
def load(cls: type[T], path: Path | str, overrides: Sequence[str] = ()) -> T: ...
@overload
def load(cls: Any, path: Path | str, overrides: Sequence[str] = ()) -> Any: ...
def load(cls: Any, path: Path | str, overrides: Sequence[str] = ()) -> Any:
    """Read ``path``, apply ``stages.0.trainer.lr=2e-4`` overrides and return a checked ``cls``.

    Raises:
        ConfigError: names every problem with its file, line, place and what would do.
    """
    document = yaml12.read_document(path)
    data = {} if document.data is None else document.data
    origins = {place: f"{path}:{line}" for place, line in document.lines.items()}
    origins.setdefault((), str(path))
    for text in overrides:
        data = override(data, text, origins)
    return _checked(cls, data, origins, str(path))


@overload
def from_dict(cls: type[T], data: Any, source: str = "") -> T: ...
@overload
def from_dict(cls: Any, data: Any, source: str = "") -> Any: ...
def from_dict(cls: Any, data: Any, source: str = "") -> Any:
    """Return ``data`` as ``cls``, a dataclass or a union of dataclasses told apart by ``kind``.

    Args:
        cls: what ``data`` should become.
        data: plain dicts, lists and scalars; the name of a shipped config may stand for a dict.
        source: the file that ``data`` came from, for errors.

    Raises:
        ConfigError: names every problem with its place and what would do.
    """
    return _checked(cls, data, {(): source}, source)


def overridden(obj: T, overrides: Sequence[str]) -> T:
    """Return a config with ``guidance.rescale=0.7`` overrides, checked; raises as ``load``."""
    data = to_dict(obj)
    origins: dict[Place, str] = {(): ""}
    for text in overrides:
        data = override(data, text, origins)
    return _checked(type(obj), data, origins, "")


def to_dict(obj: Any) -> Any:
    """Return everything in a config as plain dicts, lists and scalars; ``from_dict`` turns it back into its equal."""
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return {f.name: to_dict(getattr(obj, f.name)) for f in dataclasses.fields(obj) if f.init}
    if isinstance(obj, dict):
        return {key: to_dict(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [to_dict(value) for value in obj]
    return str(obj) if isinstance(obj, Path) else obj


def dump(obj: Any) -> str:
    """Return a config as YAML that ``load`` reads back as its equal."""
    return yaml12.dump(to_dict(obj))


def _checked(cls: Any, data: Any, origins: dict[Place, str], source: str) -> Any:
    walk = _Walk(origins)
    value = walk.value(cls, data, (), _INVALID)
    problems = walk.problems
    if len(problems) == 1:
        raise ConfigError(problems[0])
    if problems:
        raise ConfigError(f"{len(problems)} problems in {source or 'the config'}\n  " + "\n  ".join(problems))
    return value


class _Walk:
    """Turns plain data into what annotations ask for and notes every problem on the way."""

    def __init__(self, origins: dict[Place, str]) -> None:
        self.origins = origins
        self.problems: list[str] = []
        self.including = False

    def value(self, annotation: Any, data: Any, place: Place, default: Any) -> Any:
        """Return ``data`` as ``annotation`` asks, or _INVALID; ``default`` is what stands there when nothing does."""
        origin, args = typing.get_origin(annotation), typing.get_args(annotation)
        if dataclasses.is_dataclass(data) and not isinstance(data, type):
            data = to_dict(data)
        if not _holds_dataclass(annotation):
            return self.leaf(annotation, data, place)
        if origin is Annotated:  # around dataclasses it can say no more than `kind` does
            return self.value(args[0], data, place, default)
        if origin in (Union, types.UnionType):
            return self.union(args, data, place, default)
        if dataclasses.is_dataclass(annotation):
            return self.dataclass(annotation, data, place, default)
        if origin is dict:
            return self.mapping(args[1], data, place)
        return self.sequence(annotation, data, place)

    def leaf(self, annotation: Any, data: Any, place: Place) -> Any:
        given = [a for a in typing.get_args(annotation) if a is not type(None)] if _is_union(annotation) else []
        if data is not None and len(given) == 1:
            return self.leaf(given[0], data, place)
        length = _tuple_length(annotation)
        if length is not None and isinstance(data, list | tuple) and len(data) != length:
            return self.problem(place, f"expected {length} items, got {len(data)}")
        try:
            # As JSON: strict there takes lists for tuples and text for paths, but neither text nor a bool for numbers.
            return _adapter(annotation).validate_json(json.dumps(data, default=_plain, allow_nan=False))
        except ValidationError as error:
            details = error.errors(include_url=False)
            members = [_name(a) for a in typing.get_args(annotation)] if _is_union(annotation) else []
            if len(details) > 1 and members:
                return self.problem(place, f"expected {' or '.join(members)}, got {_short(data)}")
            for detail in details:
                inner = tuple(str(part) for part in detail["loc"] if not members or isinstance(part, int))
                self.problem((*place, *inner), _pydantic_text(detail))
        except ValueError as error:
            self.problem(place, f"expected finite numbers, got {_short(data)} ({error})")
        return _INVALID

    def dataclass(self, cls: Any, data: Any, place: Place, default: Any) -> Any:
        if isinstance(data, str):
            return self.include(cls, data, place)
        if not isinstance(data, dict):
            return self.problem(place, f"expected a mapping for {cls.__name__}, got {_short(data)}")
        hints = typing.get_type_hints(cls, include_extras=True)
        fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
        for key in data:
            if key not in fields:
                # What is already there is not what was meant.
                hint = did_you_mean(str(key), [f for f in fields if f not in data]) or did_you_mean(str(key), fields)
                self.problem((*place, str(key)), f"unknown key.{hint or f' {cls.__name__} has {_listed(fields)}.'}")
        values: dict[str, Any] = {}
        whole = True
        for key, field in fields.items():
            if key in data:
                usual = getattr(default, key) if type(default) is cls else _default(field)
                values[key] = self.value(hints[key], data[key], (*place, key), usual)
                whole = whole and values[key] is not _INVALID
            elif type(default) is cls:
                values[key] = getattr(default, key)
            elif _default(field) is _INVALID:
                self.problem(place, f"the key {key} is missing")
                whole = False
        if not whole or any(key not in fields for key in data):
            return _INVALID
        try:
            return cls(**values)
        except ValueError as error:  # from the dataclass's own __post_init__
            return self.problem(place, str(error))

    def union(self, members: tuple[Any, ...], data: Any, place: Place, default: Any) -> Any:
        if data is None and type(None) in members:
            return None
        members = tuple(m for m in members if m is not type(None))
        if len(members) == 1:
            return self.value(members[0], data, place, default)
        leaves = tuple(m for m in members if not _holds_dataclass(m))
        classes = {_kind(m): m for m in members if dataclasses.is_dataclass(m)}
        if leaves and not isinstance(data, dict):
            return self.leaf(Union[leaves], data, place)  # noqa: UP007 - a tuple of members
        if isinstance(data, str):
            return self.include(Union[members], data, place)  # noqa: UP007
        if not isinstance(data, dict):
            return self.problem(place, f"expected a mapping with a kind out of {_listed(classes)}, got {_short(data)}")
        kind = data.get("kind", getattr(default, "kind", None))
        if not isinstance(kind, str) or kind not in classes:
            if "kind" not in data:
                return self.problem(place, f"the key kind is missing; one of {_listed(classes)}")
            hint = did_you_mean(str(kind), classes)
            return self.problem((*place, "kind"), f"expected one of {_listed(classes)}, got {_short(kind)}.{hint}")
        return self.value(classes[kind], data, place, default)

    def mapping(self, annotation: Any, data: Any, place: Place) -> Any:
        if not isinstance(data, dict):
            return self.problem(place, f"expected a mapping, got {_short(data)}")
        values = {str(k): self.value(annotation, v, (*place, str(k)), _INVALID) for k, v in data.items()}
        return _INVALID if any(v is _INVALID for v in values.values()) else values

    def sequence(self, annotation: Any, data: Any, place: Place) -> Any:
        origin, args = typing.get_origin(annotation), typing.get_args(annotation)
        if origin not in (list, tuple, Sequence):
            raise TypeError(f"a config cannot hold {annotation}")
        if not isinstance(data, list | tuple):
            return self.problem(place, f"expected a list, got {_short(data)}")
        length = _tuple_length(annotation)
        if length is not None and len(data) != length:
            return self.problem(place, f"expected {length} items, got {len(data)}")
        items = args if length is not None else args[:1] * len(data)
        pairs = enumerate(zip(items, data, strict=True))
        values = [self.value(a, item, (*place, str(i)), _INVALID) for i, (a, item) in pairs]
        if any(v is _INVALID for v in values):
            return _INVALID
        return values if origin is list else tuple(values)

    def include(self, annotation: Any, text: str, place: Place) -> Any:
        """Read the shipped config named ``text``; one level, so that a config is never a search through files."""
        if self.including:
            return self.problem(place, f"expected a mapping, got {_short(text)}; an included config includes no other")
        shipped = resources.configs()
        if text not in shipped:
            hint = did_you_mean(text, shipped) or (f" Shipped configs: {_listed(sorted(shipped))}." if shipped else "")
            return self.problem(place, f"expected a mapping or the name of a shipped config, got {_short(text)}.{hint}")
        include_origins(place, text, shipped[text], self.origins)
        self.including = True
        try:
            return self.value(annotation, read_yaml(shipped[text]) or {}, place, _INVALID)
        finally:
            self.including = False

    def problem(self, place: Place, what: str) -> Any:
        origin = next(self.origins[p] for p in upward(place) if p in self.origins)
        self.problems.append(": ".join(part for part in (origin, ".".join(place), what) if part))
        return _INVALID


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else _INVALID


def _holds_dataclass(annotation: Any) -> bool:
    if dataclasses.is_dataclass(annotation):
        return True
    if typing.get_origin(annotation) is Literal:
        return False
    return any(_holds_dataclass(argument) for argument in typing.get_args(annotation))


def _kind(cls: Any) -> str:
    kinds = typing.get_args(typing.get_type_hints(cls).get("kind"))
    if len(kinds) != 1:
        raise TypeError(f"{cls.__name__} stands in a union and needs `kind: Literal[...]`")
    return str(kinds[0])


def _tuple_length(annotation: Any) -> int | None:
    """Return how many items an annotation asks for, None if it is no tuple or one of any length."""
    args = typing.get_args(annotation)
    return None if typing.get_origin(annotation) is not tuple or Ellipsis in args else len(args)


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (Union, types.UnionType)


@functools.cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation, config=_STRICT)


def _plain(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    raise ValueError(f"{type(value).__name__} is no plain value")


def _pydantic_text(detail: Any) -> str:
    text = f"{detail['msg'].replace('Input should be', 'expected')}, got {_short(detail['input'])}"
    choices = re.findall(r"'([^']*)'", detail["msg"]) if detail["type"] == "literal_error" else []
    return text + (f".{hint}" if (hint := did_you_mean(str(detail["input"]), choices)) else "")


def _short(value: Any) -> str:
    return reprlib.repr(value)


def _name(annotation: Any) -> str:
    """Return an annotation as a reader of an error knows it."""
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _listed(names: Any) -> str:
    return ", ".join(str(n) for n in names)
