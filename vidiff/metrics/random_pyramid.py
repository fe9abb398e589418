"""Features of fixed random filters: no weights to download or to train, and an eye for blur, noise and compression.

Networks that were trained to tell contents apart hardly see fine degradations; filters that know nothing of contents do
(random features as in Saxe et al., 2011). Distances from them stand beside those of trained networks, never alone.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from vidiff.metrics.preprocess import Preprocess

_DIMS = (32, 64)
CLIPS = Preprocess(size=64, filter="bilinear-aa", pixels="unit")


@dataclass(frozen=True)
class RandomPyramid:
    """Two layers of random filters, rectified by their absolute value; means and deviations over places.

    An `Extractor`. Filters reach over three frames, or with ``per_frame`` see one frame at a time.
    """

    per_frame: bool = False
    preprocess: Preprocess = CLIPS
    seed: int = 0

    @property
    def name(self) -> str:
        return "random-frames" if self.per_frame else "random-clips"

    @property
    def version(self) -> str:
        """The SHA-256 of the filters."""
        return hashlib.sha256(b"".join(kernel.numpy().tobytes() for kernel in self._kernels)).hexdigest()

    @property
    def dim(self) -> int:
        return 2 * sum(_DIMS)

    @cached_property
    def _kernels(self) -> tuple[Tensor, ...]:
        """Filters (C_out, C_in, kt, kh, kw), each of mean 0 and norm 1 over what it reads."""
        generator = torch.Generator().manual_seed(self.seed)
        kernels, dim_in = [], 3
        for dim, side in zip(_DIMS, (5, 3), strict=True):
            kernel = torch.randn(dim, dim_in, 1 if self.per_frame else 3, side, side, generator=generator)
            kernel = kernel - kernel.mean((1, 2, 3, 4), keepdim=True)
            kernels.append(kernel / kernel.flatten(1).norm(dim=1)[:, None, None, None, None])
            dim_in = dim
        return tuple(kernels)

    @torch.no_grad()
    def __call__(self, clips: Iterable[Tensor]) -> Tensor:
        """Return float32 (N, dim), a row for each clip, or with ``per_frame`` for each used frame.

        Args:
            clips: each uint8 (F, H, W, 3), of any size.

        Raises:
            DataError: if one is not a clip, or has too few frames.
        """
        rows = [self._rows(self.preprocess(clip)) for clip in clips]
        return torch.cat([torch.empty(0, self.dim), *rows])

    def _rows(self, frames: Tensor) -> Tensor:
        """Return the rows of one clip (F, 3, H, W)."""
        x = frames[:, :, None] if self.per_frame else frames.transpose(0, 1)[None]
        found = []
        for kernel in self._kernels:
            time = 0 if self.per_frame else 1  # first and last frames repeat: zeros would look like a cut
            x = F.pad(x, (0, 0, 0, 0, time, time), mode="replicate") if time else x
            x = F.conv3d(x, kernel, stride=(1, 2, 2)).abs()
            found += [x.mean((2, 3, 4)), x.std((2, 3, 4))]
        return torch.cat(found, 1)
