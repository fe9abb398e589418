"""Tar shards in the WebDataset layout, read by index: random access, nothing extracted, nothing unpickled."""

import os
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

from vidiff.errors import DataError

KEY = re.compile(r"[A-Za-z0-9_.-]{1,128}")
MAX_MEMBER = 64 << 20  # bytes of one member
VIDEO_SUFFIXES = ("mp4", "webm", "mkv", "mov", "avi", "gif")
CAPTION_SUFFIXES = ("json", "txt")


@dataclass(frozen=True)
class Member:
    """Where the bytes of a member lie in its shard."""

    shard: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """Return the member's bytes.

        Raises:
            DataError: if the shard has become shorter than its index says.
        """
        try:
            with self.shard.open("rb") as file:
                data = os.pread(file.fileno(), self.size, self.offset)
        except OSError as error:
            raise DataError(f"{self.shard}: cannot be read: {error.strerror}") from error
        if len(data) != self.size:
            raise DataError(f"{self.shard}: ends inside a member at byte {self.offset + len(data)}; copy it again")
        return data


def index_shard(shard: Path) -> dict[str, dict[str, Member]]:
    """Return the members of a shard by key, then by suffix, in the order of the shard.

    Raises:
        DataError: if the shard is damaged or holds links, duplicates, oversized or oddly named members.
    """
    samples: dict[str, dict[str, Member]] = {}
    end = shard.stat().st_size
    try:
        with tarfile.open(shard, "r:") as tar:
            for info in tar:
                if info.isdir():
                    continue
                key, member = _checked(shard, info, end)
                suffixes = samples.setdefault(key, {})
                suffix = info.name.removeprefix("./")[len(key) + 1 :].lower()
                if suffix in suffixes:
                    raise DataError(f"{shard}: {info.name} is there twice")
                suffixes[suffix] = member
            if tar.offset > end or end - tar.offset < 0 or not _ends_with_zeros(shard, tar.offset):
                raise DataError(f"{shard}: cut off at byte {end}, without the end mark of a tar file; copy it again")
    except tarfile.TarError as error:
        raise DataError(f"{shard}: not a whole, uncompressed tar file ({error}); copy it again") from error
    return samples


def _checked(shard: Path, info: tarfile.TarInfo, end: int) -> tuple[str, Member]:
    name = info.name.removeprefix("./")
    key, _, suffix = name.partition(".")
    if not info.isreg():
        raise DataError(f"{shard}: {name!r} is not a regular file; shards hold no links or devices")
    if not suffix or not KEY.fullmatch(name):
        raise DataError(f"{shard}: {name!r} is not KEY.suffix with a key of letters, digits, '_' and '-'")
    if info.size > MAX_MEMBER:
        raise DataError(f"{shard}: {name} holds {info.size} bytes, more than {MAX_MEMBER}")
    if info.offset_data + info.size > end:
        raise DataError(f"{shard}: cut off at byte {end}, inside {name}; copy it again")
    return key, Member(shard, info.offset_data, info.size)


def _ends_with_zeros(shard: Path, offset: int) -> bool:
    """Return whether the end mark, a block of zeros, stands at ``offset``: without it members may be missing."""
    with shard.open("rb") as file:
        file.seek(offset)
        return file.read(512) == bytes(512)
