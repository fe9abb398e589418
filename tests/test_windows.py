"""Overlapping windows."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from tests.clips import SHARED
from vidiff.data.video_io import read_clip
from vidiff.errors import ConfigError
from vidiff.sampling.windows import Windows, overlay, starts

SHAPES = [(1, 4, 4), (5, 8, 8), (9, 11, 23), (13, 8, 17)]
WINDOWS = Windows((5, 8, 8), (2, 3, 3))


def blended(windows, shape, piece):
    """Return the uint8 clip (1, *shape, 3) of what ``piece`` makes at each place, (3, n, h, w) in [-1, 1]."""
    clips = torch.randint(0, 256, (1, *shape, 3), dtype=torch.uint8)  # whatever stood in the memory
    for place in windows.over(shape):
        overlay(clips, place, piece(place)[None], windows.share(shape, place))
    return clips


def bytes_of(video):
    return ((video + 1) * 127.5).permute(1, 2, 3, 0)[None]


def constant(place, value):
    return torch.full((3, *(at.stop - at.start for at in place)), value)


@pytest.mark.parametrize("shape", SHAPES)
def test_windows_cover_everything_and_stay_inside(shape):
    count = torch.zeros(shape)
    for place in WINDOWS.over(shape):
        assert all(
            at.stop - at.start == min(size, length) for at, size, length in zip(place, (5, 8, 8), shape, strict=True)
        )
        count[place] += 1
    assert count.min() >= 1


def test_neighbors_overlap_by_at_least_what_was_asked():
    for length in range(9, 60):
        first = starts(length, 8, 3)
        assert first[-1] == length - 8
        assert all(0 < b - a <= 5 for a, b in itertools.pairwise(first))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_constant_and_a_ramp_survive(shape):
    f, h, w = (torch.linspace(-1, 1, n) if n > 1 else torch.zeros(1) for n in shape)
    slope = (0.2 * f[:, None, None] + 0.3 * h[:, None] - 0.5 * w).repeat(3, 1, 1, 1)
    for wanted, most in ((torch.full_like(slope, 0.7), 0), (slope, 1)):
        found = blended(WINDOWS, shape, lambda place, x=wanted: x[(..., *place)])
        assert (found - bytes_of(wanted).round()).abs().max() <= most


def rise(start, size, overlap):
    """Weights of one window along one axis before a later one takes its share."""
    return [min(1.0, (i + 1) / (overlap + 1)) if start else 1.0 for i in range(size)]


def axis_weights(length, size, overlap):
    """Return (windows, length): each window's ramp times what all later windows leave."""
    first = starts(length, size, overlap)
    own = torch.zeros(len(first), length)
    for row, start in zip(own, first, strict=True):
        row[start : start + size] = torch.tensor(rise(start, min(size, length), overlap))
    return torch.stack([own[i] * (1 - own[i + 1 :]).prod(0) for i in range(len(first))])


@pytest.mark.parametrize("shape", [(9, 11, 23), (13, 40, 17), (6, 9, 9)])
def test_the_result_is_the_mean_of_the_windows_weighted_along_each_axis(shape):
    weights = [axis_weights(*axis) for axis in zip(shape, WINDOWS.size, WINDOWS.overlap, strict=True)]
    assert all(torch.allclose(one.sum(0), torch.ones(one.shape[1])) for one in weights)
    values = torch.rand([len(one) for one in weights], generator=torch.Generator().manual_seed(0)) * 2 - 1
    numbers = iter(values.flatten())
    found = blended(WINDOWS, shape, lambda place: constant(place, next(numbers).item()))
    expected = (torch.einsum("abc,ax,by,cz->xyz", values, *weights) + 1) * 127.5
    error = (found[0] - expected[..., None]).abs()
    assert error.max() < 2.5 and error.mean() < 0.6  # up to eight windows meet at a corner, and each rounds


def test_windows_that_disagree_leave_no_step_even_where_four_meet():
    windows = Windows((1, 64, 64), (0, 31, 31))
    values = itertools.cycle([-1.0, 1.0, 0.5, -0.8])
    found = blended(windows, (1, 97, 97), lambda place: constant(place, next(values))).int()
    for axis in (2, 3):
        assert found.diff(dim=axis).abs().max() <= math.ceil(255 / 32) + 2  # 2: rounding on both sides


def test_no_place_is_left_as_it_was_however_much_the_last_windows_overlap():
    windows = Windows((5, 8, 8), (1, 2, 2))
    for length in range(8, 20):
        found = blended(windows, (6, length, 9), lambda place: constant(place, 0.2))
        assert (found == round(1.2 * 127.5)).all()


def step(windows, shape, place):
    """Shares of windows that are not blended: each takes over in the middle of its overlaps."""
    inside = [
        (torch.arange(at.stop - at.start) >= (overlap // 2 if at.start else 0)).float()
        for at, overlap in zip(place, windows.overlap, strict=True)
    ]
    return inside[0][:, None, None] * inside[1][:, None] * inside[2]


def test_real_clips_have_no_more_energy_at_seams_than_elsewhere(monkeypatch):
    """Within 1%, for windows that go astray towards their borders, each its own way, as networks do there."""
    path = SHARED / "data" / "odd_clips" / "flipping_a_pancake.mkv"
    if not path.is_file():
        pytest.skip("../shared/data is not here")
    frames = torch.from_numpy(read_clip(path).frames[:33]).permute(3, 0, 1, 2)[None] / 127.5 - 1
    x = F.interpolate(frames, (33, 120, 212), mode="area")[0]
    shape, windows = (33, 120, 212), Windows((13, 32, 32), (4, 8, 8))
    away = [torch.exp(-torch.minimum(n, len(n) - 1 - n) / 4) for n in (torch.arange(13.0), torch.arange(32.0))]
    border = 0.5 * away[0][:, None, None] + away[1][:, None] + away[1]

    def astray(place):
        key = sum(at.start * 1000**n for n, at in enumerate(place))
        sign = torch.randint(0, 2, (3, 1, 1, 1), generator=torch.Generator().manual_seed(key)) * 2 - 1
        return (x[(..., *place)] + 0.05 * sign * border).clamp(-1, 1)

    def energy(clip, axis):
        """Return that of the steps where windows overlap over that of the others."""
        length, size, overlap = shape[axis], windows.size[axis], windows.overlap[axis]
        meets = torch.zeros(length - 1, dtype=torch.bool)
        for start in starts(length, size, overlap)[1:]:
            meets[start - 1 : start + overlap] = True
        steps = clip[0].float().diff(dim=axis).square().transpose(0, axis).flatten(1).mean(1)
        return (steps[meets].mean() / steps[~meets].mean()).item()

    def excess():
        made = blended(windows, shape, astray)
        return [abs(energy(made, axis) / energy(bytes_of(x), axis) - 1) for axis in range(3)]

    smooth = excess()
    monkeypatch.setattr(Windows, "share", step)
    cut = excess()
    assert max(smooth) < 0.01 < min(cut), (smooth, cut)


def test_an_overlap_as_large_as_the_window_is_refused():
    with pytest.raises(ConfigError, match="smaller"):
        Windows((5, 8, 8), (2, 8, 3))
