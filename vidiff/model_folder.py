"""A trained model as a folder: what `generate` reads and a recipe leaves behind.

config.yaml  model.safetensors                 denoiser: backbone, schedule, text encoder, sampling defaults
autoencoder/config.yaml  model.safetensors     video autoencoder with its latent statistics
planner/config.yaml  model.safetensors         denoiser of plans, if there is one,
drafter/config.yaml  model.safetensors         and what draws them
verifier/config.yaml  model.safetensors        what picks among candidates, if there is one
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vidiff import checkpoint, config, resources
from vidiff.diffusion.denoiser import Denoiser
from vidiff.diffusion.guidance import Guidance
from vidiff.diffusion.prediction import Prediction
from vidiff.diffusion.schedule import CosineSchedule, NoiseSchedule, Schedule
from vidiff.errors import CheckpointError, ConfigError, did_you_mean
from vidiff.models.autoencoder import VideoVAE, VideoVAEConfig
from vidiff.models.build import Autoencoder, BackboneConfig, build_backbone, check_skippable
from vidiff.models.dit import DiTConfig
from vidiff.models.drafter import Drafter, DrafterConfig
from vidiff.models.pixels import PixelAutoencoder, PixelAutoencoderConfig
from vidiff.models.plans import PlanConfig
from vidiff.models.unet3d import UNet3DConfig
from vidiff.models.verifier import Verifier, VerifierConfig
from vidiff.refinement import Refinement
from vidiff.sampling.solvers import DPMpp2M, Solver, check_steps
from vidiff.sampling.times import FlowSpacing, ListedSpacing, Spacing, UniformSpacing, noisier
from vidiff.text.encoders import MiniLMConfig, TextEncoderConfig
from vidiff.types import LatentSpec, Size

AUTOENCODER, PLANNER, DRAFTER, VERIFIER = "autoencoder", "planner", "drafter", "verifier"

Pictures = Literal["none", "concat", "known"]


@dataclass(frozen=True)
class SamplingConfig:
    """Defaults of sampling; they belong to the model, not to the command."""

    solver: Solver = field(default_factory=DPMpp2M)
    num_steps: int = 30
    guidance: Guidance = field(default_factory=Guidance)
    negative: str = ""  # empty: the learned null text
    spacing: Spacing = field(default_factory=UniformSpacing)  # of the steps
    positions: int = 0  # latent places (f h w) the spacing is meant for; larger clips get noisier steps; 0: any
    temperature: float = 1.0  # times all noise, the first and what solvers add; below 1 clips are more alike
    told_steps: int = 0  # networks are told times rounded down to 1 / told_steps, as published flow models; 0: exactly
    candidates: int = 1  # sampled for each clip that is kept, see `vidiff.candidates`
    draft_t: float = 1.0  # time at which a clip begins, as the model's draft under noise; 1: from noise alone
    last_t: float = 0.0  # time of the last evaluation, whose estimate of x_0 is the result; 0: one even step before 0

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ConfigError(f"num_steps must be at least 1, got {self.num_steps}")
        if self.candidates < 1:
            raise ConfigError(f"candidates must be at least 1, got {self.candidates}")
        check_steps(self.solver, self.num_steps)
        if not self.temperature >= 0:
            raise ConfigError(f"temperature is at least 0, got {self.temperature}")
        if not 0 <= self.last_t < 1:
            raise ConfigError(f"last_t is a time in [0, 1), got {self.last_t}")
        if not self.last_t < self.draft_t <= 1:
            raise ConfigError(f"draft_t is a time above last_t ({self.last_t:g}) and up to 1, got {self.draft_t}")
        if self.told_steps < 0:
            raise ConfigError(f"told_steps is a number of steps or 0, got {self.told_steps}")
        if self.positions < 0:
            raise ConfigError(f"positions is a number of latent places or 0, got {self.positions}")
        if isinstance(self.spacing, ListedSpacing):
            self.spacing.check(self.num_steps)

    def drafted(self, times: Tensor) -> Tensor:
        """Return the times that sampling visits from a draft on, of all ``times``."""
        return torch.cat([times.new_tensor([self.draft_t]), times[times < self.draft_t]])

    def times(self, schedule: NoiseSchedule, positions: int = 0) -> Tensor:
        """Return the falling times that sampling visits, the last one 0, (num_steps + 1,), float64.

        Args:
            schedule: of the model.
            positions: places f h w of the latents that are sampled, which set how noisy steps are if ``self.positions``
                is set; 0 leaves them.
        """
        if not self.last_t or isinstance(self.spacing, ListedSpacing):
            times = self.spacing.times(schedule, self.num_steps)
        elif isinstance(self.spacing, UniformSpacing) or self.num_steps == 1:
            times = torch.cat([torch.linspace(1, self.last_t, self.num_steps, dtype=torch.float64), torch.zeros(1)])
        else:
            above = self.spacing.times(schedule, self.num_steps - 1)
            times = torch.cat([self.last_t + (1 - self.last_t) * above, torch.zeros(1)])
        if self.positions and positions:
            times = noisier(schedule, times, (positions / self.positions) ** 0.5)
        return times


@dataclass(frozen=True)
class ModelConfig:
    """What ``config.yaml`` of a model folder says."""

    name: str = "model"
    format: Literal[1] = 1
    backbone: BackboneConfig = field(default_factory=DiTConfig)
    text: TextEncoderConfig = field(default_factory=MiniLMConfig)
    text_dim: int = 384
    schedule: Schedule = field(default_factory=CosineSchedule)
    predicts: Prediction = "v"
    null_tokens: int = 1  # how many stand for no text
    sigma_data: float = 1.0  # deviation of what is denoised, which predicts: edm scales by
    learned_variance: bool = False  # the network says its variance, too
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    size: Size = field(default_factory=lambda: Size(17, 64, 64, 12.0))  # what it was trained on, and the default
    frames: tuple[int, int] = (1, 17)  # fewest and most frames it was trained on
    autoencoder: str = ""  # the bundled model whose autoencoder it takes; empty: the folder has its own
    pixels: PixelAutoencoderConfig | None = None  # what it denoises, instead of an autoencoder's latents
    refines: Refinement | None = None  # of a super-resolution stage: what it adds
    pictures: Pictures = "none"  # how a clip starts from a picture: never, as more channels, or as its first latents
    dtype: Literal["float32", "bfloat16"] = "float32"  # precision it was published in
    large_shift: tuple[int, float] | None = None  # pixels a frame, and from which on the flow spacing's shift is this
    makes_plans: PlanConfig | None = None  # what it denoises, instead of an autoencoder's latents
    drafts: bool = False  # its folder has a planner and a drafter, whose drafts clips begin from
    verifier: bool = False  # its folder has one, which picks among candidates
    stages: tuple[str, ...] = ()  # of a cascade: folders of its super-resolution stages, in their order

    def __post_init__(self) -> None:
        check_refines(self.backbone, self.refines, self.pixels)
        check_plans(self.makes_plans, self.pixels)
        check_variance(self.learned_variance, self.refines)
        check_skippable(self.backbone, self.sampling.guidance.skip.layers)

    def sized(self, sampling: SamplingConfig, size: Size) -> SamplingConfig:
        """Return ``sampling`` for clips of ``size``: spacing that is the model's own follows how large frames are."""
        own = self.sampling.spacing
        large = self.large_shift is not None and size.height * size.width >= self.large_shift[0]
        if self.large_shift is None or not large or sampling.spacing != own or not isinstance(own, FlowSpacing):
            return sampling
        return replace(sampling, spacing=replace(own, shift=self.large_shift[1]))

    def denoiser(self, latents: LatentSpec) -> Denoiser:
        """Return the untrained denoiser."""
        if self.learned_variance:
            latents = replace(latents, channels=2 * latents.channels)
        backbone = build_backbone(self.backbone, latents, self.text_dim)
        return Denoiser(
            backbone,
            self.schedule,
            self.predicts,
            self.text_dim,
            self.null_tokens,
            sigma_data=self.sigma_data,
            learned_variance=self.learned_variance,
        )


