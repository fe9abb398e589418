"""How likely a model finds real clips, given their captions: which settings, of which dimensions, and kept on disk."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vidiff.diffusion.denoiser import Denoiser
from vidiff.errors import ConfigError, DataError, NumericalError
from vidiff.files import append_line
from vidiff.metrics.clip_metrics import check_prompts
from vidiff.metrics.clip_set import ClipSet, SetClip
from vidiff.metrics.intervals import standard_error_of_mean
from vidiff.metrics.likelihood import (
    LEAST_NOISE,
    LevelDecoder,
    OnStep,
    Variance,
    flow_bits,
    level_times,
    rademacher,
    time_of_noise,
    variational_bound,
)
from vidiff.metrics.measuring import Measuring, short_hash
from vidiff.metrics.results import Value
from vidiff.model_folder import ModelConfig
from vidiff.models.build import Autoencoder
from vidiff.models.pixels import PixelAutoencoder
from vidiff.sampling.noise import SeededNoise
from vidiff.types import Conditioning, TextEmbedding

Method = Literal["vlb", "ode"]
Unit = Literal["pixel", "latent"]

_VERSION = 1  # counted up when values come out differently
# Of sigma / alpha, in latents of unit variance: less is finer than an autoencoder resolves, and networks that predict
# x_0 are not trained for it.
_LATENT_NOISE = 0.1
_PARTS = ("prior", "diffusion", "decoder")


@dataclass(frozen=True)
class LikelihoodConfig:
    """How likelihood is measured."""

    method: Literal["vlb", "ode", "both"] = "vlb"  # the variational bound, or the probability-flow ODE
    vlb_steps: int = 1000
    variance: Variance = "fixed_small"  # of the bound's reverse steps
    ode_steps: int = 64  # of four evaluations each
    num_probes: int = 4  # of the ODE's divergence
    t_min: float | None = None  # time at which the model ends; None: sigma / alpha is 0.002 in pixels, 0.1 in latents
    unit: Unit | None = None  # whose dimensions bits are counted by; None: what the model is of

    def __post_init__(self) -> None:
        for name in ("vlb_steps", "ode_steps", "num_probes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.t_min is not None and not 0 < self.t_min < 1:
            raise ConfigError(f"t_min is a time between 0 and 1, got {self.t_min}")

    @property
    def methods(self) -> tuple[Method, ...]:
        return ("vlb", "ode") if self.method == "both" else (self.method,)


AS_USUAL = LikelihoodConfig()


@dataclass(frozen=True)
class ModelDensity:
    """A model as a density of clips."""

    label: str
    config: ModelConfig
    denoiser: Denoiser
    autoencoder: Autoencoder
    text: Callable[[Sequence[str]], TextEmbedding]
    hash: str  # of the model
    settings: LikelihoodConfig

    @property
    def unit(self) -> Unit:
        return "pixel" if isinstance(self.autoencoder, PixelAutoencoder) else "latent"

    @property
    def levels(self) -> LevelDecoder | None:
        """Return the 256 levels that pixels take, in the model's own numbers; latents take none."""
        if not isinstance(self.autoencoder, PixelAutoencoder):
            return None
        end = 1 / self.autoencoder.config.std
        return LevelDecoder(-end, end)

    @property
    def t_min(self) -> float:
        if self.settings.t_min is not None:
            return self.settings.t_min
        return time_of_noise(self.config.schedule, LEAST_NOISE if self.unit == "pixel" else _LATENT_NOISE)

    @property
    def dims(self) -> int:
        """Return how many numbers bits are divided by: those of the clip, or those of its latents."""
        size = self.config.size
        if self.unit == "pixel":  # which are folded with copies of the first frame: those tell nothing more
            return 3 * size.frames * size.height * size.width
        return int(np.prod(self.autoencoder.latents.shape(size.frames, size.height, size.width)))

    def protocol(self, method: Method) -> tuple[str, ...]:
        """Return the parts of a protocol line that two comparable values share."""
        settings, schedule = self.settings, self.config.schedule
        alpha, sigma = schedule.alpha_sigma(torch.tensor(self.t_min, dtype=torch.float64))
        of = "8 bit" if self.unit == "pixel" else f"latents {short_hash(_encoder_hash(self.autoencoder))}"
        parts = (f"bits per {self.unit} dimension", of, f"noise from {float(sigma / alpha):.3g}")
        if method == "vlb":
            return (*parts, f"{settings.vlb_steps} steps", settings.variance)
        return (*parts, f"{settings.ode_steps} steps of 4", f"{settings.num_probes} probes")

    def bits(self, method: Method, clips: Sequence[SetClip], seed: int, on_step: OnStep) -> list[list[float]]:
        """Return the bits of each clip: of the bound prior, diffusion and decoder, of the ODE one number."""
        device, settings = self.denoiser.null_tokens.device, self.settings
        pixels = torch.stack([clip.frames()[: self.config.size.frames] for clip in clips]).to(device)
        with torch.no_grad():
            x_0 = self.autoencoder.encode(pixels.permute(0, 4, 1, 2, 3).float() / 127.5 - 1).double()
            cond = Conditioning(self.text([clip.prompt for clip in clips]))
        # Of each clip its own, so that neither order nor neighbors change a number.
        noise, shape, schedule = SeededNoise([_seed(seed, clip) for clip in clips]), x_0.shape[1:], self.config.schedule

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            return self.denoiser(x_t, t, cond)

        if method == "vlb":
            times = level_times(schedule, settings.vlb_steps, self.t_min)
            bound = partial(variational_bound, variance=settings.variance, on_step=on_step)
            if self.levels is not None:
                bound = partial(bound, decoder=self.levels)
            found = bound(denoise, schedule, x_0, times, lambda: noise.randn(*shape))
            return torch.stack([found.prior, found.diffusion, found.decoder], dim=1).tolist()
        offset = 0.0
        if self.levels is not None:
            uniform = torch.stack([torch.rand(shape, generator=generator) for generator in noise.generators])
            x_0 = self.levels.dequantized(x_0, uniform.to(x_0))
            offset = x_0[0].numel() * float(np.log2(self.levels.step))
        signs = [rademacher((settings.num_probes, *shape), generator) for generator in noise.generators]
        probes = torch.stack(signs, dim=1)
        found_bits = flow_bits(denoise, schedule, x_0, probes, settings.ode_steps, self.t_min, on_step=on_step)
        return (found_bits - offset)[:, None].tolist()


