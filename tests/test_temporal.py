"""A clip's behavior in time: warping error beside motion, flicker, dynamic degree, similarity and drift."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch

from tests.test_flow import moving_texture
from vidiff.errors import DataError, NumericalError
from vidiff.metrics.flow import ClipFlow, clip_flow
from vidiff.metrics.temporal import (
    dynamic_degree,
    feature_scores,
    flicker,
    motion_amount,
    residual_flicker,
    temporal_scores,
    warping_error,
    wasserstein_distance,
)

FPS = 8.0


@pytest.fixture(scope="module")
def moving():
    return moving_texture(8, 64, 64, (2.0, -1.0), seed=6)


def noisy(clip, strength, seed=0):
    """Return a clip with noise of ``strength`` gray levels, another in each frame."""
    noise = np.random.default_rng(seed).normal(0, strength, clip.shape)
    return torch.from_numpy((clip.numpy() + noise).round().clip(0, 255).astype(np.uint8))


def still(count=4, side=64):
    return moving_texture(1, side, side, (0, 0)).expand(count, -1, -1, -1)


def alternating(count=6, base=120, amplitude=7, side=16):
    """Return even frames of base plus or minus ``amplitude``, in turn."""
    levels = base + amplitude * (-1) ** torch.arange(count)
    return levels.byte().reshape(-1, 1, 1, 1).expand(-1, side, side, 3)


def test_a_moving_texture_warps_onto_itself_and_shuffled_frames_do_not(moving):
    scores, flow = temporal_scores(moving, FPS), clip_flow(moving)
    # Rounding to gray levels alone, of variance 1 / 12 in each of both frames, costs 2.6e-6.
    assert scores.warping_error < 1e-5
    forward, backward = (float(mask.double().mean()) for mask in (flow.forward_mask, flow.backward_mask))
    assert scores.followed == forward != backward and forward > 0.9
    assert scores.motion == pytest.approx(np.hypot(2 / 64, 1 / 64) * FPS, rel=0.05)
    shuffled = temporal_scores(moving[[5, 0, 3, 7, 1, 6, 2, 4]], FPS)
    assert shuffled.warping_error > 100 * scores.warping_error and shuffled.followed < scores.followed


def test_a_frozen_clip_has_no_error_and_no_motion_beside_it():
    scores = temporal_scores(still(), FPS)
    assert (scores.warping_error, scores.motion, scores.flicker, scores.residual_flicker) == (0, 0, 0, 0)
    assert scores.followed == 1 and not scores.dynamic


def test_more_noise_is_more_warping_error_and_more_residual_flicker(moving):
    found = [temporal_scores(noisy(moving, strength), FPS) for strength in (0, 2, 4, 8, 16)]
    for name in ("warping_error", "residual_flicker"):
        values = [getattr(scores, name) for scores in found]
        assert values == sorted(set(values)), name
    # Two frames differ by twice the noise's variance; a frame and the mean of two others by 1.5 times that.
    assert found[2].warping_error == pytest.approx(2 * (4 / 255) ** 2, rel=0.1)
    assert found[2].residual_flicker == pytest.approx(np.sqrt(1.5 * 2 / np.pi) / 2 * 4 / 255, rel=0.1)


def test_warping_error_is_what_arithmetic_says():
    clip = torch.stack([torch.full((16, 16, 3), level) for level in (100, 110, 130)]).byte()
    flow = clip_flow(clip)
    assert not flow.forward.any()
    assert warping_error(clip, flow) == pytest.approx((10**2 + 20**2) / 2 / 255**2, rel=1e-6)
    # Half of the first pair differs, and only where it cannot be followed.
    clip = clip.clone()
    clip[1, :, :8] = clip[0, :, :8]
    mask = flow.forward_mask.clone()
    mask[0, :, 8:] = False
    only = warping_error(clip[:2], replace(flow, forward=flow.forward[:1], forward_mask=mask[:1]))
    assert only == 0
    mask[0] = False  # nothing can be followed: all pixels count
    whole = warping_error(clip[:2], replace(flow, forward=flow.forward[:1], forward_mask=mask[:1]))
    assert whole == pytest.approx(10**2 / 2 / 255**2, rel=1e-6)


def test_motion_is_the_same_at_every_size_and_frame_rate():
    flow = torch.zeros(3, 20, 40, 2)
    flow[..., 0], flow[..., 1] = 4.0, 2.0  # a tenth of the width and of the height
    assert motion_amount(flow, 10) == pytest.approx(np.sqrt(2), rel=1e-6)
    twice_as_large = 2 * flow.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert motion_amount(twice_as_large, 10) == pytest.approx(np.sqrt(2), rel=1e-6)
    assert motion_amount(flow / 2, 20) == pytest.approx(np.sqrt(2), rel=1e-6)
    slow = [motion_amount(clip_flow(moving_texture(2, s, s, (s / 64, 0))).forward, 4) for s in (64, 96, 128)]
    assert slow == pytest.approx([4 / 64] * 3, rel=0.1)


def test_flicker_of_alternating_brightness_is_what_arithmetic_says():
    clip = alternating(amplitude=7)
    assert flicker(clip) == pytest.approx(14 / 255, rel=1e-12)
    assert residual_flicker(clip, clip_flow(clip)) == pytest.approx(7 / 255, rel=1e-6)
    # One frame in three pairs is brighter: 30 gray levels up, 30 down, nothing.
    flash = torch.zeros(4, 8, 8, 3, dtype=torch.uint8)
    flash[1] = 30
    assert flicker(flash) == pytest.approx(20 / 255, rel=1e-12)


def test_neither_an_even_fade_nor_motion_is_residual_flicker(moving):
    fade = (20 * torch.arange(6)).byte().reshape(-1, 1, 1, 1).expand(-1, 16, 16, 3)
    assert residual_flicker(fade, clip_flow(fade)) == 0 and flicker(fade) == pytest.approx(20 / 255)
    assert residual_flicker(moving, clip_flow(moving)) < 0.1 * flicker(moving)
    # Brightness that alternates by 6 gray levels on top of the motion is found again.
    levels = 6 * (-1) ** torch.arange(len(moving)).reshape(-1, 1, 1, 1)
    trembling = (moving.short() + levels).clamp(0, 255).byte()
    assert residual_flicker(trembling, clip_flow(trembling)) == pytest.approx(6 / 255, rel=0.1)


def test_residual_flicker_goes_each_way_by_its_own_flow_and_mask():
    # A ramp that moves faster from frame to frame; rows that flicker are masked, one from each side.
    places = torch.tensor([0, 1, 3, 6])
    clip = (100 + 2 * (torch.arange(40) - places[:, None])).byte()[:, None, :, None].repeat(1, 8, 1, 3)
    clip[1:3, :2] += 50
    forward = torch.zeros(3, 8, 40, 2)
    forward[..., 0] = places.diff()[:, None, None]
    masks = torch.zeros(2, 3, 8, 40, dtype=torch.bool)
    masks[..., 6:-6] = True
    masks[0, 1:, 0] = masks[1, :2, 1] = False  # of the pairs that are needed: nothing is before or after the ends
    assert residual_flicker(clip, ClipFlow(forward, -forward, *masks)) == 0


def test_only_a_fast_clip_is_dynamic():
    # At 64 pixels the threshold is 6 * 64 / 256 = 1.5 pixels a frame, at 8 frames a second.
    assert not dynamic_degree(still(), FPS)
    assert not dynamic_degree(moving_texture(5, 64, 64, (1.0, 0)), FPS)
    assert dynamic_degree(moving_texture(5, 64, 64, (2.0, 0)), FPS)
    # The same speed on twice the frames: 1 pixel a frame at 16 is 2 at 8.
    assert dynamic_degree(moving_texture(9, 64, 64, (1.0, 0)), 16)
    assert not dynamic_degree(moving_texture(5, 128, 128, (2.0, 0)), FPS)


class Told:
    """An estimator whose first pixels move by a length given for each pair."""

    flow_name = "told"

    def __init__(self, lengths, share=1.0):
        self.lengths, self.share = lengths, share

    def __call__(self, first, second):
        flow = torch.zeros(*first.shape[:3], 2)
        count = int(self.share * flow[0, ..., 0].numel())
        for pair, length in zip(flow, self.lengths, strict=True):
            pair.view(-1, 2)[:count, 1] = length
        return flow


@pytest.mark.parametrize(
    ("lengths", "share", "dynamic"),
    [
        ([6.1] * 4 + [0] * 11, 1.0, True),  # 4 of 16 frames' pairs are needed
        ([6.1] * 3 + [0] * 12, 1.0, False),
        ([5.9] * 15, 1.0, False),
        ([6.1] * 15, 0.05, True),  # the longest 5% decide,
        ([6.1] * 15, 0.045, False),  # on average
        ([13.0] * 15, 0.025, True),
        ([6.1], 1.0, True),
        ([0.0], 1.0, False),
    ],
)
def test_the_dynamic_degree_counts_pairs_as_vbench(lengths, share, dynamic):
    clip = torch.zeros(len(lengths) + 1, 256, 320, 3, dtype=torch.uint8)
    assert dynamic_degree(clip, FPS, Told(lengths, share)) is dynamic


@pytest.mark.parametrize(("fps", "pairs"), [(5, 24), (8, 24), (11, 24), (13, 12), (24, 8), (30, 6)])
def test_the_dynamic_degree_keeps_about_eight_frames_a_second(fps, pairs):
    assert dynamic_degree(torch.zeros(25, 16, 16, 3, dtype=torch.uint8), fps, Told([1.0] * pairs))


def test_drift_and_similarity_are_cosines():
    same = feature_scores(torch.tensor([[3.0, 4.0]]).expand(5, 2))
    assert (same.similarity, same.drift, same.consistency) == pytest.approx((1, 0, 1), abs=1e-15)
    # Frames at 0, 60 and 210 degrees, of several lengths: cosines 0.5 and -0.866 to the frame before, and the same to
    # the first. VBench counts what is below 0 as 0.
    angles, lengths = torch.tensor([0.0, 60.0, 210.0]).double().deg2rad(), torch.tensor([1.0, 5.0, 0.1]).double()
    found = feature_scores(lengths[:, None] * torch.stack([angles.cos(), angles.sin()], 1))
    assert found.similarity == pytest.approx((0.5 - np.sqrt(3) / 2) / 2)
    assert found.drift == pytest.approx(1 + np.sqrt(3) / 2)
    assert found.consistency == pytest.approx((0.5 + 0) / 2)


def test_the_distance_of_two_sets_is_scipys():
    rng = np.random.default_rng(7)
    for sizes in ((1, 1), (1, 9), (40, 40), (31, 64)):
        a, b = (rng.gamma(2, scale, size).round(2) for scale, size in zip((1, 1.5), sizes, strict=True))
        found = wasserstein_distance(torch.from_numpy(a), torch.from_numpy(b))
        assert found == pytest.approx(scipy.stats.wasserstein_distance(a, b), rel=1e-12)
    assert wasserstein_distance(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([4.0, 1.0, 2.0])) == 0
    # Half frozen and half wild is not like all tame, although the means agree.
    assert wasserstein_distance(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0])) == 1


def test_scores_depend_on_the_clip_alone(moving):
    clip = noisy(moving[:4], 3)
    found = temporal_scores(clip, FPS)
    temporal_scores(moving[:4], FPS)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert temporal_scores(clip.clone(), FPS) == found
    finally:
        torch.set_num_threads(threads)


def test_what_cannot_be_measured_is_refused():
    clip = still(4)
    with pytest.raises(DataError, match="3 are needed"):
        temporal_scores(clip[:2], FPS)
    with pytest.raises(DataError, match="4 are needed"):
        temporal_scores(clip[:3], 24)  # one frame at 8 a second
    with pytest.raises(DataError, match="2 are needed"):
        flicker(clip[:1])
    for fps in (0, -1, float("nan"), float("inf")):
        with pytest.raises(DataError, match="fps"):
            temporal_scores(clip, fps)
    with pytest.raises(DataError, match="two frames"):
        feature_scores(torch.ones(1, 3))
    with pytest.raises(NumericalError, match="frame 1"):
        feature_scores(torch.tensor([[1.0], [0.0], [1.0]]))
    with pytest.raises(NumericalError, match="frame 2"):
        feature_scores(torch.tensor([[1.0], [1.0], [float("nan")]]))
    for wrong in (torch.tensor([]), torch.ones(2, 2), torch.tensor([float("inf")])):
        with pytest.raises(DataError, match="finite"):
            wasserstein_distance(wrong, torch.ones(2))
