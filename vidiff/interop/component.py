"""Published weights of one network: a folder of ``config.json`` and safetensors files, whole or in shards.

Tensors are read one by one, straight to where they go, so that the host never holds more than one of them beside the
pages of the shard that is being read.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vidiff.errors import CheckpointError

_INDEX = "*.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_SHOWN = 3  # names in one error
_MOST = 64 << 20  # bytes of a config or an index
# What stays in float32 in a half-precision network: the embedding of time, the tables of modulations and the norms, as
# in the published implementations, and both ends, so that the residual stream is float32.
_EXACT = re.compile(
    r"^(patch_embedding|out)\.|(^|\.)(time_embedding|time_projection|norm\w*|\w+_norm|latent_\w+|preview_\w+)(\.|$)"
    r"|\.table$"
)


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


def open_component(folder: Path) -> Component:
    """Read the config of a network and what its weights are called.

    Raises:
        CheckpointError: if something is missing or damaged, or there are only pickled weights, which are never read.
    """
    config = read_json(folder / "config.json")
    if code := config.get("auto_map"):
        raise CheckpointError(f"{folder}: needs code of its own ({next(iter(code))}), which is never run")
    files = _shards(folder)
    shapes: dict[str, tuple[int, ...]] = {}
    owners: dict[str, Path] = {}
    for path in sorted(set(files.values())):
        for name, shape in _header(path).items():
            shapes[name], owners[name] = shape, path
    if absent := [name for name in files if name and owners.get(name) != files[name]]:
        raise CheckpointError(f"{folder}: the index names {_names(absent)}, which the files do not hold; copy it again")
    return Component(folder, config, owners, shapes)


def fill(
    module: nn.Module,
    component: Component,
    published: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> None:
    """Give a module on the meta device its published weights.

    Args:
        module: whose parameters are replaced.
        component: the weights.
        published: renames a state dict of the module to the published names, in order.
        device: where tensors go, each as soon as it is read; to meta none goes, but all are known to fit.
        dtype: of what half precision does not harm; the rest is float32.

    Raises:
        CheckpointError: if a tensor is missing, left over, misshapen or not finite; it is named as published.
    """
    ours = {name: tensor for name, tensor in module.state_dict().items() if not name.startswith(_OWN)}
    theirs = published(ours)
    wanted = dict(zip(theirs, ours, strict=True))
    _check(component, {name: tuple(tensor.shape) for name, tensor in theirs.items()})
    if torch.device(device).type == "meta":
        return
    for path in sorted(set(component.files.values())):
        with safe_open(str(path), framework="pt") as file:
            for name in [name for name in wanted if component.files[name] == path]:
                target = wanted[name]
                exact = _EXACT.search(target) is not None
                tensor = file.get_tensor(name).to(device, torch.float32 if exact else dtype)
                if not bool(torch.isfinite(tensor).all()):
                    raise CheckpointError(f"{path}: {name} is not finite; the file is damaged")
                _put(module, target, tensor.reshape(ours[target].shape))
                del tensor  # which may be a view of the shard's pages


# Statistics lie in the published configs, and previews are ours.
_OWN = ("latent_mean", "latent_std", "preview_weight", "preview_bias")


def _put(module: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if leaf in owner._parameters:
        setattr(owner, leaf, nn.Parameter(tensor, requires_grad=False))
    else:
        setattr(owner, leaf, tensor)


def _check(component: Component, wanted: dict[str, tuple[int, ...]]) -> None:
    found = component.shapes
    missing = [name for name in wanted if name not in found]
    extra = [name for name in found if name not in wanted and not name.endswith(".norm_added_q.weight")]
    wrong = [
        f"{name} {found[name]}, expected {shape}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    problems = [
        f"{what}: {_names(names)}"
        for what, names in (("missing", missing), ("unexpected", extra), ("of the wrong shape", wrong))
        if names
    ]
    if problems:
        raise CheckpointError(f"{component.folder}: {'; '.join(problems)}; take the weights that belong to its config")


def _shards(folder: Path) -> dict[str, Path]:
    """Return the file of each tensor as the index says, or {"": the only file}."""
    indexes = sorted(folder.glob(_INDEX))
    if indexes:
        listed = read_json(indexes[0]).get("weight_map")
        if not isinstance(listed, dict) or not listed:
            raise CheckpointError(f"{indexes[0]}: lists no weights")
        for name in set(listed.values()):
            if not isinstance(name, str) or Path(name).name != name:
                raise CheckpointError(f"{indexes[0]}: names a file outside of its folder: {name!r}")
            if not (folder / name).is_file():
                raise CheckpointError(f"{folder / name}: missing, though the index names it; the folder is not whole")
        return {name: folder / file for name, file in listed.items()}
    whole = sorted(folder.glob("*.safetensors"))
    if not whole:
        pickled = [path.name for kind in _PICKLES for path in sorted(folder.glob(kind))]
        if pickled:
            raise CheckpointError(f"{folder}: {pickled[0]} is pickled, which is never read; convert it to safetensors")
        raise CheckpointError(f"{folder}: holds no safetensors weights; the folder is not whole")
    if len(whole) > 1:
        raise CheckpointError(f"{folder}: {len(whole)} safetensors files and no index that says which to read")
    return {"": whole[0]}


def _header(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}); fetch it again") from error


def _names(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
