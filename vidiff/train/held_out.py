"""Measuring a model on held-out clips while it is trained, on few clips and by cheap metrics.

What is left in a stage's folder under ``evaluation``: the reference clips, of each evaluation the clips that were made,
and ``step-N.json``, which holds every value with its protocol: `vidiff evaluate --results` shows them as curves.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vidiff.data.clips import Clips, ClipsConfig
from vidiff.data.dataset import DataConfig
from vidiff.data.toyworld.dataset import ToyWorldConfig
from vidiff.data.toyworld.write import ToyClips
from vidiff.data.video_write import write_video
from vidiff.diffusion.denoiser import Denoiser
from vidiff.diffusion.guidance import guided
from vidiff.errors import ConfigError, DataError, did_you_mean
from vidiff.files import atomic_path, remove, write_text
from vidiff.metrics.clip_set import ClipSet, open_clip_set
from vidiff.metrics.evaluate import METRICS, chosen, evaluate
from vidiff.metrics.measuring import Measuring
from vidiff.metrics.results import Clip, Results, versions
from vidiff.metrics.tools import build_tools
from vidiff.model_folder import ModelConfig
from vidiff.models.build import Autoencoder
from vidiff.sampling.loop import sample
from vidiff.sampling.noise import SeededNoise
from vidiff.train.autoencoder_stage import to_uint8
from vidiff.types import Conditioning, Size, TextEmbedding, TextEncoder

DEFAULT = ("fd-evaluator", "fd-random-clips", "alignment-evaluator", "motion")  # those of them that can be measured
_FEWEST = 4  # clips that an interval takes
_TOGETHER = 8  # clips that are made at once


@dataclass(frozen=True)
class EvaluationConfig:
    """What a stage's moving average is measured by, and how often."""

    data: ClipsConfig  # held-out clips: what is trained on must not be among them
    every: int = 1_000  # steps
    count: int = 32  # clips that are made, for the first captions; twice as many real ones are the reference
    metrics: tuple[str, ...] | None = None  # as `vidiff evaluate --list` has them; None: see `DEFAULT`

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ConfigError(f"every must be at least 1, got {self.every}")
        if self.count < _FEWEST:
            raise ConfigError(f"count must be at least {_FEWEST}, got {self.count}")
        known = [metric.name for metric in METRICS]
        for name in self.metrics or ():
            if name not in known:  # what else they need is only known when clips and networks are there
                raise ConfigError(f"metrics: no metric {name!r}.{did_you_mean(name, known)}")
        if self.metrics == ():
            raise ConfigError("metrics is empty; leave it out for the default ones, or leave out evaluate")


def check_evaluated(stage: str, settings: EvaluationConfig, data: ClipsConfig) -> None:
    """Raise a ConfigError unless held-out clips are others than those a stage learns from, and as large and long."""
    wanted, given = ((one.frames, one.height, one.width) for one in (data, settings.data))
    if wanted != given or (data.fps and settings.data.fps and data.fps != settings.data.fps):
        raise ConfigError(
            f"{stage}: evaluate.data must have the frames, height, width and fps of what is trained on, "
            f"{', '.join(map(str, wanted))} and {data.fps}; got {', '.join(map(str, given))} and {settings.data.fps}"
        )
    if isinstance(settings.data, DataConfig) and settings.data.buckets:
        raise ConfigError(f"{stage}: evaluate.data has one size: leave buckets out")
    if _same_clips(settings.data, data):
        raise ConfigError(f"{stage}: evaluate.data is what is trained on; name held-out clips, or another seed")


def _same_clips(one: ClipsConfig, other: ClipsConfig) -> bool:
    """Return whether two sources are plainly the same, whatever the number and size of their clips."""
    if isinstance(one, ToyWorldConfig) and isinstance(other, ToyWorldConfig):
        return (one.seed, one.heldout) == (other.seed, other.heldout)
    return isinstance(one, DataConfig) and isinstance(other, DataConfig) and one.path == other.path


