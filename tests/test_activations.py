"""The counts beside tensors that are alive, of real passes and, without numbers, of published sizes."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.peak import CudaRules, Peak
from vidiff.models.activations import Pass, Tally, dit_bytes
from vidiff.models.autoencoder import VideoVAE, VideoVAEConfig
from vidiff.models.decoder_activations import decode_bytes
from vidiff.models.dit import DiTConfig, SpaceTimeDiT
from vidiff.models.encoder_activations import encode_bytes
from vidiff.models.quantize import lower_weights
from vidiff.types import Conditioning, TextEmbedding

BF16, FP32 = torch.bfloat16, torch.float32
# Tokens and words are many enough for the fused attention, as on a GPU.
TINY = Pass(DiTConfig(dim=96, depth=2, num_heads=2, ffn_dim=256), 4, (5, 24, 24), 2, 576, 32, FP32)
TINY_VAE = VideoVAEConfig(latent_channels=4, dim=16, dim_mult=(1, 2, 4), temporal_downsample=(True, True))
WAN_1B = DiTConfig(dim=1536, depth=2, num_heads=12, ffn_dim=8960, mask_text=False)
WAN_14B = DiTConfig(dim=5120, depth=2, num_heads=40, ffn_dim=13824, mask_text=False)
WAN_I2V = replace(WAN_14B, concat_channels=20, image_dim=1280)
WAN_5B = DiTConfig(dim=3072, depth=2, num_heads=24, ffn_dim=14336, mask_text=False)
WAN_480P = (21, 60, 104)


def measured_step(run: Pass) -> int:
    network = SpaceTimeDiT(run.config, run.channels, run.text_dim)
    if run.half:
        lower_weights(network, run.dtype)
    b, words = run.samples, run.text_length
    text = TextEmbedding(torch.empty(b, words, run.text_dim), torch.ones(b, words, dtype=torch.bool))
    x, t = torch.zeros(b, run.channels, *run.grid), torch.zeros(b)
    concat, width = run.config.concat_channels, run.config.image_dim
    cond = Conditioning(
        text,
        concat=torch.zeros(b, concat, *run.grid) if concat else None,
        image=None if width is None else torch.zeros(b, run.image_length, width),
        known=torch.zeros(b, run.channels, 1, *run.grid[1:]) if run.known else None,
    )
    with torch.no_grad(), torch.autocast("cpu", BF16, enabled=run.half), Peak() as peak:
        network(x, t, cond)
    return peak.bytes


def measured_decode(
    config: VideoVAEConfig, grid: tuple[int, int, int], dtype: torch.dtype, chunk: int | None, fused: bool
) -> int:
    autoencoder = VideoVAE(config)
    z = torch.zeros(2, config.latent_channels, *grid)
    rules = CudaRules() if fused else nullcontext()
    plain = torch.backends.mkldnn.flags(enabled=False)  # oneDNN called by name has no fake tensors
    with torch.no_grad(), torch.autocast("cpu", BF16, enabled=dtype == BF16), rules, plain, Peak() as peak:
        if chunk is None:
            autoencoder.decode(z)
        else:
            for piece in autoencoder.decode_stream(z, chunk):
                assert piece.shape[0] == 2
    return peak.bytes


def measured_encode(config: VideoVAEConfig, clip: tuple[int, int, int], samples: int) -> int:
    autoencoder, (frames, height, width) = VideoVAE(config), clip
    first = torch.zeros(samples, 3, 1, height, width)
    gray = torch.zeros(()).expand(samples, 3, frames - 1, height, width)
    plain = torch.backends.mkldnn.flags(enabled=False)
    with torch.no_grad(), CudaRules(), plain, Peak() as peak:
        pieces = autoencoder.encode_pieces([first, *gray.split(config.frame_stride, dim=2)])
        assert torch.cat(list(pieces), dim=2).shape[0] == samples
    return peak.bytes


def test_a_tally_remembers_the_most() -> None:
    tally = Tally()
    tally.hold(a=3, b=2)
    tally.drop("a")
    tally.hold(b=4)  # the old one is there until the new one is
    assert tally.peak == 6 and tally.alive == {"b": 4}


@pytest.mark.parametrize("dtype", [BF16, FP32])
@pytest.mark.parametrize(
    "config",
    [
        TINY.config,
        replace(TINY.config, ffn_dim=1024),
        replace(TINY.config, modulation="block", ffn_dim=96),
        replace(TINY.config, pooled_text=True, input_skip=True, positions="rope+absolute"),
    ],
)
def test_a_step_takes_what_was_counted(config: DiTConfig, dtype: torch.dtype) -> None:
    run = replace(TINY, config=config, dtype=dtype)
    assert dit_bytes(run) == pytest.approx(measured_step(run), rel=0.05)


def test_attention_within_frames_and_along_time_takes_what_was_counted() -> None:
    run = replace(TINY, config=replace(TINY.config, attention="factorized"), grid=(4, 48, 48), dtype=BF16)
    assert dit_bytes(run) == pytest.approx(measured_step(run), rel=0.05)


@pytest.mark.parametrize("dtype", [BF16, FP32])
@pytest.mark.parametrize(
    ("concat", "width", "states", "ffn_dim"),
    [(5, None, 0, 256), (5, 80, 400, 256), (5, 80, 1600, 32), (64, 80, 400, 32), (0, 320, 6400, 32)],
)
def test_a_step_from_a_picture_takes_what_was_counted(
    concat: int, width: int | None, states: int, ffn_dim: int, dtype: torch.dtype
) -> None:
    config = replace(TINY.config, concat_channels=concat, image_dim=width, ffn_dim=ffn_dim)
    run = replace(TINY, config=config, dtype=dtype, image_length=states)
    assert dit_bytes(run) == pytest.approx(measured_step(run), rel=0.05)


@pytest.mark.parametrize("dtype", [BF16, FP32])
@pytest.mark.parametrize("ffn_dim", [32, 256, 1024])
def test_a_step_from_given_frames_takes_what_was_counted(ffn_dim: int, dtype: torch.dtype) -> None:
    run = replace(TINY, config=replace(TINY.config, ffn_dim=ffn_dim), dtype=dtype, known=True)
    assert dit_bytes(run) == pytest.approx(measured_step(run), rel=0.05)


def test_the_published_transformer_from_given_frames_takes_what_was_counted() -> None:
    run = Pass(WAN_5B, 48, (31, 44, 80), 2, 512, 4096, BF16, known=True)
    with FakeTensorMode():
        assert dit_bytes(run) == pytest.approx(measured_step(run), rel=0.01)


@pytest.mark.parametrize(
    ("config", "samples", "dtype"),
    [
        *((WAN_1B, 1, BF16), (WAN_1B, 2, FP32), (WAN_14B, 2, BF16), (WAN_14B, 1, FP32)),
        *((WAN_I2V, 2, BF16), (WAN_I2V, 1, FP32), (replace(WAN_I2V, image_dim=None), 2, BF16)),
    ],
)
def test_a_published_transformer_takes_what_was_counted(config: DiTConfig, samples: int, dtype: torch.dtype) -> None:
    run = Pass(config, 16, WAN_480P, samples, 512, 4096, dtype, image_length=257)
    with FakeTensorMode():  # all shapes, types and lifetimes, but no numbers
        assert dit_bytes(run) == pytest.approx(measured_step(run), rel=0.01)


@pytest.mark.parametrize(
    ("config", "clip", "samples"),
    [
        (TINY_VAE, (5, 96, 128), 1),
        (TINY_VAE, (13, 96, 128), 2),
        (replace(TINY_VAE, spatial_downsample=(False, True)), (13, 48, 64), 2),
        (replace(TINY_VAE, shortcuts=True, patch_size=2, patch_frames=2), (17, 96, 128), 2),
        (VideoVAEConfig(), (81, 480, 832), 1),
    ],
)
def test_an_encode_takes_what_was_counted(config: VideoVAEConfig, clip: tuple[int, int, int], samples: int) -> None:
    with FakeTensorMode():
        assert encode_bytes(config, clip, samples) == pytest.approx(measured_encode(config, clip, samples), rel=0.05)


def test_an_encode_with_numbers_takes_what_was_counted() -> None:
    counted = encode_bytes(TINY_VAE, (9, 48, 64), 2)
    assert counted == pytest.approx(measured_encode(TINY_VAE, (9, 48, 64), 2), rel=0.05)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("dtype", [BF16, FP32])
@pytest.mark.parametrize("chunk", [1, 2, None])
def test_a_decode_takes_what_was_counted(chunk: int | None, dtype: torch.dtype, fused: bool) -> None:
    counted = decode_bytes(TINY_VAE, (4, 12, 16), 2, dtype, chunk=chunk, fused_norms=fused)
    with FakeTensorMode():
        assert counted == pytest.approx(measured_decode(TINY_VAE, (4, 12, 16), dtype, chunk, fused), rel=0.05)


def test_a_decode_with_numbers_takes_what_was_counted() -> None:
    counted = decode_bytes(TINY_VAE, (4, 6, 8), 2, FP32, chunk=1)
    assert counted == pytest.approx(measured_decode(TINY_VAE, (4, 6, 8), FP32, 1, fused=False), rel=0.05)


@pytest.mark.parametrize(
    "config",
    [
        replace(TINY_VAE, shortcuts=True, patch_size=2, patch_frames=2),
        VideoVAEConfig(
            "vae", 4, 16, None, (1,), temporal_downsample=(), linear=True, patch_size=4, middle_attention=False
        ),
        replace(TINY_VAE, spatial_downsample=(False, True)),
    ],
)
def test_a_decode_with_other_options_takes_what_was_counted(config: VideoVAEConfig) -> None:
    counted = decode_bytes(config, (4, 12, 16), 2, FP32)
    with FakeTensorMode():
        assert counted == pytest.approx(measured_decode(config, (4, 12, 16), FP32, 1, fused=False), rel=0.1)


def test_the_published_autoencoder_takes_what_was_counted() -> None:
    config = VideoVAEConfig()
    with FakeTensorMode():
        measured = measured_decode(config, (3, 60, 104), BF16, 1, fused=True)
    assert decode_bytes(config, (3, 60, 104), 2, BF16) == pytest.approx(measured, rel=0.02)
