"""A space-time transformer of two levels: large tokens decide what is where, small ones draw it.

Tokens of 2 x 2 latents are cheap, and one token must then draw all that falls into it: around moving objects the joints
show as blocks. Here a narrow second transformer goes on from the large tokens with a token for each latent, as in
PixelDiT (Yu et al., 2025). Its last layer starts at zero, so that a trained `SpaceTimeDiT` becomes one of two levels
without a jump.

Axes: B batch, C channels, f h w latent frames, rows, columns; n small tokens in the order (frame, row, column), d width
of the small ones.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vidiff.errors import ConfigError
from vidiff.models.dit import Context, DiTConfig, Modulation, SpaceTimeBlock, SpaceTimeDiT
from vidiff.models.embeddings import TextProjection, absolute_embedding, rotary_table, token_positions
from vidiff.models.skipping import check_layers, passed
from vidiff.types import Conditioning


@dataclass(frozen=True)
class TwoLevelDiTConfig:
    """Shape of a `TwoLevelDiT`."""

    kind: Literal["two_level_dit"] = "two_level_dit"
    coarse: DiTConfig = field(default_factory=DiTConfig)
    dim: int = 192
    depth: int = 3
    num_heads: int = 3
    ffn_dim: int | None = None  # None is 4 * dim

    def __post_init__(self) -> None:
        if self.coarse.patch_size[0] != 1:
            raise ConfigError(f"coarse.patch_size must be 1 along time, got {self.coarse.patch_size}")
        _ = self.fine  # checks the rest

    @property
    def fine(self) -> DiTConfig:
        """Return the shape of the small tokens' blocks."""
        return DiTConfig(
            patch_size=(1, 1, 1),
            dim=self.dim,
            depth=self.depth,
            num_heads=self.num_heads,
            ffn_dim=self.ffn_dim,
            mask_text=self.coarse.mask_text,
            norm_eps=self.coarse.norm_eps,
        )


class TwoLevelDiT(nn.Module):
    """The backbone: noisy latents, their time t and a text to the network's output."""

    def __init__(self, config: TwoLevelDiTConfig, in_channels: int, text_dim: int):
        super().__init__()
        self.config = config
        fine, wide = config.fine, config.coarse.dim
        self.coarse = SpaceTimeDiT(config.coarse, in_channels, text_dim)
        self.embedding = nn.Linear(in_channels, fine.dim)
        self.unfold = nn.Linear(wide, fine.dim * config.coarse.patch_size[1] * config.coarse.patch_size[2])
        self.text_projection = TextProjection(text_dim, fine.dim)
        self.time_projection = nn.Linear(wide, 3 * fine.num_branches * fine.dim)
        self.out_projection = nn.Linear(wide, fine.dim)
        self.blocks = nn.ModuleList(SpaceTimeBlock(fine) for _ in range(fine.depth))
        self.out_modulation = Modulation(fine, 2)
        self.out = nn.Linear(fine.dim, in_channels)
        self._initialize()

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Return the network's output for noisy latents; see `SpaceTimeDiT.forward`.

        Args:
            x: noisy latents x_t, (B, C, f, h, w).
            t: diffusion times in [0, 1], (B,).
            cond: as for `SpaceTimeDiT`; the small tokens' blocks are counted on from the large ones'.

        Returns:
            The output, (B, C, f, h, w), in the type of ``x``.

        Raises:
            ConfigError: as `SpaceTimeDiT.forward`.
        """
        check_layers(cond.skip_layers, self.config.coarse.depth + self.config.depth)
        found = self.coarse.outputs(x, t, cond)
        f, h, w = x.shape[2:]
        _, ph, pw = self.config.coarse.patch_size
        positions = token_positions((f, h, w), x.device, cond.first_frame)
        device, weight = x.device.type, self.embedding.weight
        patches = rearrange(x, "b c f h w -> b (f h w) c").to(weight.dtype)
        pattern = "b (f h w) (ph pw d) -> b (f h ph w pw) d"
        unfolded = rearrange(self.unfold(found.tokens), pattern, f=f, h=h // ph, w=w // pw, ph=ph, pw=pw)
        tokens = (self.embedding(patches) + unfolded).to(weight.dtype)
        tokens = tokens + absolute_embedding(positions, self.config.dim).to(tokens.dtype)
        with torch.autocast(device, enabled=False):
            emb = F.silu(found.emb)
            modulation = self.time_projection(emb).unflatten(-1, (-1, self.config.dim))
            out_emb = self.out_projection(emb)[:, None]
        context = Context(
            emb=modulation,
            text=cond.text.once(self.text_projection, partial(self.text_projection, cond.text.tokens)),
            source=cond.text,
            text_mask=cond.text.mask if self.config.coarse.mask_text else None,
            rotary=rotary_table(positions, self.config.fine.head_dim),
            num_frames=f,
            dtype=torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype,
        )
        tokens = passed(self.blocks, tokens, context, cond, first=self.config.coarse.depth)
        shift, scale = self.out_modulation(out_emb).split(1, dim=1)
        y = F.layer_norm(tokens, tokens.shape[-1:], eps=self.config.coarse.norm_eps)
        drawn = self.out(torch.addcmul(shift, y, 1 + scale)).to(x.dtype)
        return found.output + rearrange(drawn, "b (f h w) c -> b c f h w", f=f, h=h, w=w)

    def _initialize(self) -> None:
        parts = (self.embedding, self.unfold, self.text_projection, self.time_projection, self.out_projection)
        for part in (*parts, *self.blocks):
            for module in part.modules():
                if isinstance(module, nn.Linear):
                    nn.init.xavier_uniform_(module.weight)
                    nn.init.zeros_(module.bias)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
