"""`VideoVAE` against the reference implementation of the Wan 2.1 and 2.2 VAEs in diffusers, with random weights."""

import inspect
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vidiff.errors import CheckpointError, ConfigError
from vidiff.interop import wan_autoencoder
from vidiff.models.autoencoder import VideoVAE, VideoVAEConfig

diffusers = pytest.importorskip("diffusers", reason="diffusers is the reference")

SIZES = [
    dict(base_dim=8, z_dim=4, dim_mult=[1, 2, 4, 4], num_res_blocks=1, temperal_downsample=[False, True, True]),
    dict(base_dim=6, z_dim=3, dim_mult=[1, 2], num_res_blocks=2, temperal_downsample=[True]),
    dict(base_dim=8, z_dim=4, dim_mult=[1, 2, 4, 4], num_res_blocks=2, temperal_downsample=[False, True, True])
    | dict(is_residual=True, decoder_base_dim=12, patch_size=2, in_channels=12, out_channels=12),
]
# The settings of Wan 2.2 TI2V-5B that are not the defaults of diffusers.
WAN_22 = dict(base_dim=160, decoder_base_dim=256, z_dim=48, is_residual=True, patch_size=2, in_channels=12)
WAN_22 |= dict(out_channels=12, scale_factor_spatial=16)
sizes = pytest.mark.parametrize("size", SIZES, ids=["2.1-stride-8", "2.1-stride-2", "2.2"])


