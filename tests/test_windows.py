"""Overlapping windows."""

import itertools

import pytest
import torch

from vidiff.errors import ConfigError
from vidiff.sampling.windows import Windows, blended, starts, windowed

SHAPES = [(1, 4, 4), (5, 8, 8), (9, 11, 23), (13, 8, 17)]
WINDOWS = Windows((5, 8, 8), (2, 3, 3))


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
    slope = (0.3 * f[:, None, None] + 0.5 * h[:, None] - 0.9 * w)[None, None].repeat(2, 3, 1, 1, 1)
    for wanted in (torch.full_like(slope, 0.7), slope):
        found = blended(WINDOWS, wanted, lambda place, x=wanted: x[(..., *place)])
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


def test_a_denoiser_sees_one_window_at_a_time_and_no_seam_is_left():
    seen = []

    def denoise(x, t, place):
        seen.append(x.shape)
        return x - x.mean((2, 3, 4), keepdim=True) + len(seen) % 2  # windows that disagree by a constant

    x = torch.zeros(1, 1, 9, 20, 20)
    out = windowed(denoise, WINDOWS)(x, torch.ones(1))
    assert max(shape[-1] for shape in seen) == 8 and max(shape[2] for shape in seen) == 5 and len(seen) > 4
    # The disagreement is spread over the overlap: no step between neighbors is as large as it.
    for axis in (2, 3, 4):
        assert out.diff(dim=axis).abs().max() < 0.5


def test_one_window_is_the_denoiser_itself():
    x = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(windowed(lambda x, t, place: 2 * x, WINDOWS)(x, torch.ones(2)), 2 * x)


def test_an_overlap_as_large_as_the_window_is_refused():
    with pytest.raises(ConfigError, match="smaller"):
        Windows((5, 8, 8), (2, 8, 3))
