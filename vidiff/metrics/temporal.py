"""How one clip behaves in time: whether what moves stays itself, how much moves at all, and what flickers.

Each function returns one clip's value; means, intervals and comparisons are made elsewhere. No value says much alone:
the best warping error, flicker and similarity are those of a frozen clip, so that motion stands beside them.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vidiff.errors import DataError, NumericalError
from vidiff.metrics.flow import DIS, LEAST_SIDE, ClipFlow, FlowEstimator, check_clip, clip_flow, warp


@dataclass(frozen=True)
class TemporalScores:
    """What one clip's frames say about its motion."""

    warping_error: float  # see `warping_error`
    followed: float  # the share of pixels that it is over
    motion: float  # see `motion_amount`
    flicker: float  # see `flicker`
    residual_flicker: float  # see `residual_flicker`
    dynamic: bool  # vbench-like, see `dynamic_degree`
    flow_name: str  # of the estimator, for protocol lines


def temporal_scores(clip: Tensor, fps: float, estimator: FlowEstimator = DIS) -> TemporalScores:
    """Return all scores of a clip, uint8 (F, H, W, 3), at ``fps`` frames a second.

    Raises:
        DataError: if it is no clip, or too small or too short: three frames, and two at 8 a second, are needed.
        ConfigError: if what the estimator needs is not installed.
    """
    check_clip(clip, least_frames=3, least_side=LEAST_SIDE)
    dynamic = dynamic_degree(clip, fps, estimator)
    flow = clip_flow(clip, estimator)
    return TemporalScores(
        warping_error=warping_error(clip, flow),
        followed=_mean(flow.forward_mask),
        motion=motion_amount(flow.forward, fps),
        flicker=flicker(clip),
        residual_flicker=residual_flicker(clip, flow),
        dynamic=dynamic,
        flow_name=estimator.flow_name,
    )


def warping_error(clip: Tensor, flow: ClipFlow) -> float:
    """Return the mean squared difference of frames from the next ones warped back to them (Lai et al., 2018).

    Pixels count in [0, 1] and only where the flow is consistent. In a pair without any such pixel, as at a cut, all of
    them count: what cannot be followed must not be free.

    Args:
        clip: uint8, (F, H, W, 3).
        flow: its own.
    """
    errors = []
    for frame, following, way, mask in zip(clip[:-1], clip[1:], flow.forward, flow.forward_mask, strict=True):
        errors.append(_mean_where((frame - warp(following, way)).square(), mask))
    return float(np.mean(errors)) / 255**2


def motion_amount(flow: Tensor, fps: float) -> float:
    """Return the mean length of the flow between neighboring frames, in widths or heights a second.

    A clip has the same amount at every size and frame rate.

    Args:
        flow: pixels to the right and down, (N, H, W, 2).
        fps: frames a second.

    Raises:
        DataError: if ``fps`` is no frame rate.
    """
    _check_rate(fps)
    height, width = flow.shape[1:3]
    return _mean((flow / torch.tensor([width, height])).norm(dim=3)) * fps


def dynamic_degree(clip: Tensor, fps: float, estimator: FlowEstimator = DIS) -> bool:
    """Return whether a clip moves by VBench's rule (Huang et al., 2024), `vbench-like` as its flow is not RAFT's.

    Of the frames, about 8 a second are kept. A pair of them moves where the longest 5% of its flow average more than 6
    pixels at a shorter side of 256. A quarter of as many pairs as frames must do so, and one at least: VBench calls two
    frames dynamic whatever they show.

    Args:
        clip: uint8, (F, H, W, 3).
        fps: frames a second.
        estimator: finds the flow.

    Raises:
        DataError: if it is no clip, too small, or has fewer than two frames at 8 a second.
        ConfigError: if what the estimator needs is not installed.
    """
    _check_rate(fps)
    stride = max(1, round(fps / 8))
    check_clip(clip, least_frames=stride + 1, least_side=LEAST_SIDE)
    kept = clip[::stride]
    lengths = estimator(kept[:-1], kept[1:]).norm(dim=3).flatten(1)
    longest = lengths.topk(max(1, int(0.05 * lengths.shape[1]))).values.mean(1)
    moving = int((longest > 6 * min(clip.shape[1:3]) / 256).sum())
    return moving >= max(1, round(len(kept) / 4))


