"""What each metric of `vidiff evaluate` sees, and what it misses: clips made worse, measured as any others.

    python scripts/validate_metrics.py --out runs/validate

Rendered clips that training does not draw (seed 2000) stand for a model without faults, others of the same seed for the
real clips. They are spoiled in seven ways at five strengths (`degradations.py`) and measured through the code of the
command. Writes docs/results/metrics.json, docs/pictures/metrics.svg, and the study's part of docs/evaluation.md.
Features are kept in --out, so a run that was stopped goes on. `--redraw` writes page and picture of what is measured.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from degradations import DEGRADATIONS, STRENGTHS, WRONG_PROMPTS, wrong_prompts
from rich.console import Console
from rich.progress import Progress, track
from torch import Tensor
from validation_page import Found, course, figure, page

from vidiff.data.toyworld.write import ToyClips
from vidiff.data.video_io import ClipInfo
from vidiff.metrics.clip_set import ClipSet, SetClip
from vidiff.metrics.evaluate import Tools, evaluate
from vidiff.metrics.feature_cache import frames_key
from vidiff.metrics.frechet import floor, interval
from vidiff.metrics.measuring import Measuring
from vidiff.metrics.results import Value, versions
from vidiff.metrics.tools import build_tools
from vidiff.types import Size

ROOT = Path(__file__).parents[1]
SEED = 2000
SIZE = Size(16, 64, 64, 12)  # all of whose frames the networks read
# Of each group of metrics: its names, and how many clips it is measured on; flow and the oracle take their time.
DISTANCES = ("fd-evaluator", "kd-evaluator", "fd-random-clips", "fd-random-frames")
FIDELITY = ("precision", "recall", "density", "coverage", "alignment-evaluator", "frame-similarity", "identity-drift")
TEMPORAL = ("warping-error", "motion", "flicker", "residual-flicker", "dynamic-degree")
_MARKS = ("<!-- study: written by scripts/validate_metrics.py -->", "<!-- end of study -->")
_DRAWS = 100


@dataclass(frozen=True)
class MadeClip(SetClip):
    """A clip that is in memory."""

    pixels: Tensor | None = None

    def frames(self) -> Tensor:
        """Return all frames, uint8 (F, H, W, 3)."""
        assert self.pixels is not None
        return self.pixels


@dataclass(frozen=True)
class Counts:
    """How many clips each group of metrics is measured on."""

    distances: int
    temporal: int
    following: int


def rendered(world: ToyClips, indices: Sequence[int], label: str) -> ClipSet:
    """Return clips of the toy world with their prompts and attributes."""
    info = ClipInfo(SIZE.frames, SIZE.height, SIZE.width, SIZE.fps)
    clips = []
    for index in track(indices, f"rendering {label}", console=Console(stderr=True)):
        pixels, row = torch.from_numpy(world.frames(index)), world.row(index)
        key = f"{index:05d}"
        clips.append(MadeClip(key, Path(), info, frames_key(pixels), row["caption"], 0, row, pixels))
    return ClipSet(label, tuple(clips))


def spoiled(clean: ClipSet, how: str, strength: int) -> ClipSet:
    """Return the clips made worse, under their own names."""
    if how == WRONG_PROMPTS:
        prompts = wrong_prompts([clip.prompt for clip in clean.clips], strength)
        made = [{"prompt": prompt, "row": _row(clean, prompt)} for prompt in prompts]
    else:
        pixels = [
            DEGRADATIONS[how](clip.frames(), strength, np.random.default_rng((SEED, int(clip.key))))
            for clip in clean.clips
        ]
        made = [{"pixels": one, "digest": frames_key(one)} for one in pixels]
    clips = tuple(MadeClip(**(vars(clip) | change)) for clip, change in zip(clean.clips, made, strict=True))
    return ClipSet(f"{how} {strength}", clips)


def _row(clean: ClipSet, prompt: str) -> dict[str, object]:
    return next(clip.row for clip in clean.clips if clip.prompt == prompt)


def measured(made: ClipSet, real: ClipSet, tools: Tools, counts: Counts, out: Path) -> list[Value]:
    """Return the values of all metrics."""
    found: list[Value] = []
    groups: list[tuple[tuple[str, ...], int, ClipSet]] = [
        ((*DISTANCES, *FIDELITY), counts.distances, real),
        (TEMPORAL, counts.temporal, real),
        # The oracle asks for the scene of the same prompt: that of the clips themselves.
        (("following",), counts.following, made),
    ]
    for names, count, reference in groups:
        few = ClipSet(made.label, made.clips[:count])
        against = ClipSet(reference.label, reference.clips[:count])
        values, _ = evaluate(Measuring(few, against, out / "features", note=lambda line: None), tools, names)
        found += [value for value in values if value.metric in names]
    return found


def first_seen(clean: Value, values: Sequence[Value]) -> int | None:
    """Return the strength from which on all values lie outside the interval of the clips as they were; None if none.

    A metric with a better side has to get worse. Where it is real clips that say what is right, both sides count.
    """
    assert clean.interval is not None
    low, high = clean.interval
    sides = {"lower": (False, True), "higher": (True, False), "reference": (True, True)}[clean.better]
    worse = [(sides[0] and one.value < low) or (sides[1] and one.value > high) for one in values]
    return next((k + 1 for k in range(len(worse)) if all(worse[k:])), None)


def covered(features: np.ndarray) -> int:
    """Return in how many draws the interval of two random halves of one set covers their floor."""
    n = len(features) // 2
    expected = floor(features, n, SEED, splits=200).mean
    rng, found = np.random.default_rng(SEED), 0
    for draw in track(range(_DRAWS), "null test", console=Console(stderr=True)):
        order = rng.permutation(len(features))
        one = interval(features[order[:n]], features[order[n : 2 * n]], draw, halvings=30)
        found += one.low <= expected <= one.high
    return found


def study(counts: Counts, out: Path, evaluator: str) -> Found:
    """Measure everything, and return it as plain data."""
    tools = build_tools({"evaluator": evaluator} if evaluator else {})
    world = ToyClips(2 * counts.distances, SIZE, SEED)
    clean = rendered(world, range(counts.distances), "clips to spoil")
    real = rendered(world, range(counts.distances, 2 * counts.distances), "real clips")
    ways = (*DEGRADATIONS, WRONG_PROMPTS)
    found: dict[str, list[list[Value]]] = {}
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("measuring", total=1 + len(ways) * STRENGTHS)
        base = measured(clean, real, tools, counts, out)
        bar.advance(task)
        for way in ways:
            found[way] = []
            for strength in range(1, STRENGTHS + 1):
                found[way].append(measured(spoiled(clean, way, strength), real, tools, counts, out))
                bar.advance(task)
    measuring = Measuring(real, clean, out / "features", note=lambda line: None)
    nulls = {}
    for kind in ("vidiff-evaluator", "random-clips"):
        rows = [measuring.features(one, tools.extractors[kind]).values for one in (clean, real)]
        nulls[kind] = covered(np.concatenate(rows))
    plain: Found = {
        "counts": asdict(counts),
        "evaluator": evaluator,
        "versions": versions(),
        "clean": [_plain(value) for value in base],
        "spoiled": {way: [[_plain(value) for value in values] for values in rows] for way, rows in found.items()},
        "seen": {
            way: {value.metric: first_seen(value, [row[index] for row in rows]) for index, value in enumerate(base)}
            for way, rows in found.items()
        },
        "null_test": {kind: f"{count} of {_DRAWS}" for kind, count in nulls.items()},
    }
    return plain | {"claims": claims(plain)}


def _plain(value: Value) -> dict[str, object]:
    shown = {"name": value.name, "metric": value.metric, "value": value.value, "interval": value.interval}
    return shown | {"better": value.better, "floor": value.floor}


def claims(found: Found) -> dict[str, bool]:
    """Return what a set of metrics has to do, and whether these do."""

    def grows(way: str, metric: str, sign: int = 1) -> bool:
        return all(sign * a < sign * b for a, b in pairwise(course(found, way, metric)))

    def raised(way: str, metric: str) -> bool:
        clean, *worse = course(found, way, metric)
        return all(value > clean for value in worse)

    clips, frames = ("fd-evaluator", "fd-random-clips"), course(found, "frame shuffle", "fd-random-frames")
    covering = min(int(count.split()[0]) for count in found["null_test"].values())
    return {
        "both distances of clips rise under frame shuffle, at every strength": all(
            raised("frame shuffle", metric) for metric in clips
        ),
        "the evaluator's distance grows with every strength of frame shuffle": grows("frame shuffle", "fd-evaluator"),
        "the distance of frames does not change under frame shuffle (relative 1e-9)": bool(
            np.ptp(frames) <= 1e-9 * frames[0]
        ),
        "both distances of clips grow with every strength of blur and of noise": all(
            grows(way, metric) for way in ("blur", "noise") for metric in clips
        ),
        "alignment and following fall with every strength of wrong prompts": all(
            grows(WRONG_PROMPTS, metric, -1) for metric in ("alignment-evaluator", "following")
        ),
        f"null test: intervals cover the floor in at least 90 of {_DRAWS} draws": covering >= 90,
    }


def write(found: Found, docs: Path) -> None:
    """Write values, picture and the study's part of the page."""
    (docs / "results" / "metrics.json").write_text(json.dumps(found, indent=1) + "\n")
    (docs / "pictures" / "metrics.svg").write_text(figure(found))
    before, _, rest = (docs / "evaluation.md").read_text().partition(_MARKS[0])
    _, _, after = rest.partition(_MARKS[1])
    (docs / "evaluation.md").write_text(f"{before}{_MARKS[0]}\n{page(found)}\n{_MARKS[1]}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/validate"), help="folder of features")
    parser.add_argument("--count", type=int, default=128, help="clips that are spoiled, and real ones")
    parser.add_argument("--temporal", type=int, default=24)
    parser.add_argument("--following", type=int, default=12)
    parser.add_argument("--evaluator", default="", help="folder; default the bundled one")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where results, picture and page go")
    parser.add_argument("--redraw", action="store_true", help="measure nothing: show what results/metrics.json has")
    given = parser.parse_args()
    if given.redraw:
        found: Found = json.loads((given.docs / "results" / "metrics.json").read_text())
        found["claims"] = claims(found)
    else:
        found = study(Counts(given.count, given.temporal, given.following), given.out, given.evaluator)
    write(found, given.docs)
    for what, holds in found["claims"].items():
        print(f"{'holds' if holds else 'FAILS'}: {what}")


if __name__ == "__main__":
    main()
