"""Model folders: ``config.yaml`` and ``model.safetensors``, written whole and read with suspicion."""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vidiff import files, yaml12
from vidiff.errors import CheckpointError, NumericalError

CONFIG_NAME = "config.yaml"
WEIGHTS_NAME = "model.safetensors"

_SHOWN = 3  # names of tensors in one error


def save_model(
    folder: Path | str, config: dict[str, Any], tensors: dict[str, Tensor], *, dtype: torch.dtype | None = None
) -> None:
    """Write ``folder/config.yaml`` and ``folder/model.safetensors``.

    The config makes a folder a model: it goes first and comes last, so a killed save leaves no model instead of
    weights beside the config of others.

    Args:
        folder: made if it is not there; other files in it stay.
        config: plain data.
        tensors: what ``load_weights`` will look for.
        dtype: cast floating-point tensors to it; None keeps each as it is.

    Raises:
        NumericalError: if a tensor is not finite after the cast; nothing is written.
        ResourceError: if the files cannot be written.
    """
    folder = Path(folder)
    cast = {name: t.to(dtype) if dtype is not None and t.is_floating_point() else t for name, t in tensors.items()}
    check_finite(cast)
    text = yaml12.dump(config)
    with files.os_errors_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_NAME).unlink(missing_ok=True)
    path = folder / WEIGHTS_NAME
    with files.os_errors_named(path, needed=size_of(cast)), files.atomic_path(path) as temporary:
        write_tensors(temporary, cast)
    files.write_text(folder / CONFIG_NAME, text)


def load_weights(module: nn.Module, path: Path | str) -> None:
    """Copy the tensors of a safetensors file, or of a model folder, into ``module``, cast to the module's dtypes.

    Raises:
        CheckpointError: if the file is damaged or a tensor is missing, unexpected, of the wrong shape or kind, or not
            finite; the module is untouched.
    """
    path = Path(path)
    path = path / WEIGHTS_NAME if path.is_dir() else path
    wanted = module.state_dict()
    if any(tensor.is_meta for tensor in wanted.values()):
        raise ValueError("the module is on the meta device, which holds nothing to copy into")
    with _reading(path), safe_open(str(path), framework="pt") as file:
        found = set(file.keys())
        shared = {name: tensor for name, tensor in wanted.items() if name in found}
        _refuse(
            path,
            {
                "missing": [name for name in wanted if name not in found],
                "unexpected": sorted(found - wanted.keys()),
                "of the wrong shape": list(_wrong_shapes(file, shared)),
            },
        )
        # Each tensor is read twice, to check and to copy: the memory may not hold a model a second time.
        read = file.get_tensor
        kinds = [name for name, t in wanted.items() if read(name).is_floating_point() != t.is_floating_point()]
        broken = [name for name, t in wanted.items() if not _finite(read(name).to(t.dtype))]
        _refuse(path, {"of the wrong kind of number": kinds, "not finite": broken})
        with torch.no_grad():
            for name, target in wanted.items():
                target.copy_(read(name).to(target.dtype))


def model_hash(folder: Path | str) -> str:
    """Return the SHA-256 over the configs and weights of a model folder and its subfolders, in hexadecimal.

    Raises:
        CheckpointError: if the folder holds no model.
    """
    folder = Path(folder)
    if not (folder / CONFIG_NAME).is_file():
        raise CheckpointError(f"{folder}: no {CONFIG_NAME}, so no model; name a folder that `vidiff` has written")
    digest = hashlib.sha256()
    parts = [path for name in (CONFIG_NAME, WEIGHTS_NAME) for path in folder.rglob(name)]
    with _reading(folder):
        for name, path in sorted((path.relative_to(folder).as_posix(), path) for path in parts):
            digest.update(f"{files.sha256_of(path)}  {name}\n".encode())
    return digest.hexdigest()


def check_finite(tensors: dict[str, Tensor], where: str = "") -> None:
    """Refuse NaN and infinity.

    Raises:
        NumericalError: with the names of the tensors, after ``where``.
    """
    broken = [name for name, tensor in tensors.items() if not _finite(tensor)]
    if broken:
        raise NumericalError(f"{where}not finite and not saved: {_names(broken)}; lower the learning rate")


def size_of(tensors: dict[str, Tensor]) -> int:
    """Return the bytes that tensors take in a file."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def write_tensors(path: Path, tensors: dict[str, Tensor], header: dict[str, str] | None = None) -> None:
    """Write a safetensors file. Tied tensors are written once for each name, and ``header`` for `read_header`.

    Raises:
        OSError: as the system says it.
    """
    seen: set[int] = set()
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        plain[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    try:
        save_file(plain, str(path), metadata=header or {"format": "pt"})
    except SafetensorError as error:
        # The library hides the error number in its text.
        if number := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(number[1]), str(error), str(path)) from error
        raise


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file onto the CPU.

    Raises:
        CheckpointError: if it is missing or damaged.
    """
    with _reading(path), safe_open(str(path), framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of a safetensors file, reading only its index; raises as `read_tensors`."""
    with _reading(path), safe_open(str(path), framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - not a mapping


def read_header(path: Path) -> dict[str, str]:
    """Return what `write_tensors` was given as ``header``; raises as `read_tensors`."""
    with _reading(path), safe_open(str(path), framework="pt") as file:
        return file.metadata() or {}


class _reading:
    """Turns what a bad file raises into a CheckpointError that names it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, FileNotFoundError):
            raise CheckpointError(f"{self.path}: no such file; name a folder that holds {WEIGHTS_NAME}") from error
        if isinstance(error, OSError):
            raise CheckpointError(f"{self.path}: cannot be read ({error.strerror or error})") from error
        if isinstance(error, SafetensorError):
            raise CheckpointError(f"{self.path}: not a whole safetensors file ({error}); copy it again") from error


def _wrong_shapes(file: Any, wanted: dict[str, Tensor]) -> Iterable[str]:
    for name, tensor in wanted.items():
        shape = tuple(file.get_slice(name).get_shape())
        if shape != tuple(tensor.shape):
            yield f"{name} {shape}, expected {tuple(tensor.shape)}"


def _finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point():
        return True
    if tensor.element_size() == 1:  # float8 has no sum
        tensor = tensor.float()
    # A finite sum has only finite terms and costs no second tensor; large but finite terms may overflow it.
    total = tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32))
    return bool(torch.isfinite(total)) or bool(torch.isfinite(tensor).all())


def _refuse(path: Path, problems: dict[str, list[str]]) -> None:
    listed = [f"{what}: {_names(names)}" for what, names in problems.items() if names]
    if listed:
        raise CheckpointError(f"{path}: {'; '.join(listed)}; take the weights that belong to this config")


def _names(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
