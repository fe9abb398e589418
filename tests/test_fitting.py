"""What published models make is settled before they are loaded: sizes, pictures, and which of two siblings it is."""

from functools import partial

import numpy as np
import pytest
from PIL import Image

from tests.command import in_process
from tests.published import image_to_video, text_to_video
from vidiff.cli.placing import fitting_size
from vidiff.data.video_io import read_clip
from vidiff.interop.wan_published import LARGE, PUBLISHED, SMALL, published
from vidiff.interop.wan_sizes import SHAPES
from vidiff.sizes import resolve_size

TEXT = ("generate", "a red ball", "--model")
SMALLEST = ("--size", "48x32", "--frames", "5", "--steps", "1", "--upscale", "1")


@pytest.fixture
def vidiff(monkeypatch, capsys, tmp_path):
    return partial(in_process, monkeypatch, capsys, tmp_path)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("fitting")
    text_to_video(place / "text")
    image_to_video(place / "picture", "concat")
    return place


def picture(path, height, width):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return path


@pytest.mark.parametrize(
    ("model", "options", "word"),
    [
        ("text", ("--noise-from", "elsewhere"), "--noise-from is vidiff or reference"),
        ("text", ("--size", "50x32"), "multiples of 16, got 50x32; try 48x32"),
        ("text", ("--size", "40x32", "--memory", "8"), "multiples of 16, got 40x32"),
        ("text", ("--size", "48x32", "--frames", "6"), "frames must be 4 * n + 1, got 6; try 5"),
        ("text", ("--image", "a.png"), "takes no picture"),
        ("picture", (), "give one with --image"),
    ],
)
def test_what_a_model_cannot_make_is_refused_before_it_is_loaded(
    vidiff, folders, tmp_path, monkeypatch, model, options, word
):
    picture(tmp_path / "a.png", 40, 60)
    monkeypatch.setattr("vidiff.pipeline.load", lambda *args: pytest.fail("loaded"))
    done = vidiff(*TEXT, folders / model, *options, "-o", "x.mp4")
    assert done.returncode == 2 and word in done.stderr, done.stderr


def test_clips_have_the_shape_of_the_picture_they_start_from(folders, tmp_path):
    expected = {(900, 600): (768, 512), (600, 900): (512, 768), (480, 832): (480, 832), (500, 500): (624, 624)}
    for (high, wide), (height, width) in expected.items():
        found = fitting_size(folders / "picture", None, picture(tmp_path / "a.png", high, wide))
        assert found == f"{width}x{height}"
        assert height * width <= SMALL.height * SMALL.width
    assert fitting_size(folders / "picture", "64x64", tmp_path / "a.png") == "64x64"
    assert fitting_size(folders / "picture", None, None) is None
    assert fitting_size(tmp_path, None, tmp_path / "a.png") is None  # ours are as large as they were trained


def test_a_picture_gives_its_shape_to_the_clip(vidiff, folders, tmp_path, monkeypatch):
    from vidiff import diffusers_folder
    from vidiff.types import Size

    monkeypatch.setattr(diffusers_folder, "Size", lambda *published: Size(5, 32, 48, 16.0))
    picture(tmp_path / "a.png", 90, 60)
    made = vidiff(*TEXT, folders / "picture", "--image", "a.png", "--steps", 2, "--upscale", 1, "-o", "x.mp4")
    assert made.returncode == 0, made.stderr
    assert "32x48, since the picture is 60x90" in made.stderr
    assert read_clip(tmp_path / "x.mp4").frames.shape == (5, 48, 32, 3)


def test_two_models_of_one_shape_are_told_apart_by_where_they_lie():
    one, other = (model for model in PUBLISHED if model.name.startswith("Wan 2.1 I2V"))
    shape = SHAPES[one.name]
    assert shape == SHAPES[other.name]
    find = partial(published, shape.transformers[0], shape.channels, None)
    assert find() is find("/somewhere/else") is find(f"/hub/models--{one.hub.replace('/', '--')}/snapshots/x") is one
    assert find(f"/hub/models--{other.hub.replace('/', '--')}/snapshots/x") is other
    assert (one.size, other.size) == (SMALL, LARGE) and (one.shift, other.shift) == (3.0, 5.0)


@pytest.mark.parametrize(
    ("size", "warns"), [("832x480", False), ("480x832", False), ("1280x720", False), ("640x480", True)]
)
def test_every_published_size_is_one_that_a_model_was_trained_on(folders, size, warns):
    from dataclasses import replace

    from vidiff.pipeline import load

    pipeline = load(folders / "text")
    pipeline = replace(pipeline, config=replace(pipeline.config, name="Wan 2.1 T2V 14B", size=LARGE))
    _, warnings = resolve_size(pipeline, None, None, size)
    assert bool(warnings) == warns
