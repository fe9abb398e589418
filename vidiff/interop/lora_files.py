"""Files of low-rank adapters (LoRA; Hu et al., 2021) for Wan transformers, read as bytes that nobody vouches for."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidiff import weights
from vidiff.errors import CheckpointError
from vidiff.interop.lora_keys import Dialect, LoRAKey, Part, parse_key

CONFIG_NAME = "adapter_config.json"
FILE_NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")  # in a folder of diffusers, of PEFT

_MAX_TENSORS = 100_000  # every module of the largest published transformer, 40 blocks, has fewer than 5,000 parts
_MAX_CONFIG_BYTES = 1 << 20
# Adapters of other kinds, which are not a product of two matrices added to a weight.
_OTHER_KINDS = {"dora_scale": "DoRA", "lora_magnitude_vector": "DoRA", "hada_": "LoHa", "lokr_": "LoKr"}
_OTHER_KINDS |= {"lora_mid": "LoCon with a middle factor", "oft_": "OFT"}


@dataclass(frozen=True)
class Change:
    """What a file adds to one module: ``factor * up @ down`` or ``diff`` to its weight, ``bias`` to its bias."""

    source: str  # the module as the file names it
    down: Tensor | None = None  # A: (rank, in), or (rank, channels, frames, rows, columns) of a patch
    up: Tensor | None = None  # B: (out, rank), or (out, rank, 1, 1, 1)
    alpha: float | None = None
    factor: float = 1.0  # alpha / rank (Hu et al., 2021, section 4.1), or what the file's config says
    diff: Tensor | None = None  # a full-rank difference, of the weight's shape
    bias: Tensor | None = None  # (out,)

    @property
    def rank(self) -> int | None:
        return None if self.down is None else self.down.shape[0]


@dataclass(frozen=True)
class LoRA:
    """The changes of a file by the names that diffusers gives the modules."""

    path: Path
    dialect: Dialect
    changes: Mapping[str, Change]
    second: Mapping[str, Change] = field(default_factory=dict)  # of the second expert of Wan 2.2
    foreign: tuple[str, ...] = ()  # modules and keys, as the file names them, that no Wan transformer here has


def read_lora(path: Path | str) -> LoRA:
    """Read a LoRA in any of the dialects of `lora_keys`.

    Args:
        path: a safetensors file, or a folder that diffusers or PEFT wrote. What PEFT's config says of alpha is
            respected, in the file's header or in ``adapter_config.json`` beside it, where keys do not say it.

    Raises:
        CheckpointError: if the file is missing, a pickle, damaged, no LoRA, an adapter of another kind, or if its
            tensors do not belong together or are not finite.
    """
    path = _file_of(Path(path))
    _check_format(path)
    keys = _keys(path)
    tensors = weights.read_tensors(path)
    parsed: dict[tuple[bool, str], dict[Part, Tensor]] = {}
    sources: dict[tuple[bool, str], str] = {}
    foreign: dict[str, None] = {}
    for key, found in keys.items():
        if found is None or found.module is None:
            foreign[key if found is None else found.source] = None
            continue
        place = (found.second, found.module)
        sources.setdefault(place, found.source)
        parts = parsed.setdefault(place, {})
        if found.part in parts:
            raise CheckpointError(f"{path}: {key} is there twice, under two names; take a file with one LoRA")
        parts[found.part] = _checked(path, key, tensors[key])
    config = _Config(path, keys)
    changes: dict[bool, dict[str, Change]] = {False: {}, True: {}}
    for (second, module), parts in parsed.items():
        changes[second][module] = _change(path, module, sources[second, module], parts, config, second)
    dialect = Counter(found.dialect for found in keys.values() if found is not None).most_common(1)[0][0]
    return LoRA(path, dialect, changes[False], changes[True], tuple(foreign))


def _file_of(path: Path) -> Path:
    if path.is_dir():
        for name in FILE_NAMES:
            if (path / name).is_file():
                return path / name
        raise CheckpointError(f"{path}: a folder without {' or '.join(FILE_NAMES)}; name the LoRA's file")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; name a LoRA's safetensors file")
    return path


def _check_format(path: Path) -> None:
    """Refuse a pickle by its content, which renaming does not change."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    # A zip archive is torch.save's, 0x80 starts a pickle; a safetensors file is a length of 8 bytes and then JSON.
    if start[:2] == b"PK" or (start[:1] == b"\x80" and start[8:] != b"{"):
        raise CheckpointError(
            f"{path}: a pickle, which can run code and is never opened; take the LoRA as .safetensors"
        )
    if start[8:] != b"{":
        raise CheckpointError(f"{path}: not a safetensors file; take the LoRA as .safetensors, or copy it again")


def _keys(path: Path) -> dict[str, LoRAKey | None]:
    """Return what each key says; a model of many gigabytes that is no LoRA is refused before its data is read."""
    names = list(weights.tensor_shapes(path))
    if len(names) > _MAX_TENSORS:
        raise CheckpointError(f"{path}: {len(names)} tensors, more than any LoRA has ({_MAX_TENSORS})")
    for mark, kind in _OTHER_KINDS.items():
        if any(mark in name for name in names):
            raise CheckpointError(f"{path}: a {kind} adapter; only LoRA (A and B) and differences are read")
    keys = {name: parse_key(name) for name in names}
    if not any(keys.values()):
        shown = ", ".join(sorted(names)[:3]) or "nothing"
        raise CheckpointError(f"{path}: not a LoRA, no key holds lora_A, lora_down or diff; it has {shown}")
    return keys


