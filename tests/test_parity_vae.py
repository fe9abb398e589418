"""`VideoVAE` against the reference implementation of the Wan 2.1 VAE in diffusers, with random weights."""

import inspect
import re

import pytest
import torch
from torch import Tensor

from vidiff.errors import CheckpointError, ConfigError
from vidiff.interop import wan_autoencoder
from vidiff.models.autoencoder import VideoVAE, VideoVAEConfig

diffusers = pytest.importorskip("diffusers", reason="diffusers is the reference")

SIZES = [
    dict(base_dim=8, z_dim=4, dim_mult=[1, 2, 4, 4], num_res_blocks=1, temperal_downsample=[False, True, True]),
    dict(base_dim=6, z_dim=3, dim_mult=[1, 2], num_res_blocks=2, temperal_downsample=[True]),
]
sizes = pytest.mark.parametrize("size", SIZES, ids=["stride-8", "stride-2"])


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
@pytest.mark.parametrize("frames", [1, 5, 13])
@torch.no_grad()
def test_latents_equal_the_reference(size: dict, frames: int):
    model = reference(size)
    vae = ours(model)
    video = 2 * torch.rand(2, 3, frames, 16, 24, generator=torch.Generator().manual_seed(1)) - 1
    expected = model.encode(video).latent_dist
    posterior = vae.posterior(video)
    assert relative(posterior.mean, expected.mean) < 1e-4
    assert relative(posterior.log_var, expected.logvar) < 1e-4
    mean, std = (torch.tensor(model.config[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    assert relative(vae.encode(video), (expected.mean - mean) / std) < 1e-4


@sizes
@pytest.mark.parametrize("frames", [1, 3])
@torch.no_grad()
def test_decoded_clips_equal_the_reference(size: dict, frames: int):
    model = reference(size)
    vae = ours(model)
    z = torch.randn(2, size["z_dim"], frames, 2, 3, generator=torch.Generator().manual_seed(1))
    expected = model.decode(z).sample
    assert expected.abs().mean() < 0.9  # clamping does not hide the comparison
    assert relative(vae.decode(vae.normalize(z)), expected) < 1e-4


@sizes
def test_weights_return_to_diffusers_unchanged(size: dict):
    model = reference(size)
    weights = model.state_dict()
    back = wan_autoencoder.to_diffusers(ours(model).state_dict())
    assert back.keys() == weights.keys()
    for key, value in weights.items():
        assert torch.equal(back[key], value), key


def native(weights: dict[str, Tensor], per_level: int) -> dict[str, Tensor]:
    """Rename diffusers' keys to those of the original release."""

    def block(found: re.Match[str]) -> str:
        index = per_level - 1 if found[2] is None else int(found[2])
        return f".upsamples.{int(found[1]) * per_level + index}."

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
        (r"\.down_blocks\.", ".downsamples."),
    ]
    renamed = {}
    for key, value in weights.items():
        for pattern, name in renames:
            key = re.sub(pattern, name, key)
        renamed[re.sub(r"\.up_blocks\.(\d)\.(?:resnets\.(\d)|upsamplers\.0)\.", block, key)] = value
    return renamed


def test_the_original_names_give_the_same_weights():
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    size = SIZES[0] | {"num_res_blocks": 2}  # of the published depth, which diffusers' own converter expects
    model = reference(size)
    weights = model.state_dict()
    original = native(weights, per_level=4)
    converted = convert_wan_vae_to_diffusers(dict(original))
    assert converted.keys() == weights.keys()  # so the names above are the real ones
    statistics = model.config.latents_mean, model.config.latents_std
    renamed, expected = (wan_autoencoder.to_ours(source, *statistics) for source in (original, weights))
    assert renamed.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(renamed[key], value), key


def test_the_published_statistics_are_those_of_the_reference():
    parameters = inspect.signature(diffusers.AutoencoderKLWan.__init__).parameters
    assert list(wan_autoencoder.LATENT_MEAN) == parameters["latents_mean"].default
    assert list(wan_autoencoder.LATENT_STD) == parameters["latents_std"].default


def test_the_published_shape_is_the_default_config():
    with torch.device("meta"):
        model = diffusers.AutoencoderKLWan()
        vae = VideoVAE(VideoVAEConfig())
    assert wan_autoencoder.config_from_diffusers(model.config) == VideoVAEConfig()
    count = sum(parameter.numel() for parameter in vae.parameters())
    assert count == sum(parameter.numel() for parameter in model.parameters()) == 126_892_531


def test_statistics_of_another_width_are_refused():
    with pytest.raises(CheckpointError, match="4 latent channels, but the statistics are of 16 means"):
        wan_autoencoder.to_ours(reference(SIZES[0]).state_dict())


@pytest.mark.parametrize("change", [{"is_residual": True}, {"patch_size": 2}, {"decoder_base_dim": 256}])
def test_configs_of_other_kinds_are_refused(change: dict):
    with pytest.raises(ConfigError, match=next(iter(change))):
        wan_autoencoder.config_from_diffusers(dict(reference(SIZES[1]).config) | change)
