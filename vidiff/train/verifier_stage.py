"""Training a verifier: on scenes of the toy world, and on what the denoiser that it will judge makes of them."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from vidiff.data.toyworld.dataset import ToyWorld, ToyWorldConfig
from vidiff.data.toyworld.statements import said, shown
from vidiff.diffusion.denoiser import Denoiser
from vidiff.diffusion.schedule import noised
from vidiff.errors import ConfigError
from vidiff.model_folder import VerifierModelConfig
from vidiff.models.verifier import VerifierConfig
from vidiff.tensors import expand_as
from vidiff.train.cache import CachedText
from vidiff.train.trainer import TrainerConfig
from vidiff.types import Batch, Conditioning

_PICTURES = 4  # a step, for each clip of another step


@dataclass(frozen=True)
class VerifierStageConfig:
    """A stage that trains a `Verifier`, which then picks among candidates of an earlier stage's denoiser."""

    kind: Literal["verifier"] = "verifier"
    name: str = "verifier"
    judges: str = "video"  # an earlier stage
    verifier: VerifierConfig = field(default_factory=VerifierConfig)
    data: ToyWorldConfig | None = None  # the stage's own clips; None: the recipe's
    pictures: ToyWorldConfig | None = None  # scenes of one frame, which cost far less; None: there are none
    picture_share: float = 0.5  # of the steps, that see four times as many of them as the others see clips
    estimated: float = 0.25  # share of clips that are seen as the denoiser makes them out of noise,
    t_max: float = 0.9  # from a time up to this one
    noise: float = 0.5  # the others get noise of a deviation up to this one
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    def __post_init__(self) -> None:
        if self.pictures is not None and self.pictures.frames != 1:
            raise ConfigError(f"pictures have one frame, got {self.pictures.frames}")
        for name in ("picture_share", "estimated", "t_max"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} lies in [0, 1], got {getattr(self, name)}")
        if not self.noise >= 0:
            raise ConfigError(f"noise is at least 0, got {self.noise}")


class VerifierStage:
    """Cross-entropy of every statement: what a clip shows, and what its caption says."""

    groups: list[int] | None = None

    def __init__(
        self,
        config: VerifierStageConfig,
        model_config: VerifierModelConfig,
        data: ToyWorld,
        latents: list[Tensor],
        text: CachedText,
        pictures: tuple[ToyWorld, list[Tensor]] | None,
        denoiser: Denoiser,
        identity: dict[str, Any],
    ):
        """Build the stage.

        Args:
            config: of the stage.
            model_config: of what it trains.
            data: the scenes.
            latents: of their clips, each (C, f, h, w).
            text: states of all their captions.
            pictures: more scenes with their latents, each (C, 1, h, w).
            denoiser: whose clips will be judged; on the device where training runs.
            identity: see `vidiff.train.stage.Stage`.
        """
        self.config, self.data, self.latents, self.text, self.identity = config, data, latents, text, identity
        self.name, self.size = config.name, len(data)
        self._pictures = pictures
        self._denoiser = denoiser.eval().requires_grad_(False)
        self._numbers: dict[int, tuple[Tensor, Tensor]] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.trainer.seed)
            self.verifier = model_config.build()
        self.models: dict[str, nn.Module] = {"model": self.verifier}

    def batch(self, indices: list[int], seed: int) -> Batch:
        """Return clips with a caption each, or pictures without."""
        rng = np.random.default_rng(seed)
        if self._pictures is not None and rng.random() < self.config.picture_share:
            world, latents = self._pictures
            drawn = rng.integers(len(world), size=_PICTURES * len(indices)).tolist()
            return Batch(
                [world.key(index) for index in drawn],
                latents=torch.stack([latents[index] for index in drawn]).float(),
                shown=torch.tensor([shown(world.scene(index)) for index in drawn]),
            )
        chosen = [int(rng.integers(len(self.text.of_clip(index)))) for index in indices]
        captions = [self.text.of_clip(index)[number] for index, number in zip(indices, chosen, strict=True)]
        numbers = [self._numbered(index) for index in indices]
        return Batch(
            [self.data.key(index) for index in indices],
            latents=torch.stack([self.latents[index] for index in indices]).float(),
            text=self.text.embedding(captions),
            captions=[self.text.caption(number) for number in captions],
            shown=torch.stack([seen for seen, _ in numbers]),
            said=torch.stack([told[number] for (_, told), number in zip(numbers, chosen, strict=True)]),
        )

    def loss(self, player: str, batch: Batch, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        assert batch.shown is not None
        found = self.verifier.read_latents(self._seen(batch, generator))
        if batch.text is None or batch.said is None:
            losses = _losses("pictures", found, batch.shown)
            return {"total": losses["pictures"], **losses}
        losses = _losses("shown", found, batch.shown) | _losses("said", self.verifier.read_text(batch.text), batch.said)
        return {"total": losses["shown"] + losses["said"], **losses}

    @torch.no_grad()
    def _seen(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return what the verifier is shown: the denoiser's estimates of some clips, the others with noise on them."""
        assert batch.latents is not None
        x_0, device = batch.latents, generator.device
        deviations = self.config.noise * torch.rand(len(x_0), generator=generator, device=device)
        eps = torch.randn(x_0.shape, generator=generator, device=device)
        seen = x_0 + expand_as(deviations, x_0) * eps
        count = round(self.config.estimated * len(x_0))
        if count and batch.text is not None:
            t = self.config.t_max * torch.rand(count, generator=generator, device=device)
            # Half of them under another clip's caption: what words alone have drawn must not pass for what is there.
            own = torch.arange(count, device=device)
            under = torch.where(own % 2 == 0, own, (own + 1) % len(x_0))
            x_t = noised(self._denoiser.schedule, x_0[:count], eps[:count], t)
            seen[:count] = self._denoiser(x_t, t, Conditioning(batch.text).of(under))
        return seen

    def _numbered(self, index: int) -> tuple[Tensor, Tensor]:
        """Return what a scene shows, (Q,), and what each of its captions says, (captions, Q)."""
        if index not in self._numbers:  # drawing takes milliseconds
            scene, captions = self.data.scene(index), self.data.told(index)
            self._numbers[index] = torch.tensor(shown(scene)), torch.tensor([said(caption) for caption in captions])
        return self._numbers[index]

    def preview(self, model: nn.Module) -> dict[str, Tensor]:
        """Return nothing: a verifier makes no clips."""
        return {}

    def finish(self, model: nn.Module) -> None:
        """Nothing is left to do: the moving average is what ships."""


def _losses(name: str, found: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    """Return the mean negative log-likelihood of answers (B, Q) under log-probabilities (B, Q, V + 1), and how often
    the likeliest is right."""
    right = (found.argmax(-1) == wanted).float().mean()
    return {name: -found.gather(-1, wanted[..., None]).mean(), f"{name}_right": right}
