"""Key maps between `SpaceTimeDiT` and the published Wan 2.1 transformer (Wan Team, 2025).

Two dialects are read: that of diffusers (`WanTransformer3DModel`) and that of the original release, also behind the
prefix ``model.diffusion_model.``. Only names and the shape of the patch embedding differ, no value changes. Wan
counts time in [0, 1000] where `SpaceTimeDiT` counts in [0, 1].
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vidiff.errors import CheckpointError, ConfigError
from vidiff.models.dit import DiTConfig

PREFIX = "model.diffusion_model."

# Module or parameter of ours: the same in diffusers, the same in the original release.
NAMES = {
    "patch_embedding": ("patch_embedding", "patch_embedding"),
    "time_embedding.linear_1": ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    "time_embedding.linear_2": ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    "time_projection": ("condition_embedder.time_proj", "time_projection.1"),
    "text_projection.linear_1": ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    "text_projection.linear_2": ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
    "out_modulation.table": ("scale_shift_table", "head.modulation"),
    "out": ("proj_out", "head.head"),
}
BLOCK_NAMES = {
    "modulation.table": ("scale_shift_table", "modulation"),
    # The original numbers its norms in another order than it uses them in.
    "cross_norm": ("norm2", "norm3"),
    "mlp_in": ("ffn.net.0.proj", "ffn.0"),
    "mlp_out": ("ffn.net.2", "ffn.2"),
}
for _ours, _diffusers, _native in (("attention", "attn1", "self_attn"), ("cross_attention", "attn2", "cross_attn")):
    for _part, _to, _letter in (("query", "to_q", "q"), ("key", "to_k", "k"), ("value", "to_v", "v")):
        BLOCK_NAMES[f"{_ours}.{_part}"] = (f"{_diffusers}.{_to}", f"{_native}.{_letter}")
    BLOCK_NAMES[f"{_ours}.out"] = (f"{_diffusers}.to_out.0", f"{_native}.o")
    for _part, _norm in (("norm_query", "norm_q"), ("norm_key", "norm_k")):
        BLOCK_NAMES[f"{_ours}.{_part}"] = (f"{_diffusers}.{_norm}", f"{_native}.{_norm}")


def to_ours(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a Wan transformer, in either dialect, for `SpaceTimeDiT.load_state_dict`.

    Raises:
        CheckpointError: if a key is none of the text-to-video transformer's.
    """
    source = {key.removeprefix(PREFIX): value for key, value in state_dict.items()}
    dialect = 1 if any(".self_attn." in key for key in source) else 0
    top = {names[dialect]: ours for ours, names in NAMES.items()}
    block = {names[dialect]: ours for ours, names in BLOCK_NAMES.items()}
    renamed = _renamed(source, top, block)
    if "patch_embedding.weight" in renamed:
        renamed["patch_embedding.weight"] = renamed["patch_embedding.weight"].flatten(1)
    return renamed


def to_diffusers(state_dict: Mapping[str, Tensor], patch_size: tuple[int, int, int] = (1, 2, 2)) -> dict[str, Tensor]:
    """Rename the weights of a `SpaceTimeDiT` for diffusers' `WanTransformer3DModel`; the inverse of `to_ours`.

    Raises:
        CheckpointError: if a key has no counterpart: the model is not of the published kind.
    """
    top = {ours: names[0] for ours, names in NAMES.items()}
    block = {ours: names[0] for ours, names in BLOCK_NAMES.items()}
    renamed = _renamed(state_dict, top, block)
    if "patch_embedding.weight" in renamed:
        renamed["patch_embedding.weight"] = renamed["patch_embedding.weight"].unflatten(1, (-1, *patch_size))
    return renamed


def config_from_diffusers(config: Mapping[str, Any]) -> tuple[DiTConfig, int, int]:
    """Return the (config, in_channels, text_dim) to build a `SpaceTimeDiT` from a diffusers ``config.json``.

    Raises:
        ConfigError: if the transformer is not a text-to-video one.
    """
    expected = {
        "cross_attn_norm": True,
        "freq_dim": 256,
        "qk_norm": "rms_norm_across_heads",
        "image_dim": None,
        "added_kv_proj_dim": None,
        "pos_embed_seq_len": None,
    }
    for name, value in expected.items():
        if config.get(name, value) != value:
            raise ConfigError(
                f"this Wan transformer has {name} = {config[name]!r}; only text-to-video transformers ({name} = "
                f"{value!r}) can be read"
            )
    if config.get("out_channels") not in (None, config["in_channels"]):
        raise ConfigError(
            f"this Wan transformer maps {config['in_channels']} channels to {config['out_channels']}; "
            "only text-to-video transformers, with as many channels out as in, can be read"
        )
    patch_t, patch_h, patch_w = config["patch_size"]
    dit = DiTConfig(
        patch_size=(patch_t, patch_h, patch_w),
        dim=config["num_attention_heads"] * config["attention_head_dim"],
        depth=config["num_layers"],
        num_heads=config["num_attention_heads"],
        ffn_dim=config["ffn_dim"],
        mask_text=False,
        norm_eps=config.get("eps", 1e-6),
    )
    return dit, config["in_channels"], config["text_dim"]


def _renamed(state_dict: Mapping[str, Tensor], top: dict[str, str], block: dict[str, str]) -> dict[str, Tensor]:
    renamed, unknown = {}, []
    for key, value in state_dict.items():
        found = re.match(r"(blocks\.\d+\.)(.+)", key)
        prefix, rest = found.groups() if found else ("", key)
        table = block if found else top
        stem, _, leaf = rest.rpartition(".")
        if rest in table:
            renamed[prefix + table[rest]] = value
        elif stem in table:
            renamed[f"{prefix}{table[stem]}.{leaf}"] = value
        else:
            unknown.append(key)
    if unknown:
        shown = ", ".join(unknown[:3]) + (f" and {len(unknown) - 3} more" if len(unknown) > 3 else "")
        raise CheckpointError(f"not the weights of a text-to-video Wan transformer: no counterpart for {shown}")
    return renamed
