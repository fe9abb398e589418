"""Captioned clips at the size and rate a model wants."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vidiff.data.fates import Fates
from vidiff.data.folder import caption_text, captions_of, read_folder
from vidiff.data.shards import VIDEO_SUFFIXES, Member, index_shards, shards_at
from vidiff.data.video_io import ClipInfo, inspect, read_clip
from vidiff.errors import ConfigError, DataError

_PREPROCESSING = 1  # part of every cache key: raise it when frames come out differently


@dataclass(frozen=True)
class DataConfig:
    """Which clips, and how they are cut."""

    kind: Literal["clips"] = field(default="clips", kw_only=True)
    path: Path  # folder of shards or of clips, one shard, or a pattern like shards/train-*.tar
    frames: int = 17
    height: int = 64
    width: int = 64
    fps: float | None = None  # bring clips to this rate by picking the nearest frames; None: as stored
    buckets: tuple[tuple[int, int], ...] = ()  # further (height, width); each clip goes to the nearest shape
    pictures: tuple[int, ...] = ()  # cut windows out of clips whose shorter side becomes this, in turn; (): whole
    limit: int | None = None  # only the first clips

    def __post_init__(self) -> None:
        for name in ("frames", "height", "width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise ConfigError(f"fps must lie above 0 and up to 1000, got {self.fps}")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit must be at least 1, got {self.limit}")
        if any(side < 1 for shape in self.buckets for side in shape):
            raise ConfigError(f"buckets must be at least 1 high and wide, got {self.buckets}")
        largest = max(side for shape in ((self.height, self.width), *self.buckets) for side in shape)
        if any(side < largest for side in self.pictures):
            raise ConfigError(f"windows of {largest} pixels a side do not fit into pictures of {self.pictures}")


@dataclass(frozen=True)
class Sample:
    """One usable clip."""

    key: str
    source: Member | Path
    captions: list[str]
    info: ClipInfo

    def read(self) -> np.ndarray:
        """Return all frames, uint8 (F, H, W, 3); raises DataError if the clip is not what it was when indexed."""
        data = self.source if isinstance(self.source, Path) else self.source.read()
        return read_clip(data, name=self.key, info=self.info).frames


class ClipDataset:
    """Clips by index, each accounted for in ``fates``.

    Raises:
        DataError: if nothing can be used; the message says why.
    """

    def __init__(self, config: DataConfig, on_clip: Callable[[int], None] = lambda done: None):
        self.config = config
        self.fates = Fates()
        self.samples: list[Sample] = []
        for done, (key, source, captions, info) in enumerate(_found(config.path), 1):
            self.fates.total += 1
            on_clip(done)
            if config.limit is not None and len(self.samples) >= config.limit:
                self.fates.beyond_limit += 1
                continue
            try:
                if isinstance(captions, DataError):
                    raise captions
                self._accept(Sample(key, source, captions, info or inspect_source(source, key)))
            except DataError as error:
                self.fates.skipped.append((key, str(error)))
        if not self.samples:
            first = f"; {self.fates.skipped[0][1]}" if self.fates.skipped else ""
            raise DataError(f"{config.path}: none of {self.fates.total} clips can be used{first}")
        self.fingerprint = self._fingerprint()

    def _accept(self, sample: Sample) -> None:
        config, info = self.config, sample.info
        fps = config.fps or info.fps
        available = len(frames_at(info, fps))
        if available < config.frames:
            raise DataError(f"{sample.key}: {available} frames at {fps:g} fps, {config.frames} are needed")
        retimed, trimmed = abs(fps - info.fps) > 0.01, available > config.frames
        if retimed:
            self.fates.retimed[f"{info.fps:g} fps -> {fps:g} fps"] += 1
        self.fates.trimmed += trimmed
        self.fates.as_is += not (retimed or trimmed)
        self.samples.append(sample)

    def _fingerprint(self) -> str:
        config = self.config
        rule: list[object] = [_PREPROCESSING, config.frames, config.height, config.width, config.fps, config.buckets]
        rule += [config.pictures] if config.pictures else []
        digest = hashlib.sha256(json.dumps(rule).encode())
        for sample in self.samples:
            source = sample.source
            size = source.size if isinstance(source, Member) else source.stat().st_size
            digest.update(json.dumps([sample.key, size, sample.captions]).encode())
        return digest.hexdigest()

    @property
    def fps(self) -> float:
        """The rate of the samples; of most of them where they differ."""
        return self.config.fps or Counter(sample.info.fps for sample in self.samples).most_common(1)[0][0]

    def __len__(self) -> int:
        return len(self.samples)

    def key(self, index: int) -> str:
        """Return a clip's name, for messages."""
        return self.samples[index].key

    def captions(self, index: int) -> list[str]:
        """Return the main caption, then the alternative ones."""
        return self.samples[index].captions

    def bucket(self, index: int) -> tuple[int, int]:
        """Return the (height, width) that clip ``index`` is brought to: that of the nearest aspect ratio."""
        info = self.samples[index].info
        shapes = ((self.config.height, self.config.width), *self.config.buckets)
        return min(shapes, key=lambda shape: abs(math.log(shape[0] / shape[1] * info.width / info.height)))

    def groups(self) -> list[int] | None:
        """Return the number of each clip's bucket, or None where all clips have one shape."""
        if not self.config.buckets:
            return None
        numbers: dict[tuple[int, int], int] = {}
        return [numbers.setdefault(self.bucket(index), len(numbers)) for index in range(len(self))]

    def clip(self, index: int, start: float = 0.5) -> Tensor:
        """Return a sample, uint8 (F, H, W, 3).

        Args:
            index: which clip.
            start: where in a longer clip the window lies, from 0, its beginning, to 1, its end.

        Raises:
            DataError: if the clip cannot be read any more.
        """
        sample, config = self.samples[index], self.config
        picked = frames_at(sample.info, config.fps or sample.info.fps)
        offset = round(start * (len(picked) - config.frames))
        frames = sample.read()[picked[offset : offset + config.frames]]
        height, width = self.bucket(index)
        pixels = torch.from_numpy(np.ascontiguousarray(frames))
        if not config.pictures:
            return fitted(pixels, height, width)
        side = config.pictures[index % len(config.pictures)]
        scale = side / min(pixels.shape[1:3])
        large = fitted(pixels, *(max(side, round(full * scale)) for full in pixels.shape[1:3]))
        rng = np.random.default_rng((index, side))
        top, left = (
            int(rng.integers(full - part + 1)) for full, part in zip(large.shape[1:3], (height, width), strict=True)
        )
        return large[:, top : top + height, left : left + width].contiguous()