def missing_for_likelihood(measuring: Measuring, density: ModelDensity | None) -> str:
    """Return why likelihood cannot be measured, or nothing; raises DataError for clips that do not do."""
    if density is None:
        return "it is of a model: give --model of vidiff evaluate, and real clips as --data"
    if density.config.refines is not None:
        return f"it is of models that make clips; {density.label} refines those of another"
    wanted, unit = density.settings.unit, density.unit
    if wanted == "pixel" and unit == "latent":
        return (
            f"bits per pixel dimension are possible for pixel models only; {density.label} models the latents of an "
            "autoencoder, which loses information: leave unit out of --likelihood, or give unit=latent"
        )
    if wanted == "latent" and unit == "pixel":
        return f"{density.label} models pixels, it has no latents: leave unit out of --likelihood, or give unit=pixel"
    if measuring.real is None:
        return "it is of real clips, which should be held out: give --data with captions"
    check_prompts(measuring.real)
    _check_sizes(measuring.real, density)
    return ""


def _check_sizes(real: ClipSet, density: ModelDensity) -> None:
    size = density.config.size
    for clip in real.clips:
        info = clip.info
        fits = (info.height, info.width) == (size.height, size.width) and info.frames >= size.frames
        if not fits or abs(info.fps - size.fps) > 0.01:
            raise DataError(
                f"{real.label}, {clip.key}: {info.frames} frames of {info.width}x{info.height} at {info.fps:g} fps, "
                f"but {density.label} models {size.frames} of {size.width}x{size.height} at {size.fps:g} fps: bring "
                "clips to that (ffmpeg)"
            )


