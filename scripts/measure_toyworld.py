"""The figures of a toy-world model: prompt following on seen and held-out pairs, and what each stage gains.

    python scripts/measure_toyworld.py --model toyworld --out runs/measure-toyworld --json docs/results/toyworld.json

Captions are of scenes that training does not draw (seed 1000; another for choosing settings); clips are made at seed 0
with the model's own settings, written as mp4 and judged from there. Truth stands for a model that makes no mistake:

    python scripts/measure_toyworld.py --truth --out runs/measure-truth --json docs/results/toyworld-truth.json
"""

import argparse
import json
import math
import multiprocessing
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from vidiff.data.toyworld.attributes import Scene
from vidiff.data.toyworld.captions import Caption
from vidiff.data.toyworld.draw import draw_captions, draw_scene
from vidiff.data.toyworld.render import render
from vidiff.data.video_io import read_clip
from vidiff.data.video_write import write_video
from vidiff.metrics.toyworld_oracle import Verdict, accuracy, judge
from vidiff.models.perceptual import DIMS, STAGES, PerceptualDistance
from vidiff.pipeline import Pipeline, find_model, load
from vidiff.refinement import TemporalSR
from vidiff.sizes import final_size
from vidiff.weights import write_tensors


@dataclass(frozen=True)
class Captions:
    """Which captions are asked for."""

    seed: int
    count: int
    heldout: bool

    def scenes(self) -> list[Scene]:
        return [draw_scene(self.seed, index, self.heldout) for index in range(self.count)]

    def of(self, scenes: list[Scene]) -> list[Caption]:
        return [draw_captions(scene, self.seed, index)[0] for index, scene in enumerate(scenes)]


def generated(model: str, out: Path, captions: list[Caption], options: list[str]) -> list[Path]:
    """Return the clips that ``model`` makes of ``captions``."""
    out.mkdir(parents=True, exist_ok=True)
    rows = [{"id": f"{index:04d}", "prompt": caption.text, "seed": 0} for index, caption in enumerate(captions)]
    (out / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["generate", "--from-file", out / "prompts.jsonl", "-o", out, "--model", model, "--batch", "8"]
    command += ["--stages", "base", "--upscale", "1", *options]
    subprocess.run([sys.executable, "-m", "vidiff", *map(str, command)], check=True, stdout=subprocess.DEVNULL)
    return [out / f"{row['id']}.mp4" for row in rows]


def rendered(out: Path, scenes: list[Scene]) -> list[Path]:
    """Return the true clips of ``scenes``, written as generated ones are."""
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{index:04d}.mp4" for index in range(len(scenes))]
    for path, scene in zip(paths, scenes, strict=True):
        write_video(path, render([scene], np.arange(17) / 12, 64, 64)[0].numpy(), 12)
    return paths


def followed(paths: list[Path], scenes: list[Scene], captions: list[Caption], name: str) -> dict[str, object]:
    """Return how well clips follow their captions."""
    asked = [(path, scene, caption.stated) for path, scene, caption in zip(paths, scenes, captions, strict=True)]
    with multiprocessing.get_context("spawn").Pool(os.cpu_count(), torch.set_num_threads, (1,)) as pool:
        verdicts = list(track(pool.imap(_judged, asked), f"judging {name}", len(asked), console=Console(stderr=True)))
    found = accuracy(verdicts)
    goes = ("left", "right", "toward", "away")
    moves = [v.followed["motion.0"] for v, s in zip(verdicts, scenes, strict=True) if s.objects[0].motion in goes]
    return found | {"direction": float(np.mean(moves)), "directions": len(moves)}


def _judged(asked: tuple[Path, Scene, dict[str, str]]) -> Verdict:
    path, scene, stated = asked
    clip = read_clip(path)
    return judge(clip.frames, clip.fps, scene, stated)


@torch.no_grad()
def gains(pipeline: Pipeline, seed: int, count: int, features: PerceptualDistance) -> dict[str, dict[str, float]]:
    """Return how near each super-resolution stage and its plain guess come to rendered clips it never saw.

    PSNR in dB of all clips and of those that move (frames are within 32 dB of their neighbors), and the distance in
    features of every eighth frame from the second on, which no stage was given.
    """
    found: dict[str, dict[str, float]] = {}
    for refiner in pipeline.refiners:
        rows: list[dict[str, float]] = []
        plainest = replace(refiner.refines, search=0) if isinstance(refiner.refines, TemporalSR) else refiner.refines
        for index in range(count):
            scene = draw_scene(seed, index)
            size = final_size(pipeline, pipeline.config.size, len(pipeline.refiners))
            spatial = refiner.refines.kind == "spatial_sr"
            height, width = (size.height, size.width) if spatial else (pipeline.config.size.height,) * 2
            truth = render([scene], np.arange(size.frames) / size.fps, height, width)
            low = _bytes(refiner.refines.down(_video(truth)))
            text, null = (
                pipeline.text([words], refiner.denoiser) for words in (draw_captions(scene, seed, index)[0].text, "")
            )
            made = refiner.refine(low, text, null, [0], refiner.config.sampling)
            plain = _bytes(plainest.up(_video(low)))
            few = slice(1, None, 8)  # frames that were not known to the temporal stage
            rows.append(
                {
                    "psnr": _psnr(made, truth),
                    "psnr_plain": _psnr(plain, truth),
                    "distance": features(_video(made[:, few]), _video(truth[:, few])).item(),
                    "distance_plain": features(_video(plain[:, few]), _video(truth[:, few])).item(),
                    "moves": float(_psnr(truth[:, 1:], truth[:, :-1]) < 32),
                }
            )
        moving = [row for row in rows if row["moves"]]
        found[refiner.name] = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} | {
            f"{name}_moving": float(np.mean([row[name] for row in moving])) for name in ("psnr", "psnr_plain")
        }
    return found


