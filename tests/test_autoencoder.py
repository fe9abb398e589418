from dataclasses import replace

import pytest
import torch

from vidiff.errors import ConfigError
from vidiff.models.autoencoder import Posterior, VideoVAE, VideoVAEConfig
from vidiff.models.causal import CausalConv3d, Upsample

TINY = VideoVAEConfig(latent_channels=3, dim=4, dim_mult=(1, 2, 2), num_res_blocks=1, temporal_downsample=(True, True))
CONFIGS = {
    "frame-stride-4": TINY,
    "patch-2": replace(TINY, patch_size=2, temporal_downsample=(False, True)),
    "space-only": replace(TINY, temporal_downsample=(False, False)),
    "two-levels": replace(TINY, dim_mult=(1, 2), temporal_downsample=(True,), num_res_blocks=2, middle_attention=False),
    "shortcuts": replace(TINY, shortcuts=True, patch_size=2),
    "wide-decoder": replace(TINY, shortcuts=True, decoder_dim=6),
    "time-only-step": replace(TINY, spatial_downsample=(True, False)),
    "heavy-patches": replace(
        TINY, dim_mult=(1,), temporal_downsample=(), num_res_blocks=0, patch_size=4, patch_frames=4, patch_kernel=1
    ),
    "linear": replace(
        TINY, dim_mult=(1,), temporal_downsample=(), num_res_blocks=0, patch_size=4, patch_frames=2, linear=True
    ),
}
configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def tiny_vae(config: VideoVAEConfig) -> VideoVAE:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = VideoVAE(config).eval()
        for name, parameter in vae.named_parameters():
            if "norm" in name:
                torch.nn.init.normal_(parameter, 1.0, 0.2)
            elif not parameter.any():  # branches that start at zero would hide what is behind them
                torch.nn.init.normal_(parameter, std=0.05)
    vae.latent_mean.copy_(torch.tensor([0.1, -0.2, 0.3]))
    vae.latent_std.copy_(torch.tensor([0.5, 1.0, 2.0]))
    return vae


def clip(config: VideoVAEConfig, num_latents: int = 4, seed: int = 1) -> torch.Tensor:
    frames = 1 + (num_latents - 1) * config.frame_stride
    shape = (1, 3, frames, config.stride, 2 * config.stride)
    return 2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 1


def latents(num_latents: int = 4, seed: int = 2) -> torch.Tensor:
    return torch.randn(1, 3, num_latents, 2, 2, generator=torch.Generator().manual_seed(seed))


@configs
@pytest.mark.parametrize("chunk", [1, 2, 3])
@torch.no_grad()
def test_streamed_encoding_equals_encoding_the_whole_clip(config: VideoVAEConfig, chunk: int):
    vae, video = tiny_vae(config), clip(config)
    pieces = list(vae.encode_stream(video, chunk))
    assert len(pieces) > 1
    torch.testing.assert_close(torch.cat(pieces, dim=2), vae.encode(video), rtol=0, atol=1e-4)


@configs
@pytest.mark.parametrize("chunk", [1, 2, 3])
@torch.no_grad()
def test_streamed_decoding_equals_decoding_the_whole_clip(config: VideoVAEConfig, chunk: int):
    vae, z = tiny_vae(config), latents()
    pieces = list(vae.decode_stream(z, chunk))
    assert len(pieces) > 1
    torch.testing.assert_close(torch.cat(pieces, dim=2), vae.decode(z), rtol=0, atol=1e-4)


@configs
@torch.no_grad()
def test_shapes_are_those_of_the_latent_spec(config: VideoVAEConfig):
    vae, video = tiny_vae(config), clip(config)
    z = vae.encode(video)
    assert z.shape[1:] == vae.latents.shape(*video.shape[2:])
    assert vae.decode(z).shape == video.shape


@configs
@torch.no_grad()
def test_an_image_is_the_first_frame_of_a_clip(config: VideoVAEConfig):
    vae, video, z = tiny_vae(config), clip(config), latents()
    torch.testing.assert_close(vae.encode(video[:, :, :1]), vae.encode(video)[:, :, :1], rtol=0, atol=1e-5)
    torch.testing.assert_close(vae.decode(z[:, :, :1]), vae.decode(z)[:, :, :1], rtol=0, atol=1e-5)
    (streamed,) = vae.encode_stream(video[:, :, :1])
    torch.testing.assert_close(streamed, vae.encode(video[:, :, :1]), rtol=0, atol=1e-5)


@configs
@torch.no_grad()
def test_a_latent_frame_does_not_depend_on_later_frames(config: VideoVAEConfig):
    vae, video, other = tiny_vae(config), clip(config), clip(config, seed=7)
    frames_of_two = 1 + config.frame_stride
    changed = torch.cat([video[:, :, :frames_of_two], other[:, :, frames_of_two:]], dim=2)
    before, after = vae.encode(video), vae.encode(changed)
    torch.testing.assert_close(after[:, :, :2], before[:, :, :2], rtol=0, atol=1e-5)
    assert not torch.allclose(after[:, :, 2:], before[:, :, 2:], atol=1e-2)


@configs
@torch.no_grad()
def test_a_decoded_frame_does_not_depend_on_later_latents(config: VideoVAEConfig):
    vae, z = tiny_vae(config), latents()
    changed = torch.cat([z[:, :, :2], latents(seed=7)[:, :, 2:]], dim=2)
    before, after = vae.decode(z), vae.decode(changed)
    frames_of_two = 1 + config.frame_stride
    torch.testing.assert_close(after[:, :, :frames_of_two], before[:, :, :frames_of_two], rtol=0, atol=1e-5)
    assert not torch.allclose(after[:, :, frames_of_two:], before[:, :, frames_of_two:], atol=1e-3)


