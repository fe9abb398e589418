"""The clips that an evaluation is over: a folder from any tool, shards, or a model's own, each by its content."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidiff.data.dataset import told_info
from vidiff.data.folder import listed_rows, read_folder
from vidiff.data.metadata import read_metadata
from vidiff.data.shards import VIDEO_SUFFIXES, Member, index_shards, shards_at
from vidiff.data.video_io import ClipInfo, check_index, inspect, read_clip
from vidiff.errors import DataError


@dataclass(frozen=True)
class SetClip:
    """One clip of a set, not read yet."""

    key: str  # its name in the set
    source: Path | Member
    info: ClipInfo
    digest: str  # SHA-256 of the file's bytes
    prompt: str = ""  # empty where nothing tells
    seed: int | None = None
    row: dict[str, Any] = field(default_factory=dict, compare=False)  # what stands beside it, such as its attributes

    @property
    def path(self) -> str:
        """Return the file, or nothing for a clip inside a shard."""
        return str(self.source) if isinstance(self.source, Path) else ""

    def frames(self) -> Tensor:
        """Return all frames, uint8 (F, H, W, 3); raises DataError if the clip is not what it was."""
        data = self.source if isinstance(self.source, Path) else self.source.read()
        return torch.from_numpy(read_clip(data, name=self.key, info=self.info).frames)


@dataclass(frozen=True)
class ClipSet:
    """Clips in the order of their names, and what could not be used."""

    label: str
    clips: tuple[SetClip, ...]
    unreadable: tuple[tuple[str, str], ...] = ()  # (name, why)

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def digest(self) -> str:
        """Return a hash of the clips' contents, whatever they are called and wherever they lie."""
        return hashlib.sha256("\n".join(sorted(clip.digest for clip in self.clips)).encode()).hexdigest()

    @property
    def shape(self) -> str:
        """Return size and rate for protocol lines, such as ``17x64x64@12``."""
        info = self.clips[0].info
        rates = sorted({f"{clip.info.fps:g}" for clip in self.clips}, key=float)
        return f"{info.frames}x{info.height}x{info.width}@{'+'.join(rates)}"


def open_clip_set(
    path: Path,
    *,
    label: str | None = None,
    limit: int | None = None,
    only: frozenset[str] | None = None,
    decode: bool = False,
    on_clip: Callable[[int], None] = lambda done: None,
) -> ClipSet:
    """Return the clips of a folder, of shards, or of one shard.

    A prompt is what a text or JSON file beside the clip says, a list for all (metadata.jsonl, metadata.csv), or what
    vidiff stored inside the file. Clips without one are clips all the same.

    Args:
        path: a folder of clips or of shards, a shard, or a pattern of shards.
        label: what the set is called; the path by default.
        limit: only the first clips.
        only: only clips of these names; all by default.
        decode: look inside clips that an index or a recipe tells of, too, so that damage is found now and not later.
        on_clip: hears how many were looked at.

    Raises:
        DataError: if there is no clip at all.
    """
    found = (entry for entry in _found(path) if only is None or entry[0] in only)
    entries = [entry for _, entry in zip(range(limit), found, strict=False)] if limit is not None else list(found)
    clips, unreadable = [], []
    # ffmpeg works in processes of its own, so that threads keep all cores busy.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, opened in enumerate(pool.map(partial(_opened, decode=decode), entries), 1):
            on_clip(done)
            if isinstance(opened, SetClip):
                clips.append(opened)
            else:
                unreadable.append(opened)
    if not clips:
        first = f"; {unreadable[0][0]}: {unreadable[0][1]}" if unreadable else ""
        raise DataError(
            f"{path}: holds no clip that can be read ({', '.join(VIDEO_SUFFIXES)}, or shards of them){first}"
        )
    return ClipSet(label or str(path), tuple(clips), tuple(unreadable))


def check_there(path: Path) -> None:
    """Raise a DataError unless ``path`` is a folder, a shard or a pattern of shards."""
    if not path.is_dir() and not shards_at(path):
        raise DataError(f"{path}: no such folder, shard or pattern")


