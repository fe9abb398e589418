import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file
from torch.nn import functional as F

from tests.clips import frames, write_folder
from vidiff import config
from vidiff.data.dataset import ClipDataset, DataConfig
from vidiff.data.video_write import write_video
from vidiff.diffusion.guidance import Guidance
from vidiff.diffusion.prediction import check_prediction
from vidiff.errors import CheckpointError, ConfigError
from vidiff.model_folder import ModelConfig, SamplingConfig, load_autoencoder, save_autoencoder
from vidiff.models.autoencoder import VideoVAE, VideoVAEConfig
from vidiff.models.discriminator import DiscriminatorConfig
from vidiff.models.dit import DiTConfig
from vidiff.models.perceptual import DIMS, STAGES, PerceptualDistance
from vidiff.models.pixels import PixelAutoencoder, PixelAutoencoderConfig
from vidiff.models.unet3d import UNet3DConfig
from vidiff.refinement import SpatialSR, TemporalSR
from vidiff.train.autoencoder_stage import (
    AdversarialConfig,
    AutoencoderLosses,
    AutoencoderStage,
    AutoencoderStageConfig,
    gradient_loss,
    multiscale_loss,
    to_uint8,
    to_video,
)
from vidiff.train.cache import cached_latents, cached_text
from vidiff.train.denoiser_stage import DenoiserStage, DenoiserStageConfig
from vidiff.train.recipe import Recipe
from vidiff.train.stream import StreamedLatents
from vidiff.train.trainer import TrainerConfig, train
from vidiff.types import Size, TextEmbedding