@configs
def test_every_parameter_gets_a_gradient(config: VideoVAEConfig):
    vae = tiny_vae(config)
    posterior = vae.posterior(clip(config))
    loss = vae.reconstruct(posterior.sample(torch.ones_like(posterior.mean))).square().mean() + posterior.kl().mean()
    loss.backward()
    for name, parameter in vae.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # A bias before a norm may have next to no effect; a weight always has some.
        assert name.endswith("bias") or parameter.grad.abs().sum() > 0, name


def test_normalized_latents_have_the_given_statistics_removed():
    vae = tiny_vae(TINY)
    z = latents()
    expected = torch.stack([(z[:, 0] - 0.1) / 0.5, (z[:, 1] + 0.2) / 1.0, (z[:, 2] - 0.3) / 2.0], dim=1)
    torch.testing.assert_close(vae.normalize(z), expected)
    torch.testing.assert_close(vae.denormalize(vae.normalize(z)), z)


@torch.no_grad()
def test_a_generator_draws_from_the_posterior_and_the_same_seed_draws_the_same():
    vae, video = tiny_vae(TINY), clip(TINY)
    posterior = vae.posterior(video)
    eps = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(5))
    expected = vae.normalize(posterior.mean + posterior.log_var.exp().sqrt() * eps)
    torch.testing.assert_close(vae.encode(video, torch.Generator().manual_seed(5)), expected)
    assert not torch.allclose(vae.encode(video), expected)


def test_the_kl_divergence_is_that_of_two_gaussians():
    mean, std = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.5]])
    q = torch.distributions.Normal(mean, std)
    expected = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).mean(dim=1)
    torch.testing.assert_close(Posterior(mean, 2 * std.log()).kl(), expected)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((7, 4, 8), r"frames must be 4 \* n \+ 1, got 7; try 9"),
        ((5, 6, 8), r"height must be 4 \* n, got 6; try (4|8)"),
        ((5, 4, 1), r"width must be 4 \* n, got 1; try 4"),
    ],
)
def test_sizes_off_the_grid_are_refused_with_the_nearest(size: tuple[int, int, int], message: str):
    vae = tiny_vae(TINY)
    with pytest.raises(ConfigError, match=message):
        vae.encode(torch.zeros(1, 3, *size))
    with pytest.raises(ConfigError, match=message):
        next(vae.encode_stream(torch.zeros(1, 3, *size)))


def test_strides_follow_from_the_config():
    assert (VideoVAEConfig().stride, VideoVAEConfig().frame_stride) == (8, 4)
    assert (CONFIGS["patch-2"].stride, CONFIGS["patch-2"].frame_stride) == (8, 2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temporal_downsample": (True,)}, "one entry between each two levels of dim_mult: 2, got 1"),
        ({"dim_mult": (1, 4, 4)}, "stay or double"),
        ({"dim_mult": (2, 1, 1)}, "stay or double"),
        ({"decoder_dim": 0}, "decoder_dim must be at least 1"),
    ],
)
def test_impossible_configs_are_refused(wrong: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **wrong)


def test_the_pca_start_reconstructs_as_principal_components_do():
    config = replace(CONFIGS["linear"], latent_channels=5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = VideoVAE(config)
    # Clips of five patterns and a mean: five components hold all of it.
    generator = torch.Generator().manual_seed(3)
    patterns = 0.2 * torch.randn(5, 3, 2, 4, 4, generator=generator)
    weights = torch.randn(6, 5, generator=generator)
    clips = [torch.einsum("n,ncfhw->cfhw", w, patterns).repeat(1, 2, 2, 2)[:, 1:] for w in weights]
    vae.start_as_pca([clip for clip in clips if clip.shape[1] == 3])
    with torch.no_grad():
        first, rest = clips[0][:, :1], clips[0][:, 1:]
        found = vae.reconstruct(vae.posterior(clips[0][None]).mean)[0]
        assert found.shape == clips[0].shape and first.shape[1] + rest.shape[1] == 3
        assert torch.isfinite(found).all()
        total = (clips[0] - clips[0].mean()).square().mean()
        assert (found[:, 1:] - rest).square().mean() < 0.2 * total
    with pytest.raises(ConfigError, match="linear: true"):
        VideoVAE(TINY).start_as_pca(clips)


def test_upsampling_in_space_is_a_convolution_of_repeated_pixels():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer, x = Upsample(4, 3, spatial=True, temporal=False), torch.randn(2, 4, 3, 5, 6)
        assert layer.space is not None
    frames = x.transpose(1, 2).flatten(0, 1).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    expected = layer.space(frames).unflatten(0, (2, 3)).transpose(1, 2)
    found = layer(x)
    torch.testing.assert_close(found, expected)
    for loss in (found.square().sum(), expected.square().sum()):
        loss.backward()
    doubled = layer.space.weight.grad
    assert doubled is not None
    layer.zero_grad()
    layer(x).square().sum().backward()
    torch.testing.assert_close(2 * layer.space.weight.grad, doubled, rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_a_stream_keeps_no_more_frames_than_it_needs():
    conv, past = CausalConv3d(2, 2, 3), {}
    for frames in (1, 8):
        conv(torch.zeros(1, 2, frames, 4, 4), past)
        assert past[conv].shape[2] == 2
        assert past[conv].untyped_storage().nbytes() == past[conv].numel() * past[conv].element_size()