def check_alike(sets: Iterable[ClipSet]) -> None:
    """Refuse sets whose clips differ in size or rate: no distance between them would mean what it seems to.

    Raises:
        DataError: with an example of each kind.
    """
    kinds: dict[tuple[int, int, float], str] = {}
    for one in sets:
        for clip in one.clips:
            kind = (clip.info.height, clip.info.width, round(clip.info.fps, 2))
            kinds.setdefault(kind, f"{one.label}, {clip.key}: {kind[1]}x{kind[0]} at {kind[2]:g} frames a second")
    if len(kinds) > 1:
        shown = "; ".join(list(kinds.values())[:4])
        raise DataError(
            f"clips of {len(kinds)} sizes or rates: {shown}. Bring them to one (vidiff upscale --to, ffmpeg), or allow "
            "it with --mixed: extractors resize, but rates and blur will count as differences"
        )


def check_copies(one: ClipSet, share: float = 0.01) -> None:
    """Refuse a set with identical files beyond a small ``share``: each would count as a sample of its own.

    Raises:
        DataError: with an example.
    """
    seen: dict[str, str] = {}
    doubled = [
        (seen[clip.digest], clip.key) for clip in one.clips if seen.setdefault(clip.digest, clip.key) != clip.key
    ]
    if len(doubled) > max(1, share * len(one)):
        first, again = doubled[0]
        raise DataError(f"{one.label}: {len(doubled)} of {len(one)} files are copies, such as {again} of {first}")


Entry = tuple[str, Path | Member, str, dict[str, Any], ClipInfo | None]


def _found(path: Path) -> Iterator[Entry]:
    """Yield name, source, caption, JSON and what an index says of every clip under ``path``."""
    check_there(path)
    if shards := shards_at(path):
        for key, members in index_shards(shards):
            suffix = next((suffix for suffix in VIDEO_SUFFIXES if suffix in members), None)
            if suffix is not None:
                row = _parsed(members["json"].read()) if "json" in members else {}
                text = members["txt"].read().decode(errors="replace") if "txt" in members else ""
                yield key, members[suffix], _caption(row) or text.strip(), row, told_info(row)
    else:
        listed = listed_rows(path)
        for clip, captions in read_folder(path):
            beside = clip.with_suffix(".json")
            row = listed.get(clip, {}) if listed or not beside.is_file() else _parsed(beside.read_bytes())
            caption = "" if isinstance(captions, DataError) else captions[0]
            yield clip.relative_to(path).with_suffix("").as_posix(), clip, caption, row, told_info(row)


def _opened(entry: Entry, decode: bool) -> SetClip | tuple[str, str]:
    """Return a clip, or its name and why it cannot be used."""
    key, source, prompt, row, told = entry
    try:
        data = source.read_bytes() if isinstance(source, Path) else source.read()
        made = _recipe(source) if isinstance(source, Path) else {}
        info = told or _made(made)
        if info is None:
            info = inspect(data, name=key)
        elif decode:
            check_index(info, inspect(data, name=key), key)
        seed = made.get("seed")
        return SetClip(
            key,
            source,
            info,
            hashlib.sha256(data).hexdigest(),
            prompt or str(made.get("prompt", "")),
            seed if isinstance(seed, int) else None,
            row,
        )
    except OSError as error:
        return key, f"cannot be read: {error.strerror}"
    except DataError as error:
        return key, str(error)


def _recipe(path: Path) -> dict[str, Any]:
    """Return what vidiff stored inside a file, or nothing for a file of another tool."""
    try:
        return read_metadata(path) or {}
    except DataError:  # a kind of file that holds none
        return {}


def _made(recipe: dict[str, Any]) -> ClipInfo | None:
    """Return what a recipe says about its clip, if the base stage made it and it was written as it is."""
    size = recipe.get("size")
    if not isinstance(size, dict) or recipe.get("stages") or recipe.get("upscale") != 1:
        return None
    return told_info(size | {"num_frames": size.get("frames")})


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        row = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def _caption(row: dict[str, Any]) -> str:
    text = row.get("caption", row.get("text"))
    return " ".join(text.split()) if isinstance(text, str) else ""
