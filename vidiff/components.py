"""Published weights of one network: a folder of ``config.json`` and safetensors files, whole or in shards."""

import json
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vidiff.component_configs import check_config, named_in
from vidiff.errors import CheckpointError

_INDEX = "*.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_SHOWN = 3  # names in one error
_MOST = 64 << 20  # bytes of a config or an index
_UNREAD = re.compile(r"\.norm_added_q\.weight$")  # some published files hold it; no implementation reads it


@dataclass(frozen=True)
class Component:
    """One network's folder, read no further than its config and the headers of its files."""

    folder: Path
    config: dict[str, Any]
    files: dict[str, Path]  # of each tensor
    shapes: dict[str, tuple[int, ...]]


def read_json(path: Path) -> dict[str, Any]:
    """Return what a JSON file holds.

    Raises:
        CheckpointError: if it is missing, too large or no JSON object.
    """
    try:
        if path.stat().st_size > _MOST:
            raise CheckpointError(f"{path}: larger than a config can be")
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; the folder is not whole") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: holds no JSON object")
    return found


def open_component(folder: Path, whole: str | None = None) -> Component:
    """Read the config of a network and what its weights are called.

    Args:
        folder: where they lie.
        whole: the file that holds all weights if it or its index is there, whatever lies beside it.

    Raises:
        CheckpointError: if something is missing or damaged, or there are only pickled weights, which are never read.
    """
    config = read_json(folder / "config.json")
    with named_in(folder):
        check_config(folder, config)
    files = {"": folder / whole} if whole is not None and (folder / whole).is_file() else _shards(folder, whole)
    shapes: dict[str, tuple[int, ...]] = {}
    owners: dict[str, Path] = {}
    for path in sorted(set(files.values())):
        for name, shape in _header(path).items():
            shapes[name], owners[name] = shape, path
    if absent := [name for name in files if name and owners.get(name) != files[name]]:
        raise CheckpointError(f"{folder}: the index names {_names(absent)}, which the files do not hold; copy it again")
    return Component(folder, config, owners, shapes)


def check_tensors(
    component: Component,
    wanted: Mapping[str, tuple[int, ...]],
    unread: re.Pattern[str] = _UNREAD,
    meant: Callable[[str], str] = str,
) -> None:
    """Refuse a component whose tensors are not those of a network.

    Args:
        component: what is there.
        wanted: the shape of each tensor of the network.
        unread: names that may be there without being wanted.
        meant: the wanted name of a tensor by its name in the files; several may have the same.

    Raises:
        CheckpointError: if a tensor is missing, left over or misshapen; it is named.
    """
    found = {name: meant(name) for name in component.shapes}
    held = set(found.values())
    missing = [name for name in wanted if name not in held]
    extra = [name for name, ours in found.items() if ours not in wanted and not unread.search(name)]
    wrong = [
        f"{name} {component.shapes[name]}, expected {wanted[ours]}"
        for name, ours in found.items()
        if ours in wanted and component.shapes[name] != wanted[ours]
    ]
    problems = [
        f"{what}: {_names(names)}"
        for what, names in (("missing", missing), ("unexpected", extra), ("of the wrong shape", wrong))
        if names
    ]
    if problems:
        raise CheckpointError(f"{component.folder}: {'; '.join(problems)}; take the weights that belong to its config")


def check_finite(place: Path, name: str, tensor: Tensor) -> None:
    """Raise a CheckpointError if a number of a tensor, which is named with its place, is not finite."""
    if not tensor.is_floating_point() or tensor.is_meta or tensor.numel() == 0:
        return
    # The extremes follow from what is there, and are NaN if anything is; `isfinite` of all would be a copy in memory.
    if not all(bool(torch.isfinite(extreme)) for extreme in tensor.aminmax()):
        raise CheckpointError(f"{place}: {name} is not finite; the file is damaged")


def _shards(folder: Path, whole: str | None = None) -> dict[str, Path]:
    """Return the file of each tensor as the index says, or {"": the only file}."""
    own = folder / f"{whole}.index.json"
    indexes = [own] if own.is_file() else sorted(folder.glob(_INDEX))
    if indexes:
        listed = read_json(indexes[0]).get("weight_map")
        if not isinstance(listed, dict) or not listed:
            raise CheckpointError(f"{indexes[0]}: lists no weights")
        for tensor, name in listed.items():
            if not isinstance(name, str):
                what = f"{_names([tensor])} is in no file but {reprlib.repr(name)}"
                raise CheckpointError(f"{indexes[0]}: {what}; copy it again")
        for name in set(listed.values()):
            if Path(name).name != name:
                raise CheckpointError(f"{indexes[0]}: names a file outside of its folder: {name!r}")
            if not (folder / name).is_file():
                raise CheckpointError(f"{folder / name}: missing, though the index names it; the folder is not whole")
        return {name: folder / file for name, file in listed.items()}
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        pickled = [path.name for kind in _PICKLES for path in sorted(folder.glob(kind))]
        if pickled:
            raise CheckpointError(f"{folder}: {pickled[0]} is pickled, which is never read; convert it to safetensors")
        raise CheckpointError(f"{folder}: holds no safetensors weights; the folder is not whole")
    if len(found) > 1:
        raise CheckpointError(f"{folder}: {len(found)} safetensors files and no index that says which to read")
    return {"": found[0]}


def _header(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}); fetch it again") from error


def _names(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    shown = (name if name.isprintable() else repr(name) for name in names[:_SHOWN])  # for one line stays one
    return ", ".join(shown) + more
