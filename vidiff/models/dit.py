"""Space-time diffusion transformer (Peebles & Xie, 2023) with text cross-attention.

``attention: full``, ``modulation: shared``, ``positions: rope`` is the published Wan 2.1 transformer (Wan Team, 2025),
tensor for tensor; `vidiff.interop.wan_transformer` holds the key map.

Axes: B batch, C channels, f h w latent frames, rows, columns; N tokens in the order (frame, row, column), L text
tokens, D width.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vidiff.errors import ConfigError
from vidiff.models.attention import Attention, check_head_width
from vidiff.models.embeddings import (
    ImageProjection,
    TextProjection,
    TimeEmbedding,
    absolute_embedding,
    rotary_table,
    token_positions,
)
from vidiff.models.skipping import check_layers, passed
from vidiff.types import Conditioning, TextEmbedding, pooled_text


@dataclass(frozen=True)
class DiTConfig:
    """Shape of a `SpaceTimeDiT`."""

    kind: Literal["dit"] = "dit"
    patch_size: tuple[int, int, int] = (1, 2, 2)  # latents along (f, h, w) in one token
    dim: int = 320
    depth: int = 8
    num_heads: int = 5
    ffn_dim: int | None = None  # hidden width of the MLP; None is 4 * dim
    attention: Literal["full", "factorized"] = "full"  # all tokens at once, or within frames and then along time
    modulation: Literal["shared", "block"] = "shared"  # one projection plus a table a block, or one projection a block
    positions: Literal["rope", "rope+absolute"] = "rope"
    mask_text: bool = True  # hide padded text tokens from cross-attention; Wan shows them
    pooled_text: bool = False  # the mean of the text's states joins t in modulating every block; Wan's does not
    input_skip: bool = False  # the output gets the input back, each number times a gain that follows from t
    skip_text: bool = False  # and from the pooled text, as in the bundled sprites; guidance then amplifies noise
    norm_eps: float = 1e-6
    concat_channels: int = 0  # of what image-to-video networks see beside the noisy latents
    image_dim: int | None = None  # width of a picture's states, for a second cross-attention as in Wan's; null: none
    gradient_checkpointing: bool = False  # recompute each block in the backward pass, to save memory

    def __post_init__(self) -> None:
        for name, value in (("dim", self.dim), ("depth", self.depth), ("num_heads", self.num_heads)):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if min(self.patch_size) < 1:
            raise ConfigError(f"patch_size must be at least 1 along each axis, got {self.patch_size}")
        if self.ffn_dim is not None and self.ffn_dim < 1:
            raise ConfigError(f"ffn_dim must be at least 1, or null for 4 * dim, got {self.ffn_dim}")
        if self.concat_channels < 0 or (self.image_dim is not None and self.image_dim < 1):
            raise ConfigError(
                f"concat_channels and image_dim count channels, got {self.concat_channels} and {self.image_dim}"
            )
        check_head_width(self.dim, self.num_heads)

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @property
    def hidden_dim(self) -> int:
        return self.ffn_dim or 4 * self.dim

    @property
    def num_branches(self) -> int:
        """Return how many branches of a block are modulated."""
        return 3 if self.attention == "factorized" else 2


@dataclass(frozen=True)
class Context:
    """What every block of one forward pass is told."""

    emb: Tensor  # embedding of t: (B, D) for `block` modulation, (B, 3 * branches, D) for `shared`
    text: Tensor  # projected text tokens, (B, L, D)
    text_mask: Tensor | None  # (B, L), True where visible
    rotary: Tensor  # (B or 1, N, 1, head_dim / 2), complex
    num_frames: int  # f; there are N / f tokens a frame
    dtype: torch.dtype  # of the matrix products
    image: Tensor | None = None  # projected states of a picture, (B, M, D)
    known_emb: Tensor | None = None  # as emb, of t = 0: for the first `known` tokens, which are not noisy
    known: int = 0
    source: TextEmbedding | None = None  # what `text` was made from, where it keeps what is made of it


@dataclass(frozen=True)
class DiTOutput:
    """What one forward pass found, for a network that goes on from there."""

    output: Tensor  # (B, C, f, h, w)
    tokens: Tensor  # after the last block and its norm, (B, N, D)
    emb: Tensor  # of t and the pooled text, (B, D)


class Modulation(nn.Module):
    """Turn the embedding of t into ``parts`` vectors of width D, by a table (shared) or a projection (block)."""

    def __init__(self, config: DiTConfig, parts: int):
        super().__init__()
        self.parts = parts
        self.table: nn.Parameter | None = None
        self.projection: nn.Linear | None = None
        if config.modulation == "shared":
            self.table = nn.Parameter(torch.randn(1, parts, config.dim) / math.sqrt(config.dim))
        else:
            self.projection = nn.Linear(config.dim, parts * config.dim)

    def forward(self, emb: Tensor) -> Tensor:
        """Map (B, D), or for a table whatever broadcasts with it, to (B, parts, D)."""
        if self.table is not None:
            return emb + self.table
        assert self.projection is not None
        with torch.autocast(emb.device.type, enabled=False):
            return self.projection(F.silu(emb)).unflatten(-1, (self.parts, -1))


class SpaceTimeBlock(nn.Module):
    """Self-attention, text cross-attention and an MLP, each added to the tokens.

    Self-attention and MLP are modulated by t with shift, scale and gate; cross-attention is not. With ``modulation:
    block`` a new block is the identity.
    """

    def __init__(self, config: DiTConfig):
        super().__init__()
        dim, eps = config.dim, config.norm_eps
        self.eps = eps
        self.attention = Attention(dim, config.num_heads, eps)
        factorized = config.attention == "factorized"
        self.time_attention = Attention(dim, config.num_heads, eps) if factorized else None
        self.cross_norm = nn.LayerNorm(dim, eps=eps)
        self.cross_attention = Attention(dim, config.num_heads, eps, image=config.image_dim is not None)
        self.mlp_in = nn.Linear(dim, config.hidden_dim)
        self.mlp_out = nn.Linear(config.hidden_dim, dim)
        self.modulation = Modulation(config, 3 * config.num_branches)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Refine video tokens (B, N, D)."""
        branches = self._branches(context, x.shape[1])

        y = self._modulated(x, branches[0], context)
        x = gated(x, self._attended(y, context), branches[0])
        if self.time_attention is not None:
            y = self._modulated(x, branches[1], context)
            x = gated(x, self._attended_in_time(y, context), branches[1])

        # The affine norm runs in the products' precision, so that no float32 copy of the tokens is made and cast.
        norm, dtype = self.cross_norm, context.dtype
        y = F.layer_norm(x.to(dtype), x.shape[-1:], norm.weight.to(dtype), norm.bias.to(dtype), self.eps)
        x = x + self.cross_attention(
            y.to(dtype), context.text, mask=context.text_mask, image=context.image, source=context.source
        )

        y = self.mlp_in(self._modulated(x, branches[-1], context))
        return gated(x, self.mlp_out(F.gelu(y, approximate="tanh")), branches[-1])

    def _branches(self, context: Context, tokens: int) -> tuple[Tensor, ...]:
        """Return shift, scale and gate of each branch, (B, 3, 1, D), or for each token, (B, 3, N, D)."""
        branches = self.modulation(context.emb).unflatten(1, (-1, 3))[:, :, :, None]
        if context.known_emb is not None:
            known = self.modulation(context.known_emb).unflatten(1, (-1, 3))[:, :, :, None]
            rest = tokens - context.known
            branches = torch.cat(
                [known.expand(-1, -1, -1, context.known, -1), branches.expand(-1, -1, -1, rest, -1)], 3
            )
        return branches.unbind(1)

    def _modulated(self, x: Tensor, branch: Tensor, context: Context) -> Tensor:
        dtype = context.dtype
        y = F.layer_norm(x.to(dtype), x.shape[-1:], eps=self.eps).to(dtype)
        return torch.addcmul(branch[:, 0].to(dtype), y, (1 + branch[:, 1]).to(dtype))

    def _attended(self, y: Tensor, context: Context) -> Tensor:
        if self.time_attention is None:
            return self.attention(y, rotary=context.rotary)
        f = context.num_frames
        rotary = context.rotary.expand(y.shape[0], -1, -1, -1)
        frames = self.attention(
            rearrange(y, "b (f n) d -> (b f) n d", f=f), rotary=rearrange(rotary, "b (f n) 1 d -> (b f) n 1 d", f=f)
        )
        return rearrange(frames, "(b f) n d -> b (f n) d", f=f)

    def _attended_in_time(self, y: Tensor, context: Context) -> Tensor:
        assert self.time_attention is not None
        b, f = y.shape[0], context.num_frames
        rotary = context.rotary.expand(b, -1, -1, -1)
        places = self.time_attention(
            rearrange(y, "b (f n) d -> (b n) f d", f=f), rotary=rearrange(rotary, "b (f n) 1 d -> (b n) f 1 d", f=f)
        )
        return rearrange(places, "(b n) f d -> b (f n) d", b=b)


