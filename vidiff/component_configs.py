"""What the configs of published networks may say, checked before anything is built from them."""

import math
import reprlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from vidiff.errors import CheckpointError, UserError

# Far above anything published; a config beyond would be built for minutes, or without end, before its weights were
# found not to fit.
_MOST_LAYERS, _WIDEST, _MOST_ENTRIES = 1000, 2**16, 2**24
_LAYERS = ("num_layers", "num_hidden_layers", "num_res_blocks")
_WIDTHS = (
    *("num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "text_dim", "ffn_dim", "freq_dim"),
    *("image_dim", "added_kv_proj_dim", "base_dim", "decoder_base_dim", "z_dim", "d_model", "d_kv", "d_ff"),
    *("num_heads", "hidden_size", "intermediate_size", "image_size", "patch_size", "num_channels", "type_vocab_size"),
    *("relative_attention_num_buckets", "relative_attention_max_distance"),
)
_ENTRIES = ("vocab_size", "max_position_embeddings")
_BOUNDS = ((_LAYERS, _MOST_LAYERS), (_WIDTHS, _WIDEST), (_ENTRIES, _MOST_ENTRIES))
_LARGEST = {name: largest for names, largest in _BOUNDS for name in names}
_OPTIONAL = ("out_channels", "image_dim", "added_kv_proj_dim", "decoder_base_dim", "patch_size")  # may be null
_NUMBERS = ("eps", "layer_norm_eps", "layer_norm_epsilon")
_LISTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "dim_mult": (lambda one: _is_whole(one, _WIDEST), "a list of whole numbers"),
    "temperal_downsample": (lambda one: isinstance(one, bool), "a list of true and false"),
    "latents_mean": (lambda one: _is_number(one), "a list of numbers"),
    "latents_std": (lambda one: _is_number(one) and one > 0, "a list of numbers above 0"),
}
# Where the width that is built is a product.
_PRODUCTS = (
    ("num_attention_heads", "attention_head_dim"),
    ("num_heads", "d_kv"),
    ("base_dim", "dim_mult"),
    ("decoder_base_dim", "dim_mult"),
)
_HALVES = ("text_config", "vision_config")  # of a whole CLIP


@contextmanager
def named_in(place: Path, what: str = "its config is damaged") -> Iterator[None]:
    """Turn what goes wrong with a config of the wrong kind into one line that names its place.

    Raises:
        CheckpointError: in place of any error but a UserError, which stays what it is, and of memory that ran out.
    """
    try:
        yield
    except UserError as error:
        if str(place) in str(error):
            raise
        raise type(error)(f"{place}: {error}") from error
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # other libraries' checks of their configs raise errors of many kinds
        reason = " ".join(f"{type(error).__name__} {error}".split())
        raise CheckpointError(f"{place}: {what}: {reason}") from error


def check_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a network's config with settings of the wrong type or beyond all reason, or with code of its own.

    Raises:
        CheckpointError: if there is one; it is named.
    """
    _check_code(folder, config)
    for name, value in config.items():
        if wanted := _wanted(name, value):
            raise _damaged(folder, name, value, wanted)
    for one, other in _PRODUCTS:
        width = _largest(config.get(one)) * _largest(config.get(other))
        if width > _WIDEST:
            raise _damaged(folder, f"{one} * {other}", width, f"at most {_WIDEST:,}")
    blocks = (config.get("num_res_blocks") or 1) * len(config.get("dim_mult") or ())
    if blocks > _MOST_LAYERS:
        raise _damaged(folder, "num_res_blocks at all levels of dim_mult", blocks, f"at most {_MOST_LAYERS:,}")
    for name in _HALVES:
        if isinstance(config.get(name), dict):
            # Not the halves of halves, which nobody reads and which may be nested without end.
            check_config(folder, {key: value for key, value in config[name].items() if key not in _HALVES})


def _check_code(folder: Path, config: Mapping[str, Any]) -> None:
    if code := config.get("auto_map"):
        name = next(iter(code)) if isinstance(code, dict) else code
        raise CheckpointError(f"{folder}: needs code of its own ({reprlib.repr(name)}), which is never run")
    for name, value in config.items():
        # transformers fetches an implementation of this form from the hub, and runs it.
        if name.endswith(("attn_implementation", "experts_implementation")) and "/" in str(value):
            shown = f"{name}: {reprlib.repr(value)}"
            raise CheckpointError(f"{folder}: needs code of its own ({shown}), which is never run")
    if config.get("quantization_config"):
        raise CheckpointError(f"{folder}: its weights are quantized, which cannot be read; take those that are not")


def _wanted(name: str, value: Any) -> str:
    """Return what a setting must be where it is something else."""
    if name in _LISTED:
        fits, text = _LISTED[name]
        sound = isinstance(value, list) and 0 < len(value) <= _WIDEST and all(fits(one) for one in value)
        return "" if sound else text
    if value is None and name in _OPTIONAL:
        return ""
    if name in _LARGEST:
        sides = value if name == "patch_size" and isinstance(value, list) else [value]
        sound = all(_is_whole(side, _LARGEST[name]) for side in sides)
        return "" if sound else f"a whole number from 1 to {_LARGEST[name]:,}"
    if name in _NUMBERS:
        return "" if _is_number(value) and value >= 0 else "a number of 0 or more"
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    return "true or false" if name == "is_residual" and not isinstance(value, bool) else ""


def _largest(value: int | list[int] | None) -> int:
    return 1 if value is None else max(value) if isinstance(value, list) else value


def _is_whole(value: Any, largest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= largest


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _damaged(folder: Path, name: str, value: Any, wanted: str) -> CheckpointError:
    return CheckpointError(
        f"{folder}: its config is damaged: {name} is {reprlib.repr(value)}, but must be {wanted}; "
        "take the config that belongs to the weights"
    )
