"""The same weights and inputs in our classes and in diffusers': time of each part as a ratio, and its peak memory.

    python scripts/bench_peers.py --json docs/results/peers-cpu.json

Weights are random, shapes those of Wan 2.1 with fewer channels and layers (--scale full has the published VAE's). Runs
alternate within one process, and the median of each side counts. Peak memory is that of a process of its own, above
what it held before (on a CPU, Linux only); --long adds the autoencoder at twice the frames, to show how its peak grows.
"""

import argparse
import gc
import json
import logging
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from rich.console import Console
from rich.table import Table

from vidiff.diffusion.denoiser import Denoiser
from vidiff.diffusion.guidance import Guidance, guided
from vidiff.diffusion.schedule import FlowSchedule
from vidiff.interop import wan_autoencoder, wan_transformer
from vidiff.models.autoencoder import VideoVAE
from vidiff.models.dit import SpaceTimeDiT
from vidiff.models.quantize import lower_weights
from vidiff.sampling.loop import sample
from vidiff.sampling.times import FlowSpacing
from vidiff.sampling.unipc import UniPC
from vidiff.types import Conditioning, TextEmbedding

PARTS = ("transformer step", "vae encode", "vae decode", "generation")
STEPS = 4


@dataclass(frozen=True)
class Scale:
    """Sizes of what is compared."""

    heads: int
    layers: int
    base: int  # channels of the autoencoder at its finest level
    latents: tuple[int, int, int]  # of the transformer step, (f, h, w)
    clip: tuple[int, int, int]  # of the autoencoder and the generation, (F, H, W)


SCALES = {
    "small": Scale(heads=4, layers=6, base=32, latents=(5, 40, 40), clip=(17, 128, 128)),
    "full": Scale(heads=12, layers=30, base=96, latents=(5, 60, 104), clip=(17, 240, 416)),
}


@dataclass(frozen=True)
class Sides:
    """Both implementations of the same weights."""

    transformer: WanTransformer3DModel
    vae: AutoencoderKLWan
    dit: SpaceTimeDiT
    ours: VideoVAE
    dtype: torch.dtype
    device: torch.device


def build(scale: Scale, dtype: torch.dtype, device: torch.device) -> Sides:
    """Return random weights of one seed in both implementations."""
    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        num_attention_heads=scale.heads,
        attention_head_dim=128,
        num_layers=scale.layers,
        ffn_dim=512 * scale.heads,
        text_dim=512,
    ).eval()
    vae = AutoencoderKLWan(base_dim=scale.base).eval()
    config, channels, text_dim = wan_transformer.config_from_diffusers(transformer.config)
    dit = SpaceTimeDiT(config, channels, text_dim).eval()
    dit.load_state_dict(wan_transformer.to_ours(transformer.state_dict()))
    ours = VideoVAE(wan_autoencoder.config_from_diffusers(vae.config)).eval()
    ours.load_state_dict(wan_autoencoder.to_ours(vae.state_dict()))
    modules = [one.requires_grad_(False).to(device) for one in (transformer, vae, dit, ours)]
    for one in (transformer, vae):
        one.to(dtype)
    transformer.condition_embedder.time_embedder.float()  # as published
    lower_weights(dit, dtype)  # what a pipeline holds so; the rest is float32
    return Sides(*modules, dtype=dtype, device=device)


