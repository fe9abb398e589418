"""Quality against evaluations of every sampler on a bundled model: prompt following, and PSNR to the 200-step result.

    python scripts/bench_samplers.py --data ../shared/data/sprites --json docs/results/samplers.json \
        --picture docs/pictures/samplers.svg

Clips of the first validation captions at seed 0, with the model's own guidance and grid of times. An evaluation is one
estimate of x_0: with guidance the network sees two samples for it. The 200-step result is that of `dpmpp_2m`, whose
limit all deterministic samplers share; samplers that add noise have no limit of their own, and no PSNR.
"""

import argparse
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from vidiff.data.shards import index_shard
from vidiff.data.sprite_sheets import Sheets
from vidiff.data.sprites import Character, character_of, stated_in
from vidiff.decoding import decode
from vidiff.diffusion.schedule import NoiseSchedule
from vidiff.files import write_text
from vidiff.metrics.plots import Panel, Point, Series, line_plot
from vidiff.metrics.sprite_oracle import judge_sprite
from vidiff.model_folder import SamplingConfig
from vidiff.pipeline import Pipeline, find_model, load
from vidiff.sampling.adaptive import RK45
from vidiff.sampling.loop import sample
from vidiff.sampling.solvers import SOLVERS, DPMpp2M, Solver, settings_of

BUDGETS = (4, 8, 16, 32)
MANY = 200
TOLERANCES = (1.0, 0.1)
BATCH = 8


def asked(shard: Path, count: int) -> list[tuple[str, Character]]:
    """Return the first captions of a shard, each with the character it tells of."""
    rows = [json.loads(members["json"].read()) for members in list(index_shard(shard).values())[:count]]
    return [(row["caption"], character_of(row["attributes"])) for row in rows]


def evaluations(schedule: NoiseSchedule, sampling: SamplingConfig) -> int:
    """Return how often sampling asks for x_0."""
    calls: list[Tensor] = []

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        calls.append(t)
        return torch.zeros_like(x)

    noise = torch.ones(1, 1, 1, 1, 1)
    sample(denoise, schedule, sampling.solver, noise, sampling.times(schedule), randn=lambda: noise)
    return len(calls)


def within(schedule: NoiseSchedule, sampling: SamplingConfig, solver: Solver, budget: int) -> SamplingConfig | None:
    """Return the settings with the most steps that take at most ``budget`` evaluations; None if none do."""
    for num_steps in range(budget, settings_of(solver).get("order", 1) - 1, -1):
        found = replace(sampling, solver=solver, num_steps=num_steps)
        if evaluations(schedule, found) <= budget:
            return found
    return None


@torch.no_grad()
def made(pipeline: Pipeline, prompts: list[str], sampling: SamplingConfig) -> tuple[Tensor, np.ndarray]:
    """Return latents (N, C, f, h, w) and clips, uint8 (N, F, H, W, 3)."""
    parts = [
        pipeline.sample(prompts[at : at + BATCH], [0] * len(prompts[at : at + BATCH]), pipeline.config.size, sampling)
        for at in range(0, len(prompts), BATCH)
    ]
    latents = torch.cat(parts)
    return latents, decode(pipeline.autoencoder, latents).numpy()


def following(clips: np.ndarray, fps: float, wanted: list[tuple[str, Character]], sheets: Sheets) -> float:
    """Return the share of stated attributes that clips show, a mean over attributes."""
    found: dict[str, list[bool]] = {}
    for clip, (caption, character) in zip(clips, wanted, strict=True):
        for name, shown in judge_sprite(clip, fps, character, stated_in(caption, character), sheets).followed.items():
            found.setdefault(name, []).append(shown)
    return float(np.mean([np.mean(values) for values in found.values()]))