class HeldOutEvaluation:
    """Makes clips for held-out captions and compares them with the real ones; see `vidiff.train.stage.Evaluation`."""

    def __init__(
        self,
        config: EvaluationConfig,
        model_config: ModelConfig,
        autoencoder: Autoencoder,
        encoder: TextEncoder,
        data: Clips,
        folder: Path,
        note: Callable[[str], None] = print,
    ):
        """Write the reference clips and measure some of them, so that what cannot work fails before training.

        Args:
            config: what to measure.
            model_config: size and sampling of what is trained.
            autoencoder: what its latents are decoded by.
            encoder: of captions.
            data: the held-out clips.
            folder: for clips, features and results.
            note: hears which default metrics cannot be measured.

        Raises:
            ConfigError: if a metric cannot be measured, or the clips' rate is not the model's.
            DataError: if there are too few clips, or they are too short for a metric that was asked for.
        """
        self.config, self.model_config, self.autoencoder, self.folder = config, model_config, autoencoder, folder
        self.every, self.note = config.every, note
        if abs(data.fps - model_config.size.fps) > 0.01:
            raise ConfigError(
                f"evaluate.data has {data.fps:g} frames a second, the model's clips {model_config.size.fps:g}; set fps"
            )
        if len(data) < _FEWEST:
            raise DataError(f"evaluate.data: {len(data)} clips are too few, {_FEWEST} are the least")
        self.prompts = [data.captions(index)[0] for index in range(min(config.count, len(data)))]
        self.text, self.negative = self._encoded(encoder, self.prompts), None
        if model_config.sampling.negative:
            (self.negative,) = self._encoded(encoder, [model_config.sampling.negative])
        self.real = _reference(data, min(2 * config.count, len(data)), folder)
        self.tools = build_tools({}, device=next(autoencoder.buffers()).device)
        self.metrics = self._measurable()

    @torch.no_grad()
    def _encoded(self, encoder: TextEncoder, prompts: list[str]) -> list[TextEmbedding]:
        """Return the states of ``prompts``, those of clips that are made together in one."""
        return [
            encoder.encode(prompts[start : start + _TOGETHER]).to("cpu") for start in range(0, len(prompts), _TOGETHER)
        ]

    def _measurable(self) -> list[str]:
        """Return the metrics that work on real clips in the place of made ones, as many as will be made."""
        measuring = self._measuring(ClipSet("held-out clips", self.real.clips[: len(self.prompts)]))
        asked, found = self.config.metrics, []
        for name in DEFAULT if asked is None else chosen(measuring, self.tools, asked):
            try:
                evaluate(measuring, self.tools, chosen(measuring, self.tools, [name]))
                found.append(name)
            except (ConfigError, DataError) as error:
                if asked is not None:
                    raise
                self.note(f"evaluate: {name} is left out: {str(error).removeprefix(f'{name}: ')}")
        if not found:
            raise ConfigError("evaluate: none of the default metrics can be measured; name others in evaluate.metrics")
        return found

    def _measuring(self, made: ClipSet) -> Measuring:
        return Measuring(made, self.real, self.folder / "features", batch=_TOGETHER, note=self.note)

    def measure(self, model: nn.Module, step: int) -> dict[str, float]:
        """Return the metrics of clips that ``model`` makes, by name, and leave clips and values in the folder.

        Raises:
            DataError: if a metric cannot be computed of them.
            ResourceError: if they cannot be written.
        """
        assert isinstance(model, Denoiser)
        target = self.folder / f"step-{step:08d}"
        for path in (target, target.with_suffix(".json")):
            remove(path)  # of a run that was killed behind its last checkpoint
        with atomic_path(target) as temporary:
            temporary.mkdir()
            for number, text in enumerate(self.text):
                first = number * _TOGETHER
                for seed, clip in enumerate(self._made(model, text, first), first):
                    path, made_by = temporary / f"{seed:05d}.mp4", {"seed": seed, "step": step}
                    _write(path, clip, self.model_config.size, {"prompt": self.prompts[seed]} | made_by)
        label = f"{self.folder.parent}, step {step}"
        made = open_clip_set(target, label=label)
        values, _ = evaluate(self._measuring(made), self.tools, self.metrics)
        found = Results(
            label=label,
            values=tuple(values),
            clips=tuple(Clip(clip.key, clip.path, clip.prompt, clip.seed) for clip in made.clips),
            step=step,
            command="vidiff train (evaluate)",
            versions=versions(),
        )
        write_text(target.with_suffix(".json"), json.dumps(found.to_dict(), indent=1) + "\n")
        return {value.metric: value.value for value in values}

    @torch.no_grad()
    def _made(self, model: Denoiser, text: TextEmbedding, first: int) -> Tensor:
        """Return clips, uint8 (B, F, H, W, 3), of the seeds from ``first`` on: the same at every step."""
        sampling, size, device = self.model_config.sampling, self.model_config.size, model.null_tokens.device
        count, shape = len(text.tokens), self.autoencoder.latents.shape(size.frames, size.height, size.width)
        cond = Conditioning(text.to(device))
        noise, schedule = SeededNoise(range(first, first + count)), self.model_config.schedule
        times = sampling.times(schedule)
        null, negative = cond.with_text(model.null_text(count)), self._negative(cond)
        latents = sample(
            guided(model, cond, null, sampling.guidance, negative=negative, schedule=schedule, times=times),
            schedule,
            sampling.solver,
            noise.randn(*shape).to(device),
            times.to(device),
            randn=lambda: noise.randn(*shape).to(device),
            temperature=sampling.temperature,
        )
        return to_uint8(self.autoencoder.decode(latents.float())).cpu()

    def _negative(self, cond: Conditioning) -> Conditioning | None:
        """Return ``cond`` with the negative prompt that the model's sampling has, or None."""
        if self.negative is None:
            return None
        count, device = len(cond.text.tokens), cond.text.tokens.device
        tokens, mask = (part.expand(count, *part.shape[1:]) for part in (self.negative.tokens, self.negative.mask))
        return cond.with_text(TextEmbedding(tokens, mask).to(device))


