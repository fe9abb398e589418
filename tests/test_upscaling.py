"""What stages reach and how they are called, with stages that make nothing but the plain guess."""

import io
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console

from tests.loaded import script
from tests.test_generation import MODEL, Words, networks, settings_of
from vidiff.errors import ConfigError
from vidiff.generation import Job, generate
from vidiff.models.pixels import PixelAutoencoder, PixelAutoencoderConfig
from vidiff.pipeline import Pipeline
from vidiff.refinement import SpatialSR, TemporalSR
from vidiff.refining import WINDOWS, Refiner
from vidiff.sampling.noise import SeededNoise
from vidiff.sizes import final_size, resolve_size
from vidiff.types import LatentSpec, Size
from vidiff.upscaling import plan, upscale

ROOT = Path(__file__).parents[1]
SHARED = LatentSpec(4, 8, 4)  # of the base, and of stages that fold as many pixels
TEXTLESS = SimpleNamespace(text=lambda prompts, denoiser: None)


class Guess:
    """A stage whose result is the plain guess; it keeps what it was given, and the noise it would have drawn."""

    config, denoiser = MODEL, None

    def __init__(self, refines, latents=SHARED):
        self.refines, self.name, self.size = refines, refines.kind, refines.size
        self.pixels = SimpleNamespace(latents=latents)
        self.given, self.noise, self.options = [], [], []

    level, windows = Refiner.level, Refiner.windows

    def refine(self, clips, text, negative, seeds, sampling, **kwargs):
        self.given.append(clips)
        self.options.append(kwargs)
        self.noise.append(SeededNoise(seeds).randn(8))
        video = self.refines.up(clips.permute(0, 4, 1, 2, 3).float() / 127.5 - 1)
        self.pixels.latents.shape(*(min(pair) for pair in zip(video.shape[2:], WINDOWS.size, strict=True)))
        return ((video + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1)


def pictures(*shape):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8))


def all_differ(noise):
    return len({tuple(one.flatten().tolist()) for one in noise}) == len(noise)


def cascade(*stages):
    """What `resolve_size` reads of a pipeline whose super-resolution stages are (refinement, latents)."""
    refiners = [Guess(refines, latents) for refines, latents in stages]
    return SimpleNamespace(config=MODEL, autoencoder=SimpleNamespace(latents=SHARED), refiners=refiners)


STAGES = (
    (TemporalSR(), SHARED),
    (SpatialSR(), SHARED),
    (TemporalSR(factor=3), LatentSpec(4, 64, 16)),  # its grid is coarser than what comes in
    (SpatialSR(factor=2), SHARED),
)


@pytest.mark.parametrize(
    ("frames", "size", "word"),
    [
        (7, None, "frames must be 8 * n + 1, got 7; try 9"),
        (None, "100x100", "multiples of 64, got 100x100; try 128x128"),
        (None, "250x256", "got 250x256; try 256x256"),
        (6, "1x1", "got 6; try 9; width and height must be multiples of 64, got 1x1; try 64x64"),
        (-7, None, "got -7; try 1"),
        (20_009, None, "20009 frames of 128x128 are too much"),
        (None, "8192x8192", "17 frames of 8192x8192 are too much"),
    ],
)
def test_a_size_out_of_reach_is_told_in_what_was_asked_for(frames, size, word):
    with pytest.raises(ConfigError, match=re.escape(word)):
        resolve_size(cascade(*STAGES[:2]), frames, None, size, 2)


def results(bases, stages):
    """Return what those of ``bases`` become that are whole in every stage's latents."""
    for base in bases:
        sizes = [final_size(cascade(*STAGES), base, number) for number in range(stages + 1)]
        latents = [SHARED, *(latents for _, latents in STAGES)]
        if all(
            (size.frames - 1) % spec.frame_stride == size.height % spec.stride == 0
            for size, spec in zip(sizes, latents, strict=False)
        ):
            yield sizes[-1]


