"""How near a clip is to another one, frame by frame, and the inception score, which needs no other.

The pairwise functions return one clip's value; means, intervals and comparisons are made elsewhere.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidiff.errors import ConfigError, DataError, NumericalError
from vidiff.metrics.flow import check_clip
from vidiff.models.perceptual import DIMS, STAGES
from vidiff.weights import load_weights

MOST_PSNR = 100.0  # dB

_WINDOW, _SIGMA = 11, 1.5  # pixels
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_FRAMES = 8  # that go through a network at once


def psnr(clip: Tensor, reference: Tensor) -> float:
    """Return the peak signal-to-noise ratio of two clips in dB, from the mean squared error over all their frames.

    It is at most 100 dB: identical clips would be infinite, and no mean over clips could hold them. A frame that alone
    is identical enters as an error of 0.

    Args:
        clip: uint8, (F, H, W, 3).
        reference: of the same shape.

    Raises:
        DataError: if they are no clips, or of different shapes.
    """
    _check_pair(clip, reference)
    error = float(np.mean([(a.double() - b.double()).square().mean() for a, b in zip(clip, reference, strict=True)]))
    return min(10 * math.log10(255**2 / error), MOST_PSNR) if error else MOST_PSNR


def ssim(clip: Tensor, reference: Tensor) -> float:
    """Return the structural similarity of two clips: 1 if they are identical (Wang et al., 2004, equation 13).

    Gaussian windows of 11 x 11 with deviation 1.5, K of 0.01 and 0.03, and the range 255, for each frame and color;
    the mean is over all windows that lie inside.

    Args:
        clip: uint8, (F, H, W, 3), frames of 11 x 11 at least.
        reference: of the same shape.

    Raises:
        DataError: if they are no clips, too small, or of different shapes.
    """
    _check_pair(clip, reference, _WINDOW)
    return float(np.mean([_frame_ssim(a.double(), b.double()) for a, b in zip(clip, reference, strict=True)]))


def _frame_ssim(a: Tensor, b: Tensor) -> float:
    """Return the structural similarity of two frames (H, W, 3), float64: in float32 the variances would cancel."""
    mean_a, mean_b, square_a, square_b, product = _windowed(torch.stack([a, b, a * a, b * b, a * b]))
    # Weighted by the window, which sums to 1: equations 14 to 16.
    variances = square_a - mean_a**2 + square_b - mean_b**2
    covariance = product - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
    structure = (2 * covariance + _C2) / (variances + _C2)
    return float((luminance * structure).numpy().mean())  # torch's mean would depend on the number of threads


def _windowed(values: Tensor) -> Tensor:
    """Return the Gaussian-weighted means of (N, H, W, C) over all windows inside, (N, H - 10, W - 10, C)."""
    offsets = torch.arange(_WINDOW) - _WINDOW // 2
    weights = (-(offsets**2).double() / (2 * _SIGMA**2)).softmax(0).tolist()
    for axis in (1, 2):  # a Gaussian is one of each axis
        count = values.shape[axis] - _WINDOW + 1
        shifted = (weight * values.narrow(axis, start, count) for start, weight in enumerate(weights))
        values = sum(shifted, start=torch.zeros(()))
    return values


@dataclass(frozen=True)
class _Conv:
    """A convolution of a trunk, under torchvision's layer number."""

    number: int
    dim: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1


@dataclass(frozen=True)
class _Trunk:
    """A classifier's features up to the activations that are compared, the last ones of each stage."""

    stages: tuple[tuple[_Conv, ...], ...]
    pools: tuple[int, ...]  # size of the max pooling before each stage, of stride 2; 0: none
    least_side: int  # pixels that leave one place at the end


_TRUNKS = {
    "alex": _Trunk(  # Krizhevsky, 2014
        ((_Conv(0, 64, 11, 4, 2),), (_Conv(3, 192, 5, 1, 2),), (_Conv(6, 384),), (_Conv(8, 256),), (_Conv(10, 256),)),
        pools=(0, 3, 3, 0, 0),
        least_side=31,
    ),
    "vgg": _Trunk(  # Simonyan & Zisserman, 2015
        tuple(tuple(_Conv(n, dim) for n in numbers) for numbers, dim in zip(STAGES, DIMS, strict=True)),
        pools=(0, 2, 2, 2, 2),
        least_side=16,
    ),
}


