"""Training a student that needs few steps, from a model that needs many."""

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from vidiff import resources
from vidiff.checkpoint import model_hash, save_model
from vidiff.config import to_dict
from vidiff.data.clips import Clips, ClipsConfig
from vidiff.diffusion.denoiser import Denoiser, squared_or_huber
from vidiff.diffusion.guidance import Guidance, guided
from vidiff.diffusion.schedule import log_snr
from vidiff.diffusion.weighting import SimpleWeighting, Weighting
from vidiff.errors import ConfigError, did_you_mean
from vidiff.model_folder import (
    ModelConfig,
    SamplingConfig,
    autoencoder_folder,
    autoencoder_of,
    load_denoiser,
    read_config,
)
from vidiff.models.build import Autoencoder
from vidiff.sampling.loop import sample
from vidiff.sampling.noise import SeededNoise
from vidiff.sampling.one_step import DDIM
from vidiff.text.encoders import build_text_encoder
from vidiff.train.autoencoder_stage import to_uint8
from vidiff.train.cache import CachedText, cached_latents, cached_text
from vidiff.train.distillation import Classroom, Distillation, TrajectoryDistillation
from vidiff.train.stage import Evaluation
from vidiff.train.stream import Latents
from vidiff.train.trainer import TrainerConfig, device, train
from vidiff.types import Batch, Conditioning, TextEmbedding

# The student's own defaults: what the teacher's guidance does is in its weights.
_FEW_STEPS = SamplingConfig(solver=DDIM(), num_steps=4, guidance=Guidance(scale=1.0))


@dataclass(frozen=True)
class DistillationStageConfig:
    """A stage that trains a model of few steps, from a whole model or from an earlier stage of this kind."""

    kind: Literal["distillation"] = "distillation"
    name: str = "fast"
    teacher: str = "sprites"  # a bundled model, a model folder, or an earlier stage; its own guidance is learned
    method: Distillation = field(default_factory=TrajectoryDistillation)
    sampling: SamplingConfig = field(default_factory=lambda: _FEW_STEPS)  # of the student
    weighting: Weighting = field(default_factory=SimpleWeighting)  # of the squared errors in x_0
    huber: float | None = None  # c of the pseudo-Huber loss (Luo et al., 2023); None is the squared error
    drop_text: float = 0.0  # how often the student is taught without text
    data: ClipsConfig | None = None  # the stage's own clips; None: the recipe's
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    def __post_init__(self) -> None:
        if self.sampling.guidance.scale != 1:
            raise ConfigError(
                f"{self.name}: the teacher's guidance is learned, and the student takes none: set "
                f"sampling.guidance.scale to 1, got {self.sampling.guidance.scale}"
            )
        if not 0 <= self.drop_text <= 1:
            raise ConfigError(f"drop_text is a share in [0, 1], got {self.drop_text}")
        if self.huber is not None and not self.huber > 0:
            raise ConfigError(f"{self.name}: huber must be positive, got {self.huber}")
        try:
            self.method.check(self.sampling)
        except ConfigError as error:
            raise ConfigError(f"{self.name}: {error}") from error


def teacher_folder(name: str, run_dir: Path | None = None) -> Path:
    """Return the folder of a teacher: of an earlier stage in ``run_dir``, a bundled model, or a model folder.

    Raises:
        ConfigError: if it is none of these.
    """
    if run_dir is not None and (run_dir / name / "export" / "config.yaml").is_file():
        return run_dir / name / "export"
    if (Path(name) / "config.yaml").is_file():
        return Path(name)
    bundled = resources.bundled_models()
    if name not in bundled:
        hint = did_you_mean(name, bundled)
        raise ConfigError(f"teacher {name!r} is no earlier distillation stage, bundled model or model folder.{hint}")
    return bundled[name]