@pytest.mark.parametrize("stages", range(len(STAGES) + 1))
def test_the_size_that_is_advised_is_reached_and_the_nearest(stages):
    pipeline, refused = cascade(*STAGES), 0
    frame_counts = [size.frames for size in results([Size(4 * n + 1, 64, 64, 12.0) for n in range(60)], stages)]
    sides = [
        size.height for size in results([Size(1, 16 * n, 16 * n, 12.0) for n in range(1, 60)], stages)
    ]  # in tokens of 2 x 2
    for n in range(1, 150):
        frames, width, height = n, n, 151 - n
        try:
            resolve_size(pipeline, frames, None, f"{width}x{height}", stages)
        except ConfigError as error:
            refused += 1
            if found := re.search(rf"frames .*got {frames}; try (\d+)", str(error)):
                frames = int(found[1])
            if found := re.search(rf"got {width}x{height}; try (\d+)x(\d+)", str(error)):
                width, height = int(found[1]), int(found[2])
        base, _ = resolve_size(pipeline, frames, None, f"{width}x{height}", stages)
        size = final_size(pipeline, base, stages)
        assert (size.frames, size.height, size.width) == (frames, height, width)
        assert abs(frames - n) == min(abs(one - n) for one in frame_counts)
        assert abs(width - n) == min(abs(one - n) for one in sides)
    assert refused > 100


def test_every_stage_of_generate_draws_noise_of_its_own(tmp_path):
    vae, denoiser, settings = networks()
    stages = (Guess(TemporalSR()), Guess(SpatialSR(factor=2)))
    pipeline = Pipeline(settings, Words(), vae, denoiser, "hash", stages)
    generate(pipeline, [Job("orc", 5, tmp_path / "a.gif")], settings_of(pipeline, stages=2, format="gif"))
    assert all_differ([SeededNoise([5]).randn(8), *stages[0].noise, *stages[1].noise])


def test_a_stage_draws_new_noise_when_it_is_repeated():
    stage = Guess(SpatialSR())
    assert upscale(TEXTLESS, [stage, stage], pictures(1, 8, 8), "", 5).shape == (1, 128, 128, 3)
    assert all_differ([SeededNoise([5]).randn(8), *stage.noise])


@pytest.mark.parametrize("refines", [TemporalSR(), SpatialSR(), TemporalSR(factor=3), SpatialSR(factor=3)])
def test_a_clip_off_the_grid_is_continued_by_its_last_frame_row_and_column(refines):
    stage, clip = Guess(refines), pictures(4, 18, 22)
    made = upscale(TEXTLESS, [stage], clip, "", 0)
    size = refines.size(Size(4, 18, 22, 1.0))
    assert made.shape == (size.frames, size.height, size.width, 3)
    (given,) = stage.given[0]
    more = [(0, now - then) for now, then in zip(given.shape, clip.shape, strict=True)]
    assert given.dtype == torch.uint8 and any(extra for _, extra in more)
    assert np.array_equal(given.numpy(), np.pad(clip.numpy(), more, mode="edge"))


def test_a_clip_on_the_grid_is_not_copied():
    stage, clip = Guess(SpatialSR()), pictures(5, 16, 16)
    upscale(TEXTLESS, [stage], clip, "", 0)
    assert stage.given[0].data_ptr() == clip.data_ptr()


@pytest.mark.parametrize(
    ("refines", "shape", "given"),
    [
        (SpatialSR(), (34, 66, 65), (34, 66, 65)),  # larger than a window along every axis
        (SpatialSR(), (34, 66, 9), (34, 66, 10)),
        (TemporalSR(), (16, 20, 258), (17, 24, 258)),
        (TemporalSR(factor=3), (12, 20, 24), (13, 24, 24)),  # 34 frames of windows that are 37 long
        (TemporalSR(factor=3), (14, 16, 24), (14, 16, 24)),
    ],
)
def test_a_clip_is_continued_only_where_it_is_shorter_than_a_window(refines, shape, given):
    stage = Guess(refines)
    upscale(TEXTLESS, [stage], pictures(*shape), "", 0)
    assert stage.given[0].shape == (1, *given, 3)


