"""Key maps between `VideoVAE` and the published Wan 2.1 and Wan 2.2 VAEs (Wan Team, 2025).

Two dialects are read: that of diffusers (`AutoencoderKLWan`) and that of the original release. Names and the shape of
the norms' weights differ, no value changes. The statistics of the latents, which Wan keeps outside its weights, lie
with ours. The 2.2 VAE (of TI2V-5B) folds 2 x 2 pixels into channels and has shortcuts around its levels
(``is_residual``); its names are nested by level where those of 2.1 count through.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vidiff.errors import CheckpointError, ConfigError
from vidiff.models.autoencoder import VideoVAEConfig

# Of the published weights, channel by channel: Wan 2.1, then Wan 2.2.
LATENT_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
LATENT_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip
LATENT_MEAN_22 = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557,
    -0.1382, 0.0542, 0.2813, 0.0891, 0.1570, -0.0098, 0.0375, -0.1825,
    -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230,
    -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748,
    0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)  # fmt: skip
LATENT_STD_22 = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013,
    0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978,
    0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093,
    0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887,
    0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)  # fmt: skip
_PUBLISHED = {16: (LATENT_MEAN, LATENT_STD), 48: (LATENT_MEAN_22, LATENT_STD_22)}

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
# Patterns of the original release, the same in diffusers except that the blocks of the 2.1 decoder stay numbered
# through.
_NATIVE = (
    (r"^conv1\.", "quant_conv."),
    (r"^conv2\.", "post_quant_conv."),
    (r"^(encoder|decoder)\.conv1\.", r"\1.conv_in."),
    (r"^(encoder|decoder)\.head\.0\.gamma$", r"\1.norm_out.gamma"),
    (r"^(encoder|decoder)\.head\.2\.", r"\1.conv_out."),
    (r"\.middle\.0\.", ".mid_block.resnets.0."),
    (r"\.middle\.1\.", ".mid_block.attentions.0."),
    (r"\.middle\.2\.", ".mid_block.resnets.1."),
    (r"\.(down|up)samples\.(\d+)\.\1samples\.\d+\.(resample|time_conv)\.", r".\1_blocks.\2.\1sampler.\3."),
    (r"\.(down|up)samples\.(\d+)\.\1samples\.(\d+)\.", r".\1_blocks.\2.resnets.\3."),
    (r"\.downsamples\.", ".down_blocks."),
    (r"\.upsamples\.", ".up."),
    (r"\.residual\.0\.", ".norm1."),
    (r"\.residual\.2\.", ".conv1."),
    (r"\.residual\.3\.", ".norm2."),
    (r"\.residual\.6\.", ".conv2."),
    (r"(?<=\d)\.shortcut\.", ".conv_shortcut."),
)
# A block of a level in diffusers: the level, then the number of a residual block or, of the resampler, none.
_NESTED = re.compile(r"\.(down|up)_blocks\.(\d+)\.(?:resnets\.(\d+)|(?:down|up)sampler(?:s\.0)?)\.")
_RESIDUAL = r"(?:norm1|conv1|norm2|conv2|shortcut)"
_OURS = re.compile(
    r"(?:post_)?quant_conv\.(?:weight|bias)|(?:encoder|decoder)\."
    rf"(?:conv_in|norm_out|conv_out|middle\.(?:(?:before|after)\.{_RESIDUAL}|attention\.(?:norm|qkv|out))"
    rf"|(?:down|up)\.\d+\.(?:{_RESIDUAL}|space|time))\.(?:weight|bias)"
)
_BESIDE = ("latent_mean", "latent_std", "preview_weight", "preview_bias")


def to_ours(
    state_dict: Mapping[str, Tensor],
    latents_mean: Sequence[float] | None = None,
    latents_std: Sequence[float] | None = None,
) -> dict[str, Tensor]:
    """Rename the weights of a Wan VAE, in either dialect, for `VideoVAE.load_state_dict`.

    Args:
        state_dict: the weights.
        latents_mean: mean of each latent channel; None: that of the published weights.
        latents_std: standard deviation of each latent channel; None: that of the published weights.

    Raises:
        CheckpointError: if a key is none of a Wan VAE's or the statistics do not fit the weights' latent channels.
    """
    names = {key: _from_native(key) for key in state_dict}
    blocks = [found.groups() for name in names.values() if (found := _NESTED.search(name))]
    # A level numbers its residual blocks; in ours the resampling behind them counts, too.
    per_level = {way: max((int(j) for w, _, j in blocks if w == way and j), default=-1) + 2 for way in ("down", "up")}

    def flat(found: re.Match[str]) -> str:
        way, level, block = found.groups()
        return f".{way}.{int(level) * per_level[way] + int(block or per_level[way] - 1)}."

    renamed = {}
    for key, name in names.items():
        name = _NESTED.sub(flat, name)
        for ours, diffusers in _PARTS:
            name = name.replace(diffusers, ours)
        value = state_dict[key]
        if name.endswith(".gamma"):
            name, value = name.removesuffix("gamma") + "weight", value.flatten()
        if not _OURS.fullmatch(name):
            raise CheckpointError(f"not the weights of a Wan VAE: no counterpart for {key}")
        renamed[name] = value
    return renamed | _statistics(renamed, latents_mean, latents_std)


def to_diffusers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a `VideoVAE` for diffusers' `AutoencoderKLWan`; statistics are left out.

    Raises:
        CheckpointError: if a key has no counterpart: the model is not of the published kinds.
    """
    per_level, halves = {}, False
    for way, key in (("down", "encoder.down"), ("up", "decoder.up")):
        found = [re.fullmatch(rf"{key}\.(\d+)\.space\.weight", name) for name in state_dict]
        per_level[way] = min((int(f[1]) for f in found if f), default=len(state_dict)) + 1
        halves = any(state_dict[f[0]].shape[0] < state_dict[f[0]].shape[1] for f in found if f)
    # Only without shortcuts around the levels does upsampling halve the channels: the kind of Wan 2.1.
    residual = not halves and per_level["up"] <= len(state_dict)

    def nested(found: re.Match[str]) -> str:
        way, (level, block) = found[1], divmod(int(found[2]), per_level[found[1]])
        if way == "down" and not residual:
            return found[0]
        resampler = f"{way}sampler." if residual else f"{way}samplers.0."
        return f".{way}_blocks.{level}." + (resampler if block == per_level[way] - 1 else f"resnets.{block}.")

    renamed = {}
    for key, value in state_dict.items():
        if key in _BESIDE:
            continue
        if not _OURS.fullmatch(key):
            raise CheckpointError(f"this autoencoder is not of the kind of a Wan VAE: no counterpart for {key}")
        name = re.sub(r"\.(down|up)\.(\d+)\.", nested, key)
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
        ConfigError: if it is of neither the Wan 2.1 nor the Wan 2.2 kind.
    """
    try:
        patch_size = config.get("patch_size") or 1
        expected = {"attn_scales": [], "in_channels": 3 * patch_size**2, "out_channels": 3 * patch_size**2}
        for name, value in expected.items():
            found = config.get(name, [] if name == "attn_scales" else 3)
            if (list(found) if isinstance(found, tuple) else found) != value:
                raise ConfigError(
                    f"only VAEs of the Wan 2.1 and 2.2 kinds (here {name} = {value!r}) can be read, got {found!r}"
                )
        decoder_dim = config.get("decoder_base_dim")
        return VideoVAEConfig(
            latent_channels=config["z_dim"],
            dim=config["base_dim"],
            decoder_dim=None if decoder_dim == config["base_dim"] else decoder_dim,
            dim_mult=tuple(config["dim_mult"]),
            num_res_blocks=config["num_res_blocks"],
            temporal_downsample=tuple(config["temperal_downsample"]),
            patch_size=patch_size,
            shortcuts=config.get("is_residual", False),
        )
    except KeyError as error:
        raise ConfigError(f"the config of this Wan VAE has no {error.args[0]}") from None


def config_to_diffusers(
    config: VideoVAEConfig, latents_mean: Sequence[float], latents_std: Sequence[float]
) -> dict[str, Any]:
    """Return the ``config.json`` of diffusers' `AutoencoderKLWan` that equals ``config``.

    Args:
        config: of a `VideoVAE`.
        latents_mean: mean of each latent channel, as `VideoVAE.latent_mean`.
        latents_std: standard deviation of each latent channel, as `VideoVAE.latent_std`.

    Raises:
        ConfigError: if diffusers has no such VAE.
    """
    expected = {
        "patch_frames": config.patch_frames == 1,
        "patch_kernel": config.patch_kernel == 3,
        "linear": not config.linear,
        "middle_attention": config.middle_attention,
        "spatial_downsample": all(spatial for spatial, _ in config.steps),
        "temporal_downsample": config.frame_stride <= 4,  # diffusers encodes four frames at a time
        # With shortcuts diffusers has one around the last level, too, which cannot widen; and one level tells no kind.
        "dim_mult": not config.shortcuts or (len(config.dim_mult) > 1 and config.dim_mult[-1] == config.dim_mult[-2]),
    }
    for name, fits in expected.items():
        if not fits:
            raise ConfigError(f"diffusers has no Wan VAE with {name} = {getattr(config, name)!r}")
    if not len(latents_mean) == len(latents_std) == config.latent_channels:
        raise ConfigError(
            f"latent_channels = {config.latent_channels}, but the statistics are of {len(latents_mean)} means and "
            f"{len(latents_std)} deviations"
        )
    return {
        "_class_name": "AutoencoderKLWan",
        "attn_scales": [],
        "base_dim": config.dim,
        "decoder_base_dim": config.decoder_dim,
        "dim_mult": list(config.dim_mult),
        "dropout": 0.0,
        "in_channels": config.patch_channels,
        "is_residual": config.shortcuts,
        "latents_mean": [float(value) for value in latents_mean],
        "latents_std": [float(value) for value in latents_std],
        "num_res_blocks": config.num_res_blocks,
        "out_channels": config.patch_channels,
        "patch_size": config.patch_size if config.patch_size > 1 else None,
        "scale_factor_spatial": config.stride,
        "scale_factor_temporal": config.frame_stride,
        "temperal_downsample": list(config.temporal_downsample),
        "z_dim": config.latent_channels,
    }


def _statistics(
    weights: Mapping[str, Tensor], mean: Sequence[float] | None, std: Sequence[float] | None
) -> dict[str, Tensor]:
    """Return what `VideoVAE` keeps beside its ``weights``, after a check that it fits their latent channels."""
    if "post_quant_conv.weight" not in weights:
        raise CheckpointError("not the weights of a Wan VAE: post_quant_conv.weight is missing")
    channels = weights["post_quant_conv.weight"].shape[0]
    if (mean is None or std is None) and channels not in _PUBLISHED:
        raise CheckpointError(
            f"the weights have {channels} latent channels, but statistics are known for the published "
            f"{' and '.join(map(str, _PUBLISHED))} only; give those of the config beside the weights"
        )
    mean = _PUBLISHED[channels][0] if mean is None else mean
    std = _PUBLISHED[channels][1] if std is None else std
    if not len(mean) == len(std) == channels:
        raise CheckpointError(
            f"the weights have {channels} latent channels, but the statistics are of {len(mean)} means and "
            f"{len(std)} deviations; give those of the config beside the weights"
        )
    # The published weights bring no linear preview; zeros say so.
    return {
        "latent_mean": torch.tensor(mean),
        "latent_std": torch.tensor(std),
        "preview_weight": torch.zeros(3, channels),
        "preview_bias": torch.zeros(3),
    }


def _from_native(key: str) -> str:
    if "mid_block" in key or "_blocks." in key:
        return key
    for pattern, name in _NATIVE:
        key = re.sub(pattern, name, key)
    return key