def work(sides: Sides, scale: Scale, part: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return what our side and the reference's have to do."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(sides.device)

    frames, height, width = scale.clip
    if part == "transformer step":
        x, tokens = randn(1, 16, *scale.latents), randn(1, 512, 512)
        text = TextEmbedding(tokens, torch.ones(1, 512, dtype=torch.bool, device=sides.device))
        cond = Conditioning(text.keeping())  # as in a run, whose steps after the first find the text ready
        t = torch.tensor([0.7], device=sides.device)
        return (
            lambda: sides.dit(x, t, cond),
            lambda: sides.transformer(x.to(sides.dtype), 1000 * t, tokens.to(sides.dtype)).sample,
        )
    if part == "vae encode":
        video = randn(1, 3, frames, height, width).clamp(-1, 1)
        return (
            lambda: torch.cat(list(sides.ours.encode_stream(video)), 2),
            lambda: sides.vae.encode(video.to(sides.dtype)).latent_dist.mode(),
        )
    latents = randn(1, 16, (frames - 1) // 4 + 1, height // 8, width // 8)
    if part == "vae decode":
        return (
            lambda: [piece.cpu() for piece in sides.ours.decode_stream(latents)],
            lambda: sides.vae.decode(latents.to(sides.dtype)).sample.cpu(),
        )
    return generation(sides, latents, randn(2, 512, 512))


def generation(sides: Sides, noise: torch.Tensor, tokens: torch.Tensor) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return whole generations with guidance, from text states to frames; ``tokens`` are of the prompt and of none."""
    schedule = FlowSchedule()
    denoiser = Denoiser(sides.dit, schedule, "flow", 512).to(sides.device)
    mask = torch.ones(1, 512, dtype=torch.bool, device=sides.device)

    def ours() -> Any:
        cond, null = (Conditioning(TextEmbedding(one[None], mask).keeping()) for one in tokens)
        times = FlowSpacing(shift=5.0, grid="reference").times(schedule, STEPS).to(sides.device)
        denoise = guided(denoiser, cond, null, Guidance(scale=5.0))
        latents = sample(denoise, schedule, UniPC(), noise, times)
        return [piece.cpu() for piece in sides.ours.decode_stream(latents.float())]

    def reference() -> Any:
        scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
        scheduler.set_timesteps(STEPS, device=sides.device)
        latents = noise
        for t in scheduler.timesteps:
            x, time_ = latents.to(sides.dtype), t[None]
            found, away = (sides.transformer(x, time_, one[None].to(sides.dtype)).sample for one in tokens)
            latents = scheduler.step(away + 5.0 * (found - away), t, latents, return_dict=False)[0]
        return sides.vae.decode(latents.to(sides.dtype)).sample.cpu()

    return ours, reference


def in_dtype(sides: Sides, call: Callable[[], Any]) -> Any:
    """Run our side as the pipeline does: under autocast where it is not float32."""
    with torch.no_grad(), torch.autocast(sides.device.type, sides.dtype, enabled=sides.dtype != torch.float32):
        return call()


def timed(sides: Sides, calls: tuple[Callable[[], Any], Callable[[], Any]], repeats: int) -> tuple[float, float]:
    """Return the median seconds of our side and of the reference, taken in turns."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(repeats + 1):
        for side, call in enumerate(calls):
            started = time.perf_counter()
            if side == 0:
                in_dtype(sides, call)
            else:
                with torch.no_grad():
                    call()
            if sides.device.type == "cuda":
                torch.cuda.synchronize()
            if number:  # the first round warms up
                seconds[side].append(time.perf_counter() - started)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def peak(scale: Scale, dtype: torch.dtype, device: str, part: str, side: int) -> float:
    """Return the memory in MiB that one call takes above what was held before it, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (scale, dtype, device, part, side))


def _peak(scale: Scale, dtype: torch.dtype, device: str, part: str, side: int) -> float:
    torch.set_num_threads(2)
    sides = build(scale, dtype, torch.device(device))
    call = work(sides, scale, part)[side]
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        in_dtype(sides, call) if side == 0 else torch.no_grad()(call)()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    gc.collect()
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again
    in_dtype(sides, call) if side == 0 else torch.no_grad()(call)()
    return _status("VmHWM") - before


def _status(name: str) -> float:
    """Return a size in MiB of this process, as Linux tells it."""
    found = re.search(name + r":\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 2**10


def main() -> None:
    """Measure every part in every precision and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.parts.split(",")) - set(PARTS)):
        parser.error(f"--parts: no {', '.join(unknown)}; there are {', '.join(PARTS)}")
    logging.disable(logging.WARNING)  # of casting, which is what is wanted here
    scale, rows = SCALES[arguments.scale], []
    console = Console(stderr=True)
    for name in arguments.dtypes.split(","):
        dtype = getattr(torch, name)
        sides = build(scale, dtype, torch.device(arguments.device))
        for part in arguments.parts.split(","):
            with console.status(f"{part}, {name}"):
                ours, reference = timed(sides, work(sides, scale, part), arguments.repeats)
                row = {"part": part, "dtype": name, "seconds": ours, "reference": reference, "ratio": ours / reference}
                for side, who in enumerate(("peak_mib", "reference_peak_mib")):
                    row[who] = peak(scale, dtype, arguments.device, part, side)
                if arguments.long and part.startswith("vae"):
                    frames, height, width = scale.clip
                    long = Scale(scale.heads, 1, scale.base, scale.latents, (2 * frames - 1, height, width))
                    row["peak_twice_the_frames_mib"] = peak(long, dtype, arguments.device, part, 0)
            rows.append(row)
    table = Table(
        "part", "dtype", "ours s", "reference s", "ratio", "peak MiB", "reference MiB", "twice the frames MiB"
    )
    for row in rows:
        numbers = [f"{row[key]:.3f}" for key in ("seconds", "reference", "ratio")]
        peaks = [f"{row[key]:.0f}" if key in row else "" for key in (
            "peak_mib", "reference_peak_mib", "peak_twice_the_frames_mib")]  # fmt: skip
        table.add_row(row["part"], row["dtype"], *numbers, *peaks)
    Console().print(table)
    if arguments.json:
        facts = {"scale": arguments.scale, "device": arguments.device, "threads": torch.get_num_threads()}
        arguments.json.write_text(json.dumps(facts | {"torch": torch.__version__, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
