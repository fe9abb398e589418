"""Building blocks of the causal video autoencoder.

Each block maps (B, C, F, H, W) to the same axes and takes ``past``, the frames that earlier chunks of a streamed
clip left behind. Without it the tensor is a whole clip. Both ways give the same result, whatever the chunks.
"""

import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn import functional as F

from vidiff.errors import ConfigError

Past = dict[nn.Module, Tensor]
"""The last input frames that each temporal layer has seen, (B, C, k, H, W)."""


class RMSNorm(nn.Module):
    """Divide each position's channels by their root mean square (Zhang & Sennrich, 2019)."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (B, C, ...) over C."""
        # With channels last in memory this moves no data; the tiny eps only keeps exact zeros from giving NaN.
        with torch.autocast(x.device.type, enabled=False):  # which makes float32 of it, and of what streaming keeps
            return F.rms_norm(x.movedim(1, -1), self.weight.shape, self.weight.to(x.dtype), eps=1e-24).movedim(-1, 1)


class CausalConv3d(nn.Conv3d):
    """3D convolution that sees the current and past frames only; zeros stand before the first."""

    def __init__(self, dim_in: int, dim_out: int, kernel: int | tuple[int, int, int]):
        kernel = (kernel,) * 3 if isinstance(kernel, int) else kernel
        super().__init__(dim_in, dim_out, kernel, padding=(0, kernel[1] // 2, kernel[2] // 2))
        self.reach = kernel[0] - 1  # frames of the past that one output frame sees

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        if self.reach == 0:
            return super().forward(x)
        before = None if past is None else past.get(self)
        if before is None:
            before = x.new_zeros(x.shape[0], x.shape[1], self.reach, *x.shape[3:])
        x = torch.cat([before, x], dim=2)
        if past is not None:
            past[self] = x[:, :, -self.reach :].clone()  # a view would keep the whole chunk
        return super().forward(x)


class ResBlock(nn.Module):
    """Norm, SiLU and convolution, twice, around a skip connection."""

    def __init__(self, dim_in: int, dim_out: int):
        super().__init__()
        self.norm1 = RMSNorm(dim_in)
        self.conv1 = CausalConv3d(dim_in, dim_out, 3)
        self.norm2 = RMSNorm(dim_out)
        self.conv2 = CausalConv3d(dim_out, dim_out, 3)
        self.shortcut = CausalConv3d(dim_in, dim_out, 1) if dim_in != dim_out else nn.Identity()

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)), past)
        y = self.conv2(F.silu(self.norm2(y)), past)
        return self.shortcut(x) + y