def _reference(data: Clips, count: int, folder: Path) -> ClipSet:
    """Return the first real clips, written once, by the codec of those that they are compared with."""
    digest = hashlib.sha256(f"{data.fingerprint} {count}".encode()).hexdigest()[:12]
    target = folder / f"held-out-{digest}"
    if not target.is_dir():
        with atomic_path(target) as temporary:
            temporary.mkdir()
            for index in range(count):
                clip, path = data.clip(index), temporary / f"{index:05d}.mp4"
                frames, height, width, _ = clip.shape
                _write(path, clip, Size(frames, height, width, data.fps), {"prompt": data.captions(index)[0]})
                if (row := _row(data.config, index)) is not None:
                    path.with_suffix(".json").write_text(json.dumps(row))
    return open_clip_set(target, label="held-out clips")


def _write(path: Path, clip: Tensor, size: Size, metadata: dict[str, Any]) -> None:
    """Write a clip, uint8 (F, H, W, 3), with what `generate` stores, so that it is opened without looking inside."""
    stored = metadata | {"size": asdict(size), "stages": [], "upscale": 1}
    write_video(path, clip.numpy(), size.fps, metadata=stored)


def _row(config: ClipsConfig, index: int) -> dict[str, Any] | None:
    """Return what the toy world knows of its clip, by which prompt following is judged; None where nothing does."""
    if not isinstance(config, ToyWorldConfig) or config.pictures:
        return None
    size = Size(config.frames, config.height, config.width, config.fps)
    return ToyClips(config.clips, size, config.seed, config.heldout).row(index)