def test_stages_are_told_how_much_to_repair():
    stages = [Guess(SpatialSR()), Guess(SpatialSR(factor=2))]
    upscale(TEXTLESS, stages, pictures(1, 8, 8), "", 0, noise=0.2)
    assert [stage.options[0]["noise"] for stage in stages] == [0.2, 0.2]


def test_noise_that_a_later_stage_does_not_know_is_refused_before_the_first_is_at_work():
    stages = [Guess(TemporalSR()), Guess(SpatialSR(max_noise=0.2))]
    with pytest.raises(ConfigError, match=r"spatial_sr was trained with noise from 0 to 0\.2, got 0\.3"):
        upscale(TEXTLESS, stages, pictures(5, 8, 8), "", 0, noise=0.3)
    assert stages[0].given == []


def test_each_stage_is_previewed_by_its_own_pixels(monkeypatch):
    from vidiff.cli import progress

    terminal = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=200)
    monkeypatch.setattr(progress, "console", terminal)
    vae, denoiser, settings = networks()
    stage = Guess(SpatialSR())
    stage.pixels = PixelAutoencoder(PixelAutoencoderConfig(patch_size=8, patch_frames=4))
    pipeline = Pipeline(settings, Words(), vae, denoiser, "hash", (stage,))
    red = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1, 1).expand(-1, -1, 5, 16, 16)
    with progress.sampling_progress(pipeline, "clip 1 of 1: spatial_sr", True, "spatial_sr") as on_step:
        on_step(1, 2, stage.pixels.encode(red))
    assert "38;2;255;0;0" in terminal.file.getvalue()
    with progress.sampling_progress(pipeline, "clip 1 of 1: base", True) as on_step:
        on_step(1, 2, vae.encode(red))
    torch.nn.init.zeros_(vae.preview_weight)  # of an autoencoder without a preview
    with progress.sampling_progress(pipeline, "base", True) as on_step:
        on_step(1, 2, torch.zeros(1))


@pytest.mark.parametrize(
    ("stages", "have", "wanted", "word"),
    [
        ([TemporalSR(), SpatialSR()], Size(4, 16, 16, 6.0), (16, 16, 0.0), "6, 12, 24, 48 fps, not 0"),
        ([SpatialSR()], Size(4, 16, 16, 6.0), (16, 16, 12.0), "no temporal_sr stage, so 6 fps cannot become 12"),
        ([TemporalSR()], Size(4, 16, 16, 6.0), (64, 64, 6.0), "no spatial_sr stage, so 16x16 cannot become 64x64"),
        ([TemporalSR()], Size(9_000, 16, 16, 6.0), (16, 16, 24.0), "35997 frames of 16x16 are too much"),
        ([SpatialSR()], Size(4, 1_080, 1_920, 6.0), (4_320, 7_680, 6.0), "4 frames of 7680x4320 are too much"),
    ],
)
def test_what_is_out_of_reach_or_too_large_is_told_before_anything_is_made(stages, have, wanted, word):
    with pytest.raises(ConfigError, match=word):
        plan([Guess(refines) for refines in stages], have, *wanted)


@pytest.mark.parametrize(("most", "code"), [("3.9", 1), ("4", 0)])
def test_the_memory_benchmark_fails_if_memory_grows_by_more_than_is_allowed(monkeypatch, capsys, most, code):
    bench = script("bench_upscale")
    peaks = [100 + 4 * 3 * size.height * size.width * 16 * (2 * size.frames - 1) / 2**20 for size in bench.SIZES]
    monkeypatch.setattr(bench, "once", lambda model, size, folder: (1.0, peaks[bench.SIZES.index(size)]))
    monkeypatch.setattr("sys.argv", ["bench_upscale", "--most", most])
    stopped = 0
    try:
        bench.main()
    except SystemExit as exited:
        stopped = exited.code
    assert stopped == code and "grew by 4.0 times" in capsys.readouterr().out
