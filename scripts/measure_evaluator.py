"""The figures of the bundled evaluator: how well it tells captions apart on clips it never saw, and how fast it is.

    python scripts/measure_evaluator.py --sprites val-00000.tar --json docs/results/evaluator.json

Retrieval is among the 64 captions, or clips, of a batch; "altered" asks for the true one of two captions of which the
other is wrong in one attribute. Toy-world clips are rendered at seed 1000, which no recipe draws. Speed is that of
features alone, from frames in memory, and in one run.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from vidiff.data.clips import Clips, open_clips
from vidiff.data.dataset import DataConfig
from vidiff.data.toyworld.altered import altered_captions
from vidiff.data.toyworld.dataset import ToyWorldConfig
from vidiff.data.toyworld.draw import draw_scene
from vidiff.metrics.embedded import EmbeddedConfig, EmbeddedExtractor, EmbeddedPromptEncoder, build_embedded

_BATCH = 64
_SEED = 1000
_SPEED = 1000  # clips


def placed(evaluator: EmbeddedExtractor, data: Clips, name: str) -> Tensor:
    """Return where clips lie among captions, (N, E)."""
    console = Console(stderr=True)
    rows = [evaluator([data.clip(index)]) for index in track(range(len(data)), name, console=console)]
    return evaluator.among_prompts(torch.cat(rows))


def retrieval(clips: Tensor, captions: Tensor) -> dict[str, float]:
    """Return how often the right caption, and the right clip, is nearest in a batch."""
    found = []
    for one, other in zip(clips.split(_BATCH), captions.split(_BATCH), strict=True):
        if len(one) == _BATCH:
            right, cosines = torch.arange(_BATCH), one @ other.T
            found.append([(cosines.argmax(1) == right).float().mean(), (cosines.argmax(0) == right).float().mean()])
    caption, clip = torch.tensor(found).mean(0).tolist()
    return {"caption_among_64": caption, "clip_among_64": clip}


def altered(clips: Tensor, captions: Tensor, data: Clips, encode: EmbeddedPromptEncoder) -> float:
    """Return how often the true caption is nearer than one that is wrong in one attribute."""
    settings = data.config
    assert isinstance(settings, ToyWorldConfig)
    scenes = [draw_scene(settings.seed, index, settings.heldout) for index in range(len(data))]
    wrong = encode([altered_captions(scene, settings.seed, index, 1)[0] for index, scene in enumerate(scenes)])
    return ((clips * captions).sum(1) > (clips * wrong).sum(1)).float().mean().item()


def seconds(evaluator: EmbeddedExtractor, data: Clips) -> float:
    """Return how long the features of a thousand clips take, (F, H, W, 3) each."""
    clips = [data.clip(index) for index in range(32)]
    evaluator(clips)
    started = time.monotonic()
    evaluator(clips[index % 32] for index in range(_SPEED))
    return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluator", default="", help="folder; default the bundled one")
    parser.add_argument("--sprites", type=Path, help="shards of sprites that it was not trained on")
    parser.add_argument("--count", type=int, default=256, help="clips of each set")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    evaluator = build_embedded(EmbeddedConfig(source=given.evaluator))
    encode = EmbeddedPromptEncoder(evaluator)
    size = {"frames": 17, "height": 64, "width": 64}
    sets: dict[str, Clips] = {
        name: open_clips(ToyWorldConfig(clips=given.count, fps=12, seed=_SEED, heldout=heldout, **size))
        for name, heldout in (("toy world, seen pairs", False), ("toy world, held-out pairs", True))
    }
    figures: dict[str, object] = {"evaluator": evaluator.version, "torch": torch.__version__}
    if given.sprites:
        sets["sprites, held-out combinations"] = open_clips(DataConfig(path=given.sprites, limit=given.count, **size))
    for name, data in sets.items():
        clips, captions = placed(evaluator, data, name), encode([data.captions(index)[0] for index in range(len(data))])
        figures[name] = {"clips": len(data)} | retrieval(clips, captions)
        if isinstance(data.config, ToyWorldConfig):
            figures[name]["altered"] = altered(clips, captions, data, encode)
    figures["seconds for 1000 clips"] = seconds(evaluator, next(iter(sets.values())))
    figures["threads"] = torch.get_num_threads()
    text = json.dumps(figures, indent=1)
    print(text)
    if given.json:
        given.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
