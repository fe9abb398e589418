"""What super-resolution stages take away and add, and how they go about it window by window."""

import itertools

import pytest
import torch

from vidiff.diffusion.guidance import Guidance
from vidiff.errors import ConfigError, NumericalError
from vidiff.model_folder import ModelConfig, SamplingConfig
from vidiff.models.dit import DiTConfig
from vidiff.models.pixels import PixelAutoencoder, PixelAutoencoderConfig
from vidiff.models.unet3d import UNet3DConfig
from vidiff.refinement import SpatialSR, TemporalSR
from vidiff.refining import WINDOWS, Refiner, guess, whole
from vidiff.sampling.noise import PlacedNoise
from vidiff.sampling.solvers import DDPM
from vidiff.sampling.windows import Windows
from vidiff.types import LatentSpec, Size, TextEmbedding


def moving_ramp(frames=9, side=8):
    t = torch.linspace(-0.5, 0.5, frames)[:, None, None]
    x = torch.linspace(-0.4, 0.4, side)
    return (t + x).expand(1, 3, frames, side, side).clone()


def test_blending_restores_linear_motion_and_enlarging_a_smooth_picture():
    video = moving_ramp()
    torch.testing.assert_close(TemporalSR().up(TemporalSR().down(video)), video)
    large = moving_ramp(side=32)
    guess = SpatialSR().up(SpatialSR().down(large))
    assert guess.shape == large.shape
    assert (guess - large)[..., 6:-6, 6:-6].abs().max() < 0.02


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_known_frames_are_put_back(factor):
    refines = TemporalSR(factor=factor)
    known = torch.randint(0, 256, (2, 4, 6, 6, 3), dtype=torch.uint8)
    made = torch.zeros(2, 3 * factor + 1, 6, 6, 3, dtype=torch.uint8)
    out = refines.restored(made, known)
    assert out is made  # a large result is not held twice
    assert torch.equal(out[:, ::factor], known)
    assert out[:, 1::factor].sum() == 0


@pytest.mark.parametrize("refines", [TemporalSR(), TemporalSR(factor=3), SpatialSR(), SpatialSR(factor=2)])
def test_sizes_go_there_and_back(refines):
    size = Size(7, 16, 24, 12.0)
    assert refines.before(refines.size(size)) == size
    video = torch.zeros(1, 3, 7, 16, 24)
    grown = refines.size(size)
    assert refines.up(video).shape[2:] == (grown.frames, grown.height, grown.width)


@pytest.mark.parametrize(
    ("refines", "size", "word"),
    [(TemporalSR(), Size(32, 64, 64, 24), "try 3"), (SpatialSR(), Size(33, 250, 256, 24), "try 256x2")],
)
def test_a_size_out_of_reach_names_the_nearest(refines, size, word):
    with pytest.raises(ConfigError, match=word):
        refines.before(size)


