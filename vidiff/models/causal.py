"""Building blocks of the causal video autoencoder.

Each block maps (B, C, F, H, W) to the same axes and takes ``past``, the frames that earlier chunks of a streamed
clip left behind. Without it the tensor is a whole clip. Both ways give the same result, whatever the chunks.

In memory channels are last all the way (``channels_last_3d``): convolutions are fastest on it, and norms and shortcuts
that work along channels move nothing. Blocks rearrange the axes B F H W C, of which the result is a view.
"""

import itertools
from collections.abc import Callable

import torch
from einops import rearrange, reduce, repeat
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
        around = (0, kernel[1] // 2, kernel[2] // 2)
        super().__init__(dim_in, dim_out, kernel, padding=around)
        self.around = around  # zeros on each side of a frame
        self.reach = kernel[0] - 1  # frames of the past that one output frame sees

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        if self.reach == 0:
            return _convolved(x, self.weight, self.bias, self.around)
        before = None if past is None else past.get(self)
        zeros = x.new_zeros(()).expand(x.shape[0], x.shape[1], self.reach, *x.shape[3:])
        joined = _joined(zeros if before is None else before, x)
        if past is not None:
            # A copy, for a view would keep the whole chunk in memory until the next one.
            past[self] = joined[:, :, -self.reach :].clone()
        if before is None and x.shape[2] == 1:  # all weights but those of the last frame would meet zeros
            return _convolved(x, self.weight[:, :, -1:], self.bias, self.around)
        return _convolved(joined, self.weight, self.bias, self.around)


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
            return self._halved(_joined(before, x))
        return _joined(x[:, :, :1], self._halved(x)) if x.shape[2] > 1 else x

    def _halved(self, x: Tensor) -> Tensor:
        assert self.time is not None
        return _convolved(x, self.time.weight, self.time.bias, (0, 0, 0), (2, 1, 1))


class Upsample(nn.Module):
    """Double height and width where ``spatial`` and the frames after the first where ``temporal``."""

    def __init__(self, dim: int, dim_out: int, spatial: bool, temporal: bool):
        super().__init__()
        self.space = nn.Conv2d(dim, dim_out, 3, padding=1) if spatial else None
        self.time = CausalConv3d(dim, 2 * dim, (3, 1, 1)) if temporal else None

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        if self.time is not None:
            x = self._double_frames(x, past)
        return x if self.space is None else _per_frame(self._double_space, x)

    def _double_space(self, x: Tensor) -> Tensor:
        """Repeat each pixel of (N, C, H, W) twice in both directions and convolve, in fewer than half the operations.

        Under a 3 x 3 kernel repeated pixels are 2 x 2 different ones, other ones for each of the four places that
        come from one pixel. Weights that meet the same pixel are added up beforehand.
        """
        assert self.space is not None
        n, _, h, w = x.shape
        taps = x.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])  # place, pixel, tap of the kernel
        weight = torch.einsum("pak,qbl,ockl->pqocab", taps, taps, self.space.weight.to(x.dtype))
        bias = None if self.space.bias is None else self.space.bias.repeat(4)
        y = F.conv2d(x, weight.flatten(0, 2), bias, padding=1)  # one row and one column more than pixels
        y = rearrange(y, "n (p q o) h w -> p q n h w o", p=2, q=2)
        places = y.new_empty(n, h, 2, w, 2, y.shape[-1])
        for p, q in itertools.product((0, 1), (0, 1)):
            places[:, :, p, :, q] = y[p, q, :, p : p + h, q : q + w]
        return rearrange(places, "n h p w q o -> n o (h p) (w q)")

    def _double_frames(self, x: Tensor, past: Past | None) -> Tensor:
        assert self.time is not None
        first = None
        if past is None or self not in past:
            # The first frame of a clip stays single, and the second sees zeros, not the first, as its past.
            first, x = x[:, :, :1], x[:, :, 1:]
            if past is not None:
                past[self] = x.new_empty(0)  # only a mark
            if x.shape[2] == 0:
                return first
        doubled = rearrange(self.time(x, past).movedim(1, -1), "b f h w (two c) -> b (f two) h w c", two=2)
        doubled = doubled.movedim(-1, 1)
        return doubled if first is None else _joined(first, doubled)


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
        x = rearrange(x.movedim(1, -1), "b (f t) (h p) (w q) c -> b f h w (c t p q)", t=t, p=s, q=s)
        return reduce(x, "b f h w (c g) -> b f h w c", "mean", c=self.dim_out).movedim(-1, 1)


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
        x = x.movedim(1, -1)
        if self.repeats == t * s**2:  # as many channels as before: all neighbors are the same
            x = repeat(x, "b f h w c -> b (f t) (h p) (w q) c", t=t, p=s, q=s)
        else:
            x = x.repeat_interleave(self.repeats, dim=-1)
            x = rearrange(x, "b f h w (c t p q) -> b (f t) (h p) (w q) c", t=t, p=s, q=s)
        x = x.movedim(-1, 1)
        return x[:, :, t - 1 :] if first else x


def channels_last(x: Tensor) -> Tensor:
    """Return ``x`` with the channels of (B, C, F, H, W) last in memory."""
    # Convolutions in this layout run 1.7 times faster on a CPU, 3 times together with bf16.
    return x.contiguous(memory_format=torch.channels_last_3d)


def _joined(before: Tensor, after: Tensor) -> Tensor:
    """Concatenate frames. Left to guess, torch would give up channels last where a chunk is a single frame."""
    return torch.cat([before.movedim(1, -1), after.movedim(1, -1)], dim=1).movedim(-1, 1)


def _convolved(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: tuple[int, int, int],
    stride: tuple[int, int, int] = (1, 1, 1),
) -> Tensor:
    """Convolve (B, C, F, H, W) in 3D."""
    x = channels_last(x)
    plain = x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu"
    if plain and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu") and _has_onednn():
        # torch sends few rows of few channels to a kernel of its own, which is 2 to 8 times slower than oneDNN's.
        return torch.mkldnn_convolution(x, weight, bias, padding, stride, (1, 1, 1), 1)
    return F.conv3d(x, weight, bias, stride, padding)


def _has_onednn() -> bool:
    return bool(torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled)


def _per_frame(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    y = layer(rearrange(x, "b c f h w -> (b f) c h w"))
    return rearrange(y, "(b f) c h w -> b c f h w", b=x.shape[0])
