"""Key maps between `VideoVAE` and the published Wan 2.1 VAE (Wan Team, 2025).

Two dialects are read: that of diffusers (`AutoencoderKLWan`) and that of the original release. Names and the shape of
the norms' weights differ, no value changes. The statistics of the latents, which Wan keeps outside its weights, lie
with ours.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vidiff.errors import CheckpointError, ConfigError
from vidiff.models.autoencoder import VideoVAEConfig

# Of the published weights, channel by channel.
LATENT_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
LATENT_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip

# Part of a key of ours, the same in diffusers. The longer names come first.
_PARTS = (
    (".middle.attention.out.", ".mid_block.attentions.0.proj."),
    (".middle.attention.qkv.", ".mid_block.attentions.0.to_qkv."),
    (".middle.attention.", ".mid_block.attentions.0."),
    (".middle.before.", ".mid_block.resnets.0."),
    (".middle.after.", ".mid_block.resnets.1."),
    (".down.", ".down_blocks."),
    (".space.", ".resample.1."),
    (".time.", ".time_conv."),
    (".shortcut.", ".conv_shortcut."),
)
# Patterns of the original release, the same in diffusers except that the decoder's blocks stay numbered through.
_NATIVE = (
    (r"^conv1\.", "quant_conv."),
    (r"^conv2\.", "post_quant_conv."),
    (r"^(encoder|decoder)\.conv1\.", r"\1.conv_in."),
    (r"^(encoder|decoder)\.head\.0\.gamma$", r"\1.norm_out.gamma"),
    (r"^(encoder|decoder)\.head\.2\.", r"\1.conv_out."),
    (r"\.middle\.0\.", ".mid_block.resnets.0."),
    (r"\.middle\.1\.", ".mid_block.attentions.0."),
    (r"\.middle\.2\.", ".mid_block.resnets.1."),
    (r"\.downsamples\.", ".down_blocks."),
    (r"\.upsamples\.", ".up."),
    (r"\.residual\.0\.", ".norm1."),
    (r"\.residual\.2\.", ".conv1."),
    (r"\.residual\.3\.", ".norm2."),
    (r"\.residual\.6\.", ".conv2."),
    (r"(?<=\d)\.shortcut\.", ".conv_shortcut."),
)


def to_ours(
    state_dict: Mapping[str, Tensor],
    latents_mean: Sequence[float] = LATENT_MEAN,
    latents_std: Sequence[float] = LATENT_STD,
) -> dict[str, Tensor]:
    """Rename the weights of a Wan VAE, in either dialect, for `VideoVAE.load_state_dict`.

    Args:
        state_dict: the weights.
        latents_mean: mean of each latent channel; by default those of the published weights.
        latents_std: standard deviation of each latent channel.

    Raises:
        CheckpointError: if the statistics do not fit the weights' latent channels.
    """
    keys = {key: _from_native(key) for key in state_dict}
    resnets = [int(found[1]) for key in keys.values() if (found := re.search(r"up_blocks\.0\.resnets\.(\d+)", key))]
    per_level = max(resnets, default=0) + 2  # with the upsampling behind the residual blocks
    renamed = {}
    for key, name in keys.items():
        for ours, diffusers in _PARTS:
            name = name.replace(diffusers, ours)
        name = re.sub(
            r"\.up_blocks\.(\d+)\.(?:resnets\.(\d+)|upsamplers\.0)",
            lambda found: f".up.{int(found[1]) * per_level + int(found[2] or per_level - 1)}",
            name,
        )
        value = state_dict[key]
        is_norm = name.endswith(".gamma")
        renamed[name.removesuffix("gamma") + "weight" if is_norm else name] = value.flatten() if is_norm else value
    channels = renamed["post_quant_conv.weight"].shape[0] if "post_quant_conv.weight" in renamed else 0
    if not len(latents_mean) == len(latents_std) == channels:
        raise CheckpointError(
            f"the weights have {channels} latent channels, but the statistics are of {len(latents_mean)} means and "
            f"{len(latents_std)} deviations; give those of the config beside the weights"
        )
    statistics = {"latent_mean": torch.tensor(latents_mean), "latent_std": torch.tensor(latents_std)}
    # The published weights bring no linear preview; zeros say so.
    return renamed | statistics | {"preview_weight": torch.zeros(3, channels), "preview_bias": torch.zeros(3)}


def to_diffusers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a `VideoVAE` for diffusers' `AutoencoderKLWan`; statistics are left out."""
    resamplers = [int(found[1]) for key in state_dict if (found := re.match(r"decoder\.up\.(\d+)\.space\.", key))]
    per_level = min(resamplers, default=len(state_dict)) + 1

    def block(found: re.Match[str]) -> str:
        level, index = divmod(int(found[1]), per_level)
        return f".up_blocks.{level}." + ("upsamplers.0." if index == per_level - 1 else f"resnets.{index}.")

    renamed = {}
    for key, value in state_dict.items():
        if key in ("latent_mean", "latent_std", "preview_weight", "preview_bias"):
            continue
        name = re.sub(r"\.up\.(\d+)\.", block, key)
        for ours, diffusers in _PARTS:
            name = name.replace(ours, diffusers)
        if value.ndim == 1 and re.search(r"norm(1|2|_out)?\.weight$", name):
            frame_axes = 2 if ".attentions." in name else 3
            name, value = name.removesuffix("weight") + "gamma", value.reshape(-1, *[1] * frame_axes)
        renamed[name] = value
    return renamed


def config_from_diffusers(config: Mapping[str, Any]) -> VideoVAEConfig:
    """Return the config of the `VideoVAE` that equals a diffusers ``config.json``.

    Raises:
        ConfigError: if it is not of the Wan 2.1 kind.
    """
    expected = {"is_residual": False, "attn_scales": [], "in_channels": 3, "out_channels": 3, "patch_size": None}
    for name, value in expected.items():
        found = config.get(name, value)
        if (list(found) if isinstance(found, tuple) else found) != value:
            raise ConfigError(f"only VAEs of the Wan 2.1 kind ({name} = {value!r}) can be read, got {found!r}")
    if config.get("decoder_base_dim") not in (None, config["base_dim"]):
        raise ConfigError(f"only VAEs with decoder_base_dim = base_dim can be read, got {config['decoder_base_dim']}")
    return VideoVAEConfig(
        latent_channels=config["z_dim"],
        dim=config["base_dim"],
        dim_mult=tuple(config["dim_mult"]),
        num_res_blocks=config["num_res_blocks"],
        temporal_downsample=tuple(config["temperal_downsample"]),
    )


def _from_native(key: str) -> str:
    if "mid_block" in key or "_blocks." in key:
        return key
    for pattern, name in _NATIVE:
        key = re.sub(pattern, name, key)
    return key