@pytest.mark.parametrize("refines", [TemporalSR(), TemporalSR(factor=3), SpatialSR(), SpatialSR(factor=3)])
def test_a_part_of_the_guess_is_that_part_of_the_whole_guess(refines):
    clips = torch.randint(0, 256, (2, 9, 15, 11, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = refines.up(clips.permute(0, 4, 1, 2, 3).float() / 127.5 - 1)
    ends = whole.shape[2:]
    spans = [((0, 1), (n - 1, n), (0, n), (0, n // 2), (n // 2, n), (n // 3, n // 3 + 4)) for n in ends]
    for place in itertools.product(*([slice(*span) for span in one] for one in spans)):
        torch.testing.assert_close(guess(refines, clips, place), whole[(..., *place)], atol=2e-6, rtol=0)


@pytest.mark.parametrize("wrong", [{"factor": 1}, {"noise": 0.5, "max_noise": 0.4}, {"max_noise": 1.0}])
def test_settings_that_make_no_sense_are_refused(wrong):
    for kind in (TemporalSR, SpatialSR):
        with pytest.raises(ConfigError):
            kind(**wrong)


UNET = UNet3DConfig(dim=16, dim_mult=(1, 2), num_res_blocks=1, num_heads=2, low_res=True)
PIXELS = PixelAutoencoderConfig(patch_size=4)
SMALL = Windows((9, 24, 24), (3, 8, 8))


def stage(refines, spread=0.0):
    """Return an untrained stage, which makes the plain guess, with weights moved by ``spread``."""
    settings = ModelConfig(
        backbone=UNET,
        text_dim=8,
        predicts="x0",
        pixels=PIXELS,
        refines=refines,
        sampling=SamplingConfig(DDPM(), num_steps=3, guidance=Guidance(scale=2.0)),
    )
    torch.manual_seed(0)
    pixels = PixelAutoencoder(PIXELS)
    denoiser, generator = settings.denoiser(pixels.latents).eval(), torch.Generator().manual_seed(1)
    for parameter in denoiser.parameters():
        parameter.data += spread * torch.randn(parameter.shape, generator=generator)
    return Refiner(refines.kind, settings, refines, denoiser, pixels)


def words(count, seed=0):
    tokens = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(seed)).expand(count, -1, -1)
    return TextEmbedding(tokens, torch.ones(count, 3, dtype=torch.bool))


def clip(count, frames, height, width):
    """Return random pictures, smooth enough for the guess to be of use."""
    generator = torch.Generator().manual_seed(2)
    coarse = torch.rand(count, 3, 1 + frames // 4, 1 + height // 4, 1 + width // 4, generator=generator)
    video = torch.nn.functional.interpolate(coarse, (frames, height, width), mode="trilinear")
    return (video * 255).round().to(torch.uint8).permute(0, 2, 3, 4, 1)


def refined(stage, clips, seeds=None, **options):
    seeds = range(len(clips)) if seeds is None else seeds
    count = len(clips)
    return stage.refine(clips, words(count), words(count, 1), seeds, stage.config.sampling, **options)


LONG = [
    (TemporalSR(), (1, 10, 30, 26)),
    (SpatialSR(factor=2), (1, 11, 15, 27)),
    (TemporalSR(factor=3), (1, 10, 30, 24)),
]


@pytest.mark.parametrize(("refines", "shape"), LONG)
def test_windows_of_a_clip_larger_than_they_and_off_the_grid_add_up_to_the_guess(refines, shape):
    clips, finer = clip(*shape), refines.size(Size(*shape[1:], 6.0))
    made = refined(stage(refines), clips, noise=0.0, windows=SMALL)
    assert made.shape == (1, finer.frames, finer.height, finer.width, 3) and made.dtype == torch.uint8
    plain = (refines.up(clips.permute(0, 4, 1, 2, 3).float() / 127.5 - 1) + 1) * 127.5
    error = (made - plain.permute(0, 2, 3, 4, 1)).abs()
    assert error.max() < 2 and error.mean() < 0.4


@pytest.mark.parametrize(("refines", "shape"), LONG)
def test_the_same_seed_makes_the_same_clip_whatever_is_made_beside_it(refines, shape):
    clips, tested = clip(2, *shape[1:]), stage(refines, spread=0.05)
    both = refined(tested, clips, [5, 6], windows=SMALL).int()
    torch.randn(7)
    assert torch.equal(both, refined(tested, clips, [5, 6], windows=SMALL).int())
    (alone,) = refined(tested, clips[1:], [6], windows=SMALL).int()
    assert (both[1] - alone).abs().max() <= 2
    (other,) = refined(tested, clips[1:], [7], windows=SMALL).int()
    assert (other - alone).abs().float().mean() > 1


@pytest.mark.parametrize(("refines", "shape"), LONG)
def test_many_windows_make_about_what_one_makes(refines, shape):
    """Not just that: norms and attention look at all of a window."""
    clips, tested = clip(*shape), stage(refines, spread=0.02)
    clips = clips[:, : 1 + 4 * ((clips.shape[1] - 1) // 4), : clips.shape[2] // 4 * 4, : clips.shape[3] // 4 * 4]
    plain = refined(stage(refines), clips, noise=0.0).float()
    one, many = (refined(tested, clips, windows=windows).float() for windows in (WINDOWS, SMALL))
    assert 0 < (many - one).abs().mean() < 0.4 * (one - plain).abs().mean()


def unfolded(latents):
    """Return (B, 3, patch_frames * f, H, W), the inverse of `PixelAutoencoder.fold`."""
    b, _, f, h, w = latents.shape
    parts = latents.view(b, 3, 4, 4, 4, f, h, w)  # channels are color, frame, row, column
    return parts.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(b, 3, 4 * f, 4 * h, 4 * w)


@pytest.mark.parametrize("use", [0, 1, 5])
def test_overlapping_windows_draw_the_same_noise_and_every_copy_of_the_first_frame_its_own(use):
    tested, source = stage(TemporalSR()), PlacedNoise([3, 4])
    one = unfolded(tested._noise(source, (slice(0, 9), slice(0, 24), slice(8, 32)), use))
    two = unfolded(tested._noise(source, (slice(6, 15), slice(8, 32), slice(20, 44)), use))
    assert one.shape == (2, 3, 12, 24, 24)
    # The first three are copies of the window's first frame.
    assert torch.equal(one[:, :, 3:][:, :, 6:, 8:, 12:], two[:, :, 3:][:, :, :3, :16, :12])
    assert len(one.unique()) > 0.99 * one.numel()
    assert one.std().item() == pytest.approx(1, abs=0.02)
    assert not torch.equal(one, unfolded(tested._noise(source, (slice(0, 9), slice(0, 24), slice(8, 32)), use + 1)))


@pytest.mark.parametrize("refines", [TemporalSR(), TemporalSR(factor=3), SpatialSR(), SpatialSR(factor=3)])
def test_every_window_begins_with_a_known_frame_and_pixel(refines):
    windows = whole(WINDOWS, LatentSpec(4, 8, 4), refines)
    size = refines.size(Size(200, 330, 331, 6.0))
    for place in windows.over((size.frames, size.height, size.width)):
        assert all(at.start % factor == 0 for at, factor in zip(place, refines.factors, strict=True))
        LatentSpec(4, 8, 4).shape(*(at.stop - at.start for at in place))
    assert all(now >= then for now, then in zip(windows.size, WINDOWS.size, strict=True))


def test_progress_counts_the_steps_of_all_windows():
    seen = []
    refined(stage(SpatialSR(factor=2)), clip(1, 5, 20, 12), windows=SMALL, on_step=lambda *step: seen.append(step))
    assert [done for done, _, _ in seen] == list(range(1, 7)) and {total for _, total, _ in seen} == {6}
    assert all(x_0.shape == (1, 192, 2, 6, 6) for _, _, x_0 in seen)


def test_what_is_not_finite_or_shows_nothing_is_refused():
    tested = stage(SpatialSR(factor=2))
    with pytest.raises(NumericalError, match="flat color"):
        refined(tested, torch.full((1, 5, 12, 12, 3), 80, dtype=torch.uint8), noise=0.0)
    tested.denoiser.backbone.conv_out.bias.data[3] = float("inf")
    with pytest.raises(NumericalError, match="spatial_sr are not finite"):
        refined(tested, clip(1, 5, 12, 12))


def test_a_clip_shorter_than_a_window_and_off_the_grid_is_refused():
    with pytest.raises(ConfigError, match=r"frames must be 4 .* got 7; try 9"):
        refined(stage(TemporalSR()), clip(1, 4, 24, 24))
    with pytest.raises(ConfigError, match="width must be 4"):
        refined(stage(TemporalSR()), clip(1, 3, 24, 22), windows=SMALL)


def test_super_resolution_without_pixels_is_refused():
    with pytest.raises(ConfigError, match=r"set pixels, such as \{patch_size: 8\}"):
        ModelConfig(backbone=UNET, refines=SpatialSR())
    assert ModelConfig(backbone=DiTConfig(), pixels=PIXELS).pixels == PIXELS  # which a base may have too