@dataclass(frozen=True)
class DrafterModelConfig:
    """What ``config.yaml`` of a drafter's folder says."""

    drafter: DrafterConfig = field(default_factory=DrafterConfig)
    plans: PlanConfig = field(default_factory=PlanConfig)
    format: Literal[1] = 1

    def build(self) -> Drafter:
        """Return the untrained network."""
        return Drafter(self.drafter, self.plans)


@dataclass(frozen=True)
class VerifierModelConfig:
    """What ``config.yaml`` of a verifier's folder says."""

    verifier: VerifierConfig = field(default_factory=VerifierConfig)
    latents: tuple[int, int, int, int] = (16, 5, 8, 8)  # that it reads: C, f, h, w
    statements: tuple[int, ...] = (2,)  # how many answers each has
    text: TextEncoderConfig = field(default_factory=MiniLMConfig)
    text_dim: int = 384
    format: Literal[1] = 1

    def build(self) -> Verifier:
        """Return the untrained network."""
        return Verifier(self.verifier, self.latents, self.statements, self.text_dim)


def check_refines(backbone: BackboneConfig, refines: Refinement | None, pixels: PixelAutoencoderConfig | None) -> None:
    """Raise a ConfigError unless a super-resolution stage, and it alone, takes a low-resolution clip, as pixels."""
    takes = isinstance(backbone, UNet3DConfig) and backbone.low_res
    if takes != (refines is not None):
        raise ConfigError("a super-resolution stage has refines and a unet3d backbone with low_res: true; no other has")
    if refines is not None and pixels is None:
        raise ConfigError("a super-resolution stage works on pixels: set pixels, such as {patch_size: 8}")


