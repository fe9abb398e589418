"""Frames along the motion between known ones."""

import pytest
import torch
from torch.nn import functional as F

from vidiff.errors import ConfigError
from vidiff.motion import between, reach
from vidiff.refinement import TemporalSR
from vidiff.refining import guess


def texture(side=48, seed=0):
    """Return a smooth random picture, (1, 3, side, side), that every place of can be told from its neighbors."""
    noise = torch.randn(1, 3, side // 3, side // 3, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, (side, side), mode="bicubic", align_corners=False).clamp(-2, 2) / 2


def seen(picture, dy, dx, side=32):
    return picture[:, :, 8 + dy : 8 + dy + side, 8 + dx : 8 + dx + side]


@pytest.mark.parametrize(("dy", "dx"), [(0, 2), (-2, 0), (2, -4), (4, 4)])
def test_what_moves_is_found_on_its_way(dy, dx):
    picture = texture()
    before, halfway, after = (seen(picture, part * dy // 2, part * dx // 2) for part in range(3))
    inside = (..., slice(8, -8), slice(8, -8))
    blended = ((before + after) / 2 - halfway)[inside].square().mean()
    found = (between(before, after, 0.5, 4) - halfway)[inside].square().mean()
    assert found < 0.01 * blended


def test_shares_of_the_way_are_kept():
    picture = texture()
    before, early, late, after = (seen(picture, 0, part) for part in range(4))
    for share, wanted in ((1 / 3, early), (2 / 3, late)):
        found = between(before, after, share, 3)
        assert (found - wanted)[..., 8:-8, 8:-8].abs().max() < 0.05


def test_what_stands_still_stays_and_what_nothing_explains_is_nearly_blended():
    picture = seen(texture(), 0, 0)
    torch.testing.assert_close(between(picture, picture, 0.5, 2), picture, atol=0.01, rtol=0)
    bright, dark = torch.full((1, 3, 8, 8), 0.8), torch.full((1, 3, 8, 8), -0.4)
    torch.testing.assert_close(between(bright, dark, 0.25, 2), torch.full((1, 3, 8, 8), 0.5))


def test_known_frames_stay_and_windows_agree():
    refines = TemporalSR(factor=3, search=1)
    clips = torch.randint(0, 256, (2, 3, 16, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    video = clips.permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    whole = refines.up(video)
    assert torch.equal(whole[:, :, ::3], video)
    for frames, columns in ((slice(0, 7), slice(14, 26)), (slice(1, 3), slice(0, 20)), (slice(3, 7), slice(20, 40))):
        part = guess(refines, clips, (frames, slice(0, 16), columns))
        torch.testing.assert_close(part, whole[:, :, frames, :, columns], atol=2e-5, rtol=0)
    assert reach(1) < 14  # so that the first window was made from a part


def test_half_precision_around_it_changes_nothing():
    before, after = seen(texture(), 0, 0), seen(texture(), 0, 2)
    exact = between(before, after, 0.5, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(between(before, after, 0.5, 2), exact)


def test_a_search_below_zero_is_refused():
    with pytest.raises(ConfigError, match="search is a number of pixels"):
        TemporalSR(search=-1)
