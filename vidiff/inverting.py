"""A clip turned into noise, and the file that keeps the noise for `vidiff generate`."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from vidiff import config, files
from vidiff.data.dataset import fitted, frames_at
from vidiff.data.video_io import inspect, read_clip
from vidiff.diffusion.guidance import guided
from vidiff.errors import ConfigError, DataError, NumericalError
from vidiff.model_folder import SamplingConfig
from vidiff.pipeline import Pipeline
from vidiff.sampling.inversion import invert
from vidiff.types import Conditioning, Size
from vidiff.weights import read_header, read_tensors, write_tensors

_HEADER = "vidiff"


@dataclass(frozen=True)
class Inverted:
    """Noise that samples to a clip."""

    noise: Tensor  # (C, f, h, w), float32
    model: str  # as the user gave it
    model_hash: str
    prompt: str
    size: Size
    sampling: SamplingConfig  # which leads back to the clip


@dataclass(frozen=True)
class NoiseFile:
    """A file of noise by name and content."""

    path: Path
    sha256: str

    def read(self) -> Inverted:
        """Return what the file holds.

        Raises:
            ConfigError: if it is not there, or another one than it was.
            DataError: if it is not a file of `write_noise`.
        """
        if not self.path.is_file():
            raise ConfigError(f"{self.path}: no such file; say with --noise where the noise lies")
        if (found := files.sha256_of(self.path)) != self.sha256:
            raise ConfigError(
                f"{self.path}: not the noise that was used (sha256 {found[:8]}..., not {self.sha256[:8]}...)"
            )
        return read_noise(self.path)


def noise_file(path: Path) -> NoiseFile:
    """Return the file of noise that lies at ``path`` now; raises a ConfigError if there is none."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; `vidiff invert` makes one of a clip")
    return NoiseFile(path, files.sha256_of(path))


def write_noise(path: Path, inverted: Inverted) -> None:
    """Write noise and all that is known of it as one safetensors file.

    Raises:
        ResourceError: if the file cannot be written.
    """
    told = {
        "model": inverted.model,
        "model_hash": inverted.model_hash,
        "prompt": inverted.prompt,
        "size": asdict(inverted.size),
        "sampling": config.to_dict(inverted.sampling),
    }
    with files.os_errors_named(path), files.atomic_path(path) as temporary:
        write_tensors(temporary, {"noise": inverted.noise}, {_HEADER: json.dumps(told)})


def read_noise(path: Path) -> Inverted:
    """Return what `write_noise` wrote; raises a DataError if it is something else."""
    try:
        told = json.loads(read_header(path)[_HEADER])
        return Inverted(
            read_tensors(path)["noise"],
            str(told["model"]),
            str(told["model_hash"]),
            str(told["prompt"]),
            config.from_dict(Size, told["size"]),
            config.from_dict(SamplingConfig, told["sampling"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: no noise of vidiff invert; make it again") from error


def read_frames(path: Path, pipeline: Pipeline) -> tuple[Tensor, Size]:
    """Return the beginning of any clip at the model's size and rate, uint8 (F, H, W, 3), and that size.

    A clip shorter than the model's gives as many frames as are whole in its latents.

    Raises:
        DataError: if it cannot be read.
    """
    info, own = inspect(path, name=str(path)), pipeline.config.size
    stride = pipeline.autoencoder.latents.frame_stride
    picked = frames_at(info, own.fps)[: own.frames]
    picked = picked[: (len(picked) - 1) // stride * stride + 1]
    frames = torch.from_numpy(read_clip(path, name=str(path), info=info).frames[picked])
    return fitted(frames, own.height, own.width), Size(len(picked), own.height, own.width, own.fps)


@torch.no_grad()
def invert_clip(
    pipeline: Pipeline,
    clip: Tensor,
    prompt: str,
    size: Size,
    sampling: SamplingConfig,
    *,
    num_iterations: int = 3,
    on_step: Callable[[int, int, Tensor], None] | None = None,
) -> tuple[Tensor, float]:
    """Return the noise (C, f, h, w) from which ``sampling`` makes ``clip``, and how near it comes.

    Args:
        pipeline: the model.
        clip: uint8 (F, H, W, 3).
        prompt: what it shows.
        size: of the clip.
        sampling: a deterministic first-order solver, its steps and guidance.
        num_iterations: evaluations a step.
        on_step: called as (steps done, num_steps, estimate of x_0).

    Returns:
        The noise, and the power of the clip's latents over the mean squared error of those sampled from it, in dB.

    Raises:
        ConfigError: if the clip is not on the latent grid, or ``num_iterations`` not positive.
        NumericalError: if the noise is not finite.
    """
    cond = Conditioning(pipeline.text([prompt]))
    null, schedule = cond.with_text(pipeline.denoiser.null_text(1)), pipeline.config.schedule
    against = cond.with_text(pipeline.text([sampling.negative])) if sampling.negative else None
    times = pipeline.times(size, sampling)
    with pipeline.coding():
        latents = torch.cat(list(pipeline.autoencoder.encode_pieces(_pieces(pipeline, clip))), dim=2)
    with pipeline.denoising():
        (noise,) = invert(
            guided(pipeline.denoiser, cond, null, sampling.guidance, negative=against, schedule=schedule, times=times),
            schedule,
            latents,
            times,
            num_iterations=num_iterations,
            on_step=on_step,
        ).cpu()
    if not torch.isfinite(noise).all():
        raise NumericalError("the noise is not finite: the weights are broken, or the steps too few; try more")
    again = pipeline.sample([prompt], [0], size, sampling, noise=[noise])
    return noise, decibels(latents, again)


def _pieces(pipeline: Pipeline, clip: Tensor) -> Iterator[Tensor]:
    """Yield (1, 3, n, H, W) in [-1, 1] of uint8 (F, H, W, 3): one frame, then as many as a latent frame each."""
    frames, stride = clip.permute(3, 0, 1, 2)[None], pipeline.autoencoder.latents.frame_stride
    for begin in (1 - stride, *range(1, len(clip), stride)):
        yield frames[:, :, max(0, begin) : begin + stride].to(pipeline.device).float() / 127.5 - 1


def decibels(wanted: Tensor, found: Tensor) -> float:
    """Return the power of ``wanted`` over the mean squared error of ``found``, in dB."""
    return 10 * (wanted.square().mean() / (found - wanted).square().mean()).log10().item()