def check_plans(makes: PlanConfig | None, pixels: PixelAutoencoderConfig | None, single_frames: bool = False) -> None:
    """Raise a ConfigError if what makes plans is to make pixels or pictures as well."""
    if makes is not None and (pixels is not None or single_frames):
        raise ConfigError("what makes_plans makes nothing else: leave out pixels, refines and single_frames")


def check_variance(learned: bool, refines: Refinement | None) -> None:
    """Raise a ConfigError if a super-resolution stage is to learn its variance."""
    if learned and refines is not None:
        raise ConfigError("learned_variance is for stages that make clips out of noise alone, not for super-resolution")


def save_autoencoder(folder: Path, vae: VideoVAE, dtype: torch.dtype | None = None) -> None:
    """Write an autoencoder's config and weights; its statistics stay float32."""
    exact = ("latent_mean", "latent_std", "preview_weight", "preview_bias")
    tensors = {
        name: value if dtype is None or name in exact else value.to(dtype) for name, value in vae.state_dict().items()
    }
    checkpoint.save_model(folder, config.to_dict(vae.config), tensors)


def load_autoencoder(folder: Path) -> VideoVAE:
    """Return the autoencoder of a folder, float32, on the CPU.

    Raises:
        CheckpointError: if the weights are missing, damaged or do not fit the config.
        ConfigError: if the config is not valid.
    """
    return _filled(VideoVAE, read_config(VideoVAEConfig, folder), folder)


def autoencoder_of(settings: ModelConfig, folder: Path) -> Autoencoder:
    """Return what a model's latents are made with: folded pixels, or the autoencoder in ``folder``."""
    return load_autoencoder(folder) if settings.pixels is None else PixelAutoencoder(settings.pixels)


def autoencoder_folder(folder: Path, settings: ModelConfig) -> Path:
    """Return the folder of a model's autoencoder; raises a CheckpointError if it is that of a model not there."""
    if not settings.autoencoder:
        return folder / AUTOENCODER
    bundled = resources.bundled_models()
    if settings.autoencoder not in bundled:
        hint = did_you_mean(settings.autoencoder, bundled)
        raise CheckpointError(f"{folder}: takes the autoencoder of {settings.autoencoder}, no bundled model.{hint}")
    return bundled[settings.autoencoder] / AUTOENCODER


def load_verifier(folder: Path, settings: ModelConfig, latents: LatentSpec) -> Verifier:
    """Return the verifier in a model's folder, float32, on the CPU.

    Raises:
        CheckpointError: if it is not there, damaged, or does not fit the model.
    """
    found: VerifierModelConfig = read_config(VerifierModelConfig, folder / VERIFIER)
    if (found.text, found.text_dim) != (settings.text, settings.text_dim):
        raise CheckpointError(f"{folder / VERIFIER}: does not fit {folder}: its text encoder is another one")
    if found.latents[0] != latents.channels:
        raise CheckpointError(
            f"{folder / VERIFIER}: reads latents of {found.latents[0]} channels, the model makes {latents.channels}"
        )
    return _filled(lambda config: config.build(), found, folder / VERIFIER)


def load_drafter(folder: Path) -> Drafter:
    """Return the drafter in a folder, float32, on the CPU; raises a CheckpointError if it is not there or damaged."""
    return _filled(lambda config: config.build(), read_config(DrafterModelConfig, folder), folder)


def load_denoiser(folder: Path, settings: ModelConfig, latents: LatentSpec) -> Denoiser:
    """Return the denoiser of a model folder, float32, on the CPU; raises as `load_autoencoder`."""
    return _filled(settings.denoiser, latents, folder)


def read_config(cls: type, folder: Path) -> Any:
    """Return the checked config of a model folder.

    Raises:
        CheckpointError: if there is no such folder or it holds no model.
        ConfigError: if the config is not valid.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise CheckpointError(f"{folder}: no model here (config.yaml is missing)")
    return config.load(cls, path)


def _filled(build: Any, argument: Any, folder: Path) -> Any:
    """Build a module without drawing its initial weights, and read those of ``folder`` into it."""
    with torch.random.fork_rng(devices=[]):  # initialization must not move the caller's global stream
        module = build(argument)
    checkpoint.load_weights(module, folder)
    return module.eval().requires_grad_(False)
