"""Tar shards in the WebDataset layout, read by index: random access, nothing extracted, nothing unpickled."""

import glob
import json
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vidiff.errors import DataError
from vidiff.files import sha256_of

KEY = re.compile(r"[A-Za-z0-9_.-]{1,128}")
MAX_MEMBER = 64 << 20  # bytes of one member
MAX_MEMBERS = 1_000_000  # of one shard
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


def shards_at(path: Path) -> list[Path]:
    """Return the shards that ``path`` means: one file, all in a folder, or all that fit a pattern; sorted."""
    if path.is_dir():
        return sorted(found for found in path.glob("*.tar") if not found.name.startswith("."))  # half-written ones
    if any(character in str(path) for character in "*?["):
        found = sorted(Path(name) for name in glob.glob(str(path)))
        if not found:
            raise DataError(f"{path}: no file fits this pattern")
        return found
    return [path] if path.suffix == ".tar" and path.is_file() else []


def index_shards(shards: list[Path]) -> Iterator[tuple[str, dict[str, Member]]]:
    """Yield the samples of all shards, checked against ``MANIFEST.json`` beside them where there is one.

    The manifest is {"shards": {NAME: {"samples": COUNT, "sha256": HEX}}}.

    Raises:
        DataError: if a shard is damaged, not what the manifest says, or repeats a key of another shard.
    """
    homes: dict[str, Path] = {}
    for shard in shards:
        samples = index_shard(shard)
        _check_manifest(shard, len(samples))
        for key, members in samples.items():
            if key in homes:
                raise DataError(f"{shard}: the key {key} is also in {homes[key]}")
            homes[key] = shard
            yield key, members


def _check_manifest(shard: Path, samples: int) -> None:
    path = shard.parent / "MANIFEST.json"
    if not path.is_file():
        return
    try:
        entry = json.loads(path.read_text())["shards"].get(shard.name)
        if entry is None:
            raise DataError(f"{path}: does not list {shard.name}")
        counted, digest = entry["samples"], entry["sha256"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not a manifest of shards") from error
    if counted != samples:
        raise DataError(f"{shard}: holds {samples} samples, its manifest says {counted}; copy it again")
    if sha256_of(shard) != digest:
        raise DataError(f"{shard}: not the bytes that its manifest lists; copy it again")


def index_shard(shard: Path) -> dict[str, dict[str, Member]]:
    """Return the members of a shard by key, then by suffix, in the order of the shard.

    Raises:
        DataError: if the shard is damaged or holds links, duplicates, oversized or oddly named members.
    """
    samples: dict[str, dict[str, Member]] = {}
    reached = 0
    try:
        end = shard.stat().st_size
        with tarfile.open(shard, "r:") as tar:
            for count, info in enumerate(tar, 1):
                if count > MAX_MEMBERS:
                    raise DataError(f"{shard}: more than {MAX_MEMBERS} members; write smaller shards")
                reached = tar.offset
                if info.isdir():
                    continue
                key, member = _checked(shard, info, end)
                suffixes = samples.setdefault(key, {})
                suffix = info.name.removeprefix("./")[len(key) + 1 :].lower()
                if suffix in suffixes:
                    raise DataError(f"{shard}: {info.name} is there twice")
                suffixes[suffix] = member
            if not _ends_with_zeros(shard, tar.offset):
                raise DataError(
                    f"{shard}: cut off or damaged at byte {min(end, tar.offset)}: neither a member nor the end mark "
                    "of a tar file; copy it again"
                )
    except tarfile.TarError as error:
        raise DataError(
            f"{shard}: not a whole, uncompressed tar file ({error} at byte {reached}); copy it again"
        ) from error
    except OSError as error:
        raise DataError(f"{shard}: cannot be read: {error.strerror or error}") from error
    return samples


def _checked(shard: Path, info: tarfile.TarInfo, end: int) -> tuple[str, Member]:
    name = info.name.removeprefix("./")
    key, _, suffix = name.partition(".")
    if not info.isreg() or info.issparse():
        raise DataError(f"{shard}: {name!r} is not a plain file; shards hold no links, devices or sparse files")
    if not key or not suffix or not KEY.fullmatch(name):
        raise DataError(f"{shard}: {name!r} is not KEY.suffix with a key of letters, digits, '_' and '-'")
    # A negative size would send the reader of the tar file in circles.
    if not 0 <= info.size <= MAX_MEMBER:
        raise DataError(f"{shard}: {name} says it holds {info.size} bytes; {MAX_MEMBER} are the most")
    if info.offset_data + info.size > end:
        raise DataError(f"{shard}: cut off at byte {end}, inside {name}; copy it again")
    return key, Member(shard, info.offset_data, info.size)


def _ends_with_zeros(shard: Path, offset: int) -> bool:
    """Return whether the end mark, a block of zeros, stands at ``offset``: without it members may be missing."""
    with shard.open("rb") as file:
        file.seek(offset)
        return file.read(512) == bytes(512)