def reference(size: dict) -> torch.nn.Module:
    channels = range(1, size["z_dim"] + 1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = diffusers.AutoencoderKLWan(
            latents_mean=[0.1 * c for c in channels], latents_std=[0.5 * c for c in channels], **size
        ).eval()
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                torch.nn.init.normal_(parameter, 1.0, 0.2)
    return model


def ours(model: torch.nn.Module) -> VideoVAE:
    vae = VideoVAE(wan_autoencoder.config_from_diffusers(model.config)).eval()
    statistics = model.config.latents_mean, model.config.latents_std
    vae.load_state_dict(wan_autoencoder.to_ours(model.state_dict(), *statistics))
    return vae


def relative(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


@sizes
@pytest.mark.parametrize("frames", [1, 5, 9])
@torch.no_grad()
def test_latents_equal_the_reference(size: dict, frames: int):
    model = reference(size)
    vae = ours(model)
    video = 2 * torch.rand(2, 3, frames, 32, 48, generator=torch.Generator().manual_seed(1)) - 1
    expected = model.encode(video).latent_dist
    posterior = vae.posterior(video)
    assert relative(posterior.mean, expected.mean) < 1e-4
    assert relative(posterior.log_var, expected.logvar) < 1e-4
    mean, std = (torch.tensor(model.config[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    assert relative(vae.encode(video), (expected.mean - mean) / std) < 1e-4
    assert relative(torch.cat(list(vae.encode_stream(video)), dim=2), (expected.mean - mean) / std) < 1e-4


@sizes
@pytest.mark.parametrize("frames", [1, 2, 3])
@torch.no_grad()
def test_decoded_clips_equal_the_reference(size: dict, frames: int):
    model = reference(size)
    vae = ours(model)
    z = torch.randn(2, size["z_dim"], frames, 2, 3, generator=torch.Generator().manual_seed(1))
    expected = model.decode(z).sample
    assert expected.abs().mean() < 0.9  # clamping does not hide the comparison
    assert relative(vae.decode(vae.normalize(z)), expected) < 1e-4
    assert relative(torch.cat(list(vae.decode_stream(vae.normalize(z))), dim=2), expected) < 1e-4


@sizes
def test_weights_return_to_diffusers_unchanged(size: dict):
    model = reference(size)
    weights = model.state_dict()
    back = wan_autoencoder.to_diffusers(ours(model).state_dict())
    assert back.keys() == weights.keys()
    for key, value in weights.items():
        assert torch.equal(back[key], value), key


@sizes
@torch.no_grad()
def test_diffusers_reads_what_is_written_for_it(size: dict, tmp_path: Path):
    vae = ours(reference(size))
    config = wan_autoencoder.config_to_diffusers(vae.config, vae.latent_mean, vae.latent_std)
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = {key: value.contiguous() for key, value in wan_autoencoder.to_diffusers(vae.state_dict()).items()}
    save_file(weights, tmp_path / "diffusion_pytorch_model.safetensors")
    model = diffusers.AutoencoderKLWan.from_pretrained(tmp_path, local_files_only=True).eval()
    assert model.config.scale_factor_spatial == vae.latents.stride
    assert wan_autoencoder.config_from_diffusers(model.config) == vae.config
    z = torch.randn(1, size["z_dim"], 2, 2, 3, generator=torch.Generator().manual_seed(1))
    assert relative(vae.decode(vae.normalize(z)), model.decode(z).sample) < 1e-4
    back = wan_autoencoder.to_ours(model.state_dict(), model.config.latents_mean, model.config.latents_std)
    for key, value in vae.state_dict().items():
        assert torch.equal(back[key], value), key


def native(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename diffusers' keys to those of the original release, of the published depth: two residual blocks a level."""
    nested = any(".downsampler." in key for key in weights)

    def block(found: re.Match[str]) -> str:
        way, level, index = found[1], int(found[2]), found[3]
        index = int(index) if index else {"down": 2, "up": 3}[way]  # the resampler stands behind the residual blocks
        return f".{way}samples.{level}.{way}samples.{index}." if nested else f".{way}samples.{4 * level + index}."

    renames = [
        (r"^quant_conv\.", "conv1."),
        (r"^post_quant_conv\.", "conv2."),
        (r"\.conv1\.", ".residual.2."),
        (r"\.conv2\.", ".residual.6."),
        (r"\.norm1\.", ".residual.0."),
        (r"\.norm2\.", ".residual.3."),
        (r"\.conv_shortcut\.", ".shortcut."),
        (r"\.conv_in\.", ".conv1."),
        (r"\.norm_out\.", ".head.0."),
        (r"\.conv_out\.", ".head.2."),
        (r"\.mid_block\.resnets\.0\.", ".middle.0."),
        (r"\.mid_block\.attentions\.0\.", ".middle.1."),
        (r"\.mid_block\.resnets\.1\.", ".middle.2."),
        (r"\.(down|up)_blocks\.(\d)\.(?:resnets\.(\d)|(?:down|up)sampler(?:s\.0)?)\.", block),
        (r"\.down_blocks\.", ".downsamples."),
    ]
    renamed = {}
    for key, value in weights.items():
        for pattern, name in renames:
            key = re.sub(pattern, name, key)
        renamed[key] = value
    return renamed


def test_the_original_names_give_the_same_weights():
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    size = SIZES[0] | {"num_res_blocks": 2}  # of the published depth, which diffusers' own converter expects
    model = reference(size)
    weights = model.state_dict()
    original = native(weights)
    converted = convert_wan_vae_to_diffusers(dict(original))
    assert converted.keys() == weights.keys()  # so the names above are the real ones
    statistics = model.config.latents_mean, model.config.latents_std
    renamed, expected = (wan_autoencoder.to_ours(source, *statistics) for source in (original, weights))
    assert renamed.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(renamed[key], value), key


def test_the_original_names_of_the_nested_kind_give_the_same_weights():
    model = reference(SIZES[2])
    weights = model.state_dict()
    original = native(weights)
    for key in (  # of the release's Wan2.2_VAE.pth
        "encoder.downsamples.0.downsamples.2.resample.1.weight",
        "encoder.downsamples.1.downsamples.0.shortcut.weight",
        "encoder.downsamples.2.downsamples.2.time_conv.bias",
        "decoder.upsamples.1.upsamples.3.time_conv.weight",
        "decoder.upsamples.3.upsamples.2.residual.6.weight",
        "decoder.upsamples.2.upsamples.0.residual.0.gamma",
    ):
        assert key in original
    statistics = model.config.latents_mean, model.config.latents_std
    renamed, expected = (wan_autoencoder.to_ours(source, *statistics) for source in (original, weights))
    assert renamed.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(renamed[key], value), key


def test_the_published_statistics_are_those_of_the_reference():
    parameters = inspect.signature(diffusers.AutoencoderKLWan.__init__).parameters
    assert list(wan_autoencoder.LATENT_MEAN) == parameters["latents_mean"].default
    assert list(wan_autoencoder.LATENT_STD) == parameters["latents_std"].default


@pytest.mark.parametrize(("settings", "count"), [({}, 126_892_531), (WAN_22, 704_688_668)], ids=["wan-2.1", "wan-2.2"])
def test_every_weight_of_the_published_shapes_has_its_place(settings: dict, count: int):
    with torch.device("meta"):
        model = diffusers.AutoencoderKLWan(**settings)
        config = wan_autoencoder.config_from_diffusers(model.config)
        vae = VideoVAE(config)
    assert (config == VideoVAEConfig()) == (not settings)
    assert config.stride == model.config.scale_factor_spatial
    assert sum(parameter.numel() for parameter in vae.parameters()) == count
    weights = model.state_dict()
    # Without statistics given, those of the published weights are found by the latent channels.
    for source in (weights, native(weights)):
        renamed = wan_autoencoder.to_ours(source)
        assert {key: value.shape for key, value in renamed.items()} == {
            key: value.shape for key, value in vae.state_dict().items()
        }
    back = wan_autoencoder.to_diffusers(vae.state_dict())
    assert {key: value.shape for key, value in back.items()} == {key: value.shape for key, value in weights.items()}


def test_statistics_of_another_width_are_refused():
    weights = reference(SIZES[0]).state_dict()
    with pytest.raises(CheckpointError, match="4 latent channels, but statistics are known for the published 16 and"):
        wan_autoencoder.to_ours(weights)
    with pytest.raises(CheckpointError, match="4 latent channels, but the statistics are of 3 means and 4 deviations"):
        wan_autoencoder.to_ours(weights, [0.0] * 3, [1.0] * 4)


def test_weights_without_a_counterpart_are_named():
    weights = ours(reference(SIZES[1])).state_dict()
    with pytest.raises(CheckpointError, match=r"no counterpart for linear_in\.weight"):
        wan_autoencoder.to_diffusers(weights | {"linear_in.weight": torch.zeros(3)})
    theirs = wan_autoencoder.to_diffusers(weights)
    with pytest.raises(CheckpointError, match=r"no counterpart for encoder\.attentions\.0\.weight"):
        wan_autoencoder.to_ours(theirs | {"encoder.attentions.0.weight": torch.zeros(3)})
    del theirs["post_quant_conv.weight"]
    with pytest.raises(CheckpointError, match="post_quant_conv"):
        wan_autoencoder.to_ours(theirs)


@pytest.mark.parametrize("change", [{"patch_size": 2}, {"in_channels": 4}, {"attn_scales": [0.5]}, {"base_dim": None}])
def test_configs_of_other_kinds_are_refused(change: dict):
    config = dict(reference(SIZES[1]).config) | change
    if config["base_dim"] is None:
        del config["base_dim"]
    with pytest.raises(ConfigError, match="in_channels" if "patch_size" in change else next(iter(change))):
        wan_autoencoder.config_from_diffusers(config)


@pytest.mark.parametrize(
    "change",
    [
        {"linear": True},
        {"patch_kernel": 1},
        {"patch_frames": 2},
        {"middle_attention": False},
        {"spatial_downsample": (True, True, False)},
        {"temporal_downsample": (True, True, True)},
        {"dim_mult": (1, 2, 4, 8), "shortcuts": True},
        {"latent_channels": 4},
    ],
    ids=lambda change: next(iter(change)),
)
def test_configs_that_diffusers_has_not_are_refused(change: dict):
    with pytest.raises(ConfigError, match=next(iter(change))):
        wan_autoencoder.config_to_diffusers(VideoVAEConfig(**change), [0.0] * 16, [1.0] * 16)
