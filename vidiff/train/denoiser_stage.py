"""Training a denoiser on cached latents: single frames, clips, or both."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from vidiff.data.clips import Clips, ClipsConfig
from vidiff.diffusion.denoiser import Denoiser
from vidiff.diffusion.guidance import guided
from vidiff.diffusion.prediction import Prediction, check_prediction
from vidiff.diffusion.schedule import CosineSchedule, Schedule, log_snr, noised
from vidiff.diffusion.training_times import ImportanceTimes, StratifiedTimes, TrainingTimes
from vidiff.diffusion.variance import neighbors, step_kl
from vidiff.diffusion.weighting import SimpleWeighting, Weighting
from vidiff.errors import ConfigError
from vidiff.model_folder import ModelConfig, SamplingConfig, check_plans, check_refines, check_variance
from vidiff.models.build import Autoencoder, BackboneConfig
from vidiff.models.dit import DiTConfig
from vidiff.models.pixels import PixelAutoencoderConfig
from vidiff.models.plans import PlanCodec, PlanConfig
from vidiff.refinement import Refinement
from vidiff.sampling.loop import sample
from vidiff.sampling.noise import SeededNoise
from vidiff.sampling.times import UniformSpacing
from vidiff.train.autoencoder_stage import to_uint8
from vidiff.train.cache import CachedText
from vidiff.train.drafted import DraftsConfig
from vidiff.train.held_out import EvaluationConfig
from vidiff.train.stage import Evaluation
from vidiff.train.stream import Latents, StreamedText
from vidiff.train.trainer import TrainerConfig
from vidiff.types import Batch, Conditioning


@dataclass(frozen=True)
class DenoiserStageConfig:
    """A stage that trains a text-to-video denoiser."""

    kind: Literal["denoiser"] = "denoiser"
    name: str = "video"
    autoencoder: str = "vae"  # an earlier stage
    pixels: PixelAutoencoderConfig | None = None  # denoise pixels, folded so, and no autoencoder's latents
    starts_from: str | None = None  # an earlier stage whose weights are the start
    backbone: BackboneConfig = field(default_factory=DiTConfig)
    schedule: Schedule = field(default_factory=CosineSchedule)
    predicts: Prediction = "v"
    times: TrainingTimes = field(default_factory=StratifiedTimes)
    weighting: Weighting = field(default_factory=SimpleWeighting)
    sigma_data: float | None = None  # deviation of the latents, for predicts: edm; None is 1
    huber: float | None = None  # c of the pseudo-Huber loss; None is the squared error
    learned_variance: float | None = None  # weight of the bound that teaches the variance; None is a fixed one
    drop_text: float = 0.1  # how often the text is replaced by the learned null text
    single_frames: float = 0.0  # share of steps that see one latent frame of each clip; 1 trains on images
    clip_share: float = 1.0  # of a batch, what steps on whole clips take: those on single frames cost far less a sample
    refines: Refinement | None = None  # a super-resolution stage: what it adds to the clip of the stage before
    makes_plans: PlanConfig | None = None  # denoise plans of clips that have them, and no autoencoder's latents
    drafts: DraftsConfig | None = None  # go on from drafts of an earlier stage, as sampling does; None: do not
    data: ClipsConfig | None = None  # the stage's own clips; None: the recipe's
    stream: bool = False  # render or read, and encode, at every step; False: once, into the run folder's cache
    sampling: SamplingConfig | None = None  # the stage's own defaults; None: the recipe's
    evaluate: EvaluationConfig | None = None  # what is measured on held-out clips during training; None: nothing
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    def __post_init__(self) -> None:
        for name in ("drop_text", "single_frames"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is a share in [0, 1], got {getattr(self, name)}")
        if not 0 < self.clip_share <= 1:
            raise ConfigError(f"clip_share is a share above 0 and up to 1, got {self.clip_share}")
        check_prediction(self.predicts, self.schedule)
        check_refines(self.backbone, self.refines, self.pixels)
        check_plans(self.makes_plans, self.pixels, self.single_frames > 0)
        check_variance(self.learned_variance is not None, self.refines)
        if self.drafts is not None and (
            self.predicts != "x0" or self.pixels or self.makes_plans or self.stream or self.learned_variance is not None
        ):
            raise ConfigError(
                f"{self.name}: drafts are for stages of cached latents that predict x0, and no learned_variance"
            )
        for name in ("sigma_data", "huber", "learned_variance"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ConfigError(f"{self.name}: {name} must be positive, got {value}")
        if self.evaluate is not None and (self.refines or self.makes_plans or self.single_frames == 1):
            raise ConfigError(f"{self.name}: evaluate is for stages that make clips out of captions alone")


class DenoiserStage:
    """Denoising loss over (latents, caption, t, eps), with text dropped for classifier-free guidance."""

    evaluation: Evaluation | None = None  # see `vidiff.train.stage`

    def __init__(
        self,
        config: DenoiserStageConfig,
        model_config: ModelConfig,
        data: Clips,
        latents: Latents,
        text: CachedText | StreamedText,
        autoencoder: Autoencoder | PlanCodec,
        identity: dict[str, Any],
        drafts: list[Tensor] | None = None,
    ):
        self.config, self.data, self.latents, self.text, self.autoencoder = config, data, latents, text, autoencoder
        self.identity, self.drafts = identity, drafts  # see `vidiff.train.drafted.cached_drafts`
        self.name, self.size, self.groups = config.name, len(data), data.groups()
        self.sampling: SamplingConfig = model_config.sampling
        self.state: dict[str, Tensor] = {}  # see `vidiff.train.stage`
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.trainer.seed)
            self.denoiser: Denoiser = model_config.denoiser(autoencoder.latents)
        self.models: dict[str, nn.Module] = {"model": self.denoiser}
        if isinstance(config.times, ImportanceTimes):
            self.state["losses"] = config.times.memory()

    def batch(self, indices: list[int], seed: int) -> Batch:
        rng = np.random.default_rng(seed)
        single = rng.random() < self.config.single_frames
        if not single:
            indices = indices[: math.ceil(self.config.clip_share * len(indices))]
        latents, first_frame = self._stacked(indices), None
        drafts = None if self.drafts is None else torch.stack([self.drafts[index] for index in indices]).float()
        if single:
            first_frame = torch.from_numpy(rng.integers(0, latents.shape[2], len(indices)))
            low_res = self._guess(latents, first_frame)
            latents = _frame_of(latents, first_frame)
            drafts = None if drafts is None else _frame_of(drafts, first_frame)
        else:
            low_res = self._guess(latents)
        captions = [int(rng.integers(of.start, of.stop)) for of in map(self.text.of_clip, indices)]
        return Batch(
            [self.data.key(index) for index in indices],
            latents=latents,
            text=self.text.embedding(captions),
            captions=[self.text.caption(m) for m in captions],
            first_frame=first_frame,
            low_res=low_res,
            drafts=drafts,
        )

    def _stacked(self, indices: list[int]) -> Tensor:
        """Return latents, float32 (B, C, f, h, w)."""
        return torch.stack([self.latents[index] for index in indices]).float()

    @torch.no_grad()
    def _guess(self, latents: Tensor, frames: Tensor | None = None) -> Tensor | None:
        """Return the plain guess that super-resolution is given, of the shape of ``latents``, (B, C, f, h, w).

        With ``frames`` (B,), only that latent frame of each clip, (B, C, 1, h, w), made from the pixels that decide it.
        """
        refines, stride = self.config.refines, self.autoencoder.latents.frame_stride
        if refines is None:
            return None
        video = self.autoencoder.decode(latents)  # pixels: nothing was lost, and nothing has to be cached
        if frames is not None and latents.shape[2] > 1 and stride % refines.factors[0] == 0:
            near = (frames - 1).clamp(min=0)
            starts = (stride * near).tolist()  # the latent before ends with a known frame
            video = torch.stack([clip[:, at : at + stride + 1] for clip, at in zip(video, starts, strict=True)])
            frames = frames - near
        guess = self.autoencoder.encode(refines.up(refines.down(video)))
        return guess if frames is None else _frame_of(guess, frames)

    def loss(self, player: str, batch: Batch, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        assert batch.latents is not None and batch.text is not None
        x_0, device, seen = batch.latents, generator.device, None
        t, chances = self._times(len(x_0), generator)
        if self.config.drafts is not None and batch.drafts is not None:
            seen, t = self.config.drafts.seen(x_0, batch.drafts, t, self.config.schedule, generator)
        eps = torch.randn(x_0.shape, generator=generator, device=device)
        drop = torch.rand(len(x_0), generator=generator, device=device) < self.config.drop_text
        cond = Conditioning(batch.text, batch.first_frame, *self._noised(batch.low_res, generator))
        cond = cond.drop_text(drop, self.denoiser.null_text(len(x_0)))
        loss = self.denoiser.loss(x_0, eps, t, cond, self.config.huber, seen=seen)
        ratio = log_snr(self.config.schedule, t)
        weights = self.config.weighting.weights(ratio, self.config.predicts, self.config.sigma_data or 1.0)
        total, bound = loss * weights.to(loss), {}
        if self.config.learned_variance is not None:
            bits = self._bound(x_0, eps, t, cond)
            total, bound = total + self.config.learned_variance * bits, {"bound": bits.detach().mean()}
        if isinstance(self.config.times, ImportanceTimes):
            self.state["losses"] = self.config.times.remembered(self.state["losses"], t, total.detach())
        return {"total": (total * chances).mean(), "mse": loss.detach().mean()} | bound

    def _times(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return times and by how much the losses there count, both (B,)."""
        times = self.config.times
        if isinstance(times, ImportanceTimes):
            return times.drawn_from(self.state["losses"], count, generator)
        t = times.draw(count, generator, self.config.schedule)
        return t, torch.ones_like(t)

    def _bound(self, x_0: Tensor, eps: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Return the bits of a step of the variational bound, for the variance that the network says, (B,)."""
        schedule = self.config.schedule
        t, s = neighbors(t)
        found, share = self.denoiser.with_variance(noised(schedule, x_0, eps, t), t, cond)
        return step_kl(schedule, x_0, found, share, t, s).float()

    def _noised(self, low_res: Tensor | None, generator: torch.Generator) -> tuple[Tensor | None, Tensor | None]:
        """Return the guess with a random amount of noise, and the time that tells how much (Ho et al., 2022)."""
        if low_res is None or self.config.refines is None:
            return None, None
        t = torch.rand(len(low_res), generator=generator, device=generator.device) * self.config.refines.max_noise
        eps = torch.randn(low_res.shape, generator=generator, device=generator.device)
        return noised(self.config.schedule, low_res, eps, t), t

    @torch.no_grad()
    def preview(self, model: nn.Module) -> dict[str, Tensor]:
        """Return clips of the first captions, few steps, from fixed noise."""
        assert isinstance(model, Denoiser)
        count, device = min(2, self.size), next(model.parameters()).device
        captions = [self.text.of_clip(i)[0] for i in range(count)]
        frames = 1 if self.config.single_frames == 1 else None
        first = torch.zeros(count, dtype=torch.int64, device=device)
        latents = self._stacked(list(range(count)))
        low_res, low_res_t = self._guess(latents), None
        if low_res is not None:  # without noise, to see the most that the stage can do
            low_res, low_res_t = low_res[:, :, :frames].to(device), torch.zeros(count, device=device)
        cond = Conditioning(self.text.embedding(captions).to(device), first, low_res, low_res_t)
        null, schedule = cond.with_text(model.null_text(count)), self.config.schedule
        times = replace(self.sampling, num_steps=12, spacing=UniformSpacing()).times(schedule)
        denoise = guided(model, cond, null, self.sampling.guidance, schedule=schedule, times=times)
        noise, shape = SeededNoise(range(count)), latents[0, :, :frames].shape
        latents = sample(
            denoise,
            schedule,
            self.sampling.solver,
            noise.randn(*shape).to(device),
            times,
            randn=lambda: noise.randn(*shape).to(device),
            temperature=self.sampling.temperature,
        )
        clips = to_uint8(self._video(latents)).cpu()
        return {self.data.key(i): clips[i] for i in range(count)}

    def _video(self, latents: Tensor) -> Tensor:
        return self.autoencoder.decode(latents)

    def finish(self, model: nn.Module) -> None:
        """Nothing is left to do: statistics belong to the autoencoder."""


def _frame_of(latents: Tensor, frames: Tensor) -> Tensor:
    """Return one frame of each clip, (B, C, 1, h, w)."""
    return latents[torch.arange(len(latents)), :, frames].unsqueeze(2)
