"""The verifier: what a clip's latents show and what a caption says, read apart and compared statement by statement.

A generator that is asked several times answers differently, and a network that only has to judge can be small (Cobbe
et al., 2021, for language models; Ma et al., 2025, for diffusion). A statement is a question with a few possible
answers, such as the shape of the first object.

Axes: B clips or captions, Q statements, V answers to the one that has most; C channels, f h w latent frames, rows,
columns; L text tokens, D width.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vidiff.errors import ConfigError
from vidiff.models.attention import Attention, check_head_width
from vidiff.models.embeddings import TextProjection
from vidiff.models.evaluator import Block
from vidiff.types import TextEmbedding


@dataclass(frozen=True)
class VerifierConfig:
    """Shape of a `Verifier`."""

    kind: Literal["verifier"] = "verifier"
    dim: int = 128  # of what reads latents
    depth: int = 2
    text_dim: int = 64  # of what reads captions
    text_depth: int = 1
    num_heads: int = 4

    def __post_init__(self) -> None:
        for name in ("dim", "depth", "text_dim", "text_depth", "num_heads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for dim in (self.dim, self.text_dim):
            check_head_width(dim, self.num_heads)


class Answers(nn.Module):
    """One learned query for each statement: what it finds among tokens, and which answer that is."""

    counts: Tensor  # of answers, (Q,)

    def __init__(self, dim: int, num_heads: int, counts: tuple[int, ...]):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(len(counts), dim))
        self.norm = nn.LayerNorm(dim)
        self.attention = Attention(dim, num_heads)
        self.norm_out = nn.LayerNorm(dim)
        # One more than the answers of a statement, the last of its own, is that there is none.
        self.out = nn.Parameter(torch.randn(len(counts), dim, max(counts) + 1) * dim**-0.5)
        self.register_buffer("counts", torch.tensor(counts), persistent=False)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map tokens (B, N, D), those where ``mask`` (B, N) is True, to log-probabilities (B, Q, V + 1), float32."""
        queries = self.queries.to(tokens.dtype).expand(len(tokens), -1, -1)
        found = self.norm_out(queries + self.attention(queries, self.norm(tokens), mask=mask))
        logits = torch.einsum("bqd,qdv->bqv", found, self.out.to(found.dtype)).float()
        beyond = torch.arange(logits.shape[-1], device=logits.device) > self.counts[:, None]
        return logits.masked_fill(beyond, -torch.inf).log_softmax(-1)


class Verifier(nn.Module):
    """Two readers with the same questions, one for latents and one for captions."""

    def __init__(
        self, config: VerifierConfig, shape: tuple[int, int, int, int], counts: tuple[int, ...], text_dim: int
    ):
        """Build the network.

        Args:
            config: its shape.
            shape: of the latents that it reads, (C, f, h, w).
            counts: how many answers each of the Q statements has.
            text_dim: width of a text token's state.
        """
        super().__init__()
        self.shape = shape
        channels, frames, height, width = shape
        # Shapes are told from what is near, so convolutions come first; then four places are one token: objects are
        # larger, and a quarter of the tokens takes a quarter of the time.
        self.convs = nn.ModuleList(
            nn.Conv2d(dim_in, config.dim, 3, stride=stride, padding=1)
            for dim_in, stride in ((channels, 1), (config.dim, 2))
        )
        self.norms = nn.ModuleList(nn.LayerNorm(config.dim) for _ in self.convs)
        sizes = (frames, -(-height // 2), -(-width // 2))
        # Learned: sines turn too slowly to tell so few places from one another.
        self.places = nn.ParameterList(0.3 * torch.randn(size, config.dim) for size in sizes)
        self.blocks = nn.ModuleList(Block(config.dim, config.num_heads) for _ in range(config.depth))
        self.shown = Answers(config.dim, config.num_heads, counts)
        self.text_projection = TextProjection(text_dim, config.text_dim)
        self.text_blocks = nn.ModuleList(Block(config.text_dim, config.num_heads) for _ in range(config.text_depth))
        self.said = Answers(config.text_dim, config.num_heads, counts)

    def read_latents(self, latents: Tensor) -> Tensor:
        """Return log-probabilities of what normalized latents (B, C, f, h, w) show, (B, Q, V + 1), float32.

        Of a clip that is cut short the first frames are read.

        Raises:
            ConfigError: if the latents are of another size than the network reads.
        """
        channels, length, *size = self.shape
        if tuple(latents.shape[1:]) not in {(channels, f, *size) for f in range(1, length + 1)}:
            raise ConfigError(f"the verifier reads latents of {self.shape}, got {tuple(latents.shape[1:])}")
        x = rearrange(latents, "b c f h w -> (b f) h w c")  # channels last in memory, where norms move no data
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.silu(norm(conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)))
        frames, rows, columns = self.places
        places = (frames[: latents.shape[2], None, None] + rows[:, None] + columns).flatten(0, 2)
        tokens = rearrange(x, "(b f) h w d -> b (f h w) d", b=len(latents)) + places.to(x.dtype)
        for block in self.blocks:
            tokens = block(tokens)
        return self.shown(tokens)

    def read_text(self, text: TextEmbedding) -> Tensor:
        """Return log-probabilities of what captions (B, L, text_dim) say, (B, Q, V + 1), float32."""
        tokens = self.text_projection(text.tokens)
        for block in self.text_blocks:
            tokens = block(tokens, text.mask)
        return self.said(tokens, text.mask)

    def forward(self, latents: Tensor, text: TextEmbedding) -> Tensor:
        """Return how many of the things that a caption says its clip is expected to show, (B,), float32.

        Args:
            latents: of B clips, (B, C, f, h, w).
            text: token states of B captions.
        """
        agree = self.read_latents(latents).exp() * self.read_text(text).exp()
        answers = torch.arange(agree.shape[-1], device=agree.device) < self.said.counts[:, None]
        return torch.where(answers, agree, 0).sum((1, 2))
