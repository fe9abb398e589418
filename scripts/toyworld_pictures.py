"""Draw the README's pictures of a toy-world model: four clips, and the stages of one of them side by side.

    python scripts/toyworld_pictures.py --model toyworld --out docs/pictures

Clips are what `vidiff generate` makes of the prompts at seed 0 with the model's own settings.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vidiff.data.video_io import read_clip
from vidiff.files import atomic_path

PROMPTS = {
    "ball": "a shiny red ball rolls right across green grass at sunset while the camera moves forward",
    "cubes": "a large green cube spins to the left of a small yellow cone on a checkerboard floor on a sunny day",
    "ring": "a big shiny pink ring bounces on sand in daylight, static shot",
    "snow": "arc shot: a large purple cylinder stands still in a field of snow at night while snow is falling",
}
STAGES = {"base": "base: 64x64, 12 a second", "temporal_sr": "temporal_sr: 24 a second", "": "spatial_sr: 256x256"}
CELL, LABEL, GAP = 128, 18, 2


def made(model: str, prompt: str, folder: Path, *options: str) -> Path:
    """Return the file that `vidiff generate` makes of ``prompt``."""
    path = folder / "clip.mp4"
    command = ["generate", prompt, "--model", model, "-o", path, *options]
    subprocess.run([sys.executable, "-m", "vidiff", *map(str, command)], check=True)
    return path


def filmstrip(clips: dict[str, np.ndarray], first: int, columns: int) -> Image.Image:
    """Return a row of neighboring moments for each stage; a stage that has no frame there leaves its place empty.

    Args:
        clips: frames of each stage, uint8 (F, H, W, 3), under its label; the last has the most.
        first: the last stage's first frame that is shown.
        columns: how many of its frames are shown.
    """
    most = max(len(clip) for clip in clips.values())
    sheet = Image.new("RGB", (columns * (CELL + GAP) - GAP, len(clips) * (CELL + LABEL)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (label, clip) in enumerate(clips.items()):
        top, step = row * (CELL + LABEL), (most - 1) // (len(clip) - 1)
        draw.text((2, top + 1), label, fill="black", font=ImageFont.load_default(14))
        for column in range(columns):
            left, (index, between) = column * (CELL + GAP), divmod(first + column, step)
            if between:
                draw.rectangle((left, top + LABEL, left + CELL - 1, top + LABEL + CELL - 1), outline="lightgray")
                continue
            sharp = Image.Resampling.NEAREST if clip.shape[1] < CELL else Image.Resampling.LANCZOS
            sheet.paste(Image.fromarray(clip[index]).resize((CELL, CELL), sharp), (left, top + LABEL))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="toyworld")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    for name, prompt in PROMPTS.items():
        with tempfile.TemporaryDirectory() as folder:
            clip = made(arguments.model, prompt, Path(folder), "--keep-stages", "--upscale", "1")
            if name == "ball":
                files = {
                    label: clip.with_name(f"clip-{stage}.mp4" if stage else "clip.mp4")
                    for stage, label in STAGES.items()
                }
                strip = filmstrip({label: read_clip(path).frames for label, path in files.items()}, 8, 9)
                with atomic_path(arguments.out / "stages.png") as temporary:
                    strip.save(temporary, format="PNG", optimize=True)
            frames = read_clip(clip).frames
            pictures = [Image.fromarray(frame) for frame in frames]
            with atomic_path(arguments.out / f"{name}.webp") as temporary:
                pictures[0].save(
                    temporary, format="WEBP", save_all=True, append_images=pictures[1:], duration=42, loop=0, quality=70
                )


if __name__ == "__main__":
    main()
