"""YAML 1.2 core scalars, read strictly and with limits: ``1e-4`` is a number, ``no`` and ``12:30`` are text.

Left out on purpose: aliases (a few bytes can stand for gigabytes), tags, and repeated keys, where the last one
would win in silence.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vidiff.errors import ConfigError

MAX_BYTES = 1_000_000
MAX_DEPTH = 32

# YAML 1.2.2, section 10.3.2, tag resolution of the core schema.
_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")

Place = tuple[str, ...]


@dataclass(frozen=True)
class Document:
    """What a YAML text holds, and the line on which each value starts."""

    data: Any
    lines: dict[Place, int] = field(default_factory=dict)  # by place, for example ("stages", "0", "lr")


def read_yaml(path: Path | str) -> Any:
    """Read a YAML file as dicts with text keys, lists and scalars.

    Raises:
        ConfigError: if the file is missing, too large, not UTF-8, or not YAML as described in this module; the
            message names the file and the line.
    """
    return read_document(path).data


def read_document(path: Path | str) -> Document:
    """Read a YAML file with the line of each value; raises as ``read_yaml``."""
    try:
        with Path(path).open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check the name") from error
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_BYTES} bytes; a config is text of a few kilobytes")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    return parse(text, str(path))


def parse(text: str, source: str) -> Document:
    """Parse one YAML document; ``source`` stands for the file in errors. Raises as ``read_yaml``."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return Document(None)
        lines: dict[Place, int] = {}
        return Document(_value(node, (), lines), lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}" if mark else source
        raise ConfigError(f"{where}: {error.problem or error.context or 'not YAML'}") from error
    except yaml.YAMLError as error:  # a character that YAML forbids
        raise ConfigError(f"{source}: {' '.join(str(error).split())}") from error


def dump(data: Any) -> str:
    """Return ``data`` as block YAML that ``parse`` and YAML 1.1 readers take for the same values."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120, default_flow_style=False)


class _Loader(yaml.SafeLoader):
    """Builds the node tree; refuses aliases, anchors, tags and deep nesting before they cost anything."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise _problem("anchors and aliases are not read; write the value out", event.start_mark)
        if event.tag is not None:
            raise _problem(f"the tag {event.tag} is not read; remove it", event.start_mark)
        if self.depth >= MAX_DEPTH and not isinstance(event, yaml.ScalarEvent):
            raise _problem(f"nested more than {MAX_DEPTH} deep", event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _value(node: yaml.Node, place: Place, lines: dict[Place, int]) -> Any:
    lines[place] = node.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*place, str(i)), lines) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _problem("a key must be plain text", key.start_mark)
            if key.value in mapping:
                raise _problem(f"the key {key.value!r} is given twice", key.start_mark)
            mapping[key.value] = _value(value, (*place, key.value), lines)
            lines[(*place, key.value)] = key.start_mark.line + 1
        return mapping
    return node.value if isinstance(node, yaml.ScalarNode) and node.style else _scalar(node)


def _scalar(node: yaml.Node) -> Any:
    text: str = node.value
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if _INT.fullmatch(text):
        if len(text) > 100:
            raise _problem("the number has too many digits", node.start_mark)
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    if _FLOAT.fullmatch(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def _problem(what: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=what, problem_mark=mark)


class _Dumper(yaml.SafeDumper):
    """Quotes text that either YAML 1.1 or YAML 1.2 would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern in (("null", _NULL), ("bool", _BOOL), ("int", _INT), ("float", _FLOAT)):
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern.pattern})\Z"), None)
