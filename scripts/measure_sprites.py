"""The figures of the sprites model: prompt following by the rendering oracle, and autoencoder PSNR.

    python scripts/measure_sprites.py --model sprites --data ../shared/data/sprites/val-00000.tar \
        --oracle ../shared/tools/sprite_oracle.py --out runs/measure --json docs/results/sprites.json

Prompts are the captions of the first N validation clips, at seed 0, with the model's own steps and guidance.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import torch

from vidiff.data.dataset import ClipDataset, DataConfig
from vidiff.data.shards import index_shard
from vidiff.model_folder import ModelConfig, autoencoder_folder, load_autoencoder, read_config
from vidiff.pipeline import find_model


def write_prompts(shard: Path, count: int, path: Path) -> None:
    """Write id, caption and attributes of the first clips, one JSON object a line."""
    rows = []
    for key, members in list(index_shard(shard).items())[:count]:
        row = json.loads(members["json"].read())
        rows.append({"id": key, "caption": row["caption"], "attributes": row["attributes"]})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@torch.no_grad()
def reconstruction_psnr(model: Path, shard: Path) -> float:
    """Return the mean over clips of the PSNR in dB, on 8-bit frames."""
    vae = load_autoencoder(autoencoder_folder(model, read_config(ModelConfig, model)))
    dataset = ClipDataset(DataConfig(shard))
    values = []
    for index in range(len(dataset)):
        clip = dataset.clip(index)
        decoded = vae.decode(vae.encode((clip.permute(3, 0, 1, 2)[None].float() / 127.5) - 1))
        frames = ((decoded[0] + 1) * 127.5).round().permute(1, 2, 3, 0)
        error = ((frames - clip) / 255).square().mean().item()
        values.append(-10 * math.log10(max(error, 1e-12)))
    return sum(values) / len(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sprites")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--oracle", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--options", nargs="*", default=[], help="further options of vidiff generate, without dashes")
    arguments = parser.parse_args()
    prompts = arguments.out / "prompts.jsonl"
    write_prompts(arguments.data, arguments.count, prompts)
    options = [f"--{option}" for option in arguments.options]
    command = ["generate", "--from-file", prompts, "-o", arguments.out, "--model", arguments.model, "--batch", "8"]
    started = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "vidiff", *map(str, command), *options], check=True, stdout=subprocess.DEVNULL
    )
    seconds = time.monotonic() - started
    scores = arguments.out / "scores.json"
    oracle = [sys.executable, arguments.oracle, arguments.out, prompts, "--json", scores]
    subprocess.run([str(part) for part in oracle], check=True)
    found = json.loads(scores.read_text())
    found["seconds_for_all_clips"] = round(seconds, 1)
    found["vae_psnr"] = round(reconstruction_psnr(find_model(arguments.model), arguments.data), 2)
    print(f"autoencoder PSNR {found['vae_psnr']} dB")
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