def likelihood_values(measuring: Measuring, density: ModelDensity) -> list[Value]:
    """Return the bits per dimension of the real clips under a model, by each method that was asked for."""
    real = measuring.against()
    own = replace(measuring, generated=real)
    found = []
    for method in density.settings.methods:
        parts = _parts(own, density, method) / density.dims
        bits = parts.sum(1)
        error = standard_error_of_mean(bits, own.prompts())
        told = "an upper bound" if method == "vlb" or density.unit == "pixel" else "of the density at that noise"
        notes = [f"bits per {density.unit} dimension, {told}; captions given, without guidance"]
        notes += [f"standard error {error:.2g}"] if np.isfinite(error) else []
        if method == "vlb":
            notes.append(", ".join(f"{name} {x:.4f}" for name, x in zip(_PARTS, parts.mean(0), strict=True)))
        protocol = own.protocol(*density.protocol(method))
        found.append(own.mean_value(f"likelihood-{method}", protocol, bits, "lower", note="; ".join(notes)))
    return found


def _parts(measuring: Measuring, density: ModelDensity, method: Method) -> np.ndarray:
    """Return the bits of each clip, (N, parts); they are kept on disk, batch by batch, and found again."""
    path, clips = measuring.cache / "likelihood.jsonl", measuring.generated.clips
    how = [_VERSION, density.hash, method, density.t_min, *density.protocol(method), measuring.seed]
    names = [hashlib.sha256(json.dumps([*how, clip.digest, clip.prompt]).encode()).hexdigest() for clip in clips]
    known = _known(path)
    waiting = [at for at, name in enumerate(names) if name not in known]
    batches = [waiting[start : start + measuring.batch] for start in range(0, len(waiting), measuring.batch)]
    num_steps = density.settings.vlb_steps if method == "vlb" else density.settings.ode_steps
    # Kernels that a GPU picks for speed alone would make another number of the same weights.
    exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    title = f"{density.label}: likelihood ({method}), steps"
    with exact, measuring.progress(title, len(batches) * num_steps) as on_step:
        for number, batch in enumerate(batches):
            members, told = [clips[at] for at in batch], _counted_from(number * num_steps, on_step)
            found = density.bits(method, members, measuring.seed, told)
            for at, parts in zip(batch, found, strict=True):
                if not np.isfinite(parts).all():
                    raise NumericalError(f"{density.label}: the likelihood of {clips[at].key} is not finite")
                known[names[at]] = parts
                append_line(path, json.dumps({"clip": names[at], "bits": parts}))
    return np.array([known[name] for name in names])


def _counted_from(before: int, on_step: OnStep) -> OnStep:
    return lambda done: on_step(before + done)


def _known(path: Path) -> dict[str, list[float]]:
    """Return what a file holds of each clip; a line that a kill tore is computed again."""
    found = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
            found[row["clip"]] = row["bits"]
        except (ValueError, KeyError, TypeError):
            continue
    return found


def _seed(seed: int, clip: SetClip) -> int:
    return int(hashlib.sha256(f"{seed} {clip.digest}".encode()).hexdigest()[:8], 16)


def _encoder_hash(autoencoder: Autoencoder) -> str:
    """Return a hash of what makes latents: a decoder that was trained further leaves them as they are."""
    digest = hashlib.sha256()
    for name, value in sorted(autoencoder.state_dict().items()):
        if not name.startswith(("decoder", "preview", "post_quant_conv", "linear_out")):
            digest.update(name.encode() + value.float().cpu().numpy().tobytes())
    return digest.hexdigest()
