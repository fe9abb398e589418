"""What all metrics of one evaluation share: the sets, their features, and how a value is put into words."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vidiff.errors import DataError
from vidiff.metrics.clip_set import ClipSet, SetClip
from vidiff.metrics.extractors import Extractor
from vidiff.metrics.feature_cache import features_of
from vidiff.metrics.intervals import mean_interval, standard_error_of_mean
from vidiff.metrics.results import Value
from vidiff.processes import ALONE, Share

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


def unseen(title: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    """Show nothing of a count that goes from 0 to ``total``."""
    return nullcontext(lambda done: None)


@dataclass(frozen=True)
class Rows:
    """The features of a set, those of one clip side by side."""

    values: np.ndarray  # (N * group, D), float32 as networks made them: sums of them are taken in float64
    group: int  # rows of each clip

    @property
    def clips(self) -> int:
        return len(self.values) // self.group

    def of_clips(self) -> np.ndarray:
        """Return the mean row of each clip, (N, D)."""
        return self.values.reshape(self.clips, self.group, -1).mean(1, dtype=np.float64)


@dataclass(frozen=True)
class Measuring:
    """One evaluation in progress."""

    generated: ClipSet
    real: ClipSet | None
    cache: Path
    train: ClipSet | None = None
    seed: int = 0
    batch: int = 8  # clips in memory at once
    workers: int | None = None  # processes that judge clips; None: one a core
    note: Callable[[str], None] = print
    progress: Progress = unseen
    share: Share = ALONE  # this process's part of the features; all of them meet in the cache
    _features: dict[tuple[str, ...], Rows] = field(default_factory=dict, repr=False, compare=False)

    def features(self, one: ClipSet, extractor: Extractor) -> Rows:
        """Return the features of a set, computed once and kept on disk.

        Raises:
            DataError: if a clip is too short for the extractor, with its name.
        """
        read_as = f"{extractor.name} {extractor.version} {extractor.preprocess}"
        identity = (read_as, *(clip.digest for clip in one.clips))
        if identity not in self._features:
            lengths = {len(used(one, extractor, index)) for index in range(len(one))}
            if extractor.per_frame and len(lengths) > 1:
                shown = f"from {min(lengths)} to {max(lengths)}"
                raise DataError(f"{one.label}: clips have {shown} frames, but {extractor.name} reads a fixed number")
            if self.share.count > 1:
                mine = self.share.of(one.clips, self.batch)
                self._computed(mine, extractor, f"{extractor.name}, first of {self.share.count} parts: {one.label}")
                self.share.wait()
            rows = self._computed(one.clips, extractor, f"{extractor.name}: {one.label}")
            values = torch.cat(rows).numpy()
            self._features[identity] = Rows(values, len(values) // len(one))
        return self._features[identity]

    def _computed(self, clips: Sequence[SetClip], extractor: Extractor, title: str) -> list[Tensor]:
        """Return the features of each clip, from the cache where it has them."""
        # Kernels that a GPU picks for speed alone would make another number of the same weights.
        exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
        with exact, self.progress(title, len(clips)) as on_clip:
            reads = ((clip.digest, clip.frames) for clip in clips)
            return list(features_of(reads, extractor, self.cache, batch=self.batch, note=self.note, on_clip=on_clip))

    def against(self) -> ClipSet:
        """Return the real clips; raises DataError if there are none."""
        if self.real is None:
            raise DataError("this metric compares with real clips: give --data")
        return self.real

    def protocol(self, *parts: str, real: bool = True, generated: bool = True) -> str:
        """Return a protocol line: ``parts``, how many clips, and the hash of what they were compared with."""
        counts = [f"n={len(self.generated)}"] if generated else []
        if real and self.real is not None:
            counts += [f"m={len(self.real)}", f"ref=sha256:{self.real.digest[:12]}"]
        return ",".join([*parts, *counts])

    def prompts(self, one: ClipSet | None = None) -> np.ndarray:
        """Return a label for the prompt of each clip; clips without one are alone."""
        return np.array([clip.prompt or f"\0{clip.key}" for clip in (one or self.generated).clips])

    def mean_value(
        self,
        metric: str,
        protocol: str,
        scores: np.ndarray,
        better: Literal["lower", "higher", "reference"],
        floor: "tuple[np.ndarray, ClipSet] | float | None" = None,
        note: str = "",
        share: bool = False,
    ) -> Value:
        """Return the mean of one score a clip, with its interval.

        Args:
            metric: its name.
            protocol: how it was measured.
            scores: one a clip, (N,).
            better: which way.
            floor: a number, or scores (M,) and whose they are, of which the mean is taken if there are two prompts.
            note: what else to say.
            share: whether scores are shares, in [0, 1].
        """
        scores, prompts = np.asarray(scores, np.float64), self.prompts()
        few = len(set(prompts.tolist())) < 2
        interval = None if few else mean_interval(scores, prompts, self.seed, share=share)
        per_clip = {clip.key: float(score) for clip, score in zip(self.generated.clips, scores, strict=True)}
        least, error = floor if isinstance(floor, float) else None, 0.0
        if isinstance(floor, tuple):
            others = np.asarray(floor[0], np.float64)
            error = standard_error_of_mean(others, self.prompts(floor[1]))
            least, error = (float(others.mean()), error) if np.isfinite(error) else (None, 0.0)
        return Value(metric, protocol, float(np.mean(scores)), better, interval, least, error, per_clip, note)


def check_read(sets: Iterable[ClipSet | None], extractor: Extractor, least: int = 1) -> None:
    """Refuse sets that an extractor cannot read, before it has read any.

    Raises:
        DataError: if a set has fewer than ``least`` clips, or a clip too few frames; the message names it.
    """
    for one in sets:
        if one is None:
            continue
        if len(one) < least:
            raise DataError(f"{one.label}: {len(one)} clips; {extractor.name} needs {least} or more: add clips")
        for index in range(len(one)):
            used(one, extractor, index)


def used(one: ClipSet, extractor: Extractor, index: int) -> range:
    """Return which frames of a clip an extractor reads; raises DataError if there are too few, and names the clip."""
    clip = one.clips[index]
    try:
        return extractor.preprocess.indices(clip.info.frames)
    except DataError as error:
        raise DataError(f"{one.label}, {clip.key}: {error}") from error


def short_hash(version: str) -> str:
    """Return the part of a hash that protocol lines show."""
    return f"sha256:{version[:12]}"
