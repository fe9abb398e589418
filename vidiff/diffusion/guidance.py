"""Guidance: turns a conditional denoiser into the function a sampler calls.

Everything here works on estimates of x_0 and is composed in one order, in `_Guided`: the estimate under the prompts,
then the null one, the difference of the two, skipped layers, deviation, thresholds. At its neutral setting, which is
the default, each part leaves plain classifier-free guidance as it is.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import reduce

import torch
from torch import Tensor

from vidiff.diffusion import scale_schedule
from vidiff.diffusion.projection import Projection, RunningAverage, fitted_null, resting, without_negative
from vidiff.diffusion.scale_schedule import ScaleSchedule, step_of
from vidiff.diffusion.schedule import NoiseSchedule
from vidiff.diffusion.threshold import Threshold
from vidiff.diffusion.travel import Mixed, blended
from vidiff.errors import ConfigError
from vidiff.tensors import expand_as
from vidiff.types import Conditioning

DenoiseFn = Callable[[Tensor, Tensor], Tensor]
"""Maps latents x_t (B, C, f, h, w) and times t (B,) to an estimate of x_0 (B, C, f, h, w)."""


@dataclass(frozen=True)
class SkipLayers:
    """Guidance away from what the network says without some of its blocks, x_0 + scale (cond - skipped).

    Skip-layer guidance of Stable Diffusion 3.5 (Stability AI, 2024); with the blocks of a video transformer,
    spatiotemporal skip guidance (Hyung et al., 2024). It needs no null estimate: both estimates have the prompt.
    """

    scale: float = 0.0  # 0 is off; Stable Diffusion 3.5 has 2.8
    layers: tuple[int, ...] = ()  # blocks that are left out, from 0
    t_min: float = 0.0  # skip in [t_min, t_max] only; Stable Diffusion 3.5 has the steps from 1% to 20%
    t_max: float = 1.0

    def __post_init__(self) -> None:
        _check_interval(self.t_min, self.t_max)
        if self.scale and not self.layers:
            raise ConfigError("skip.scale is set but skip.layers names no blocks to leave out, such as [2, 3]")
        if len(set(self.layers)) < len(self.layers) or any(layer < 0 for layer in self.layers):
            raise ConfigError(f"skip.layers are different numbers from 0 on, got {list(self.layers)}")

    def at(self, t: Tensor) -> Tensor:
        """Return which samples it guides at their times, bool, (B,)."""
        return (t >= self.t_min) & (t <= self.t_max) & (self.scale != 0)


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (Ho & Salimans, 2022, equation 6), on estimates of x_0.

    Mixing x_0 is mixing v or eps: all are linear in one another at given x_t, and the weights add up to 1.
    """

    scale: float | str = 7.5  # 1 is the conditional model alone; over time as in 6@0:0.7,1: see `scale_schedule`
    rescale: float = 0.0  # share of the conditional estimate's deviation to restore (Lin et al., 2024, equation 16)
    t_min: float = 0.0  # guide in [t_min, t_max] only (Kynkäänniemi et al., 2024)
    t_max: float = 1.0
    projection: Projection = field(default_factory=Projection)
    fit_null: bool = False  # scale the null velocity to the conditional one: CFG-Zero* (Fan et al., 2025)
    zero_steps: int = 0  # first steps that move nothing and cost nothing: its zero-init; not for multistep solvers
    perpendicular: float | None = None  # weight of a Perp-Neg negative; null: it replaces the null text instead
    skip: SkipLayers = field(default_factory=SkipLayers)
    threshold: Threshold = field(default_factory=Threshold)

    def __post_init__(self) -> None:
        _ = self.schedule  # checks the text
        if not 0 <= self.rescale <= 1:
            raise ConfigError(f"rescale is a share in [0, 1], got {self.rescale}")
        _check_interval(self.t_min, self.t_max)
        if self.zero_steps < 0:
            raise ConfigError(f"zero_steps is a number of steps, got {self.zero_steps}")

    @property
    def schedule(self) -> ScaleSchedule:
        """Return the scale over time."""
        return scale_schedule.parsed(self.scale) if isinstance(self.scale, str) else scale_schedule.constant(self.scale)

    def with_scale(self, text: str) -> "Guidance":
        """Return this with the scale that ``text`` says; if it says when, at those times and at no others.

        Raises:
            ConfigError: if the text is none, see `scale_schedule`.
        """
        schedule = scale_schedule.parsed(text)
        found = replace(self, scale=schedule.plain)
        return replace(found, t_min=0.0, t_max=1.0) if schedule.has_times else found

    def samples(self, prompts: int = 1, negative: bool = False) -> int:
        """Return how many samples of one call of the denoiser `guided` makes of each clip, at most.

        Args:
            prompts: that are mixed at once.
            negative: whether there is a negative prompt.
        """
        guides, skips = self.schedule.plain != 1, self.skip.scale != 0
        return prompts * (1 + skips) + guides * (1 + (negative and bool(self.perpendicular)))

    def scale_at(self, t: Tensor, times: Tensor | None = None) -> Tensor:
        """Return the scale of each sample, (B,), float64: 1 where it is not guided; see `ScaleSchedule.at`."""
        inside = (t >= self.t_min) & (t <= self.t_max)
        return torch.where(inside, self.schedule.at(t, times), 1)