def random_features(folder: Path) -> PerceptualDistance:
    """Return a VGG-16 with seeded random weights: published ones cannot come with this code, and untrained filters
    compare edges and textures, too, rather than pixels one by one."""
    generator, tensors, dim_in = torch.Generator().manual_seed(0), {}, 3
    for layers, dim in zip(STAGES, DIMS, strict=True):
        for layer in layers:
            weight = torch.randn(dim, dim_in, 3, 3, generator=generator) * (2 / (9 * dim_in)) ** 0.5
            tensors |= {f"features.{layer}.weight": weight, f"features.{layer}.bias": torch.zeros(dim)}
            dim_in = dim
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "vgg16-random.safetensors", tensors)
    return PerceptualDistance(folder / "vgg16-random.safetensors")


@torch.no_grad()
def reconstruction(pipeline: Pipeline, seed: int, count: int, side: int) -> float:
    """Return the autoencoder's PSNR on rendered clips, dB."""
    values = []
    for index in range(count):
        clip = render([draw_scene(seed, index)], np.arange(17) / 12, side, side)
        values.append(_psnr(_bytes(pipeline.autoencoder.decode(pipeline.autoencoder.encode(_video(clip)))), clip))
    return float(np.mean(values))


def _video(clips: Tensor) -> Tensor:
    return clips.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def _bytes(video: Tensor) -> Tensor:
    return ((video + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 4, 1)


def _psnr(a: Tensor, b: Tensor) -> float:
    return 10 * math.log10(255**2 / max((a.float() - b.float()).square().mean().item(), 1e-3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="toyworld")
    parser.add_argument("--truth", action="store_true", help="judge true clips, not those of a model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1000, help="of the scenes (%(default)d)")
    parser.add_argument("--count", type=int, default=256, help="captions, of seen and of held-out pairs (%(default)d)")
    parser.add_argument("--stage-clips", type=int, default=16, help="for the other figures; 0 leaves them out")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--options", nargs="*", default=[], help="further options of vidiff generate, without dashes")
    arguments = parser.parse_args()
    options = [word for option in arguments.options for word in f"--{option}".split("=")]
    found: dict[str, object] = {}
    for name, heldout in (("seen", False), ("heldout", True)):
        asked, out = Captions(arguments.seed, arguments.count, heldout), arguments.out / name
        scenes = asked.scenes()
        captions = asked.of(scenes)
        paths = rendered(out, scenes) if arguments.truth else generated(arguments.model, out, captions, options)
        found[name] = followed(paths, scenes, captions, name)
        print(name, json.dumps(found[name], indent=1))
    if arguments.stage_clips and not arguments.truth:
        pipeline, seed, count = load(find_model(arguments.model)), arguments.seed, arguments.stage_clips
        found["stages"] = gains(pipeline, seed, count, random_features(arguments.out))
        found["autoencoder_psnr"] = {side: reconstruction(pipeline, seed, count, side) for side in (64, 256)}
        print(json.dumps({name: found[name] for name in ("stages", "autoencoder_psnr")}, indent=1))
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
