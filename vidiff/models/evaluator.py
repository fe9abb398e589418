"""The evaluator: clips and captions in one space, so that clips can be measured with nothing to download.

Two towers that training draws together (Radford et al., 2021, CLIP), small enough for two CPU cores.

Axes: B clips or captions, F frames, H W pixels; f h w tokens along frames, rows and columns; L text tokens, D width,
E width of the shared space.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vidiff.errors import ConfigError
from vidiff.models.attention import Attention, check_head_width
from vidiff.models.embeddings import TextProjection
from vidiff.types import TextEmbedding

STRIDE = 8  # pixels a side of one token
_MAX_SCALE = 100.0  # of cosines, as in CLIP: beyond it training becomes unstable


@dataclass(frozen=True)
class EvaluatorConfig:
    """Shape of an `Evaluator`, and the clips that it reads."""

    kind: Literal["evaluator"] = "evaluator"
    frames: int = 16
    size: int = 64  # pixels a side
    patch_frames: int = 4  # frames in one token: the first convolution sees them side by side, and so all motion
    dim: int = 192  # also of a clip's features
    depth: int = 4
    text_depth: int = 2
    num_heads: int = 4
    embed_dim: int = 128  # of the space that clips and captions share

    def __post_init__(self) -> None:
        for name in ("frames", "patch_frames", "dim", "depth", "text_depth", "num_heads", "embed_dim"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.frames % self.patch_frames:
            raise ConfigError(f"frames must be a multiple of patch_frames ({self.patch_frames}), got {self.frames}")
        if self.size < STRIDE or self.size % STRIDE:
            raise ConfigError(f"size must be a multiple of {STRIDE}, got {self.size}")
        check_head_width(self.dim, self.num_heads)


class Block(nn.Module):
    """Self-attention and an MLP, each on normalized tokens and added to them."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attention = Attention(dim, num_heads)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp_in = nn.Linear(dim, 4 * dim)
        self.mlp_out = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Refine tokens (B, N, D); only those where ``mask`` (B, N) is True are seen."""
        x = x + self.attention(self.norm(x), mask=mask)
        return x + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x)), approximate="tanh"))


class Pool(nn.Module):
    """Attention from one learned query: what all tokens say together."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.query = nn.Parameter(torch.randn(dim))
        self.norm = nn.LayerNorm(dim)
        self.attention = Attention(dim, num_heads)
        self.norm_out = nn.LayerNorm(dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map tokens (B, N, D) to (B, D), without those where ``mask`` (B, N) is False."""
        query = self.query.to(x.dtype).expand(len(x), 1, -1)
        return self.norm_out(self.attention(query, self.norm(x), mask=mask)[:, 0])


class VideoTower(nn.Module):
    """Strided convolutions over groups of frames, then attention among all tokens of a clip."""

    def __init__(self, config: EvaluatorConfig):
        super().__init__()
        self.config = config
        dims = (config.dim // 3, 2 * config.dim // 3, config.dim)
        # The first halving of height and width folds pixels into channels: a CPU makes little of three channels.
        folded = 3 * config.patch_frames * 4
        self.convs = nn.ModuleList(
            nn.Conv2d(dim_in, dim_out, 3, stride=1 if index == 0 else 2, padding=1)
            for index, (dim_in, dim_out) in enumerate(zip((folded, *dims), dims, strict=False))
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in dims)
        # Learned: sines turn too slowly to tell so few places from one another.
        sizes = (config.frames // config.patch_frames, config.size // STRIDE, config.size // STRIDE)
        self.places = nn.ParameterList(0.3 * torch.randn(size, config.dim) for size in sizes)
        self.blocks = nn.ModuleList(Block(config.dim, config.num_heads) for _ in range(config.depth))
        self.pool = Pool(config.dim, config.num_heads)

    def forward(self, video: Tensor) -> Tensor:
        """Map clips (B, 3, F, H, W) in [-1, 1] to features (B, D).

        Raises:
            ConfigError: if they have another size than the network reads.
        """
        config = self.config
        if video.shape[2:] != (config.frames, config.size, config.size):
            raise ConfigError(
                f"the evaluator reads {config.frames} frames of {config.size} pixels a side, got {tuple(video.shape)}"
            )
        # Channels last in memory, where convolutions are fast and norms move no data.
        x = rearrange(video, "b c (f t) (h p) (w q) -> (b f) h w (c t p q)", t=config.patch_frames, p=2, q=2)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.silu(norm(conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)))
        frames, rows, columns = self.places
        places = frames[:, None, None] + rows[:, None] + columns
        tokens = (x.unflatten(0, (len(video), -1)) + places.to(x.dtype)).flatten(1, 3)
        for block in self.blocks:
            tokens = block(tokens)
        return self.pool(tokens)


class TextTower(nn.Module):
    """Blocks on the token states of a frozen text encoder."""

    def __init__(self, config: EvaluatorConfig, text_dim: int):
        super().__init__()
        self.projection = TextProjection(text_dim, config.dim)
        self.blocks = nn.ModuleList(Block(config.dim, config.num_heads) for _ in range(config.text_depth))
        self.pool = Pool(config.dim, config.num_heads)

    def forward(self, text: TextEmbedding) -> Tensor:
        """Map token states (B, L, text_dim) to (B, D)."""
        tokens = self.projection(text.tokens)
        for block in self.blocks:
            tokens = block(tokens, text.mask)
        return self.pool(tokens, text.mask)


class Evaluator(nn.Module):
    """Both towers, the ways from them into the shared space, and how much a cosine there counts."""

    def __init__(self, config: EvaluatorConfig, text_dim: int):
        super().__init__()
        self.config = config
        self.video = VideoTower(config)
        self.text = TextTower(config, text_dim)
        self.video_projection = nn.Linear(config.dim, config.embed_dim, bias=False)
        self.text_projection = nn.Linear(config.dim, config.embed_dim, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def features(self, video: Tensor) -> Tensor:
        """Return what Frechet distances are measured on, (B, D), of clips (B, 3, F, H, W) in [-1, 1]."""
        return self.video(video)

    def embed_features(self, features: Tensor) -> Tensor:
        """Return where clips with these features (B, D) lie among captions: unit vectors (B, E), float32."""
        return F.normalize(self.video_projection(features).float(), dim=-1)

    def embed_text(self, text: TextEmbedding) -> Tensor:
        """Return where captions lie among clips: unit vectors (B, E), float32."""
        return F.normalize(self.text_projection(self.text(text)).float(), dim=-1)

    def forward(self, video: Tensor, text: TextEmbedding) -> Tensor:
        """Return the scaled cosine of each of N clips (N, 3, F, H, W) with each of M captions, (N, M), float32."""
        clips, captions = self.embed_features(self.features(video)), self.embed_text(text)
        scale = self.log_scale.float().exp().clamp(max=_MAX_SCALE)
        with torch.autocast(clips.device.type, enabled=False):  # bf16 would round scaled cosines to quarters
            return scale * clips @ captions.T