def guided(
    denoiser: Callable[[Tensor, Tensor, Conditioning], Tensor],
    cond: Conditioning | Mixed,
    null: Conditioning,
    guidance: Guidance,
    *,
    negative: Conditioning | None = None,
    schedule: NoiseSchedule | None = None,
    times: Tensor | None = None,
) -> DenoiseFn:
    """Bind conditioning to ``denoiser`` for one run of sampling, with all estimates of a step in one call.

    Args:
        denoiser: estimates x_0 of (x_t, t, conditioning).
        cond: conditioning of the B samples, or several with their weights.
        null: the same with the null text.
        guidance: how far to go from the null estimate towards ``cond``, and beyond; its intervals hold for each
            sample's t.
        negative: the same with a negative prompt, which replaces the null text, or with ``perpendicular`` joins it.
        schedule: how x_t is made, for CFG-Zero* alone.
        times: falling times of the steps, (num_steps + 1,), for what counts steps.

    Returns:
        The function for the solver. With momentum, and only then, it remembers the last times of its run: see
        `RunningAverage`.

    Raises:
        ConfigError: if ``guidance`` needs what is not given.
    """
    if negative is not None and guidance.perpendicular is None:
        null, negative = negative, None
    if (guidance.fit_null or guidance.zero_steps) and schedule is None:
        raise ConfigError("fit_null and zero_steps of guidance need the schedule of the noise")
    if guidance.zero_steps and times is None:
        raise ConfigError("zero_steps of guidance needs the times that sampling visits")
    momentum = guidance.projection.momentum
    memory = RunningAverage(momentum) if momentum else None
    prompts = cond if isinstance(cond, Mixed) else Mixed((cond,))
    return _Guided(denoiser, prompts, null, negative, guidance, schedule, times, memory)


