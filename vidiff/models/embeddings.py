"""Embeddings of diffusion time, text and position.

Axes: B batch, N tokens of a clip in the order (frame, row, column), L text tokens, D width.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FREQUENCY_DIM = 256
MAX_PERIOD = 10_000.0


def axis_dims(dim: int) -> tuple[int, int, int]:
    """Split ``dim`` channels over (frame, row, column) as Wan does; each share is even if ``dim`` is."""
    side = 2 * (dim // 6)
    return dim - 2 * side, side, side


def token_positions(
    sizes: tuple[int, int, int], device: torch.device, first_frame: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the frame, row and column of each token of a clip, each (B or 1, N), float64.

    Args:
        sizes: tokens along (f, h, w).
        device: where the result lies.
        first_frame: position of each clip's first token frame, (B,); None is 0 for all.
    """
    axes = [torch.arange(size, device=device, dtype=torch.float64) for size in sizes]
    frame, row, column = (axis.flatten()[None] for axis in torch.meshgrid(*axes, indexing="ij"))
    if first_frame is not None:
        frame = frame + first_frame.to(device, torch.float64)[:, None]
    return frame, row, column


def rotary_table(positions: tuple[Tensor, Tensor, Tensor], head_dim: int) -> Tensor:
    """Return rotations (B, N, 1, head_dim / 2), complex64, for `attention.rotate` (Su et al., 2021; 3D as in Wan)."""
    parts = torch.broadcast_tensors(*positions)
    angles = [
        position[..., None] * _frequencies(dim // 2, position.device) for position, dim in _split(parts, head_dim)
    ]
    angle = torch.cat(angles, dim=-1)[:, :, None]
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64)


def absolute_embedding(positions: tuple[Tensor, Tensor, Tensor], dim: int) -> Tensor:
    """Return fixed sine-cosine embeddings (B, N, dim), float32 (Vaswani et al., 2017, section 3.5, on each axis)."""
    parts = torch.broadcast_tensors(*positions)
    angles = [position[..., None] * _frequencies(share // 2, position.device) for position, share in _split(parts, dim)]
    return torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=-1).float()


def _split(positions: list[Tensor] | tuple[Tensor, ...], dim: int) -> list[tuple[Tensor, int]]:
    return list(zip(positions, axis_dims(dim), strict=True))


def _frequencies(count: int, device: torch.device) -> Tensor:
    exponents = torch.arange(count, device=device, dtype=torch.float64) / max(count, 1)
    return torch.exp(-math.log(MAX_PERIOD) * exponents)


class TimeEmbedding(nn.Module):
    """Sinusoids of 1000 t and two linear layers. Runs in the weights' precision, whatever autocast says."""

    def __init__(self, dim: int):
        super().__init__()
        self.linear_1 = nn.Linear(FREQUENCY_DIM, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, t: Tensor) -> Tensor:
        """Embed times in [0, 1], (B,) -> (B, D)."""
        angle = 1000.0 * t.to(torch.float64)[:, None] * _frequencies(FREQUENCY_DIM // 2, t.device)
        waves = torch.cat([torch.cos(angle), torch.sin(angle)], dim=-1).to(self.linear_1.weight.dtype)
        # bf16 sinusoids would merge times that are closer than a sampler's steps.
        with torch.autocast(t.device.type, enabled=False):
            return self.linear_2(F.silu(self.linear_1(waves)))


class TextProjection(nn.Module):
    """Two linear layers with a GELU between them, from the text encoder's width to the transformer's."""

    def __init__(self, text_dim: int, dim: int):
        super().__init__()
        self.linear_1 = nn.Linear(text_dim, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Project (B, L, text_dim) -> (B, L, D)."""
        hidden = self.linear_1(tokens.to(self.linear_1.weight.dtype))
        return self.linear_2(F.gelu(hidden, approximate="tanh"))


class ImageProjection(nn.Module):
    """Two linear layers between norms, from the width of a picture's states to the transformer's, as in Wan."""

    def __init__(self, image_dim: int, dim: int):
        super().__init__()
        self.norm_in = nn.LayerNorm(image_dim)
        self.linear_1 = nn.Linear(image_dim, image_dim)
        self.linear_2 = nn.Linear(image_dim, dim)
        self.norm_out = nn.LayerNorm(dim)

    def forward(self, states: Tensor) -> Tensor:
        """Project (B, M, image_dim) -> (B, M, D)."""
        hidden = self.linear_1(self.norm_in(states.to(self.norm_in.weight.dtype)))
        return self.norm_out(self.linear_2(F.gelu(hidden)))
