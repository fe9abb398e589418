"""Optical flow: what moves how far, and where that can be trusted."""

import sys

import numpy as np
import pytest
import torch

from vidiff.errors import ConfigError, DataError
from vidiff.metrics.flow import DIS, DISFlow, clip_flow, warp


def moving_texture(num_frames, height, width, velocity, seed=0):
    """Return a sum of waves that moves by ``velocity`` (x, y) pixels a frame: exact at fractions of a pixel too."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    k = np.arange(num_frames)[:, None, None]
    x, y = x - velocity[0] * k, y - velocity[1] * k
    clip = np.zeros((num_frames, height, width, 3))
    for _ in range(40):
        length, angle, phase = np.exp(rng.uniform(np.log(6), np.log(24))), *rng.uniform(0, 2 * np.pi, 2)
        wave = np.cos(2 * np.pi / length * (np.cos(angle) * x + np.sin(angle) * y) + phase)
        clip += rng.normal(0, 10, 3) * wave[..., None]
    return torch.from_numpy((128 + clip).round().clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("side", [64, 128])
@pytest.mark.parametrize("velocity", [(0.3, -0.2), (1.0, 0.0), (1.7, -2.3), (-4.0, 3.0)])
def test_a_moving_texture_is_followed_within_a_tenth_of_a_pixel(side, velocity):
    flow = clip_flow(moving_texture(2, side, side, velocity, seed=1))
    for found, mask, wanted in (
        (flow.forward, flow.forward_mask, velocity),
        (flow.backward, flow.backward_mask, (-velocity[0], -velocity[1])),
    ):
        assert (found - torch.tensor(wanted)).norm(dim=3)[mask].mean() < 0.1
        leaves = sum(abs(v) for v in velocity) / side  # at least this share of the frame cannot be found again
        assert 0.8 - leaves < mask.float().mean() <= 1


def test_small_frames_are_followed_because_they_are_enlarged():
    clip, velocity = moving_texture(2, 64, 64, (-6.5, 2.0), seed=1), torch.tensor([-6.5, 2.0])
    large, plain = clip_flow(clip), clip_flow(clip, DISFlow(side=64))
    assert large.forward_mask.float().mean() > 0.8 > 0.5 > plain.forward_mask.float().mean()
    assert (large.forward - velocity).norm(dim=3)[large.forward_mask].mean() < 0.1


def test_the_two_axes_are_not_mixed_up_in_frames_that_are_not_square():
    flow = clip_flow(moving_texture(2, 48, 96, (2.0, -1.0)))
    assert flow.forward.shape == (1, 48, 96, 2) and flow.forward_mask.shape == (1, 48, 96)
    torch.testing.assert_close(flow.forward[flow.forward_mask].mean(0), torch.tensor([2.0, -1.0]), atol=0.1, rtol=0)


def test_only_the_moving_half_moves():
    clip = moving_texture(2, 64, 128, (0.0, 0.0), seed=2)
    clip[:, :, 64:] = moving_texture(2, 64, 64, (2.0, 0.0), seed=3)
    speed = clip_flow(clip).forward[0].norm(dim=2)
    assert speed[:, 8:48].mean() < 0.1 and abs(speed[:, 80:120].mean() - 2) < 0.1


def test_nothing_moves_in_a_frozen_clip_and_in_an_even_one():
    for clip in (moving_texture(1, 64, 64, (0, 0)).expand(3, -1, -1, -1), torch.full((3, 16, 24, 3), 90).byte()):
        flow = clip_flow(clip)
        assert not flow.forward.any() and not flow.backward.any()
        assert flow.forward_mask.all() and flow.backward_mask.all()


class Planted:
    """An estimator that says what it is told."""

    flow_name = "planted"

    def __init__(self, forward, backward):
        self.answers = [forward, backward]

    def __call__(self, first, second):
        return self.answers.pop(0).expand(*first.shape[:3], 2)


def test_a_pixel_is_consistent_where_the_way_back_leads_home():
    there = torch.tensor([3.0, 0.0])
    # The rule: missed by less than 0.01 of both squared lengths, and 0.5, in squared pixels.
    for miss, consistent in ((0.0, True), (0.78, True), (0.85, False)):
        flow = clip_flow(torch.zeros(2, 16, 16, 3).byte(), Planted(there, torch.tensor([-3.0, miss])))
        assert bool(flow.forward_mask[0, :, :13].all()) is consistent
        assert not flow.forward_mask[0, :, 13:].any()  # leaves the frame
        assert not flow.backward_mask[0, :, :3].any()


def test_warping_fetches_from_where_the_flow_leads():
    y, x = torch.meshgrid(torch.arange(6.0), torch.arange(9.0), indexing="ij")
    ramp = torch.stack([x, 10 * y, x + y], 2)
    assert torch.equal(warp(ramp, torch.zeros(6, 9, 2)), ramp)
    moved = warp(ramp, torch.tensor([1.25, -0.5]).expand(6, 9, 2))
    # A ramp stays one under bilinear interpolation, up to the edges.
    column, row = (x + 1.25).clamp(max=8), (y - 0.5).clamp(min=0)
    torch.testing.assert_close(moved, torch.stack([column, 10 * row, column + row], 2))


def test_pairs_do_not_know_of_one_another():
    a, b = moving_texture(4, 64, 64, (1.5, 0.5), seed=4), moving_texture(2, 64, 64, (-2.0, 1.0), seed=5)
    whole = DIS(a[:-1], a[1:])
    assert torch.equal(DIS(a[2:3], a[3:]), whole[2:])
    assert torch.equal(DIS(torch.cat([b[:1], a[:1]]), torch.cat([b[1:], a[1:2]]))[1], whole[0])
    assert torch.equal(DIS(a[:-1].flip(0), a[1:].flip(0)), whole.flip(0))


@pytest.mark.parametrize("side", [64, 288])
def test_the_number_of_threads_changes_nothing(side):
    cv2 = pytest.importorskip("cv2")
    clip, before, found = moving_texture(2, side, side + 32, (2.3, 1.1)), cv2.getNumThreads(), []
    try:
        for threads in (1, 2, 3):
            cv2.setNumThreads(threads)
            found.append(DIS(clip[:1], clip[1:]))
    finally:
        cv2.setNumThreads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_the_name_tells_the_settings():
    assert DISFlow(side=128).flow_name.startswith("dis-medium,128,opencv ")


def test_what_cannot_be_measured_is_refused(monkeypatch):
    good = torch.zeros(2, 16, 16, 3, dtype=torch.uint8)
    for wrong, word in ((good.float(), "uint8"), (good[..., :1], "uint8"), (good[0], "uint8"), (good[:1], "longer")):
        with pytest.raises(DataError, match=word):
            clip_flow(wrong)
    with pytest.raises(DataError, match="larger"):
        clip_flow(good[:, :7])
    with pytest.raises(ConfigError, match="side"):
        DISFlow(side=0)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ConfigError, match="pip install"):
        clip_flow(good)