def inspect_source(source: Member | Path, key: str) -> ClipInfo:
    """Return what can be known of a clip without an index; raises DataError if it cannot be read."""
    return inspect(source if isinstance(source, Path) else source.read(), name=key)


Found = tuple[str, Member | Path, list[str] | DataError, ClipInfo | None]


def _found(path: Path) -> Iterator[Found]:
    """Yield every clip under ``path``: name, where it lies, captions or why there are none, and its index entry."""
    shards = shards_at(path)
    if shards:
        plain: dict[Path, bool] = {}
        for key, members in index_shards(shards):
            suffix = next((suffix for suffix in VIDEO_SUFFIXES if suffix in members), None)
            if suffix is not None:
                member = members[suffix]
                captions, info = _described(key, members)
                # An index says nothing of rotation or colors; the first clip of a shard speaks for the others.
                if member.shard not in plain:
                    plain[member.shard] = _is_plain(member, key)
                yield key, member, captions, info if plain[member.shard] else None
    elif path.is_dir():
        for clip, captions in read_folder(path):
            yield str(clip.relative_to(path)), clip, captions, None
    else:
        raise DataError(f"{path}: no such folder, shard or pattern")


def _described(key: str, members: dict[str, Member]) -> tuple[list[str] | DataError, ClipInfo | None]:
    try:
        if "json" in members:
            try:
                row = json.loads(members["json"].read().decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                raise DataError(f"{key}.json: not JSON: {error}") from error
            return captions_of(row, f"{key}.json"), told_info(row)
        if "txt" in members:
            return [caption_text(members["txt"].read(), f"{key}.txt")], None
    except DataError as error:
        return error, None
    return DataError(f"{key}: no caption; a shard holds KEY.json or KEY.txt beside the clip"), None


def told_info(row: Any) -> ClipInfo | None:
    """Return what a shard's JSON says about its clip, if it says everything; reading the clip checks it."""
    values = [row.get(name) for name in ("num_frames", "height", "width", "fps")]
    if all(isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value < 1e6 for value in values):
        frames, height, width, fps = values
        return ClipInfo(int(frames), int(height), int(width), float(fps), indexed=True)
    return None


def _is_plain(member: Member, key: str) -> bool:
    """Return whether decord may be trusted with a clip's colors and orientation."""
    try:
        return not inspect_source(member, key).needs_ffmpeg
    except DataError:
        return True  # reading it will tell


def frames_at(info: ClipInfo, fps: float) -> list[int]:
    """Return the stored frames nearest to the times of a clip at ``fps``."""
    count = math.floor((info.frames - 1) * fps / info.fps + 1e-6) + 1
    return [min(info.frames - 1, round(index * info.fps / fps)) for index in range(count)]


def fitted(frames: Tensor, height: int, width: int) -> Tensor:
    """Scale (F, H, W, 3) to cover height x width, antialiased, and cut the center out; equal sizes stay untouched."""
    if frames.shape[1:3] == (height, width):
        return frames
    scale = max(height / frames.shape[1], width / frames.shape[2])
    size = [max(height, round(frames.shape[1] * scale)), max(width, round(frames.shape[2] * scale))]
    pixels = frames.permute(0, 3, 1, 2).float()
    pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False)
    y, x = (size[0] - height) // 2, (size[1] - width) // 2
    pixels = pixels[..., y : y + height, x : x + width]
    return pixels.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