def flicker(clip: Tensor) -> float:
    """Return the mean absolute difference of neighboring frames, pixels in [0, 1].

    VBench's temporal flickering is one minus this, of clips that it holds for static; motion counts here too.

    Raises:
        DataError: if it is no clip, uint8 (F, H, W, 3), or has one frame.
    """
    check_clip(clip, least_frames=2)
    return _mean(clip.short().diff(dim=0).abs()) / 255


def residual_flicker(clip: Tensor, flow: ClipFlow) -> float:
    """Return the amplitude of what alternates from frame to frame along the motion, pixels in [0, 1].

    That is half of the mean absolute difference of a pixel from the average of itself one frame earlier and later, as
    the flow finds it there: a filter in time with gain 1 at the highest frequency that frames can hold and 0 for all
    that stays or fades evenly. Pixels count where the flow is consistent both ways; if none is, all do.

    Args:
        clip: uint8, (F, H, W, 3), three frames at least.
        flow: its own.

    Raises:
        DataError: if it is no clip, or too short.
    """
    check_clip(clip, least_frames=3)
    values = []
    for k in range(1, len(clip) - 1):
        earlier, later = warp(clip[k - 1], flow.backward[k - 1]), warp(clip[k + 1], flow.forward[k])
        residual = (clip[k] - (earlier + later) / 2).abs() / 2
        values.append(_mean_where(residual, flow.backward_mask[k - 1] & flow.forward_mask[k]))
    return float(np.mean(values)) / 255


@dataclass(frozen=True)
class FeatureScores:
    """How alike a clip's frames are in some extractor's features. A frozen clip has 1, 0 and 1."""

    similarity: float  # mean cosine of neighboring frames
    drift: float  # one minus the cosine of the first and the last frame
    consistency: float  # vbench-like: mean of the cosines to the frame before and to the first, each at least 0


def feature_scores(features: Tensor) -> FeatureScores:
    """Return how alike the frames of one clip are, given one row of features a frame, (F, D).

    ``consistency`` is the formula of VBench's subject consistency, which has DINO's features, and of its background
    consistency, which has CLIP's (Huang et al., 2024).

    Raises:
        DataError: if there are not two rows.
        NumericalError: if a row is zero or not finite; the message names it.
    """
    if features.ndim != 2 or len(features) < 2:
        raise DataError(f"features of a clip are (F, D) with two frames at least, got {tuple(features.shape)}")
    rows = features.double()
    broken = [k for k, length in enumerate(rows.norm(dim=1).tolist()) if not 0 < length < math.inf]
    if broken:
        raise NumericalError(f"the features of frame {broken[0]} are zero or not finite; look at that frame")
    before = F.cosine_similarity(rows[1:], rows[:-1], dim=1)
    first = F.cosine_similarity(rows[1:], rows[:1], dim=1)
    consistency = (before.clamp(min=0) + first.clamp(min=0)) / 2
    return FeatureScores(_mean(before), 1 - float(first[-1]), _mean(consistency))


def wasserstein_distance(a: Tensor, b: Tensor) -> float:
    """Return the 1-D Wasserstein distance of two sets of values, such as the motion amounts of two sets of clips.

    It is the area between the two cumulative distributions, in the values' own unit. Means can agree where one set has
    frozen and wild clips and the other has neither; this does not.

    Args:
        a: (N,).
        b: (M,).

    Raises:
        DataError: if a set is empty or not a list of finite numbers.
    """
    for values in (a, b):
        if values.ndim != 1 or not len(values) or not values.isfinite().all():
            raise DataError(f"expected finite values (N,), one at least, got {tuple(values.shape)}")
    a, b = a.double().sort().values, b.double().sort().values
    steps = torch.cat([a, b]).sort().values
    share_a, share_b = (torch.searchsorted(v, steps[:-1], right=True).double() / len(v) for v in (a, b))
    return float(((share_a - share_b).abs() * steps.diff()).sum())


def _check_rate(fps: float) -> None:
    if not 0 < fps < math.inf:
        raise DataError(f"fps must be above 0 and finite, got {fps}")


def _mean_where(values: Tensor, mask: Tensor) -> float:
    """Return the mean of (H, W, C) over the pixels of a mask (H, W), over all where it has none."""
    return _mean(values[mask] if mask.any() else values)


def _mean(values: Tensor) -> float:
    """Return the mean in float64, summed by numpy: torch's sum depends on the number of threads."""
    return float(values.numpy().mean(dtype=np.float64))
