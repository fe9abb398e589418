"""Features on disk, by content: computed once for given frames, weights and preprocessing.

A folder belongs to one extractor with one preprocessing; a file in it holds the rows of up to a hundred or so clips
and is named by the sha256 of its own bytes. So damage shows, files never change, and processes that write at the same
time write either the same file or different ones.
"""

import hashlib
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vidiff import files
from vidiff.errors import CheckpointError, ConfigError, DataError, NumericalError
from vidiff.metrics.extractors import Extractor

_FORMAT = 1  # counted up when the code makes other numbers of the same frames
_SHARD = 128  # clips in one file


def frames_key(clip: Tensor) -> str:
    """Return the SHA-256 of a clip's frames, uint8 (F, H, W, 3), and of their shape."""
    return hashlib.sha256(str(tuple(clip.shape)).encode() + clip.contiguous().numpy().tobytes()).hexdigest()


def features_of(
    clips: Iterable[tuple[str, Callable[[], Tensor]]],
    extractor: Extractor,
    cache: Path,
    *,
    batch: int = 8,
    note: Callable[[str], None] = print,
    on_clip: Callable[[int], None] = lambda done: None,
) -> Iterator[Tensor]:
    """Yield the features of each clip in turn, float32 (1, D), or (F', D) of an extractor with rows ``per_frame``.

    What is computed is written while it goes on, so a run that was interrupted starts where it stopped.

    Args:
        clips: for each its key, which decides its frames (``files.sha256_of`` of a file that is read as it is,
            ``frames_key`` of a rendered one), and what reads them, uint8 (F, H, W, 3); called only if it must be.
        extractor: what computes.
        cache: folder of all features; made if it is not there.
        batch: clips that are in memory at once.
        note: hears of damaged files.
        on_clip: hears how many clips are done.

    Raises:
        ConfigError: if ``batch`` is not at least 1.
        DataError: if a clip is not one, or has too few frames, with its number.
        NumericalError: if features are not finite; none of them is kept.
        CheckpointError: if the cache loses files while it is read.
        ResourceError: if it cannot be written.
    """
    if batch < 1:
        raise ConfigError(f"batch must be at least 1, got {batch}")
    shards = FeatureShards(cache, extractor, note)
    done = 0
    try:
        for keys, missing in _windows(clips, shards, extractor, batch):
            computed = _computed(extractor, missing)
            shards.add(computed)
            for key in keys:
                done += 1
                on_clip(done)
                yield computed[key] if key in computed else shards[key]
    finally:
        shards.flush()


class FeatureShards:
    """The features of one extractor with one preprocessing that a cache holds, by key."""

    def __init__(self, cache: Path, extractor: Extractor, note: Callable[[str], None] = print) -> None:
        made_by = (_FORMAT, extractor.name, extractor.version, extractor.preprocess)
        self.folder = cache / f"{extractor.name}-{hashlib.sha256(repr(made_by).encode()).hexdigest()[:32]}"
        self._places: dict[str, Path] = {}
        self._new: dict[str, Tensor] = {}
        for path in sorted(self.folder.glob("[0-9a-f]*.safetensors")):  # not what is just being written
            if _whole(path):
                with safe_open(path, framework="pt") as file:
                    self._places.update(dict.fromkeys(file.keys(), path))
            else:
                note(f"{path}: damaged; its features are computed again")
                files.remove(path)

    def __contains__(self, key: object) -> bool:
        return key in self._new or key in self._places

    def __getitem__(self, key: str) -> Tensor:
        if key in self._new:
            return self._new[key]
        path = self._places[key]
        try:
            with safe_open(path, framework="pt") as file:
                return file.get_tensor(key)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: gone or changed since it was opened ({error}); run again") from error

    def add(self, rows: dict[str, Tensor]) -> None:
        """Take in the features of some clips, written when there are enough for a file."""
        self._new |= rows
        if len(self._new) >= _SHARD:
            self.flush()

    def flush(self) -> None:
        """Write what is not written yet."""
        if self._new:
            data = safetensors.torch.save(self._new)
            path = self.folder / f"{hashlib.sha256(data).hexdigest()}.safetensors"
            files.write_bytes(path, data)
            self._places.update(dict.fromkeys(self._new, path))
            self._new = {}


def _whole(path: Path) -> bool:
    try:
        return files.sha256_of(path) == path.stem
    except OSError:  # another process may have found the damage first
        return False


def _windows(
    clips: Iterable[tuple[str, Callable[[], Tensor]]], known: Container[str], extractor: Extractor, batch: int
) -> Iterator[tuple[list[str], dict[str, Tensor]]]:
    """Yield runs of keys with the frames of those that are not known, ``batch`` of them; known ones do not wait."""
    keys: list[str] = []
    missing: dict[str, Tensor] = {}
    for number, (key, read) in enumerate(clips, 1):
        keys.append(key)
        if key not in known and key not in missing:
            missing[key] = read()
            try:
                extractor.preprocess.indices(len(missing[key]))
            except DataError as error:
                raise DataError(f"clip {number}: {error}") from error
        if len(missing) in (0, batch):
            yield keys, missing
            keys, missing = [], {}
    if keys:
        yield keys, missing


def _computed(extractor: Extractor, missing: dict[str, Tensor]) -> dict[str, Tensor]:
    if not missing:
        return {}
    used = [len(extractor.preprocess.indices(len(clip))) for clip in missing.values()]
    rows = extractor(missing.values()).split(used if extractor.per_frame else [1] * len(used))
    for key, own in zip(missing, rows, strict=True):
        if not torch.isfinite(own).all():
            raise NumericalError(f"{extractor.name}: features of the clip {key} are not finite; check the weights")
    return {key: own.clone() for key, own in zip(missing, rows, strict=True)}