class DistillationStage:
    """Error of the student's x_0 against that of the lessons of a frozen teacher."""

    evaluation: Evaluation | None = None

    def __init__(
        self,
        config: DistillationStageConfig,
        teacher_config: ModelConfig,
        teacher: Denoiser,
        student: Denoiser,
        data: Clips,
        latents: Latents,
        text: CachedText,
        autoencoder: Autoencoder,
        identity: dict[str, Any],
        negative: TextEmbedding | None = None,
    ):
        self.config, self.data, self.latents, self.text, self.autoencoder = config, data, latents, text, autoencoder
        self.schedule, self.guidance = teacher_config.schedule, teacher_config.sampling.guidance
        self.teacher, self.student, self.identity, self.negative = teacher, student, identity, negative
        self.name, self.size, self.groups = config.name, len(data), data.groups()
        self.models: dict[str, nn.Module] = {"model": student}

    def batch(self, indices: list[int], seed: int) -> Batch:
        rng = np.random.default_rng(seed)
        captions = [int(rng.integers(of.start, of.stop)) for of in map(self.text.of_clip, indices)]
        return Batch(
            [self.data.key(index) for index in indices],
            latents=torch.stack([self.latents[index] for index in indices]).float(),
            text=self.text.embedding(captions),
            captions=[self.text.caption(m) for m in captions],
        )

    def loss(self, player: str, batch: Batch, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        assert batch.latents is not None and batch.text is not None
        count, where = len(batch.latents), generator.device
        cond, teacher = Conditioning(batch.text), self.teacher.to(where)
        if self.config.drop_text:
            drop = torch.rand(count, generator=generator, device=where) < self.config.drop_text
            cond = cond.drop_text(drop, teacher.null_text(count))
        with torch.no_grad():
            null = cond.with_text(self._null(count, where))
            room = Classroom(
                guided(teacher, cond, null, self.guidance, schedule=self.schedule),
                lambda x, t: self.student(x, t, cond),
                self.schedule,
                self.config.sampling,
                batch.latents,
                generator,
            )
            lesson = self.config.method.lesson(room)
        # Older torch keeps what autocast made of the student's weights just now, to which no gradient leads.
        torch.clear_autocast_cache()
        asked = cond
        for _ in range(len(lesson.t) // count - 1):
            asked = asked.joined(cond)
        found = self.student(lesson.x_t.float(), lesson.t, asked)
        errors = squared_or_huber(found - lesson.x_0.float(), self.config.huber)
        weights = self.config.weighting.weights(log_snr(self.schedule, lesson.t), "x0")
        return {"total": (errors * weights.to(errors)).mean(), "mse": errors.detach().mean()}

    def _null(self, count: int, where: torch.device) -> TextEmbedding:
        """Return what the teacher's guidance leads away from."""
        if self.negative is None:
            return self.teacher.null_text(count)
        tokens, mask = (part.expand(count, *part.shape[1:]) for part in (self.negative.tokens, self.negative.mask))
        return TextEmbedding(tokens, mask).to(where)

    @torch.no_grad()
    def preview(self, model: nn.Module) -> dict[str, Tensor]:
        """Return clips of the first captions as the student makes them, from fixed noise."""
        assert isinstance(model, Denoiser)
        count, where = min(2, self.size), model.null_tokens.device
        cond = Conditioning(self.text.embedding([self.text.of_clip(i)[0] for i in range(count)]).to(where))
        noise, shape = SeededNoise(range(count)), self.latents[0].shape
        made = sample(
            lambda x, t: model(x, t, cond),
            self.schedule,
            self.config.sampling.solver,
            noise.randn(*shape).to(where),
            self.config.sampling.times(self.schedule),
            randn=lambda: noise.randn(*shape).to(where),
        )
        clips = to_uint8(self.autoencoder.decode(made)).cpu()
        return {self.data.key(i): clips[i] for i in range(count)}

    def finish(self, model: nn.Module) -> None:
        """Nothing is left to do."""


class _Blank:
    """Stands for latents where only their shape is used."""

    def __init__(self, shape: tuple[int, int, int, int]):
        self.shape = shape

    def __getitem__(self, index: int) -> Tensor:
        return torch.zeros(self.shape, dtype=torch.float16)


def train_student(
    stage_config: DistillationStageConfig,
    name: str,
    data: Clips,
    run_dir: Path,
    console: Console,
    identity: dict[str, Any],
) -> None:
    """Train a student and leave it in the stage's ``export`` as a whole model, called ``name``."""
    folder = teacher_folder(stage_config.teacher, run_dir)
    cache, export = run_dir / "cache", run_dir / stage_config.name / "export"
    settings: ModelConfig = read_config(ModelConfig, folder)
    _check_size(stage_config.name, data.config, settings)
    home = autoencoder_folder(folder, settings)
    autoencoder = autoencoder_of(settings, home).to(device())
    encoder = build_text_encoder(settings.text, device())
    hashed = model_hash(home if settings.pixels is None else folder)
    latents: Latents
    if stage_config.method.takes_clips or data.groups() is not None:  # of which each has latents of its own shape
        latents = cached_latents(cache, autoencoder, hashed, data, console)
    else:
        size = data.config
        latents = _Blank(autoencoder.latents.shape(size.frames, size.height, size.width))
    text = cached_text(cache, encoder, encoder.fingerprint, data, console)
    teacher, student = (load_denoiser(folder, settings, autoencoder.latents) for _ in range(2))
    student.requires_grad_(True)
    negative = settings.sampling.negative
    stage = DistillationStage(
        stage_config,
        settings,
        teacher,
        student,
        data,
        latents,
        text,
        autoencoder,
        identity,
        encoder.encode([negative]) if negative else None,
    )
    ema = train(stage, stage_config.trainer, run_dir / stage_config.name, console)
    save_student(export, stage_config, folder, name, ema.state_dict())


def _check_size(name: str, data: ClipsConfig, teacher: ModelConfig) -> None:
    """Raise a ConfigError if the student would learn on clips of another size than its teacher makes."""
    size = teacher.size
    if (data.frames, data.height, data.width) != (size.frames, size.height, size.width):
        raise ConfigError(
            f"{name}: its clips have {data.frames} frames of {data.width}x{data.height}, and its teacher makes "
            f"{size.frames} of {size.width}x{size.height}; set data to the teacher's size"
        )


def save_student(
    folder: Path, stage: DistillationStageConfig, teacher: Path, name: str, weights: dict[str, Tensor]
) -> None:
    """Write a student of the model in ``teacher`` into ``folder`` as a whole model, called ``name``."""
    settings: ModelConfig = read_config(ModelConfig, teacher)
    # What else the teacher's folder holds is the student's, too: autoencoder, refining stages, and whom to attribute.
    # What was measured of the teacher is not.
    shutil.copytree(teacher, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.md", "stage.json"))
    save_model(folder, to_dict(replace(settings, name=name, sampling=stage.sampling)), weights)
