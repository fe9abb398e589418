"""A super-resolution stage at work: a clip of any size and length in, a finer one out.

Each window goes through all of sampling by itself and is then blended into the result, so that memory holds the result
and one window. Windows that overlap are given the same guess and the same noise there.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from vidiff.decoding import check_shows_something
from vidiff.diffusion.denoiser import Denoiser
from vidiff.diffusion.guidance import guided
from vidiff.diffusion.schedule import noised
from vidiff.errors import ConfigError, NumericalError
from vidiff.model_folder import ModelConfig, SamplingConfig
from vidiff.models.pixels import PixelAutoencoder
from vidiff.models.unet3d import UNet3DConfig
from vidiff.refinement import Refinement
from vidiff.sampling.loop import sample
from vidiff.sampling.noise import PlacedNoise
from vidiff.sampling.windows import Place, Windows, overlay
from vidiff.types import Conditioning, LatentSpec, Size, TextEmbedding

OnStep = Callable[[int, int, Tensor], None]

# Frames and pixels of the finer clip that the network sees at once, at most.
WINDOWS = Windows(size=(33, 256, 256), overlap=(8, 64, 64))

# Of whole frames, where the fewest that a network sees at once are more than that: the largest frame of 4K.
WHOLE = 4096 * 2160


@dataclass(frozen=True)
class Refiner:
    """A loaded super-resolution stage."""

    name: str
    config: ModelConfig
    refines: Refinement
    denoiser: Denoiser
    pixels: PixelAutoencoder

    def size(self, size: Size) -> Size:
        """Return the size that clips of ``size`` become."""
        return self.refines.size(size)

    def level(self, noise: float | None) -> float:
        """Return ``noise``, or the stage's own for None; raises a ConfigError if it is more than training had."""
        level = self.refines.noise if noise is None else noise
        if not 0 <= level <= self.refines.max_noise:
            raise ConfigError(f"{self.name} was trained with noise from 0 to {self.refines.max_noise}, got {level}")
        return level

    def windows(self, shape: tuple[int, int, int]) -> Windows:
        """Return the windows, on whole latents, in which a finer clip of ``shape`` (F, H, W) is made.

        A network without layers along time is given whole frames, as many as fill no more memory than other windows do,
        or the fewest it can be given while they have no more than `WHOLE` pixels: they have no seams, and nothing is
        made twice. Larger frames are made in windows of so many pixels, since those have the fewest seams.
        """
        spec, backbone = self.pixels.latents, self.config.backbone
        if not isinstance(backbone, UNet3DConfig) or backbone.temporal:
            return whole(WINDOWS, spec, self.refines)
        step = math.lcm(spec.frame_stride, self.refines.factors[0])
        fewest, pixels = 1 if step == 1 else 1 + step, math.prod(shape[1:])
        if fewest * pixels > WHOLE:
            side = math.isqrt(WHOLE // fewest) // spec.stride * spec.stride
            return whole(Windows((fewest, side, side), (0, *WINDOWS.overlap[1:])), spec, self.refines)
        frames = min(WINDOWS.size[0], math.prod(WINDOWS.size) // pixels)
        frames = max(fewest, (frames - 1) // step * step + 1)
        return whole(Windows((frames, *shape[1:]), (0, 0, 0)), spec, self.refines)

    @torch.no_grad()
    def refine(
        self,
        clips: Tensor,
        text: TextEmbedding,
        negative: TextEmbedding,
        seeds: Sequence[int],
        sampling: SamplingConfig,
        *,
        noise: float | None = None,
        windows: Windows | None = None,
        dtype: torch.dtype = torch.float32,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Return finer clips, uint8 (B, F', H', W', 3), on the CPU.

        Args:
            clips: of the stage before, uint8 (B, F, H, W, 3).
            text: what the clips show, of B samples.
            negative: what guidance leads away from, of B samples.
            seeds: B of them; every sample has its own noise.
            sampling: solver, steps and guidance.
            noise: time up to which the plain guess is noised, at most ``max_noise`` of training: more lets the network
                repair more of what it is given, and invent more; None is the stage's own.
            windows: how much the network sees at once, with sizes rounded up to whole latents; None is `windows`.
            dtype: precision of the networks.
            on_step: called as (steps done, steps of all windows, estimate of the window's x_0).

        Raises:
            ConfigError: if the finer clip is shorter than a window and no whole number of latents, or the noise more
                than training had.
            NumericalError: if what was made is not finite or shows nothing.
        """
        level = self.level(noise)
        finer = self.size(Size(clips.shape[1], clips.shape[2], clips.shape[3], 1.0))
        shape = (finer.frames, finer.height, finer.width)
        windows = self.windows(shape) if windows is None else whole(windows, self.pixels.latents, self.refines)
        self.pixels.latents.shape(*(min(pair) for pair in zip(shape, windows.size, strict=True)))
        made = torch.empty(len(clips), *shape, 3, dtype=torch.uint8)
        cond = Conditioning(text, low_res_t=torch.full((len(clips),), level, device=self._device))
        places, source = windows.over(shape), PlacedNoise(seeds)
        with torch.autocast(self._device.type, dtype, enabled=dtype != torch.float32):
            for number, place in enumerate(places):
                step = _counted(on_step, number, len(places))
                randn = partial(self._noise, source, place)
                # Not held by a name, or the next window would be made beside it.
                overlay(
                    made,
                    place,
                    self._window(clips, place, randn, cond, negative, sampling, step).cpu(),
                    windows.share(shape, place),
                )
        check_shows_something(made)
        return self.refines.restored(made, clips)

    @property
    def _device(self) -> torch.device:
        return self.denoiser.null_tokens.device

    def _window(
        self,
        clips: Tensor,
        place: Place,
        randn: Callable[[int], Tensor],
        cond: Conditioning,
        negative: TextEmbedding,
        sampling: SamplingConfig,
        on_step: OnStep | None,
    ) -> Tensor:
        """Return what the network makes of the plain guess at one window, (B, 3, n, h, w) in [-1, 1].

        ``randn`` draws noise for its 1st, 2nd, ... use, and ``cond`` holds the time up to which the guess is noised.
        """
        uses, schedule = itertools.count(), self.config.schedule
        assert cond.low_res_t is not None
        plain = self.pixels.encode(guess(self.refines, clips, place, self._device))
        cond = replace(cond, low_res=noised(schedule, plain, randn(next(uses)), cond.low_res_t))
        del plain
        null, times = cond.with_text(self.denoiser.null_text(len(clips))), sampling.times(schedule)
        against = cond.with_text(negative)
        latents = sample(
            guided(self.denoiser, cond, null, sampling.guidance, negative=against, schedule=schedule, times=times),
            schedule,
            sampling.solver,
            randn(next(uses)),
            times,
            randn=lambda: randn(next(uses)),
            temperature=sampling.temperature,
            on_step=on_step,
        ).float()
        if not torch.isfinite(latents).all():
            raise NumericalError(f"the frames of {self.name} are not finite: the weights or the settings are broken")
        return self.pixels.decode(latents)

    def _noise(self, source: PlacedNoise, place: Place, use: int) -> Tensor:
        """Return standard normal noise in the layout of the latents of a window, (B, C, f, h, w)."""
        frames, rows, columns = place
        first = (slice(frames.start, frames.start + 1), rows, columns)
        # The first latent holds its one frame several times, and training drew noise for each.
        copies = [source.randn(first, use, copy) for copy in range(1, self.pixels.config.patch_frames)]
        return self.pixels.fold(torch.cat([*copies, source.randn(place, use)], dim=2)).to(self._device)


def guess(refines: Refinement, clips: Tensor, place: Place, device: torch.device | str = "cpu") -> Tensor:
    """Return a part of the plain guess at the finer clips, made from what lies around it and nothing else.

    Args:
        refines: what is guessed.
        clips: uint8 (B, F, H, W, 3).
        place: frames, rows and columns of the finer clips.
        device: where it is made.

    Returns:
        (B, 3, n, h, w) in [-1, 1].
    """
    known: list[slice] = []
    inside: list[slice] = []
    reaches = (0, refines.reach, refines.reach)
    for at, factor, length, reach in zip(place, refines.factors, clips.shape[1:4], reaches, strict=True):
        begin = max(0, at.start // factor - reach)
        end = min(length, -(-(at.stop - 1) // factor) + 1 + reach)
        known.append(slice(begin, end))
        inside.append(slice(at.start - begin * factor, at.stop - begin * factor))
    video = clips[(slice(None), *known)].to(device).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    frames, rows, columns = inside
    return refines.up(video)[:, :, frames, rows, columns]


def whole(windows: Windows, latents: LatentSpec, refines: Refinement) -> Windows:
    """Return ``windows`` rounded up to whole latents that begin with a known frame and pixel, as in training.

    The network tells known frames from blended ones by where they lie in a latent.
    """
    size, overlap = [], []
    for large, shared, grid, factor, first in zip(
        windows.size,
        windows.overlap,
        (latents.frame_stride, latents.stride, latents.stride),
        refines.factors,
        (1, 0, 0),
        strict=True,
    ):
        step = math.lcm(grid, factor)
        size.append(-(-(large - first) // step) * step + first)
        overlap.append(-(-(shared - first) // factor) * factor + first)
    return Windows((size[0], size[1], size[2]), (overlap[0], overlap[1], overlap[2]))


def _counted(on_step: OnStep | None, number: int, count: int) -> OnStep | None:
    """Return what is called after each step of window ``number`` out of ``count`` to report those of all."""
    if on_step is None:
        return None
    return lambda done, total, x_0: on_step(number * total + done, count * total, x_0)
