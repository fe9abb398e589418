"""Clips made on the spot."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np

from vidiff.data.video_write import write_video

SHARED = Path(__file__).parents[2] / "shared"


def frames(count=9, height=32, width=32, seed=0):
    """Return a square that moves over a colored ground."""
    rng = np.random.default_rng(seed)
    clip = np.empty((count, height, width, 3), np.uint8)
    clip[:] = rng.integers(0, 256, 3)
    color, start = rng.integers(0, 256, 3), int(rng.integers(0, height // 2))
    for index in range(count):
        x = (start + 2 * index) % (width - 8)
        clip[index, start : start + 8, x : x + 8] = color
    return clip


def write_folder(folder, count=6, length=9, height=32, width=32, fps=12):
    """Write lossless clips, each with a text file beside it, and return their frames."""
    made = []
    for index in range(count):
        clip = frames(length, height, width, index)
        write_video(folder / f"clip{index}.mp4", clip, fps, lossless=True)
        (folder / f"clip{index}.txt").write_text(f"a square number {index} moves right")
        made.append(clip)
    return made


def write_shard(path, samples):
    """Write {name: bytes or object} members in order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in samples:
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def clip_bytes(folder, **kwargs):
    path = folder / "made.mp4"
    write_video(path, frames(**kwargs), 12, lossless=True)
    return path.read_bytes()