class AttentionPerFrame(nn.Module):
    """Single-head attention among the positions of each frame."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = RMSNorm(dim)
        self.qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.out = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, _, h, _ = x.shape
        y = rearrange(self.norm(x), "b c f h w -> (b f) c h w")
        q, k, v = rearrange(self.qkv(y), "n (three c) h w -> three n 1 (h w) c", three=3)
        y = F.scaled_dot_product_attention(q, k, v)
        y = self.out(rearrange(y, "n 1 (h w) c -> n c h w", h=h))
        return x + rearrange(y, "(b f) c h w -> b c f h w", b=b)


class Downsample(nn.Module):
    """Halve height and width where ``spatial`` and the frames after the first where ``temporal``."""

    def __init__(self, dim: int, spatial: bool, temporal: bool):
        super().__init__()
        self.space = nn.Conv2d(dim, dim, 3, stride=2) if spatial else None
        self.time = nn.Conv3d(dim, dim, (3, 1, 1), stride=(2, 1, 1)) if temporal else None

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        if self.space is not None:
            x = _per_frame(self.space, F.pad(x, (0, 1, 0, 1)))
        if self.time is None:
            return x
        # The first frame of a clip stands alone; each later output sees a pair of frames and the one before it.
        before = None if past is None else past.get(self)
        if past is not None:
            past[self] = x[:, :, -1:].clone()
        if before is not None:
            return self.time(torch.cat([before, x], dim=2))
        return torch.cat([x[:, :, :1], self.time(x)], dim=2) if x.shape[2] > 1 else x


class Upsample(nn.Module):
    """Double height and width where ``spatial`` and the frames after the first where ``temporal``."""

    def __init__(self, dim: int, dim_out: int, spatial: bool, temporal: bool):
        super().__init__()
        self.space = nn.Conv2d(dim, dim_out, 3, padding=1) if spatial else None
        self.time = CausalConv3d(dim, 2 * dim, (3, 1, 1)) if temporal else None

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        if self.time is not None:
            x = self._double_frames(x, past)
        if self.space is None:
            return x
        b = x.shape[0]
        x = rearrange(x, "b c f h w -> (b f) c h w")
        with torch.autocast(x.device.type, enabled=False):  # which would copy the same numbers in float32
            y = F.interpolate(x, scale_factor=2.0, mode="nearest-exact")
        return rearrange(self.space(y), "(b f) c h w -> b c f h w", b=b)

    def _double_frames(self, x: Tensor, past: Past | None) -> Tensor:
        assert self.time is not None
        first = x[:, :, :0]
        if past is None or self not in past:
            # The first frame of a clip stays single, and the second sees zeros, not the first, as its past.
            first, x = x[:, :, :1], x[:, :, 1:]
            if past is not None:
                past[self] = first
        if x.shape[2] == 0:
            return first
        doubled = rearrange(self.time(x, past), "b (two c) f h w -> b c (f two) h w", two=2)
        return torch.cat([first, doubled], dim=2)


class AverageDown(nn.Module):
    """Fold neighbors in space and time into channels and average them down to ``dim_out``; no weights.

    The shortcut of a residual autoencoder level (Chen et al., 2025, DC-AE), as in the Wan 2.2 VAE.
    """

    def __init__(self, dim: int, dim_out: int, factor_t: int, factor_s: int):
        super().__init__()
        self.dim_out, self.factor_t, self.factor_s = dim_out, factor_t, factor_s
        if dim * factor_t * factor_s**2 % dim_out:
            raise ConfigError(f"shortcuts cannot average {dim} channels into {dim_out} at this stride")

    def forward(self, x: Tensor) -> Tensor:
        # The first frame stands alone: zeros complete its group. Later chunks of a stream hold whole groups.
        x = F.pad(x, (0, 0, 0, 0, -x.shape[2] % self.factor_t, 0))
        t, s = self.factor_t, self.factor_s
        x = rearrange(x, "b c (f t) (h p) (w q) -> b (c t p q) f h w", t=t, p=s, q=s)
        return reduce(x, "b (c g) f h w -> b c f h w", "mean", c=self.dim_out)


class DuplicateUp(nn.Module):
    """Repeat channels and unfold them into neighbors in space and time: the way back of `AverageDown`."""

    def __init__(self, dim: int, dim_out: int, factor_t: int, factor_s: int):
        super().__init__()
        self.factor_t, self.factor_s = factor_t, factor_s
        self.repeats, rest = divmod(dim_out * factor_t * factor_s**2, dim)
        if rest:
            raise ConfigError(f"shortcuts cannot repeat {dim} channels into {dim_out} at this stride")

    def forward(self, x: Tensor, first: bool) -> Tensor:
        """Unfold ``x``; with ``first`` it starts a clip, whose first frame stays single."""
        t, s = self.factor_t, self.factor_s
        x = x.repeat_interleave(self.repeats, dim=1)
        x = rearrange(x, "b (c t p q) f h w -> b c (f t) (h p) (w q)", t=t, p=s, q=s)
        return x[:, :, t - 1 :] if first else x


def _per_frame(layer: nn.Module, x: Tensor) -> Tensor:
    y = layer(rearrange(x, "b c f h w -> (b f) c h w"))
    return rearrange(y, "(b f) c h w -> b c f h w", b=x.shape[0])
