"""Training the evaluator: clips and captions that belong together are drawn together, all others apart."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from vidiff.data.clips import ClipsConfig
from vidiff.errors import ConfigError
from vidiff.metrics.embedded import EvaluatorModelConfig
from vidiff.models.evaluator import Evaluator, EvaluatorConfig
from vidiff.train.autoencoder_stage import to_video
from vidiff.train.cache import CachedText
from vidiff.train.contrast import ContrastCaptions, also_true, check_alike, contrastive_losses, spoiled
from vidiff.train.trainer import TrainerConfig
from vidiff.types import Batch


@dataclass(frozen=True)
class EvaluatorStageConfig:
    """A stage that trains an `Evaluator`."""

    kind: Literal["evaluator"] = "evaluator"
    name: str = "evaluator"
    evaluator: EvaluatorConfig = field(default_factory=EvaluatorConfig)
    data: ClipsConfig | None = None  # the stage's own clips; None: the recipe's
    also: ClipsConfig | None = None  # clips of another world, learned together with these
    spoiled: float = 0.25  # share of a batch's clips that are seen a second time, made worse, as what no caption means
    shift: int = 3  # pixels, at most, that a clip is moved by: no clip is seen twice, so fewer are enough
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.spoiled <= 1:
            raise ConfigError(f"spoiled is a share in [0, 1], got {self.spoiled}")
        if self.shift < 0:
            raise ConfigError(f"shift must be at least 0, got {self.shift}")


class EvaluatorStage:
    """Contrastive loss over clips and captions, with captions altered and clips spoiled as hard negatives."""

    def __init__(
        self,
        config: EvaluatorStageConfig,
        model_config: EvaluatorModelConfig,
        data: ContrastCaptions,
        clips: list[Tensor],
        text: CachedText,
        identity: dict[str, Any],
    ):
        """Build the stage.

        Args:
            config: of the stage.
            model_config: of what it trains.
            data: what the clips are called, and which of their captions are true.
            clips: the frames, each uint8 (F, H, W, 3).
            text: states of all captions of ``data``.
            identity: see `vidiff.train.stage.Stage`.

        Raises:
            ConfigError: if the evaluator reads other clips than these.
        """
        check_alike(data.sources, config.evaluator.frames, config.evaluator.size)
        self.config, self.data, self.clips, self.text, self.identity = config, data, clips, text, identity
        self.name, self.size = config.name, len(data)
        self.groups: list[int] | None = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.trainer.seed)
            self.evaluator = Evaluator(config.evaluator, model_config.text_dim)
        self.models: dict[str, nn.Module] = {"model": self.evaluator}

    def batch(self, indices: list[int], seed: int) -> Batch:
        """Return clips and behind them spoiled ones, their captions and behind them wrong ones."""
        rng = np.random.default_rng(seed)
        video = to_video(torch.stack([self._moved(self.clips[index], rng) for index in indices]))
        worse = round(self.config.spoiled * len(indices))
        if worse:
            video = torch.cat([video, spoiled(video[:worse], rng)])
        own, others = [], []
        for index in indices:
            numbers = self.text.of_clip(index)
            wrong = numbers.stop - self.data.wrong(index)
            own.append(int(rng.integers(numbers.start, wrong)))
            if wrong < numbers.stop:
                others.append(int(rng.integers(wrong, numbers.stop)))
        return Batch(
            [self.data.key(index) for index in indices],
            video=video,
            text=self.text.embedding(own + others),
            captions=[self.text.caption(number) for number in own + others],
        )

    def _moved(self, clip: Tensor, rng: np.random.Generator) -> Tensor:
        """Return a random window in time of (F, H, W, 3), moved by a few pixels; the border is repeated."""
        frames, shift = self.config.evaluator.frames, self.config.shift
        start = int(rng.integers(len(clip) - frames + 1))
        y, x = rng.integers(-shift, shift + 1, 2).tolist()
        rows, columns = (
            (torch.arange(size) + by).clamp(0, size - 1) for size, by in zip(clip.shape[1:3], (y, x), strict=True)
        )
        return clip[start : start + frames, rows[:, None], columns]

    def loss(self, player: str, batch: Batch, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        assert batch.video is not None and batch.text is not None and batch.captions is not None
        logits = self.evaluator(batch.video, batch.text)
        ignored = also_true(batch.keys, batch.captions).to(logits.device)
        return contrastive_losses(logits, ignored) | {"scale": self.evaluator.log_scale.detach().exp()}

    def preview(self, model: nn.Module) -> dict[str, Tensor]:
        """Return nothing: an evaluator makes no clips."""
        return {}

    def finish(self, model: nn.Module) -> None:
        """Nothing is left to do: the moving average is what ships."""
