"""Toy-world clips on disk, as shards or as a plain folder."""

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from vidiff.data.toyworld.attributes import Scene
from vidiff.data.toyworld.draw import draw_captions, draw_scene
from vidiff.data.toyworld.only import Only
from vidiff.data.toyworld.render import render
from vidiff.data.video_write import write_video
from vidiff.errors import ConfigError
from vidiff.files import atomic_path, sha256_of, write_bytes, write_text
from vidiff.types import Size

CLIPS_A_SHARD = 256
_CAPTIONS = 4  # of each clip
_MAX_PIXELS = 1 << 30  # of one clip: frames, height and width multiplied


@dataclass(frozen=True)
class ToyClips:
    """Which clips to write."""

    count: int
    size: Size
    seed: int = 0
    heldout: bool = False  # only scenes with a pair that training never shows
    only: Only = ()  # values that attributes may have; all, where one is not named

    def __post_init__(self) -> None:
        size = self.size
        if self.count < 1 or self.seed < 0:
            raise ConfigError(f"count must be at least 1 and seed at least 0, got {self.count} and {self.seed}")
        if min(size.frames, size.height, size.width) < 1 or size.frames * size.height * size.width > _MAX_PIXELS:
            raise ConfigError(
                f"a clip of {size.frames} frames of {size.width}x{size.height} cannot be rendered; "
                f"it needs at least one pixel and at most {_MAX_PIXELS}"
            )
        if not 0 < size.fps <= 1000:
            raise ConfigError(f"fps must lie above 0 and up to 1000, got {size.fps:g}")
        self.scene(0)  # conditions that no scene meets are known before anything is written

    def scene(self, index: int) -> Scene:
        """Return scene ``index``."""
        return draw_scene(self.seed, index, self.heldout, self.only)

    def frames(self, index: int) -> np.ndarray:
        """Return the frames of clip ``index``, uint8 (F, H, W, 3)."""
        size = self.size
        return render([self.scene(index)], np.arange(size.frames) / size.fps, size.height, size.width)[0].numpy()

    def row(self, index: int) -> dict[str, Any]:
        """Return all that is known of clip ``index``: captions, what the first one states, attributes, size."""
        scene, size = self.scene(index), self.size
        first, *others = draw_captions(scene, self.seed, index, _CAPTIONS)
        return {
            "caption": first.text,
            "alt_captions": [other.text for other in others],
            "stated": first.stated,
            "attributes": scene.to_dict(),
            "scene": {"seed": self.seed, "index": index, "heldout": self.heldout, "only": dict(self.only)},
            "num_frames": size.frames,
            "height": size.height,
            "width": size.width,
            "fps": size.fps,
        }


def write_folder(clips: ToyClips, out: Path, on_clip: Callable[[int], None] = lambda done: None) -> None:
    """Write ``KEY.mp4`` and ``KEY.json`` for every clip; those that are there are not written again.

    Raises:
        ConfigError: if ``out`` holds other clips.
    """
    _begin(clips, out)
    for index in range(clips.count):
        described = out / f"{index:08d}.json"
        if not described.is_file():  # written last
            write_video(out / f"{index:08d}.mp4", clips.frames(index), clips.size.fps)
            write_text(described, json.dumps(clips.row(index)))
        on_clip(index + 1)


def write_shards(clips: ToyClips, out: Path, on_clip: Callable[[int], None] = lambda done: None) -> None:
    """Write ``toyworld-NNNNN.tar`` and a manifest of counts and hashes; whole shards are not written again.

    Raises:
        ConfigError: if ``out`` holds other clips.
    """
    _begin(clips, out)
    entries = {}
    for number, first in enumerate(range(0, clips.count, CLIPS_A_SHARD)):
        path, indices = out / f"toyworld-{number:05d}.tar", range(first, min(first + CLIPS_A_SHARD, clips.count))
        if not path.is_file():
            with atomic_path(path) as temporary, tarfile.open(temporary, "w") as tar:
                for name, data in _members(clips, indices, on_clip):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        on_clip(indices[-1] + 1)
        entries[path.name] = {"samples": len(indices), "sha256": sha256_of(path)}
    write_bytes(out / "MANIFEST.json", json.dumps({"shards": entries}, indent=1).encode())


def _begin(clips: ToyClips, out: Path) -> None:
    """Note in ``out`` what it will hold, so that a second run goes on with it or refuses."""
    path, settings = out / "toyworld.txt", repr(clips) + "\n"
    if path.is_file():
        if path.read_text() != settings:
            raise ConfigError(f"{out}: holds clips of other settings, {path.read_text().strip()}; use another folder")
    elif out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"{out}: is not empty; use another folder")
    else:
        write_text(path, settings)


def _members(clips: ToyClips, indices: range, on_clip: Callable[[int], None]) -> Iterator[tuple[str, bytes]]:
    with TemporaryDirectory() as scratch:
        clip = Path(scratch) / "clip.mp4"
        for index in indices:
            write_video(clip, clips.frames(index), clips.size.fps)
            yield f"{index:08d}.mp4", clip.read_bytes()
            yield f"{index:08d}.json", json.dumps(clips.row(index)).encode()
            on_clip(index + 1)