class SpaceTimeDiT(nn.Module):
    """The backbone: noisy latents, their time t and a text to the network's output."""

    def __init__(self, config: DiTConfig, in_channels: int, text_dim: int):
        super().__init__()
        self.config = config
        dim, patch = config.dim, math.prod(config.patch_size)
        self.patch_embedding = nn.Linear(patch * (in_channels + config.concat_channels), dim)
        self.time_embedding = TimeEmbedding(dim)
        self.time_projection = nn.Linear(dim, 3 * config.num_branches * dim) if config.modulation == "shared" else None
        self.text_projection = TextProjection(text_dim, dim)
        self.image_projection = None if config.image_dim is None else ImageProjection(config.image_dim, dim)
        self.pooled_projection = TextProjection(text_dim, dim) if config.pooled_text else None
        self.blocks = nn.ModuleList(SpaceTimeBlock(config) for _ in range(config.depth))
        self.out_modulation = Modulation(config, 2)
        self.out = nn.Linear(dim, patch * in_channels)
        # Carries detail past a width smaller than a token's numbers, as c_skip does (Karras et al., 2022, equation 7),
        # but learned for each of them.
        self.skip_gain = nn.Linear(dim, patch * in_channels) if config.input_skip else None
        self._initialize()

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Return the network's output for noisy latents.

        Args:
            x: noisy latents x_t, (B, C, f, h, w).
            t: diffusion times in [0, 1], (B,).
            cond: the text, and ``first_frame``, the latent frame at which each clip starts, (B,); ``concat`` and
                ``image`` if the config has them; ``known``, the first frames of ``x`` that are clean.

        Returns:
            The output, (B, C, f, h, w), in the type of ``x``.

        Raises:
            ConfigError: if a patch does not divide the latents' size, or ``cond`` holds a low-resolution clip, lacks or
                has a picture that the config does not say, or skips blocks that are not there.
        """
        check_layers(cond.skip_layers, self.config.depth)
        return self.outputs(x, t, cond).output

    def outputs(self, x: Tensor, t: Tensor, cond: Conditioning) -> DiTOutput:
        """Return what `forward` returns with the tokens that it was made from; arguments and errors are the same."""
        if cond.low_res is not None:
            raise ConfigError("the dit backbone takes no low_res conditioning; use unet3d for super-resolution")
        self._check_picture(cond)
        sizes = self._grid(x)
        pt, ph, pw = self.config.patch_size
        seen = x if cond.concat is None else torch.cat([x, cond.concat.to(x)], dim=1)
        patches = rearrange(seen, "b c (f pt) (h ph) (w pw) -> b (f h w) (c pt ph pw)", pt=pt, ph=ph, pw=pw)
        first = None if cond.first_frame is None else cond.first_frame / pt
        positions = token_positions(sizes, x.device, first)

        weight = self.patch_embedding.weight
        tokens = self.patch_embedding(patches.to(weight.dtype)).to(weight.dtype)  # the residual stream's type
        if self.config.positions == "rope+absolute":
            tokens = tokens + absolute_embedding(positions, self.config.dim).to(tokens.dtype)
        emb = noise_emb = self.time_embedding(t)
        if self.pooled_projection is not None:
            emb = emb + self.pooled_projection(pooled_text(cond.text)).to(emb.dtype)
        known_emb = None if cond.known is None else emb + self.time_embedding(torch.zeros_like(t)) - noise_emb
        context = self._context(emb, known_emb, cond, rotary_table(positions, self.config.head_dim), sizes)
        tokens = passed(self.blocks, tokens, context, cond, recompute=self.config.gradient_checkpointing)

        shift, scale = self._out_branches(emb, known_emb, context, tokens.shape[1])
        y = F.layer_norm(tokens, tokens.shape[-1:], eps=self.config.norm_eps)
        output = self.out(torch.addcmul(shift, y, 1 + scale)).to(x.dtype)
        if self.skip_gain is not None:
            output = output + self._gained(patches, emb if self.config.skip_text else noise_emb)
        f, h, w = sizes
        pattern = "b (f h w) (pt ph pw c) -> b c (f pt) (h ph) (w pw)"
        return DiTOutput(rearrange(output, pattern, f=f, h=h, w=w, pt=pt, ph=ph, pw=pw), y, emb)

    def _out_branches(
        self, emb: Tensor, known_emb: Tensor | None, context: Context, tokens: int
    ) -> tuple[Tensor, Tensor]:
        """Return shift and scale of the last norm, (B, 1 or N, D)."""
        shared = self.time_projection is not None
        parts = [self.out_modulation(one[:, None] if shared else one) for one in (known_emb, emb) if one is not None]
        if len(parts) > 1:
            counts = (context.known, tokens - context.known)
            parts = [torch.cat([p[:, :, None].expand(-1, -1, n, -1) for p, n in zip(parts, counts, strict=True)], 2)]
            return parts[0][:, 0], parts[0][:, 1]
        return parts[0][:, 0:1], parts[0][:, 1:2]

    def _check_picture(self, cond: Conditioning) -> None:
        found = 0 if cond.concat is None else cond.concat.shape[1]
        if found != self.config.concat_channels or (cond.image is None) != (self.config.image_dim is None):
            wants = self.config.concat_channels or self.config.image_dim
            raise ConfigError(
                "this model makes clips out of a picture; give one with --image"
                if wants
                else "this model takes no picture; it makes clips out of text alone"
            )

    def _gained(self, patches: Tensor, emb: Tensor) -> Tensor:
        """Return the input's patches (B, N, c pt ph pw), in the output's order of numbers, times their gains."""
        assert self.skip_gain is not None
        pt, ph, pw = self.config.patch_size
        patches = rearrange(patches, "b n (c pt ph pw) -> b n (pt ph pw c)", pt=pt, ph=ph, pw=pw)
        with torch.autocast(emb.device.type, enabled=False):
            return patches * self.skip_gain(F.silu(emb))[:, None].to(patches.dtype)

    def _context(
        self, emb: Tensor, known_emb: Tensor | None, cond: Conditioning, rotary: Tensor, sizes: tuple[int, int, int]
    ) -> Context:
        device, dtype = emb.device.type, self.patch_embedding.weight.dtype
        known = 0 if cond.known is None else cond.known.shape[2] // self.config.patch_size[0] * sizes[1] * sizes[2]
        image = None if self.image_projection is None or cond.image is None else self.image_projection(cond.image)
        return Context(
            emb=self._projected(emb),
            text=cond.text.once(self.text_projection, partial(self.text_projection, cond.text.tokens)),
            source=cond.text,
            text_mask=cond.text.mask if self.config.mask_text else None,
            rotary=rotary,
            num_frames=sizes[0],
            dtype=torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else dtype,
            image=image,
            known_emb=None if known_emb is None else self._projected(known_emb),
            known=known,
        )

    def _projected(self, emb: Tensor) -> Tensor:
        if self.time_projection is None:
            return emb
        with torch.autocast(emb.device.type, enabled=False):
            return self.time_projection(F.silu(emb)).unflatten(-1, (-1, self.config.dim))

    def _grid(self, x: Tensor) -> tuple[int, int, int]:
        """Return the tokens along (f, h, w)."""
        for name, size, patch in zip(("frames", "height", "width"), x.shape[2:], self.config.patch_size, strict=True):
            if size % patch or size == 0:
                nearest = max(1, round(size / patch)) * patch
                raise ConfigError(
                    f"latent {name} must be a multiple of the dit's patch size {patch}, got {size}; "
                    f"the nearest that fits is {nearest}"
                )
        f, h, w = (size // patch for size, patch in zip(x.shape[2:], self.config.patch_size, strict=True))
        return f, h, w

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for embedding in (self.time_embedding, self.text_projection):
            nn.init.normal_(embedding.linear_1.weight, std=0.02)
            nn.init.normal_(embedding.linear_2.weight, std=0.02)
        zeroed = [self.out]
        if self.skip_gain is not None:
            zeroed.append(self.skip_gain)
        if self.pooled_projection is not None:
            zeroed.append(self.pooled_projection.linear_2)
        for module in self.modules():
            if isinstance(module, Modulation) and module.projection is not None:
                zeroed.append(module.projection)
            if isinstance(module, SpaceTimeBlock) and self.config.modulation == "block":
                zeroed.append(module.cross_attention.out)
        for linear in zeroed:
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)


def gated(x: Tensor, y: Tensor, branch: Tensor) -> Tensor:
    """Add ``y`` (B, N, D) to the tokens through the gate of a branch (B, 3, 1 or N, D)."""
    return x + y * branch[:, 2].to(y.dtype)  # the product in the branch's type, the sum in the tokens'
