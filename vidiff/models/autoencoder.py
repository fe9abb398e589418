"""The video autoencoder: causal 3D convolutions between pixels and latents.

Causal in time: a latent frame depends on its own and earlier frames only, so that an image is a clip of one frame
and a long clip streams through chunk by chunk. Two settings are the published Wan 2.1 and 2.2 VAEs (Wan Team, 2025),
tensor for tensor; `vidiff.interop.wan_autoencoder` holds the key maps.

Axes: B batch, C channels, F frames, H W pixels; f h w the same axes of latents.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vidiff.errors import ConfigError
from vidiff.models.causal import (
    AttentionPerFrame,
    AverageDown,
    CausalConv3d,
    Downsample,
    DuplicateUp,
    Past,
    ResBlock,
    RMSNorm,
    Upsample,
    channels_last,
)
from vidiff.types import LatentSpec


@dataclass(frozen=True)
class VideoVAEConfig:
    """Shape of a `VideoVAE`. The defaults are the published Wan 2.1 VAE."""

    kind: Literal["vae"] = "vae"
    latent_channels: int = 16
    dim: int = 96  # channels at the finest level
    decoder_dim: int | None = None  # the same of the decoder, where it is wider; None: dim
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)  # channels of each level, as multiples of dim; space halves between levels
    num_res_blocks: int = 2  # a level of the encoder; the decoder has one more
    temporal_downsample: tuple[bool, ...] = (False, True, True)  # whether time halves, between levels
    spatial_downsample: tuple[bool, ...] | None = None  # whether height and width halve, between levels; None: always
    patch_size: int = 1  # pixels a side folded into channels before the first convolution
    patch_frames: int = 1  # frames folded in with them; the first frame stands for a whole group
    patch_kernel: int = 3  # kernel of the convolutions next to the folded pixels
    linear: bool = False  # a linear map around the whole network, both ways; see `start_as_pca`
    middle_attention: bool = True  # attention over each frame at the coarsest level
    shortcuts: bool = False  # weightless shortcuts around each level, as in the Wan 2.2 VAE; learns much faster

    def __post_init__(self) -> None:
        if self.decoder_dim is not None and self.decoder_dim < 1:
            raise ConfigError(f"decoder_dim must be at least 1, or null for the width of dim, got {self.decoder_dim}")
        if len(self.temporal_downsample) != len(self.dim_mult) - 1:
            raise ConfigError(
                f"temporal_downsample needs one entry between each two levels of dim_mult: "
                f"{len(self.dim_mult) - 1}, got {len(self.temporal_downsample)}"
            )
        if self.spatial_downsample is not None and len(self.spatial_downsample) != len(self.temporal_downsample):
            raise ConfigError(
                f"spatial_downsample needs {len(self.temporal_downsample)} entries, as temporal_downsample"
            )
        for coarse, fine in zip(self.dim_mult[:0:-1], self.dim_mult[-2::-1], strict=True):
            if coarse not in (fine, 2 * fine):
                raise ConfigError(f"dim_mult may stay or double from level to level, got {self.dim_mult}")

    @property
    def steps(self) -> tuple[tuple[bool, bool], ...]:
        """Whether (space, time) halve at the end of each level of the encoder but the last."""
        spatial = self.spatial_downsample or (True,) * len(self.temporal_downsample)
        return tuple(zip(spatial, self.temporal_downsample, strict=True))

    @property
    def stride(self) -> int:
        return self.patch_size * 2 ** sum(spatial for spatial, _ in self.steps)

    @property
    def frame_stride(self) -> int:
        return self.patch_frames * 2 ** sum(self.temporal_downsample)

    @property
    def patch_channels(self) -> int:
        return 3 * self.patch_frames * self.patch_size**2


class Middle(nn.Module):
    """Two residual blocks around an attention over each frame, at the coarsest level."""

    def __init__(self, dim: int, attention: bool):
        super().__init__()
        self.before = ResBlock(dim, dim)
        self.attention = AttentionPerFrame(dim) if attention else nn.Identity()
        self.after = ResBlock(dim, dim)

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        return self.after(self.attention(self.before(x, past)), past)


class Encoder(nn.Module):
    """Folded pixels (B, P, F, H / p, W / p) to the moments of the posterior (B, 2 C, f, h, w)."""

    def __init__(self, config: VideoVAEConfig):
        super().__init__()
        dims = [config.dim * m for m in (1, *config.dim_mult)]
        self.conv_in = CausalConv3d(config.patch_channels, dims[0], config.patch_kernel)
        self.down = nn.ModuleList()
        self.shortcuts = nn.ModuleDict()  # by the index of the last block of their level
        for level, (dim_in, dim_out) in enumerate(itertools.pairwise(dims)):
            for block in range(config.num_res_blocks):
                self.down.append(ResBlock(dim_in if block == 0 else dim_out, dim_out))
            spatial, temporal = config.steps[level] if level < len(config.steps) else (False, False)
            if spatial or temporal:
                self.down.append(Downsample(dim_out, spatial, temporal))
            if config.shortcuts and (spatial or temporal or dim_in == dim_out):
                shortcut = AverageDown(dim_in, dim_out, 1 + temporal, 1 + spatial)
                self.shortcuts[str(len(self.down) - 1)] = shortcut
        self.middle = Middle(dims[-1], config.middle_attention)
        self.norm_out = RMSNorm(dims[-1])
        self.conv_out = CausalConv3d(dims[-1], 2 * config.latent_channels, 3)

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        x = self.conv_in(x, past)
        level = x
        for index, block in enumerate(self.down):
            x = block(x, past)
            if str(index) in self.shortcuts:
                level = x = x + self.shortcuts[str(index)](level)
        x = self.middle(x, past)
        return self.conv_out(F.silu(self.norm_out(x)), past)


class Decoder(nn.Module):
    """Latents (B, C, f, h, w) to folded pixels (B, P, F, H / p, W / p)."""

    def __init__(self, config: VideoVAEConfig):
        super().__init__()
        dims = [(config.decoder_dim or config.dim) * m for m in (config.dim_mult[-1], *config.dim_mult[::-1])]
        steps = config.steps[::-1]
        self.conv_in = CausalConv3d(config.latent_channels, dims[0], 3)
        self.middle = Middle(dims[0], config.middle_attention)
        self.up = nn.ModuleList()
        self.shortcuts = nn.ModuleDict()  # by the index of the last block of their level
        for level, (dim_in, dim_out) in enumerate(itertools.pairwise(dims)):
            if level > 0 and steps[level - 1][0] and not config.shortcuts:
                dim_in //= 2  # without shortcuts every spatial upsampling halves the channels
            for block in range(config.num_res_blocks + 1):
                self.up.append(ResBlock(dim_in if block == 0 else dim_out, dim_out))
            spatial, temporal = steps[level] if level < len(steps) else (False, False)
            if spatial or temporal:
                dim_up = dim_out if config.shortcuts else dim_out // 2
                self.up.append(Upsample(dim_out, dim_up, spatial, temporal))
                if config.shortcuts:
                    shortcut = DuplicateUp(dim_in, dim_out, 1 + temporal, 1 + spatial)
                    self.shortcuts[str(len(self.up) - 1)] = shortcut
        self.norm_out = RMSNorm(dims[-1])
        self.conv_out = CausalConv3d(dims[-1], config.patch_channels, config.patch_kernel)

    def forward(self, z: Tensor, past: Past | None = None) -> Tensor:
        first = not past  # no block has left frames behind yet
        level = x = self.middle(self.conv_in(z, past), past)
        for index, block in enumerate(self.up):
            x = block(x, past)
            if str(index) in self.shortcuts:
                level = x = x + self.shortcuts[str(index)](level, first)
        return self.conv_out(F.silu(self.norm_out(x)), past)


@dataclass(frozen=True)
class Posterior:
    """A diagonal Gaussian over unscaled latents."""

    mean: Tensor  # (B, C, f, h, w)
    log_var: Tensor  # (B, C, f, h, w)

    def sample(self, eps: Tensor) -> Tensor:
        return self.mean + torch.exp(0.5 * self.log_var) * eps

    def kl(self) -> Tensor:
        """Return KL(q || N(0, 1)) in nats for each sample, averaged over its latents, (B,) (Kingma & Welling, 2014)."""
        kl = 0.5 * (self.mean.square() + self.log_var.exp() - 1 - self.log_var)
        return kl.flatten(1).mean(1)


class VideoVAE(nn.Module):
    """KL-regularized causal video autoencoder. `encode` and `decode` speak normalized latents.

    Statistics of each latent channel lie with the weights (`latent_mean`, `latent_std`), so that every user of the
    latents sees unit variance and no scaling constant exists anywhere else.
    """

    def __init__(self, config: VideoVAEConfig):
        super().__init__()
        self.config = config
        self.latents = LatentSpec(config.latent_channels, config.stride, config.frame_stride)
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv3d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = nn.Conv3d(config.latent_channels, config.latent_channels, 1)
        self.decoder = Decoder(config)
        if config.linear:
            self.linear_in = nn.Conv3d(config.patch_channels, config.latent_channels, 1)
            self.linear_out = nn.Conv3d(config.latent_channels, config.patch_channels, 1)
        self.latent_mean: Tensor
        self.latent_std: Tensor
        self.register_buffer("latent_mean", torch.zeros(config.latent_channels))
        self.register_buffer("latent_std", torch.ones(config.latent_channels))
        # A linear look at the latents, fitted when training ends, for previews while a clip is sampled.
        self.preview_weight: Tensor
        self.preview_bias: Tensor
        self.register_buffer("preview_weight", torch.zeros(3, config.latent_channels))
        self.register_buffer("preview_bias", torch.zeros(3))
        self._initialize()

    def forward(self, video: Tensor, eps: Tensor) -> tuple[Posterior, Tensor]:
        """Return the posterior of a clip (B, 3, F, H, W) and the reconstruction from its sample at ``eps``."""
        posterior = self.posterior(video)
        return posterior, self.reconstruct(posterior.sample(eps))

    def preview(self, latents: Tensor) -> Tensor:
        """Return a rough picture (B, 3, f, h, w) in [-1, 1] of normalized latents, by one linear map a position."""
        rgb = torch.einsum("rc,bcfhw->brfhw", self.preview_weight, latents.to(self.preview_weight))
        return (rgb + _channelwise(self.preview_bias)).clamp(-1, 1)

    def posterior(self, video: Tensor) -> Posterior:
        """Return the posterior over unscaled latents of a whole clip (B, 3, F, H, W) in [-1, 1].

        Raises:
            ConfigError: if the clip's size is not on the latent grid.
        """
        self.latents.shape(*video.shape[2:])
        return self._posterior(self._encode_moments(video))

    def reconstruct(self, z: Tensor) -> Tensor:
        """Return the clip (B, 3, F, H, W), unclamped, of unscaled latents (B, C, f, h, w)."""
        return self._decoded(z, None)

    def encode(self, video: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return normalized latents (B, C, f, h, w): the posterior's mean or, with ``generator``, a sample."""
        return self.normalize(self._drawn(self.posterior(video), generator))

    def decode(self, latents: Tensor) -> Tensor:
        """Return the clip (B, 3, F, H, W) in [-1, 1] of normalized latents (B, C, f, h, w)."""
        return self.reconstruct(self.denormalize(latents)).float().clamp(-1, 1)

    def encode_stream(
        self, video: Tensor, chunk: int = 1, generator: torch.Generator | None = None
    ) -> Iterator[Tensor]:
        """Encode piece by piece: the first frame, then ``chunk`` latent frames at a time; pieces add up to `encode`."""
        self.latents.shape(*video.shape[2:])
        step = chunk * self.latents.frame_stride
        pieces = [video[:, :, :1], *video[:, :, 1:].split(step, dim=2)] if video.shape[2] > 1 else [video]
        yield from self.encode_pieces(pieces, generator)

    def encode_pieces(self, pieces: Iterable[Tensor], generator: torch.Generator | None = None) -> Iterator[Tensor]:
        """Encode a clip that comes in pieces: its first frame, then any whole number of latent frames each."""
        past: Past = {}
        for index, piece in enumerate(pieces):
            moments = self._encode_moments(piece, past, first=index == 0)
            yield self.normalize(self._drawn(self._posterior(moments), generator))

    def decode_stream(self, latents: Tensor, chunk: int = 1) -> Iterator[Tensor]:
        """Decode ``chunk`` latent frames at a time with cached past frames; the pieces add up to `decode`."""
        past: Past = {}
        for index, piece in enumerate(self.denormalize(latents).split(chunk, dim=2)):
            yield self._decoded(piece, past, first=index == 0).float().clamp(-1, 1)

    def normalize(self, z: Tensor) -> Tensor:
        """Give unscaled latents (B, C, f, h, w) zero mean and unit variance in each channel."""
        return (z.float() - _channelwise(self.latent_mean)) / _channelwise(self.latent_std)

    def denormalize(self, latents: Tensor) -> Tensor:
        """Undo `normalize`."""
        return latents * _channelwise(self.latent_std) + _channelwise(self.latent_mean)

    def freeze_encoder(self) -> None:
        """Take whatever decides the latents out of training."""
        for part in (self.encoder, self.quant_conv, *([self.linear_in] if self.config.linear else [])):
            part.requires_grad_(False)

    @torch.no_grad()
    def _initialize(self) -> None:
        """Keep the signal's scale, start residual branches at zero and the posterior narrow.

        Measured on the sprites: with torch's own initialization the first 300 steps learn nothing but flat color.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, ResBlock):
                nn.init.zeros_(module.conv2.weight)
            elif isinstance(module, AttentionPerFrame):
                nn.init.zeros_(module.out.weight)
        if self.config.linear:
            nn.init.zeros_(self.encoder.conv_out.weight)
            nn.init.zeros_(self.decoder.conv_out.weight)
        nn.init.dirac_(self.post_quant_conv.weight)
        nn.init.dirac_(self.quant_conv.weight)
        self.quant_conv.weight[self.config.latent_channels :] *= 0.1
        assert self.quant_conv.bias is not None
        self.quant_conv.bias[self.config.latent_channels :] = -6.0
        for module in self.modules():  # weights in the layout of what they meet: else each call would copy them
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                layout = torch.channels_last if isinstance(module, nn.Conv2d) else torch.channels_last_3d
                module.weight.data = module.weight.data.contiguous(memory_format=layout)

    def _encode_moments(self, video: Tensor, past: Past | None = None, first: bool = True) -> Tensor:
        folded = channels_last(self._folded(video, first))
        moments = self.quant_conv(self.encoder(folded, past)).float()
        if not self.config.linear:
            return moments
        mean, log_var = moments.chunk(2, dim=1)
        return torch.cat([mean + self.linear_in(folded).float(), log_var], dim=1)

    def _decoded(self, z: Tensor, past: Past | None, first: bool = True) -> Tensor:
        z = channels_last(z)
        folded = self.decoder(self.post_quant_conv(z), past)
        if self.config.linear:
            folded = folded.float() + self.linear_out(z).float()
        p, t = self.config.patch_size, self.config.patch_frames
        video = rearrange(folded, "b (c t r q) f h w -> b c (f t) (h q) (w r)", t=t, q=p, r=p)
        return video[:, :, t - 1 :] if first else video

    def _folded(self, video: Tensor, first: bool) -> Tensor:
        """Fold patches into channels; a clip's first frame is repeated to make up a whole group of frames."""
        p, t = self.config.patch_size, self.config.patch_frames
        if first and t > 1:
            video = torch.cat([video[:, :, :1].expand(-1, -1, t - 1, -1, -1), video], dim=2)
        return rearrange(video, "b c (f t) (h q) (w r) -> b (c t r q) f h w", t=t, q=p, r=p)

    @torch.no_grad()
    def start_as_pca(self, clips: list[Tensor]) -> None:
        """Set the linear maps to the principal components of the patches of ``clips`` (3, F, H, W) in [-1, 1].

        The network then starts as the best linear autoencoder and learns what is missing; each latent is scaled by
        the square root of its component's deviation, halfway between equal variance and none of it.

        Raises:
            ConfigError: if the config has no linear maps.
        """
        if not self.config.linear:
            raise ConfigError("start: pca needs autoencoder.linear: true")
        patches = torch.cat([self._folded(clip[None], True)[0].flatten(1).T for clip in clips]).double()
        mean = patches.mean(0)
        variance, components = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
        chosen = slice(-self.config.latent_channels, None)
        scale = variance[chosen].clamp(min=1e-6) ** 0.25
        basis = components[:, chosen]
        for layer, weight, bias in (
            (self.linear_in, (basis / scale).T, -(mean @ basis) / scale),
            (self.linear_out, basis * scale, mean),
        ):
            layer.weight.copy_(weight.reshape(layer.weight.shape))
            assert layer.bias is not None
            layer.bias.copy_(bias)

    def _posterior(self, moments: Tensor) -> Posterior:
        mean, log_var = moments.chunk(2, dim=1)
        return Posterior(mean, log_var.clamp(-30, 20))

    @staticmethod
    def _drawn(posterior: Posterior, generator: torch.Generator | None) -> Tensor:
        if generator is None:
            return posterior.mean
        eps = torch.randn(posterior.mean.shape, generator=generator, device=generator.device)
        return posterior.sample(eps.to(posterior.mean.device))


def _channelwise(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1, 1)
