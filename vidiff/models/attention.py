"""Multi-head attention with RMS-normalized queries and keys and rotary positions."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidiff.errors import ConfigError
from vidiff.types import TextEmbedding


def check_head_width(dim: int, num_heads: int) -> None:
    """Raise ConfigError unless each of ``num_heads`` heads gets an even share of ``dim``, for rotary positions."""
    if dim % (2 * num_heads):
        nearest = max(1, round(dim / (2 * num_heads))) * 2 * num_heads
        raise ConfigError(
            f"dim must be a multiple of 2 * num_heads ({2 * num_heads}), so that each head has an even width "
            f"for rotary positions; got {dim}, try {nearest}"
        )


class QueryKeyNorm(nn.Module):
    """Divide each token by its root mean square over the whole width (Zhang & Sennrich, 2019)."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        """Normalize (..., D) over D and multiply by ``scale``."""
        # F.rms_norm falls back to slow element-wise code on a CPU in bf16; only the sum needs float32.
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        inverse = torch.rsqrt(norm.square() / x.shape[-1] + self.eps)
        return x * inverse.to(x.dtype) * (self.weight * scale).to(x.dtype)


class Attention(nn.Module):
    """Multi-head attention from tokens (B, N, D) to a context (B, L, D or ``context_dim``), or to themselves.

    With ``image`` the same queries also attend to a picture, and the two results are summed (Wan Team, 2025).
    """

    def __init__(
        self, dim: int, num_heads: int, eps: float = 1e-6, context_dim: int | None = None, image: bool = False
    ):
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(context_dim or dim, dim)
        self.value = nn.Linear(context_dim or dim, dim)
        self.out = nn.Linear(dim, dim)
        self.norm_query = QueryKeyNorm(dim, eps)
        self.norm_key = QueryKeyNorm(dim, eps)
        self.image = image
        if image:
            self.image_key = nn.Linear(context_dim or dim, dim)
            self.image_value = nn.Linear(context_dim or dim, dim)
            self.norm_image_key = QueryKeyNorm(dim, eps)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        rotary: Tensor | None = None,
        mask: Tensor | None = None,
        image: Tensor | None = None,
        source: TextEmbedding | None = None,
    ) -> Tensor:
        """Attend from ``x`` to ``context``, by default to ``x``.

        Args:
            x: tokens, (B, N, D).
            context: tokens to look at, (B, L, D).
            rotary: complex rotations for queries and keys, (B or 1, N, 1, D / num_heads / 2).
            mask: True where a context token may be seen, (B, L).
            image: tokens of a picture to look at as well, (B, M, D).
            source: the text that the context was made of, where keys and values may be kept for the next step.

        Returns:
            Tokens, (B, N, D).
        """
        scale = (x.shape[-1] // self.num_heads) ** -0.5  # multiplied into the norm's weight, where it costs nothing
        q = self.norm_query(self.query(x), scale).unflatten(-1, (self.num_heads, -1))
        make = partial(self.keys_and_values, x if context is None else context)
        k, v = make() if source is None else source.once(self, make)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        y = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask)
        if image is not None:
            k, v = self.norm_image_key(self.image_key(image)), self.image_value(image)
            k, v = (states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for states in (k, v))
            y = y + attend(q.transpose(1, 2), k, v)
        return self.out(y.transpose(1, 2).flatten(2))

    def keys_and_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return what there is to see of ``context`` (B, L, D), each (B, L, num_heads, D / num_heads)."""
        k, v = self.norm_key(self.key(context)), self.value(context)
        return k.unflatten(-1, (self.num_heads, -1)), v.unflatten(-1, (self.num_heads, -1))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return softmax(q k^T) v (Vaswani et al., 2017, equation 1) of queries that are already scaled.

    Args:
        q: queries, (B, H, N, d).
        k: keys, (B, H, L, d).
        v: values, (B, H, L, d).
        mask: True where a key may be seen, (B, L).
    """
    bias = None
    if mask is not None:
        bias = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(~mask, -torch.inf)[:, None, None]
    # On a CPU the fused kernel's backward pass takes twice as long as these products, while their scores are few.
    if q.device.type == "cpu" and q.shape[2] * k.shape[2] <= 512 * 512:
        scores = torch.matmul(q, k.transpose(-1, -2))
        return torch.matmul((scores if bias is None else scores + bias).softmax(-1).to(v.dtype), v)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Turn neighboring pairs of channels of heads (B, N, H, d) by complex unit numbers (B or 1, N, 1, d / 2)."""
    # One complex product in float32 takes half the time of sums of bf16 products, forward and backward.
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotary).flatten(-2).to(x.dtype)