def _checked(path: Path, key: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point() and not key.endswith(".alpha"):
        raise CheckpointError(f"{path}: {key} holds {tensor.dtype}, not floating-point numbers")
    if not bool(torch.isfinite(tensor.float()).all()):
        raise CheckpointError(f"{path}: {key} is not finite; copy the file again")
    return tensor


def _change(
    path: Path, module: str, source: str, parts: Mapping[Part, Tensor], config: "_Config", second: bool
) -> Change:
    down, up, alpha, factor = parts.get("down"), parts.get("up"), None, 1.0
    if (down is None) != (up is None):
        raise CheckpointError(f"{path}: {source} has only one of lora_A (down) and lora_B (up); copy the file again")
    if down is not None and up is not None:
        if down.ndim < 2 or up.ndim < 2 or down.shape[0] != up.shape[1] or math.prod(up.shape[2:]) != 1:
            shapes = f"A {tuple(down.shape)} and B {tuple(up.shape)}"
            raise CheckpointError(f"{path}: {source} has {shapes}, which are no (rank, in) and (out, rank)")
        rank = down.shape[0]
        if rank == 0:
            raise CheckpointError(f"{path}: {source} has rank 0; copy the file again")
        stored = parts.get("alpha")
        if stored is None:
            alpha, factor = config.scaling((module, source), rank, second)
        elif stored.numel() != 1:
            raise CheckpointError(f"{path}: {source}.alpha has the shape {tuple(stored.shape)}, not one number")
        else:
            alpha = float(stored)
            factor = alpha / rank
    bias = parts["diff_b"].float() if "diff_b" in parts else None
    if "up_bias" in parts:  # PEFT scales the bias of B as it scales B, where a difference is itself
        scaled = factor * parts["up_bias"].float()
        bias = scaled if bias is None else bias + scaled
    return Change(source, down, up, alpha, factor, parts.get("diff"), bias)


class _Config:
    """PEFT's settings of the scale: alpha / r, or alpha / sqrt(r) (rsLoRA; Kalajdzievski, 2023, equation 4)."""

    def __init__(self, path: Path, keys: Mapping[str, LoRAKey | None]) -> None:
        self.path = path
        self.settings: dict[bool, Mapping[str, Any]] = {}
        if any(found is not None and found.part == "alpha" for found in keys.values()):
            return  # the keys say it
        beside = path.with_name(CONFIG_NAME)
        header = weights.read_header(path)
        if "lora_adapter_metadata" in header:  # of diffusers: all settings of each network behind its name
            values = self._object(header["lora_adapter_metadata"], "its header")
            for second, prefix in ((False, "transformer."), (True, "transformer_2.")):
                own = {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
                self.settings[second] = own
        elif "lora_alpha" in header:
            own = {name: header[name] for name in ("lora_alpha", "r") if name in header}
            self.settings = {False: own, True: own}
        elif beside.is_file():
            if beside.stat().st_size > _MAX_CONFIG_BYTES:
                raise CheckpointError(f"{beside}: more than {_MAX_CONFIG_BYTES} bytes, so no adapter's config")
            values = self._object(beside.read_bytes().decode("utf-8", "replace"), CONFIG_NAME)
            self.settings = {False: values, True: values}

    def scaling(self, names: tuple[str, str], rank: int, second: bool) -> tuple[float | None, float]:
        """Return (alpha, factor) of a module, by its name in diffusers and in the file; without a config (None, 1)."""
        settings = self.settings.get(second, {})
        if "lora_alpha" not in settings:
            return None, 1.0
        stated = self._of("rank_pattern", names, settings, settings.get("r", rank))
        if stated != rank:
            raise CheckpointError(
                f"{self.path}: {names[1]} has rank {rank}, but its config says {stated:g}; take the "
                f"{CONFIG_NAME} that belongs to the file"
            )
        alpha = self._of("alpha_pattern", names, settings, settings["lora_alpha"])
        return alpha, alpha / (math.sqrt(rank) if settings.get("use_rslora") is True else rank)

    def _of(self, name: str, names: tuple[str, str], settings: Mapping[str, Any], default: Any) -> float:
        patterns = settings.get(name) or {}
        if not isinstance(patterns, dict):
            raise CheckpointError(f"{self.path}: {name} of its config must be a mapping, got {patterns!r:.80}")
        for pattern, value in patterns.items():
            # PEFT reads regular expressions; a stranger's could run for ever, and written files hold plain names.
            plain = pattern.removeprefix("^").replace("\\.", ".")
            if not re.fullmatch(r"[\w.]+", plain):
                raise CheckpointError(f"{self.path}: {name} holds the pattern {pattern!r:.80}; only names are read")
            bare = (names[0], names[1].removeprefix("base_model.model."))
            if plain in bare or (not pattern.startswith("^") and any(own.endswith("." + plain) for own in bare)):
                return self._number(value, name)
        return self._number(default, "r" if name == "rank_pattern" else "lora_alpha")

    def _number(self, value: Any, name: str) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise CheckpointError(f"{self.path}: {name} of its config must be a number, got {value!r:.80}")
        return number

    def _object(self, text: str, where: str) -> dict[str, Any]:
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{self.path}: {where} is not JSON ({error})") from error
        if not isinstance(values, dict):
            raise CheckpointError(f"{self.path}: {where} must be a JSON object, got {type(values).__name__}")
        return values