@dataclass(frozen=True)
class _Guided:
    """What `guided` returns."""

    denoiser: Callable[[Tensor, Tensor, Conditioning], Tensor]
    prompts: Mixed
    null: Conditioning
    negative: Conditioning | None
    guidance: Guidance
    schedule: NoiseSchedule | None
    times: Tensor | None
    memory: RunningAverage | None
    joined: dict[tuple[int, ...], Conditioning] = field(default_factory=dict)  # of the run's conditionings, by identity

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the guided estimate of x_0 for x_t (B, C, f, h, w) at t (B,)."""
        rests = self._rests(t)
        if rests is not None and rests.all():
            return self._resting(x_t, t)
        guidance = self.guidance
        scale, skips = guidance.scale_at(t, self.times), guidance.skip.at(t)
        guides = scale != 1
        found = self._estimates(x_t, t, bool(guides.any()), bool(skips.any()))
        x_0 = found.cond
        if found.null is not None:
            x_0 = torch.where(expand_as(guides, x_0), self._mixed(found, found.null, x_t, t, scale), x_0)
        if found.skipped is not None:
            further = x_0 + guidance.skip.scale * (found.cond - found.skipped)
            x_0 = torch.where(expand_as(skips, x_0), further, x_0)
        if guidance.rescale > 0:
            restored = x_0.lerp(_with_deviation_of(found.cond, x_0), guidance.rescale)
            x_0 = torch.where(expand_as(guides | skips, x_0), restored, x_0)
        x_0 = guidance.threshold(x_0)
        return x_0 if rests is None else torch.where(expand_as(rests, x_0), self._resting(x_t, t), x_0)

    def _mixed(self, found: "_Estimates", away: Tensor, x_t: Tensor, t: Tensor, scale: Tensor) -> Tensor:
        """Return what guidance by ``scale`` (B,) makes of the estimates."""
        guidance, towards = self.guidance, found.cond
        if found.negative is not None and guidance.perpendicular is not None:
            towards = without_negative(towards, found.negative, away, guidance.perpendicular)
        if guidance.fit_null and self.schedule is not None:
            away = fitted_null(away, towards, x_t, *self.schedule.alpha_sigma(t))
        difference, by = towards - away, expand_as(scale.to(towards.dtype), towards)
        if guidance.projection.neutral:
            return away + by * difference
        if self.memory is not None:
            difference = self.memory.update(difference, t)
        return towards + (by - 1) * guidance.projection(difference, towards)

    def _estimates(self, x_t: Tensor, t: Tensor, guides: bool, skips: bool) -> "_Estimates":
        """Return what the denoiser says under each of the conditionings that are needed, in one call."""
        conds, weights = self.prompts.at(t, self.times)
        negative = [self.negative] if guides and self.negative is not None and self.guidance.perpendicular else []
        skipped = [cond.skipping(self.guidance.skip.layers) for cond in conds] if skips else []
        parts = [*([self.null] if guides else []), *conds, *negative, *skipped]
        count = len(parts)
        if count > 1:
            x_t, t = x_t.repeat(count, *[1] * (x_t.ndim - 1)), t.repeat(count)
        # One object for all steps, in which networks find again what they kept; what skips is made anew each time.
        joined = reduce(Conditioning.joined, parts) if skips else self._joined(parts)
        outputs = list(self.denoiser(x_t, t, joined).chunk(count))
        return _Estimates(
            null=outputs.pop(0) if guides else None,
            cond=blended([outputs.pop(0) for _ in conds], weights),
            negative=outputs.pop(0) if negative else None,
            skipped=blended(outputs, weights) if skips else None,
        )

    def _joined(self, parts: list[Conditioning]) -> Conditioning:
        key = tuple(map(id, parts))
        if key not in self.joined:
            self.joined[key] = reduce(Conditioning.joined, parts)
        return self.joined[key]

    def _rests(self, t: Tensor) -> Tensor | None:
        """Return which samples are in their first, resting steps, bool, (B,); None if there are none such steps."""
        if not self.guidance.zero_steps or self.times is None:
            return None
        return step_of(t, self.times) < self.guidance.zero_steps

    def _resting(self, x_t: Tensor, t: Tensor) -> Tensor:
        assert self.schedule is not None
        return resting(x_t, *self.schedule.alpha_sigma(t))


@dataclass(frozen=True)
class _Estimates:
    """Estimates of x_0, (B, C, f, h, w), of one x_t."""

    cond: Tensor  # under the prompt, or the mixture of prompts
    null: Tensor | None
    negative: Tensor | None
    skipped: Tensor | None  # under the prompt, of the network without some of its blocks


def _with_deviation_of(wanted: Tensor, found: Tensor) -> Tensor:
    """Return ``found`` scaled to the deviation of ``wanted``, each sample by itself."""
    axes = tuple(range(1, found.ndim))
    # Lin et al. restore the deviation of the network's output; of x_0 it is what over-saturation inflates.
    target, actual = (v.std(axes, correction=0, keepdim=True) for v in (wanted, found))
    # An estimate without any deviation has none to restore: it is left as it is, not turned to 0.
    return found * torch.where(actual > 0, target / actual, 1)


def _check_interval(t_min: float, t_max: float) -> None:
    if t_min > t_max:
        raise ConfigError(f"t_min {t_min} lies above t_max {t_max}")
