"""From frames to what published networks read."""

from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from vidiff import config
from vidiff.errors import ConfigError, DataError
from vidiff.metrics.extractors import CLIP
from vidiff.metrics.preprocess import Filter, MeanStd, Preprocess, resized, scaled


def noise(frames=2, height=12, width=20):
    return torch.randint(0, 256, (frames, height, width, 3), generator=torch.Generator().manual_seed(0)).byte()


def counted(frames):
    """A clip whose frame t has the value t everywhere."""
    return torch.arange(frames).byte()[:, None, None, None].expand(frames, 4, 4, 3)


def ramp():
    """4 x 4 pixels, 40 y + 10 x."""
    values = 40 * torch.arange(4)[:, None] + 10 * torch.arange(4)
    return values.byte()[None, :, :, None].expand(1, 4, 4, 3)


@pytest.mark.parametrize(
    ("size", "places"),
    [
        # Without half-pixel centers, target i lies at 4 i / size, and what lies beyond pixel 3 is pixel 3.
        (8, [0, 0.5, 1, 1.5, 2, 2.5, 3, 3]),
        (3, [0, 4 / 3, 8 / 3]),
        (2, [0, 2]),
        (4, [0, 1, 2, 3]),
    ],
)
def test_tf1_bilinear_is_what_one_computes_by_hand(size, places):
    at = torch.tensor(places, dtype=torch.float32)
    found = resized(ramp(), size, "tf1", "squash")
    torch.testing.assert_close(found, (40 * at[:, None] + 10 * at).expand(1, 3, size, size), atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [7, 32])
@pytest.mark.parametrize(
    ("filter", "options"),
    [
        ("bilinear", {"mode": "bilinear"}),
        ("bilinear-aa", {"mode": "bilinear", "antialias": True}),
        ("bicubic-aa", {"mode": "bicubic", "antialias": True}),
    ],
)
def test_torch_filters_are_torchs(filter, options, size):
    frames = noise().permute(0, 3, 1, 2).float()
    expected = F.interpolate(frames, (size, size), align_corners=False, **options)
    torch.testing.assert_close(resized(noise(), size, filter, "squash"), expected)


@pytest.mark.parametrize("size", [7, 32])
def test_pil_bicubic_is_pils_on_float_planes(size):
    found = resized(noise(), size, "pil-bicubic", "squash")
    for frame, ours in zip(noise().numpy(), found.numpy(), strict=True):
        for channel in range(3):
            plane = Image.fromarray(frame[:, :, channel].astype(np.float32))
            assert np.array_equal(ours[channel], np.asarray(plane.resize((size, size), Image.Resampling.BICUBIC)))