QUIET = Console(quiet=True)
VAE = VideoVAEConfig(
    latent_channels=6,
    dim=16,
    dim_mult=(1,),
    num_res_blocks=0,
    temporal_downsample=(),
    patch_size=8,
    patch_frames=4,
    patch_kernel=1,
    linear=True,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    write_folder(folder, 6)
    return ClipDataset(DataConfig(folder, frames=9, height=32, width=32))


@pytest.fixture(scope="module")
def vgg(tmp_path_factory):
    """Random weights in the published shape."""
    generator, tensors, dim_in = torch.Generator().manual_seed(0), {}, 3
    for layers, dim in zip(STAGES, DIMS, strict=True):
        for layer in layers:
            tensors[f"features.{layer}.weight"] = torch.randn(dim, dim_in, 3, 3, generator=generator) / (
                3 * dim_in**0.5
            )
            tensors[f"features.{layer}.bias"] = torch.zeros(dim)
            dim_in = dim
    path = tmp_path_factory.mktemp("vgg") / "vgg16.safetensors"
    save_file(tensors, path)
    return path


def stage(data, **kwargs):
    return AutoencoderStage(AutoencoderStageConfig(autoencoder=VAE, **kwargs), data, {})


def test_every_loss_can_be_turned_on_and_adds_up(data, vgg):
    losses = AutoencoderLosses(
        l1=1.0,
        mse=2.0,
        kl=0.1,
        gradient=0.5,
        multiscale=0.25,
        perceptual=0.3,
        perceptual_weights=vgg,
        adversarial=AdversarialConfig(weight=0.2, start=5, discriminator=DiscriminatorConfig(dim=8, depth=2)),
    )
    tested = stage(data, losses=losses)
    batch, generator = tested.batch([0, 1], seed=3), torch.Generator().manual_seed(0)
    early = tested.loss("model", batch, 0, generator)
    late = tested.loss("model", batch, 5, torch.Generator().manual_seed(0))
    assert "adversarial" not in early and late.keys() == early.keys() | {"adversarial"}
    weights = {"l1": 1.0, "mse": 2.0, "kl": 0.1, "gradient": 0.5, "multiscale": 0.25, "perceptual": 0.3}
    assert early["total"].item() == pytest.approx(sum(w * early[name].item() for name, w in weights.items()), rel=1e-4)
    assert late["total"].item() == pytest.approx(early["total"].item() + 0.2 * late["adversarial"].item(), rel=1e-4)
    assert tested.loss("discriminator", batch, 0, generator)["total"] > 0


def test_each_player_moves_its_own_weights_only(data, tmp_path):
    losses = AutoencoderLosses(
        adversarial=AdversarialConfig(discriminator=DiscriminatorConfig(dim=8, depth=1), start=0)
    )
    tested = stage(data, losses=losses)
    for player, other in (("model", "discriminator"), ("discriminator", "model")):
        for model in tested.models.values():
            model.zero_grad()
        tested.loss(player, tested.batch([0, 1], 0), 0, torch.Generator().manual_seed(0))["total"].backward()
        assert any(p.grad is not None and p.grad.any() for p in tested.models[player].parameters())
        if player == "discriminator":
            assert all(p.grad is None or not p.grad.any() for p in tested.models[other].parameters())
    before = {k: v.clone() for k, v in tested.models["discriminator"].state_dict().items()}
    train(tested, TrainerConfig(max_steps=2, batch_size=2, log_every=1), tmp_path, QUIET)
    assert any(not torch.equal(before[k], v) for k, v in tested.models["discriminator"].state_dict().items())


def test_edges_and_scales_are_compared():
    a = torch.zeros(1, 3, 2, 16, 16)
    assert gradient_loss(a, a + 1) == 0 and multiscale_loss(a, a + 1).item() == pytest.approx(1)
    checker = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2.0 - 1
    assert gradient_loss(a, a + checker).item() == pytest.approx(4)
    assert multiscale_loss(a, a + checker).item() == pytest.approx(0)


def test_equal_clips_have_no_perceptual_distance_and_noise_adds_some(vgg):
    distance, clip = PerceptualDistance(vgg), torch.rand(1, 3, 2, 32, 32) * 2 - 1
    assert distance(clip, clip) == 0
    small, large = (distance(clip, clip + s * torch.randn_like(clip)) for s in (0.05, 0.5))
    assert 0 < small < large


def test_perceptual_weights_must_be_given_and_fit(tmp_path):
    with pytest.raises(ConfigError, match="perceptual_weights"):
        AutoencoderLosses(perceptual=1.0)
    save_file({"features.0.weight": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="missing"):
        PerceptualDistance(tmp_path / "x.safetensors")


def test_windows_and_crops_follow_from_the_seed(data):
    tested = stage(data, frames=5, crop=16)
    one, two, other = tested.batch([0, 3], 7), tested.batch([0, 3], 7), tested.batch([0, 3], 8)
    assert one.video.shape == (2, 3, 5, 16, 16) and torch.equal(one.video, two.video)
    assert not torch.equal(one.video, other.video)
    with pytest.raises(ConfigError, match="do not fit"):
        stage(data, crop=64)
    with pytest.raises(ConfigError, match="try"):
        stage(data, frames=6)


@pytest.mark.parametrize("normalize", ["channel", "all"])
def test_finishing_gives_latents_unit_variance(data, normalize):
    tested = stage(data, start="pca", normalize=normalize)
    tested.finish(tested.vae)
    with torch.no_grad():
        latents = torch.cat([tested.vae.encode(to_video(data.clip(i)[None])) for i in range(len(data))])
    channels = latents.transpose(0, 1).flatten(1)
    assert channels.mean(1).abs().max() < 1e-4
    if normalize == "channel":
        assert torch.allclose(channels.std(1), torch.ones(6), atol=0.01)
    assert channels.square().mean().item() == pytest.approx(1, abs=0.02)


def test_the_fitted_preview_shows_the_clip(data):
    tested = stage(data, start="pca")
    tested.finish(tested.vae)
    video = to_video(data.clip(2)[None])
    with torch.no_grad():
        shown = tested.vae.preview(tested.vae.encode(video))
    small = F.adaptive_avg_pool3d(video, shown.shape[2:])
    assert (shown - small).abs().mean() < 0.1 * small.std() + 0.05


def test_clips_of_several_shapes_train_together(tmp_path):
    for name, size in (("wide", (16, 32)), ("square", (32, 32))):
        for index in range(2):
            write_video(tmp_path / f"{name}{index}.mp4", frames(9, *size, seed=index), 12, lossless=True)
            (tmp_path / f"{name}{index}.txt").write_text(name)
    data = ClipDataset(DataConfig(tmp_path, frames=9, height=32, width=32, buckets=((16, 32),)))
    tested = stage(data)
    train(tested, TrainerConfig(max_steps=4, batch_size=2, log_every=1), tmp_path / "run", QUIET)
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 4
    shapes = {tuple(z.shape) for z in cached_latents(tmp_path / "cache", tested.vae.eval(), "v", data, QUIET)}
    assert shapes == {(6, 3, 4, 4), (6, 3, 2, 4)}


def test_frames_survive_the_way_to_the_network_and_back(data):
    clip = data.clip(1)[None]
    assert torch.equal(to_uint8(to_video(clip)), clip)


class Words:
    dim = 8

    def __init__(self):
        self.calls = 0

    def encode(self, prompts):
        self.calls += 1
        lengths = torch.tensor([2 + len(p) % 3 for p in prompts])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        return TextEmbedding(torch.ones(*mask.shape, 8) * mask[..., None] * lengths[:, None, None], mask)


def test_caches_are_filled_once_and_follow_their_model(data, tmp_path):
    torch.manual_seed(0)
    vae, words = VideoVAE(VAE).eval(), Words()
    first = cached_latents(tmp_path, vae, "a", data, QUIET)
    assert len(first) == 6 and first[0].shape == (6, 3, 4, 4) and first[0].dtype == torch.float16
    assert all(torch.equal(first[i], vae.encode(to_video(data.clip(i)[None]))[0].half()) for i in range(6))
    for weight in vae.parameters():
        torch.nn.init.zeros_(weight)
    assert torch.equal(cached_latents(tmp_path, vae, "a", data, QUIET)[4], first[4])
    assert not torch.equal(cached_latents(tmp_path, vae, "b", data, QUIET)[4], first[4])
    text = cached_text(tmp_path, words, "w", data, QUIET)
    calls = words.calls
    again = cached_text(tmp_path, words, "w", data, QUIET)
    assert words.calls == calls and torch.equal(text.tokens, again.tokens)
    embedding = text.embedding([0, 5])
    direct = words.encode([data.captions(0)[0], data.captions(5)[0]])
    assert torch.equal(embedding.mask, direct.mask) and torch.equal(embedding.tokens, direct.tokens)


@pytest.fixture
def denoiser(data, tmp_path):
    def build(**kwargs):
        torch.manual_seed(0)
        vae = VideoVAE(VAE).eval()
        latents = torch.arange(6 * 6 * 3 * 16.0).view(6, 6, 3, 4, 4).half() / 1000
        text = cached_text(tmp_path, Words(), "w", data, QUIET)
        settings = DenoiserStageConfig(backbone=DiTConfig(dim=16, depth=1, num_heads=2), **kwargs)
        model = ModelConfig(backbone=settings.backbone, text_dim=8, size=Size(9, 32, 32, 12.0))
        return DenoiserStage(settings, model, data, latents, text, vae, {}), latents

    return build


def test_single_frames_know_where_in_their_clip_they_stood(denoiser):
    tested, latents = denoiser(single_frames=1.0)
    seen = set()
    for seed in range(20):
        batch = tested.batch([0, 4], seed)
        assert batch.latents.shape == (2, 6, 1, 4, 4)
        for row, index in enumerate((0, 4)):
            frame = int(batch.first_frame[row])
            assert torch.equal(batch.latents[row, :, 0], latents[index, :, frame].float())
            seen.add(frame)
    assert seen == {0, 1, 2}


def test_whole_clips_have_captions_of_their_own(denoiser):
    tested, latents = denoiser()
    batch = tested.batch([1, 2], 0)
    assert torch.equal(batch.latents, latents[[1, 2]].float()) and batch.first_frame is None
    assert batch.captions == ["a square number 1 moves right", "a square number 2 moves right"]
    losses = tested.loss("model", batch, 0, torch.Generator().manual_seed(0))
    assert losses["total"].ndim == 0 and torch.isfinite(losses["total"])


def test_steps_on_single_frames_may_see_more_clips(denoiser):
    tested, latents = denoiser(single_frames=0.5, clip_share=0.4)
    batches = [tested.batch([0, 1, 2, 3, 4], seed) for seed in range(20)]
    shapes = {tuple(batch.latents.shape) for batch in batches}
    assert shapes == {(5, 6, 1, 4, 4), (2, 6, 3, 4, 4)}
    whole = next(batch for batch in batches if batch.first_frame is None)
    assert torch.equal(whole.latents, latents[[0, 1]].float()) and len(whole.captions) == len(whole.keys) == 2
    with pytest.raises(ConfigError, match="clip_share"):
        denoiser(clip_share=0.0)


@pytest.mark.parametrize(("share", "reaches"), [(0.0, False), (1.0, True)])
def test_text_is_dropped_as_often_as_asked(denoiser, share, reaches):
    tested, _ = denoiser(drop_text=share)
    for parameter in tested.denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    tested.loss("model", tested.batch([0, 1], 0), 0, torch.Generator().manual_seed(0))["total"].backward()
    grad = tested.denoiser.null_tokens.grad
    assert bool(grad is not None and grad.abs().sum() > 1e-8) == reaches


def test_previews_are_clips(denoiser):
    for share, length in ((0.0, 9), (1.0, 1)):
        tested, _ = denoiser(single_frames=share)
        clips = tested.preview(tested.denoiser)
        assert len(clips) == 2 and all(c.shape == (length, 32, 32, 3) for c in clips.values())


@pytest.fixture
def super_resolution(data, tmp_path):
    def build(refines, **kwargs):
        folding = PixelAutoencoderConfig(patch_size=4)
        backbone = UNet3DConfig(dim=16, dim_mult=(1,), attention=(), cross_attention=(0,), num_heads=2, low_res=True)
        settings = DenoiserStageConfig(backbone=backbone, pixels=folding, refines=refines, **kwargs)
        sampling = SamplingConfig(guidance=Guidance(scale=1.0))
        model = ModelConfig(
            backbone=backbone, text_dim=8, predicts="x0", pixels=folding, refines=refines, sampling=sampling
        )
        pixels, text = PixelAutoencoder(folding), cached_text(tmp_path, Words(), "w", data, QUIET)
        return DenoiserStage(settings, model, data, StreamedLatents(pixels, data.clip), text, pixels, {})

    return build


@pytest.mark.parametrize("refines", [TemporalSR(), TemporalSR(factor=4), SpatialSR(), SpatialSR(factor=2)])
def test_super_resolution_is_given_the_guess_of_the_frames_themselves(super_resolution, data, refines):
    tested = super_resolution(refines)
    batch = tested.batch([1, 4], 0)
    video = to_video(torch.stack([data.clip(index) for index in (1, 4)]))
    assert batch.latents.shape == batch.low_res.shape == (2, 192, 3, 8, 8)
    for found, expected in ((batch.latents, video), (batch.low_res, refines.up(refines.down(video)))):
        wanted = tested.autoencoder.encode(expected)
        assert (found - wanted).abs().max() * tested.autoencoder.config.std < 2 * 2 / 255
    assert not torch.equal(batch.low_res, batch.latents)
    assert torch.isfinite(tested.loss("model", batch, 0, torch.Generator().manual_seed(0))["total"])


@pytest.mark.parametrize("refines", [TemporalSR(), TemporalSR(search=1), TemporalSR(factor=4), TemporalSR(factor=8)])
def test_super_resolution_on_single_frames_is_given_the_guess_of_whole_clips(super_resolution, refines):
    whole = super_resolution(refines).batch([1, 4], 0)
    single = super_resolution(refines, single_frames=1.0).batch([1, 4], 0)
    for row, frame in enumerate(single.first_frame):
        assert torch.equal(single.low_res[row, :, 0], whole.low_res[row, :, frame])


def test_previews_of_super_resolution_start_as_the_guess(super_resolution, data):
    tested = super_resolution(SpatialSR())
    clips = tested.preview(tested.denoiser)
    for index, made in enumerate(clips.values()):
        video = to_video(data.clip(index)[None])
        (plain,) = to_uint8(tested.config.refines.up(tested.config.refines.down(video)))
        assert (made.int() - plain.int()).abs().max() <= 2


def test_a_super_resolution_stage_without_pixels_is_refused():
    with pytest.raises(ConfigError, match="works on pixels"):
        DenoiserStageConfig(backbone=UNet3DConfig(low_res=True), refines=SpatialSR())


def test_an_autoencoder_is_saved_with_exact_statistics(tmp_path, data):
    tested = stage(data, start="pca")
    tested.finish(tested.vae)
    save_autoencoder(tmp_path, tested.vae, torch.bfloat16)
    read = load_autoencoder(tmp_path)
    assert torch.equal(read.latent_std, tested.vae.latent_std) and read.config == tested.vae.config
    assert not torch.equal(read.linear_in.weight, tested.vae.linear_in.weight)
    assert torch.equal(read.linear_in.weight, tested.vae.linear_in.weight.bfloat16().float())


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"stages": []}, "nothing to train"),
        ({"stages": [{"kind": "denoiser"}]}, "needs an earlier autoencoder stage 'vae'"),
        ({"stages": [{"kind": "autoencoder"}, {"kind": "autoencoder"}]}, "unique"),
        ({"stages": [{"kind": "autoencoder"}, {"kind": "denoiser", "autoencoder": "vea"}]}, "Did you mean vae"),
        ({"stages": [{"kind": "autoencoder"}, {"kind": "denoiser", "starts_from": "vae"}]}, "earlier denoiser"),
        ({"stages": [{"kind": "autoencoder"}, {"kind": "denoiser", "predicts": "eps"}]}, "use v"),
        ({"stages": [{"kind": "autoencoder"}, {"kind": "denoiser", "drop_text": 2.0}]}, r"share in \[0, 1\]"),
    ],
)
def test_recipes_that_cannot_work_are_refused_before_anything_is_read(change, word):
    recipe = {"name": "r", "data": {"kind": "clips", "path": "x"}, "stages": [{"kind": "autoencoder"}]}
    with pytest.raises(ConfigError, match=word):
        config.from_dict(Recipe, recipe | change)


def test_a_run_says_what_became_of_every_clip(tmp_path):
    from vidiff.train.stage_runs import open_source

    write_folder(tmp_path / "clips", 2)
    (tmp_path / "clips" / "bad.mp4").write_bytes(b"no clip")
    (tmp_path / "clips" / "bad.txt").write_text("words")
    open_source(DataConfig(tmp_path / "clips", frames=9, height=32, width=32), tmp_path / "run", "", QUIET)
    fates = json.loads((tmp_path / "run" / "data.json").read_text())
    assert (fates["total"], fates["used"]) == (3, 2)
    assert "bad.mp4" in (tmp_path / "run" / "skipped.jsonl").read_text()


def test_defaults_are_v_on_a_cosine_schedule_without_terminal_signal():
    settings = DenoiserStageConfig()
    assert settings.predicts == "v" and settings.schedule.kind == "cosine" and settings.schedule.zero_terminal_snr
    check_prediction(settings.predicts, settings.schedule)
    assert replace(settings, name="x").name == "x" and Path("x") == DataConfig(Path("x")).path
