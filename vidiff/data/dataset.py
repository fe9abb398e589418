"""Captioned clips at the size and rate a model wants."""

import glob
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vidiff.data.shards import Member, index_shard
from vidiff.data.video_io import read_clip
from vidiff.errors import DataError


@dataclass(frozen=True)
class DataConfig:
    """Which clips, and how they are cut."""

    path: Path  # a folder of shards or clips, one shard, or a pattern like train-*.tar
    frames: int = 17
    height: int = 64
    width: int = 64
    fps: float | None = None  # None: as stored


class ClipDataset:
    """Clips by index."""

    def __init__(self, config: DataConfig):
        self.config = config
        self.samples: list[tuple[str, Member, dict]] = []
        for shard in sorted(glob.glob(str(config.path))):
            for key, members in index_shard(Path(shard)).items():
                self.samples.append((key, members["mp4"], json.loads(members["json"].read())))
        if not self.samples:
            raise DataError(f"{config.path}: holds no clips")
        digest = hashlib.sha256(repr(config).encode())
        for key, member, _ in self.samples:
            digest.update(f"{key}{member.size}".encode())
        self.fingerprint = digest.hexdigest()

    @property
    def fps(self) -> float:
        """The frame rate of most clips."""
        rates = [float(meta.get("fps", 12)) for _, _, meta in self.samples]
        return max(set(rates), key=rates.count)

    def __len__(self) -> int:
        return len(self.samples)

    def key(self, index: int) -> str:
        return self.samples[index][0]

    def captions(self, index: int) -> list[str]:
        meta = self.samples[index][2]
        return [meta["caption"], *meta.get("alt_captions", [])]

    def clip(self, index: int) -> Tensor:
        key, member, _ = self.samples[index]
        return torch.from_numpy(read_clip(member.read(), name=key).frames[: self.config.frames])
