"""Published models made into folders of ours and back: the reference library shows of them what we show."""

import numpy as np
import pytest
from PIL import Image

from tests.published import (
    SIZE,
    WIDE,
    difference,
    diffusers,
    image_to_video,
    noise,
    ours,
    reference,
    text_to_video,
)
from vidiff.converting import from_diffusers, to_diffusers
from vidiff.pipeline import load

# How a tiny model of each kind is saved, and as what it comes back: the pipelines that are to show the same as ours.
TEXT, IMAGE = "WanPipeline", "WanImageToVideoPipeline"
KINDS = {
    "text": (text_to_video, (TEXT,)),
    "two experts": (lambda folder: text_to_video(folder, experts=True), (TEXT,)),
    "clip": (lambda folder: image_to_video(folder, "clip"), (IMAGE,)),
    "concat": (lambda folder: image_to_video(folder, "concat"), (IMAGE,)),
    "known": (lambda folder: image_to_video(folder, "known"), (TEXT, IMAGE)),
    "newer": (lambda folder: text_to_video(folder, newer=True), (TEXT, IMAGE)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_shows_what_we_show_after_a_round_trip(tmp_path, kind):
    save, pipelines = KINDS[kind]
    save(tmp_path / "theirs")
    from_diffusers(tmp_path / "theirs", tmp_path / "ours")
    to_diffusers(tmp_path / "ours", tmp_path / "back")
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "back")
    assert type(again).__name__ == pipelines[0]
    assert again.config.expand_timesteps == (kind in ("known", "newer"))
    model = load(tmp_path / "ours")
    size, stride = (WIDE, 16) if kind == "newer" else (SIZE, 8)
    x = noise(size, stride)
    picture = np.random.default_rng(0).integers(0, 256, (size.height, size.width, 3), dtype=np.uint8)
    for name in pipelines:
        pipeline = getattr(diffusers, name).from_pretrained(tmp_path / "back")
        pipeline.set_progress_bar_config(disable=True)
        shown = {"image": Image.fromarray(picture)} if name == IMAGE else {}
        expected = reference(pipeline, steps=2, size=size, latents=x, guidance_scale=3.0, **shown)
        found = ours(model, 3.0, 2, size=size, noise=[x[0]], pictures=[picture] if shown else None)
        assert difference(found, expected) < 1e-4
