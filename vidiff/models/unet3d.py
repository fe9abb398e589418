"""Factorized 3D U-Net: space first, then time, at every block (Ho et al., 2022; Singer et al., 2023).

Layers along time start at zero and norms see one frame at a time, so an untrained temporal layer changes nothing: a
network trained on single frames becomes a video network without a jump.

Axes: B batch, C channels, f h w latent frames, rows, columns; L text tokens, D width. Inside, frames lie in the batch:
(B f, C, h, w), channels last in memory, where 2D convolutions are fastest.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vidiff.errors import ConfigError
from vidiff.models.attention import Attention, check_head_width
from vidiff.models.embeddings import TextProjection, TimeEmbedding, rotary_table, token_positions
from vidiff.models.skipping import check_layers
from vidiff.types import Conditioning, pooled_text


@dataclass(frozen=True)
class UNet3DConfig:
    """Shape of a `UNet3D`."""

    kind: Literal["unet3d"] = "unet3d"
    dim: int = 128  # channels of the first level
    dim_mult: tuple[int, ...] = (1, 2)  # channels of each level as a multiple of dim; each halves height and width
    num_res_blocks: int = 2  # of each level on the way down; one more on the way up
    attention: tuple[int, ...] = (1,)  # levels whose blocks attend within frames
    cross_attention: tuple[int, ...] = (1,)  # levels whose blocks attend to the text
    temporal: bool = True  # temporal convolutions everywhere, temporal attention where there is attention
    num_heads: int = 4
    low_res: bool = False  # takes the clip of the stage before, concatenated: super-resolution
    pooled_text: bool = True  # the mean of the text's states joins t in modulating every block
    input_skip: bool = True  # the output gets the inputs back, each channel times a gain that follows from t
    gradient_checkpointing: bool = False  # recompute each block in the backward pass, to save memory

    def __post_init__(self) -> None:
        for name, value in (("dim", self.dim), ("num_res_blocks", self.num_res_blocks), ("num_heads", self.num_heads)):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if not self.dim_mult or min(self.dim_mult) < 1:
            raise ConfigError(f"dim_mult needs a factor of at least 1 for each level, got {self.dim_mult}")
        for name, levels in (("attention", self.attention), ("cross_attention", self.cross_attention)):
            if any(not 0 <= level < len(self.dim_mult) for level in levels):
                raise ConfigError(f"{name} names levels 0 to {len(self.dim_mult) - 1}, got {levels}")
        check_head_width(self.dim, self.num_heads)

    @property
    def emb_dim(self) -> int:
        return 4 * self.dim


@dataclass(frozen=True)
class Context:
    """What every block of one forward pass is told."""

    emb: Tensor  # of t and the pooled text, (B f, D)
    text: Tensor  # projected tokens, (B, L, D)
    text_mask: Tensor  # (B, L), True where real
    frames: int  # f
    first_frame: Tensor | None  # (B,)


class FrameNorm(nn.GroupNorm):
    """Group norm of each frame by itself; in autocast it answers in the products' precision, without a copy."""

    def __init__(self, dim: int):
        super().__init__(math.gcd(32, dim), dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class ResBlock(nn.Module):
    """Two spatial convolutions, modulated between them (FiLM; Perez et al., 2018), then one along time."""

    def __init__(self, config: UNet3DConfig, dim_in: int, dim: int):
        super().__init__()
        self.norm_1, self.norm_2 = FrameNorm(dim_in), FrameNorm(dim)
        self.conv_1 = nn.Conv2d(dim_in, dim, 3, padding=1)
        self.conv_2 = nn.Conv2d(dim, dim, 3, padding=1)
        self.film = nn.Linear(config.emb_dim, 2 * dim)
        self.skip = nn.Conv2d(dim_in, dim, 1) if dim_in != dim else nn.Identity()
        self.time_norm = FrameNorm(dim) if config.temporal else None
        self.time_conv = nn.Conv3d(dim, dim, (3, 1, 1), padding=(1, 0, 0)) if config.temporal else None

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Refine (B f, C, h, w)."""
        y = self.conv_1(F.silu(self.norm_1(x)))
        scale, shift = self.film(F.silu(context.emb))[..., None, None].to(y.dtype).chunk(2, dim=1)
        y = torch.addcmul(shift, self.norm_2(y), 1 + scale)
        x = self.skip(x) + self.conv_2(F.silu(y))
        # A single frame has nothing beside it, so its temporal layers are left out and not fed with zeros.
        if self.time_conv is None or self.time_norm is None or context.frames == 1:
            return x
        y = F.silu(self.time_norm(x)).unflatten(0, (-1, context.frames)).transpose(1, 2)
        return x + self.time_conv(y).transpose(1, 2).flatten(0, 1)


class AttentionBlock(nn.Module):
    """Attention within frames, to the text and along time, whichever are wanted, then an MLP."""

    def __init__(self, config: UNet3DConfig, dim: int, within: bool, across: bool):
        super().__init__()
        heads = config.num_heads
        self.heads = heads
        self.space = Attention(dim, heads) if within else None
        self.text = Attention(dim, heads, context_dim=config.emb_dim) if across else None
        self.time = Attention(dim, heads) if within and config.temporal else None
        used = {"space": self.space, "text": self.text, "time": self.time, "mlp": self}
        self.norms = nn.ModuleDict({name: nn.LayerNorm(dim) for name, part in used.items() if part is not None})
        self.mlp_in, self.mlp_out = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Refine (B f, C, h, w)."""
        f, (h, w) = context.frames, x.shape[2:]
        tokens = rearrange(x, "bf c h w -> bf (h w) c")
        dim = tokens.shape[-1] // self.heads
        if self.space is not None:
            rotary = rotary_table(token_positions((1, h, w), x.device), dim)
            tokens = tokens + self.space(self._normed("space", tokens), rotary=rotary)
        if self.text is not None:
            whole = rearrange(self._normed("text", tokens), "(b f) n c -> b (f n) c", f=f)
            told = self.text(whole, context.text, mask=context.text_mask)
            tokens = tokens + rearrange(told, "b (f n) c -> (b f) n c", f=f)
        if self.time is not None and f > 1:
            rotary = rotary_table(token_positions((f, 1, 1), x.device, context.first_frame), dim)
            if len(rotary) > 1:
                rotary = rotary.repeat_interleave(h * w, dim=0)
            places = rearrange(self._normed("time", tokens), "(b f) n c -> (b n) f c", f=f)
            tokens = tokens + rearrange(self.time(places, rotary=rotary), "(b n) f c -> (b f) n c", n=h * w)
        y = self.mlp_out(F.gelu(self.mlp_in(self._normed("mlp", tokens)), approximate="tanh"))
        return rearrange(tokens + y, "bf (h w) c -> bf c h w", h=h)

    def _normed(self, name: str, tokens: Tensor) -> Tensor:
        norm = self.norms[name]
        assert isinstance(norm, nn.LayerNorm)
        return F.layer_norm(tokens, tokens.shape[-1:], norm.weight.to(tokens.dtype), norm.bias.to(tokens.dtype))


class Block(nn.Module):
    """A residual block and, at the levels that attend, an attention block."""

    def __init__(self, config: UNet3DConfig, dim_in: int, level: int):
        super().__init__()
        dim = config.dim * config.dim_mult[level]
        within, across = level in config.attention, level in config.cross_attention
        self.res = ResBlock(config, dim_in, dim)
        self.attention = AttentionBlock(config, dim, within, across) if within or across else None

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Refine (B f, C, h, w)."""
        x = self.res(x, context)
        return x if self.attention is None else self.attention(x, context)


class UNet3D(nn.Module):
    """The backbone: noisy latents, their time t, a text and perhaps a low-resolution clip to the network's output."""

    def __init__(self, config: UNet3DConfig, in_channels: int, text_dim: int):
        super().__init__()
        self.config = config
        dims = [config.dim * mult for mult in config.dim_mult]
        inputs = in_channels * (2 if config.low_res else 1)
        self.time_embedding = TimeEmbedding(config.emb_dim)
        self.low_res_embedding = TimeEmbedding(config.emb_dim) if config.low_res else None
        self.text_projection = TextProjection(text_dim, config.emb_dim)
        self.pooled_projection = TextProjection(text_dim, config.emb_dim) if config.pooled_text else None
        self.conv_in = nn.Conv2d(inputs, dims[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.shrink, self.grow = nn.ModuleList(), nn.ModuleList()
        kept, dim = [dims[0]], dims[0]
        for level in range(len(dims)):
            if level:
                self.shrink.append(nn.Conv2d(dim, dim, 3, stride=2, padding=1))
                kept.append(dim)
            for _ in range(config.num_res_blocks):
                self.down.append(Block(config, dim, level))
                dim = dims[level]
                kept.append(dim)
        self.middle = Block(config, dim, len(dims) - 1)
        for level in reversed(range(len(dims))):
            for _ in range(config.num_res_blocks + 1):
                self.up.append(Block(config, dim + kept.pop(), level))
                dim = dims[level]
            if level:
                self.grow.append(nn.Conv2d(dim, dim, 3, padding=1))
        self.norm_out = FrameNorm(dim)
        self.conv_out = nn.Conv2d(dim, in_channels, 3, padding=1)
        self.skip_gain = nn.Linear(config.emb_dim, inputs) if config.input_skip else None
        self._initialize()

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Return the network's output for noisy latents of any size.

        Args:
            x: noisy latents x_t, (B, C, f, h, w).
            t: diffusion times in [0, 1], (B,).
            cond: the text; ``first_frame``, the latent frame at which each clip starts, (B,); with ``low_res`` in the
                config, the clip of the stage before, (B, C, f, h, w), and how much noise it holds, (B,).

        Returns:
            The output, (B, C, f, h, w), in the type of ``x``.

        Raises:
            ConfigError: if ``cond`` holds a low-resolution clip and the config does not take one, or the reverse, or
                one of another size or without its noise, or skips blocks.
        """
        check_layers(cond.skip_layers, 0)
        if (cond.low_res is not None) != self.config.low_res:
            raise ConfigError("a unet3d with low_res: true, and only that one, is given the clip of the stage before")
        if cond.low_res is not None and (cond.low_res.shape != x.shape or cond.low_res_t is None):
            raise ConfigError(f"low_res must be of the shape of x, {tuple(x.shape)}, and come with low_res_t")
        inputs = x if cond.low_res is None else torch.cat([x, cond.low_res.to(x)], dim=1)
        noise_emb = self._noise_embedding(t, cond)
        context = self._context(x.shape[2], noise_emb, cond)
        frames = inputs.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        y = self.conv_out(F.silu(self.norm_out(self._hourglass(self.conv_in(frames), context)))).to(x.dtype)
        if self.skip_gain is not None:
            with torch.autocast(x.device.type, enabled=False):
                gains = self.skip_gain(F.silu(noise_emb)).repeat_interleave(x.shape[2], dim=0)[..., None, None]
            y = y + sum((frames * gains.to(x.dtype)).split(x.shape[1], dim=1))
        return y.unflatten(0, (-1, context.frames)).transpose(1, 2)

    def _hourglass(self, y: Tensor, context: Context) -> Tensor:
        down, up, shrink, grow = (iter(part) for part in (self.down, self.up, self.shrink, self.grow))
        kept = [y]
        for level in range(len(self.config.dim_mult)):
            if level:
                y = next(shrink)(y)
                kept.append(y)
            for _ in range(self.config.num_res_blocks):
                y = self._run(next(down), y, context)
                kept.append(y)
        y = self._run(self.middle, y, context)
        for level in reversed(range(len(self.config.dim_mult))):
            for _ in range(self.config.num_res_blocks + 1):
                y = self._run(next(up), torch.cat([y, kept.pop()], dim=1), context)
            if level:  # to the size that is waiting one level up, which may be odd
                y = next(grow)(F.interpolate(y, kept[-1].shape[2:], mode="nearest"))
        return y

    def _run(self, block: nn.Module, y: Tensor, context: Context) -> Tensor:
        if self.config.gradient_checkpointing and torch.is_grad_enabled():
            result: Tensor = checkpoint(block, y, context, use_reentrant=False)
            return result
        return block(y, context)

    def _noise_embedding(self, t: Tensor, cond: Conditioning) -> Tensor:
        emb: Tensor = self.time_embedding(t)
        if self.low_res_embedding is not None and cond.low_res_t is not None:
            emb = emb + self.low_res_embedding(cond.low_res_t)
        return emb

    def _context(self, frames: int, emb: Tensor, cond: Conditioning) -> Context:
        if self.pooled_projection is not None:
            emb = emb + self.pooled_projection(pooled_text(cond.text)).to(emb.dtype)
        text = self.text_projection(cond.text.tokens)
        return Context(emb.repeat_interleave(frames, dim=0), text, cond.text.mask, frames, cond.first_frame)

    @torch.no_grad()
    def _initialize(self) -> None:
        zeroed: list[nn.Module] = [self.conv_out]
        if self.skip_gain is not None:
            zeroed.append(self.skip_gain)
        for module in self.modules():
            if isinstance(module, ResBlock):
                zeroed += [module.film, module.conv_2, *([module.time_conv] if module.time_conv is not None else [])]
            elif isinstance(module, AttentionBlock):
                zeroed += [module.mlp_out, *(a.out for a in (module.space, module.text, module.time) if a is not None)]
        for layer in zeroed:
            assert isinstance(layer, nn.Linear | nn.Conv2d | nn.Conv3d) and layer.bias is not None
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        if self.skip_gain is not None and self.config.low_res:
            # The clip of the stage before is the first answer, so that the network only learns what is missing.
            self.skip_gain.bias[self.skip_gain.out_features // 2 :] = 1.0