def picture(rows: list[dict[str, float | str]]) -> str:
    """Return what is followed and how near the limit it comes, against evaluations, as one SVG file."""
    kinds = {
        "one evaluation a step": lambda t: not t.stochastic and t.evaluations == "1",
        "several, or of an earlier step": lambda t: not t.stochastic and t.evaluations != "1",
        "fresh noise": lambda t: t.stochastic,
    }
    plots = []
    for quantity, title in (("following", "Attributes followed"), ("psnr", "PSNR to the 200-step result, dB")):
        for kind, belongs in kinds.items():
            series = _series(rows, quantity, [n for n, member in sorted(SOLVERS.items()) if belongs(member.traits)])
            if series:
                plots.append(line_plot(Panel(title, series, kind), x_label="evaluations"))
    cells = []
    for index, plot in enumerate(plots):
        width, height = re.search(r'viewBox="0 0 (\d+) (\d+)"', plot).groups()
        place = f'x="{20 + 460 * (index % 3)}" y="{20 + 420 * (index // 3)}" width="{width}" height="{height}"'
        cells.append(plot.replace("<svg ", f"<svg {place} ", 1))
    size = 'viewBox="0 0 1400 860" width="1400" height="860" font-family="sans-serif"'
    page = '<rect width="100%" height="100%" fill="#fff"/>'
    # A file of its own has no page whose colors could stand for these.
    drawn = re.sub(r"var\(--[\w-]+, ?([^)]+)\)", r"\1", "".join(cells))
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{page}{drawn}</svg>'


def _series(rows: list[dict[str, float | str]], quantity: str, names: list[str]) -> list[Series]:
    found = []
    for name in names:
        own = [row for row in rows if row["sampler"] == name and quantity in row]
        if own:
            found.append(Series(name, tuple(Point(float(r["evaluations"]), float(r[quantity])) for r in own)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sprites")
    parser.add_argument("--data", type=Path, required=True, help="folder with val-00000.tar and sheets/")
    parser.add_argument("--count", type=int, default=24, help="captions (%(default)d)")
    parser.add_argument("--samplers", nargs="*", default=sorted(SOLVERS), help="default all")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    pipeline, sheets = load(find_model(arguments.model)), Sheets(arguments.data / "sheets")
    wanted = asked(arguments.data / "val-00000.tar", arguments.count)
    prompts, own, schedule = [caption for caption, _ in wanted], pipeline.config.sampling, pipeline.config.schedule
    fps = pipeline.config.size.fps
    limit, clips = made(pipeline, prompts, replace(own, solver=DPMpp2M(), num_steps=MANY))
    found = {"captions": len(prompts), "following_200_steps": following(clips, fps, wanted, sheets)}
    print(json.dumps(found))
    rows: list[dict[str, float | str]] = []
    for name in track(arguments.samplers, "samplers", console=Console(stderr=True)):
        solver = SOLVERS[name]()
        chosen = [within(schedule, own, solver, budget) for budget in BUDGETS]
        if isinstance(solver, RK45):  # takes as many as its tolerance asks for
            chosen = [replace(own, solver=RK45(atol=x, rtol=x), num_steps=1) for x in TOLERANCES]
        for sampling in filter(None, chosen):
            calls: list[object] = []
            with pipeline.denoiser.register_forward_hook(lambda *_, calls=calls: calls.append(1)):
                latents, clips = made(pipeline, prompts, sampling)
            row: dict[str, float | str] = {"sampler": name, "steps": sampling.num_steps}
            row["evaluations"] = round(len(calls) / math.ceil(len(prompts) / BATCH))
            row["following"] = round(following(clips, fps, wanted, sheets), 4)
            if not solver.traits.stochastic:
                error = (latents - limit).square().mean().item()
                row["psnr"] = round(10 * math.log10(limit.square().amax().item() / max(error, 1e-12)), 2)
            rows.append(row)
            print(json.dumps(row), flush=True)
    if arguments.json is not None:
        write_text(arguments.json, json.dumps(found | {"rows": rows}, indent=1) + "\n")
    if arguments.picture is not None:
        write_text(arguments.picture, picture(rows) + "\n")


if __name__ == "__main__":
    main()