@pytest.mark.parametrize("filter", get_args(Filter))
def test_frames_of_the_right_size_are_left_alone(filter):
    clip = noise(height=16, width=16)
    for crop in ("squash", "center"):
        found = resized(clip, 16, filter, crop)
        torch.testing.assert_close(found, clip.permute(0, 3, 1, 2).float(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("filter", get_args(Filter))
def test_the_middle_is_cut_out_of_either_orientation(filter):
    columns = (10 * torch.arange(16)).byte()[None, None, :, None].expand(1, 8, 16, 3)
    middle = (10 * torch.arange(4, 12)).float().expand(1, 3, 8, 8)
    torch.testing.assert_close(resized(columns, 8, filter, "center"), middle, atol=1e-4, rtol=0)
    upright = resized(columns.transpose(1, 2), 8, filter, "center")
    torch.testing.assert_close(upright, middle.transpose(2, 3), atol=1e-4, rtol=0)


@pytest.mark.parametrize("filter", get_args(Filter))
def test_one_frame_does_not_touch_another(filter):
    both = resized(noise(2), 9, filter, "center")
    assert torch.equal(both[1:], resized(noise(2)[1:], 9, filter, "center"))


@pytest.mark.parametrize("size", [(48, 80), (300, 257)])
def test_clip_frames_are_as_near_to_the_published_processors_as_8_bits_allow(size):
    from transformers import CLIPImageProcessor

    y, x, channel = np.ogrid[: size[0], : size[1], :3]
    picture = 128 + 90 * np.sin(6 * x / size[1] + channel) * np.cos(5 * y / size[0])
    picture = picture.round().astype(np.uint8)
    published = CLIPImageProcessor()(images=[picture], return_tensors="pt")["pixel_values"][0]
    found = CLIP(torch.from_numpy(picture)[None])[0]
    levels = 255 * torch.tensor(CLIP.pixels.std)[:, None, None]
    assert found.shape == published.shape == (3, 224, 224)
    # The published one rounds to 8 bits twice: the second pass weighs errors of a half by up to 1.25 in sum.
    assert ((found - published) * levels).abs().max() < 0.5 * 1.25 + 0.5


def test_red_stays_red():
    red = torch.tensor([255, 0, 0]).byte().expand(1, 6, 6, 3)
    for filter in get_args(Filter):
        found = Preprocess(frames=1, size=4, filter=filter)(red)
        torch.testing.assert_close(found, torch.tensor([1.0, -1, -1])[:, None, None].expand(1, 3, 4, 4))
        swapped = Preprocess(frames=1, size=4, filter=filter)(red.flip(3))
        assert (swapped[:, 0] == -1).all() and (swapped[:, 2] > 0.999).all()


@pytest.mark.parametrize(
    ("pixels", "back", "ends"),
    [
        ("signed", lambda x: (x + 1) * 127.5, (-1.0, 1.0)),
        ("unit", lambda x: x * 255, (0.0, 1.0)),
        ("raw", lambda x: x, (0.0, 255.0)),
        (MeanStd(mean=(0.4, 0.4, 0.4), std=(0.2, 0.2, 0.2)), lambda x: (0.2 * x + 0.4) * 255, (-2.0, 3.0)),
    ],
    ids=["signed", "unit", "raw", "deviation"],
)
def test_all_256_levels_come_back_from_every_range(pixels, back, ends):
    levels = torch.arange(256).byte().reshape(1, 16, 16, 1).expand(1, 16, 16, 3)
    found = Preprocess(frames=1, size=16, pixels=pixels)(levels)
    assert found.dtype == torch.float32
    assert torch.equal(back(found).round().byte(), levels.permute(0, 3, 1, 2))
    torch.testing.assert_close((found.min().item(), found.max().item()), ends)


def test_mean_and_deviation_are_each_channels_own():
    pixels = MeanStd(mean=(0.0, 0.2, 0.4), std=(1.0, 0.5, 0.2))
    found = scaled(torch.full((1, 3, 1, 1), 255.0), pixels).flatten()
    torch.testing.assert_close(found, torch.tensor([1.0, 1.6, 3.0]))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"frames": 4}, [0, 1, 2, 3]),
        ({"frames": 3, "stride": 4}, [0, 4, 8]),
        ({"frames": 3, "stride": 2, "start": 5}, [5, 7, 9]),
        ({"frames": None}, list(range(10))),
        ({"frames": None, "stride": 3, "start": 1}, [1, 4, 7]),
        ({"frames": 10}, list(range(10))),
    ],
)
def test_the_frames_that_are_meant_are_picked(settings, expected):
    picked = Preprocess(size=4, pixels="raw", **settings)
    assert picked(counted(10))[:, 0, 0, 0].tolist() == expected == list(picked.indices(10))


@pytest.mark.parametrize(
    ("settings", "needed"),
    [({"frames": 11}, 11), ({"frames": 4, "stride": 4}, 13), ({"frames": None, "start": 10}, 11)],
)
def test_a_short_clip_is_never_padded(settings, needed):
    with pytest.raises(DataError, match=rf"has 10 frames, .* needs {needed};"):
        Preprocess(size=4, **settings)(counted(10))
    assert Preprocess(size=4, **settings)(counted(needed)) is not None


def test_it_prints_as_part_of_a_protocol():
    assert str(Preprocess()) == "16f,stride 1,224 bilinear squash"
    assert str(Preprocess(frames=None, stride=8, start=2, filter="tf1", crop="center")) == (
        "all frames,stride 8,start 2,224 tf1 center"
    )


def test_for_an_archive_frames_stay_as_they_are():
    found = Preprocess(frames=2, filter="archive", pixels="raw")(noise())
    assert found.dtype == torch.uint8 and torch.equal(found, noise().permute(0, 3, 1, 2))


@pytest.mark.parametrize(
    "clip", [noise().float(), noise()[0], noise()[..., :2], noise()[:0]], ids=["float", "frame", "gray", "empty"]
)
def test_what_is_no_clip_is_refused(clip):
    with pytest.raises(DataError, match=r"uint8 \(F, H, W, 3\)"):
        Preprocess(frames=1)(clip)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"frames": 0}, "frames"),
        ({"stride": 0}, "stride"),
        ({"start": -1}, "start"),
        ({"size": 0}, "size"),
        ({"filter": "archive", "crop": "center"}, "crop"),
    ],
)
def test_impossible_settings_are_refused(wrong, word):
    with pytest.raises(ConfigError, match=word):
        Preprocess(**wrong)


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="one of tf1, bilinear"):
        Preprocess(frames=2, filter="lanczos")(noise())
    with pytest.raises(ConfigError, match="signed, unit, raw"):
        Preprocess(frames=2, pixels="gray")(noise())
    with pytest.raises(ConfigError, match="std"):
        MeanStd(std=(0.2, 0.0, 0.2))


@pytest.mark.parametrize("one", [Preprocess(), CLIP, Preprocess(frames=None, filter="archive", pixels="raw")], ids=str)
def test_yaml_holds_all_of_it(one):
    assert config.from_dict(Preprocess, config.to_dict(one)) == one