class LPIPS(nn.Module):
    """Learned perceptual distance (Zhang et al., 2018, equation 1), version 0.1: lower is nearer, 0 is identical."""

    def __init__(self, weights: Path, trunk: Literal["alex", "vgg"] = "alex"):
        """Read ``weights``, a safetensors file that joins two published ones.

        ``features.N.weight`` and ``features.N.bias`` are torchvision's, of AlexNet or VGG-16 without its classifier;
        ``heads.K.weight``, (1, C, 1, 1), is what the authors' file calls ``linK.model.1.weight``, K from 0 to 4.

        Raises:
            ConfigError: if there is no such trunk.
            CheckpointError: if the file is damaged or does not hold just these tensors.
        """
        super().__init__()
        if trunk not in _TRUNKS:
            raise ConfigError(f"trunk must be one of {', '.join(_TRUNKS)}, got {trunk}")
        self.trunk = _TRUNKS[trunk]
        self.features, self.heads = nn.ModuleDict(), nn.ModuleList()
        dim = 3
        for stage in self.trunk.stages:
            for conv in stage:
                self.features[str(conv.number)] = nn.Conv2d(dim, conv.dim, conv.kernel, conv.stride, conv.padding)
                dim = conv.dim
            self.heads.append(nn.Conv2d(dim, 1, 1, bias=False))
        load_weights(self, weights)
        self.requires_grad_(False).eval()
        self.mean: Tensor
        self.std: Tensor
        # Statistics of ImageNet, for pixels in [0, 1].
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, clip: Tensor, reference: Tensor) -> float:
        """Return the mean distance of the frames of two clips, uint8 (F, H, W, 3).

        Raises:
            DataError: if they are no clips, too small for the trunk, or of different shapes.
        """
        _check_pair(clip, reference, self.trunk.least_side)
        pairs = zip(clip.split(_FRAMES), reference.split(_FRAMES), strict=True)
        return float(torch.cat([self._distances(a, b) for a, b in pairs]).double().mean())

    def _distances(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the distance of each pair of frames (N, H, W, 3), (N,)."""
        x = torch.cat([a, b]).to(self.mean.device).permute(0, 3, 1, 2)
        x = (x / 255 - self.mean) / self.std
        total = x.new_zeros(len(a))
        for stage, pool, head in zip(self.trunk.stages, self.trunk.pools, self.heads, strict=True):
            if pool:
                x = F.max_pool2d(x, pool, 2)
            for conv in stage:
                x = F.relu(self.features[str(conv.number)](x))
            left, right = F.normalize(x, dim=1, eps=1e-10).chunk(2)
            total = total + head((left - right).square()).mean((1, 2, 3))
        return total


@dataclass(frozen=True)
class InceptionScore:
    """Mean and standard deviation of the scores of the splits."""

    mean: float
    std: float  # with N - 1 as divisor; NaN of a single split


def inception_score(logits: Tensor, splits: int = 10, seed: int = 42) -> InceptionScore:
    """Return exp(E KL(p(y|x) || p(y))) of a classifier's predictions, over splits (Salimans et al., 2016, section 4).

    Args:
        logits: one row an image or clip, (N, classes), before the softmax.
        splits: parts of nearly equal size that are scored alone.
        seed: of the shuffle before the split.

    Raises:
        DataError: if there are fewer than two rows a split, or no rows of two classes at least.
        ConfigError: if ``splits`` is below 1.
        NumericalError: if a logit is not finite.
    """
    if splits < 1:
        raise ConfigError(f"splits must be at least 1, got {splits}")
    # A row alone is its own marginal: its score is 1, whatever it shows.
    if logits.ndim != 2 or logits.shape[1] < 2 or len(logits) < 2 * splits:
        shape = tuple(logits.shape)
        raise DataError(f"logits for {splits} splits are (N, classes), N {2 * splits} at least, got {shape}: add clips")
    if not logits.isfinite().all():
        raise NumericalError("the classifier's logits are not finite; look at its weights and at its clips")
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(seed))
    scores = []
    for part in logits.cpu().double()[order].log_softmax(1).tensor_split(splits):
        marginal = part.logsumexp(0) - math.log(len(part))
        scores.append(math.exp(float((part.exp() * (part - marginal)).sum(1).mean())))
    return InceptionScore(float(np.mean(scores)), float(np.std(scores, ddof=1)) if splits > 1 else math.nan)


def _check_pair(clip: Tensor, reference: Tensor, least_side: int = 1) -> None:
    if clip.shape != reference.shape:
        raise DataError(f"clips of one shape can be compared, got {tuple(clip.shape)} and {tuple(reference.shape)}")
    for one in (clip, reference):
        check_clip(one, least_side=least_side)
