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
UNUSED = ".norm_added_q.weight"  # some published files hold it; no implementation reads it

# Module or parameter of ours: the same in diffusers, the same in the original release.
NAMES = {
    "patch_embedding": ("patch_embedding", "patch_embedding"),
    "time_embedding.linear_1": ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    "time_embedding.linear_2": ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    "time_projection": ("condition_embedder.time_proj", "time_projection.1"),
    "text_projection.linear_1": ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    "text_projection.linear_2": ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
    "image_projection.norm_in": ("condition_embedder.image_embedder.norm1", "img_emb.proj.0"),
    "image_projection.linear_1": ("condition_embedder.image_embedder.ff.net.0.proj", "img_emb.proj.1"),
    "image_projection.linear_2": ("condition_embedder.image_embedder.ff.net.2", "img_emb.proj.3"),
    "image_projection.norm_out": ("condition_embedder.image_embedder.norm2", "img_emb.proj.4"),
    "out_modulation.table": ("scale_shift_table", "head.modulation"),
    "out": ("proj_out", "head.head"),
}
BLOCK_NAMES = {
    "modulation.table": ("scale_shift_table", "modulation"),
    # The original numbers its norms in another order than it uses them in.
    "cross_norm": ("norm2", "norm3"),
    "mlp_in": ("ffn.net.0.proj", "ffn.0"),
    "mlp_out": ("ffn.net.2", "ffn.2"),
    "cross_attention.image_key": ("attn2.add_k_proj", "cross_attn.k_img"),
    "cross_attention.image_value": ("attn2.add_v_proj", "cross_attn.v_img"),
    "cross_attention.norm_image_key": ("attn2.norm_added_k", "cross_attn.norm_k_img"),
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
        CheckpointError: if a key is none of a text-to-video or image-to-video transformer's.
    """
    source = {key.removeprefix(PREFIX): value for key, value in state_dict.items() if not key.endswith(UNUSED)}
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
    """Return the (config, latent channels, text_dim) to build a `SpaceTimeDiT` from a diffusers ``config.json``.

    Raises:
        ConfigError: if the transformer is neither a text-to-video nor an image-to-video one.
    """
    expected = {
        "cross_attn_norm": True,
        "freq_dim": 256,
        "qk_norm": "rms_norm_across_heads",
        "pos_embed_seq_len": None,
    }
    for name, value in expected.items():
        if config.get(name, value) != value:
            raise ConfigError(
                f"this Wan transformer has {name} = {config[name]!r}; only text-to-video and image-to-video "
                f"transformers ({name} = {value!r}) can be read"
            )
    channels = config.get("out_channels") or config["in_channels"]
    dim = config["num_attention_heads"] * config["attention_head_dim"]
    image_dim = config.get("image_dim")
    if config["in_channels"] < channels or config.get("added_kv_proj_dim") != (None if image_dim is None else dim):
        raise ConfigError(
            f"this Wan transformer maps {config['in_channels']} channels to {channels} with image_dim = {image_dim!r} "
            f"and added_kv_proj_dim = {config.get('added_kv_proj_dim')!r}; only text-to-video and image-to-video "
            "transformers can be read"
        )
    patch_t, patch_h, patch_w = config["patch_size"]
    dit = DiTConfig(
        patch_size=(patch_t, patch_h, patch_w),
        dim=dim,
        depth=config["num_layers"],
        num_heads=config["num_attention_heads"],
        ffn_dim=config["ffn_dim"],
        mask_text=False,
        norm_eps=config.get("eps", 1e-6),
        concat_channels=config["in_channels"] - channels,
        image_dim=image_dim,
    )
    return dit, channels, config["text_dim"]


def config_to_diffusers(config: DiTConfig, channels: int, text_dim: int) -> dict[str, Any]:
    """Return the diffusers ``config.json`` of a `SpaceTimeDiT`; the inverse of `config_from_diffusers`.

    Raises:
        ConfigError: if the network is not of the published kind; the message names what differs.
    """
    published = DiTConfig(mask_text=False)
    for name in ("attention", "modulation", "positions", "mask_text", "pooled_text", "input_skip", "skip_text"):
        if getattr(config, name) != getattr(published, name):
            raise ConfigError(
                f"the diffusers layout has no place for {name}: {getattr(config, name)}; it holds transformers with "
                f"{name}: {getattr(published, name)}"
            )
    return {
        "_class_name": "WanTransformer3DModel",
        "patch_size": list(config.patch_size),
        "num_attention_heads": config.num_heads,
        "attention_head_dim": config.head_dim,
        "in_channels": channels + config.concat_channels,
        "out_channels": channels,
        "text_dim": text_dim,
        "freq_dim": 256,
        "ffn_dim": config.hidden_dim,
        "num_layers": config.depth,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "eps": config.norm_eps,
        "image_dim": config.image_dim,
        "added_kv_proj_dim": None if config.image_dim is None else config.dim,
        "rope_max_seq_len": 1024,
        "pos_embed_seq_len": None,
    }


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
        raise CheckpointError(f"not the weights of a Wan transformer that can be read: no counterpart for {shown}")
    return renamed
