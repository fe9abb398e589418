"""Training a video autoencoder."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidiff.data.clips import Clips, ClipsConfig
from vidiff.errors import ConfigError
from vidiff.models.autoencoder import VideoVAE, VideoVAEConfig
from vidiff.models.discriminator import DiscriminatorConfig, PatchDiscriminator, discriminator_loss, generator_loss
from vidiff.models.perceptual import PerceptualDistance
from vidiff.train.trainer import TrainerConfig
from vidiff.types import Batch


@dataclass(frozen=True)
class AdversarialConfig:
    """A patch discriminator that trains beside the autoencoder."""

    weight: float = 0.1
    start: int = 1_000  # step at which the autoencoder begins to listen; the discriminator trains from the first
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)


@dataclass(frozen=True)
class AutoencoderLosses:
    """Weights of the terms; 0 leaves a term out."""

    l1: float = 1.0
    mse: float = 0.0  # what PSNR measures
    kl: float = 1e-6  # times the mean over latents, in nats
    gradient: float = 0.0  # L1 between differences of neighboring pixels: edges
    multiscale: float = 0.0  # L1 at half, quarter and eighth size: color and shape
    perceptual: float = 0.0
    perceptual_weights: Path | None = None  # VGG-16 as safetensors
    adversarial: AdversarialConfig | None = None

    def __post_init__(self) -> None:
        if self.perceptual and self.perceptual_weights is None:
            raise ConfigError("losses.perceptual needs perceptual_weights, a VGG-16 as safetensors")


@dataclass(frozen=True)
class AutoencoderStageConfig:
    """A stage that trains a `VideoVAE`."""

    kind: Literal["autoencoder"] = "autoencoder"
    name: str = "vae"
    autoencoder: VideoVAEConfig = field(default_factory=VideoVAEConfig)
    decoder_of: str | None = None  # train on the decoder of this earlier stage; its latents stay what they are
    data: ClipsConfig | None = None  # the stage's own clips; None: the recipe's
    frames: int | None = None  # train on random windows of this many frames; None: whole clips
    crop: int | None = None  # train on random squares of this many pixels; None: whole frames
    start: Literal["random", "pca"] = "random"  # pca: the linear maps start as the data's principal components
    normalize: Literal["channel", "all"] = "channel"  # unit variance for each latent channel, or for all together
    losses: AutoencoderLosses = field(default_factory=AutoencoderLosses)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


class AutoencoderStage:
    """Reconstruction, KL and, where wanted, perceptual and adversarial losses."""

    def __init__(
        self, config: AutoencoderStageConfig, data: Clips, identity: dict[str, Any], trained: VideoVAE | None = None
    ):
        """Build the stage; ``trained`` is the autoencoder whose decoder is trained on, where the config asks for it."""
        self.config, self.data, self.identity = config, data, identity
        self.name, self.size, self.groups = config.name, len(data), data.groups()
        seed = config.trainer.seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.vae = VideoVAE(config.autoencoder)
            self.models: dict[str, nn.Module] = {"model": self.vae}
            self.adversarial = config.losses.adversarial
            if self.adversarial is not None:
                self.models["discriminator"] = PatchDiscriminator(self.adversarial.discriminator)
        if trained is not None:
            self.vae.load_state_dict(trained.state_dict())
            self.vae.freeze_encoder()
        elif config.start == "pca":
            self.vae.start_as_pca([to_video(data.clip(index)[None])[0] for index in self._spread(512)])
        self.perceptual: PerceptualDistance | None = None
        if config.losses.perceptual and config.losses.perceptual_weights is not None:
            self.perceptual = PerceptualDistance(config.losses.perceptual_weights)
        self._check_sizes()

    def _check_sizes(self) -> None:
        size = self.data.config
        frames, crop = self.config.frames or size.frames, self.config.crop
        if frames > size.frames or (crop or 0) > min(size.height, size.width):
            raise ConfigError(f"{self.name}: windows of {frames} frames and {crop} pixels do not fit into the clips")
        self.vae.latents.shape(frames, crop or size.height, crop or size.width)
        self.vae.latents.shape(size.frames, size.height, size.width)

    def batch(self, indices: list[int], seed: int) -> Batch:
        rng = np.random.default_rng(seed)
        clips = [self._window(self.data.clip(index), rng) for index in indices]
        video = torch.stack(clips).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        return Batch([self.data.key(index) for index in indices], video=video)

    def _window(self, clip: Tensor, rng: np.random.Generator) -> Tensor:
        """Return a random window of (F, H, W, 3)."""
        frames, crop = self.config.frames or clip.shape[0], self.config.crop
        height, width = (crop, crop) if crop else clip.shape[1:3]
        f, y, x = (
            int(rng.integers(0, full - part + 1))
            for full, part in zip(clip.shape[:3], (frames, height, width), strict=True)
        )
        return clip[f : f + frames, y : y + height, x : x + width]

    def loss(self, player: str, batch: Batch, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        assert batch.video is not None
        shape = (batch.video.shape[0], *self.vae.latents.shape(*batch.video.shape[2:]))
        eps = torch.randn(shape, generator=generator, device=generator.device)
        if player == "discriminator":
            return self._discriminator_losses(batch.video, eps)
        return self._autoencoder_losses(batch.video, eps, step)

    def _autoencoder_losses(self, video: Tensor, eps: Tensor, step: int) -> dict[str, Tensor]:
        weights = self.config.losses
        posterior, decoded = self.vae(video, eps)
        decoded = decoded.float()
        terms = {"l1": (weights.l1, F.l1_loss(decoded, video)), "kl": (weights.kl, posterior.kl().mean())}
        if weights.mse:
            terms["mse"] = weights.mse, F.mse_loss(decoded, video)
        if weights.gradient:
            terms["gradient"] = weights.gradient, gradient_loss(decoded, video)
        if weights.multiscale:
            terms["multiscale"] = weights.multiscale, multiscale_loss(decoded, video)
        if self.perceptual is not None:
            terms["perceptual"] = weights.perceptual, self.perceptual.to(video.device)(decoded, video)
        if self.adversarial is not None and step >= self.adversarial.start:
            scores = self.models["discriminator"](decoded)
            terms["adversarial"] = self.adversarial.weight, generator_loss(scores.float())
        total = torch.stack([weight * term for weight, term in terms.values()]).sum()
        return {"total": total} | {name: term.detach() for name, (_, term) in terms.items()}

    def _discriminator_losses(self, video: Tensor, eps: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            _, decoded = self.vae(video, eps)
        discriminator = self.models["discriminator"]
        total = discriminator_loss(discriminator(video).float(), discriminator(decoded.float()).float())
        return {"total": total}

    def _spread(self, count: int) -> list[int]:
        """Return up to ``count`` clips, spread evenly over the data."""
        return list(dict.fromkeys(np.linspace(0, self.size - 1, min(self.size, count)).astype(int).tolist()))

    @torch.no_grad()
    def preview(self, model: nn.Module) -> dict[str, Tensor]:
        assert isinstance(model, VideoVAE)
        device = model.latent_mean.device
        clips = {}
        for index in range(min(2, self.size)):
            clip = self.data.clip(index)
            decoded = model.decode(model.encode(to_video(clip[None]).to(device)))
            clips[f"{self.data.key(index)}"] = torch.cat([clip, to_uint8(decoded)[0].cpu()], dim=2)
        return clips

    @torch.no_grad()
    def finish(self, model: nn.Module) -> None:
        """Measure each latent channel's mean and deviation, and fit the linear preview, on up to 256 clips."""
        assert isinstance(model, VideoVAE)
        if self.config.decoder_of is not None:
            return  # the latents are those of the stage before, and so is all that is known of them
        device = model.latent_mean.device
        means, colors = [], []
        for index in self._spread(256):
            video = to_video(self.data.clip(index)[None]).to(device)
            mean = model.posterior(video).mean
            means.append(mean[0].flatten(1).T.cpu())
            f, h, w = mean.shape[2:]
            colors.append(F.adaptive_avg_pool3d(video, (f, h, w))[0].flatten(1).T.cpu())
        latents = torch.cat(means).double()
        std = latents.std(0).clamp(min=1e-4)
        if self.config.normalize == "all":
            std = std.square().mean().sqrt().expand_as(std)
        model.latent_mean.copy_(latents.mean(0))
        model.latent_std.copy_(std)
        normalized = (latents - latents.mean(0)) / std
        design = torch.cat([normalized, torch.ones_like(normalized[:, :1])], dim=1)
        fit = torch.linalg.lstsq(design, torch.cat(colors).double()).solution
        model.preview_weight.copy_(fit[:-1].T)
        model.preview_bias.copy_(fit[-1])


def to_video(clips: Tensor) -> Tensor:
    """Return uint8 clips (B, F, H, W, 3) as (B, 3, F, H, W) in [-1, 1]."""
    return clips.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def to_uint8(video: Tensor) -> Tensor:
    """Return (B, 3, F, H, W) in [-1, 1] as uint8 clips (B, F, H, W, 3)."""
    return ((video.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 4, 1)


def gradient_loss(a: Tensor, b: Tensor) -> Tensor:
    """Return the L1 distance of horizontal and vertical pixel differences."""
    error = a - b
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


def multiscale_loss(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean L1 distance of two clips at half, quarter and eighth height and width."""
    error = a - b
    scales = [F.avg_pool3d(error, (1, s, s)).abs().mean() for s in (2, 4, 8) if min(error.shape[-2:]) >= s]
    return torch.stack(scales).mean()
