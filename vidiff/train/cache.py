"""Latents, frames and text states on disk, computed once for a given model and given data.

The folder's name holds the fingerprints of all that decides its content, so a changed model or preprocessing never
meets stale numbers. Parts are written whole, one by one: a killed run goes on where it stopped.
"""

import hashlib
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Protocol

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vidiff.checkpoint import read_tensors, write_tensors
from vidiff.data.clips import Clips
from vidiff.files import atomic_path
from vidiff.models.build import Autoencoder
from vidiff.train.stream import encoded
from vidiff.types import TextEmbedding, TextEncoder

_PART = 128  # clips or captions in one file
_TOGETHER = 16  # captions encoded in one batch
_FEW = 256  # clips that one process has read before others have started

Spans = list[list[int]]  # indices of clips or captions, those of one file together


def cached_latents(
    root: Path, autoencoder: Autoencoder, autoencoder_hash: str, data: Clips, console: Console
) -> list[Tensor]:
    """Return the normalized latents of every clip, N of them, float16 (C, f, h, w)."""

    def encode(spans: Spans) -> Iterator[dict[str, Tensor]]:
        with closing(read_clips(data, list(chain(*spans)))) as clips:
            for span in spans:
                # One at a time: equal bytes whatever the parts, and memory stays small.
                yield {f"{index:08d}": encoded(autoencoder, next(clips)) for index in span}

    folder = root / f"latents-{digest(autoencoder_hash, data.fingerprint)}"
    parts = parts_of(folder, len(data), encode, "encoding clips", console)
    return [part[name] for part in parts for name in sorted(part)]


def cached_clips(root: Path, data: Clips, console: Console) -> list[Tensor]:
    """Return the frames of every clip, N of them, uint8 (F, H, W, 3), read or rendered once."""

    def read(spans: Spans) -> Iterator[dict[str, Tensor]]:
        with closing(read_clips(data, list(chain(*spans)))) as clips:
            for span in spans:
                yield {f"{index:08d}": next(clips).contiguous() for index in span}

    parts = parts_of(root / f"clips-{digest(data.fingerprint)}", len(data), read, "reading clips", console)
    return [part[name] for part in parts for name in sorted(part)]


def read_clips(data: Clips, indices: list[int]) -> Generator[Tensor, None, None]:
    """Yield the clips of ``indices``, uint8 (F, H, W, 3), in that order, read ahead by a process on every core."""
    workers, threads = os.cpu_count() or 1, torch.get_num_threads()
    if len(indices) <= _FEW or workers == 1:
        yield from map(data.clip, indices)
        return
    # Spawned, since forked processes would inherit the locks of this one's compute threads.
    loader = DataLoader(
        _ByIndex(data), batch_size=None, sampler=indices, num_workers=workers, multiprocessing_context="spawn"
    )
    torch.set_num_threads(1)  # threads that wait for one another on busy cores would slow all down
    try:
        for clip in loader:
            yield clip.clone()  # what a process sends lies in shared memory, of which there may be little
    finally:
        torch.set_num_threads(threads)


class Captions(Protocol):
    """What of `Clips` is asked for its captions."""

    fingerprint: str

    def __len__(self) -> int: ...

    def captions(self, index: int) -> list[str]: ...


class _ByIndex(Dataset[Tensor]):
    def __init__(self, data: Clips):
        self.data = data

    def __getitem__(self, index: int) -> Tensor:
        return self.data.clip(index)


@dataclass(frozen=True)
class CachedText:
    """Token states of all captions of all clips, one after the other."""

    tokens: Tensor  # (sum of lengths, D), float16
    starts: Tensor  # (M + 1,), int64: caption m holds tokens[starts[m] : starts[m + 1]]
    captions: list[str]  # M
    first: list[int]  # N + 1: clip i has the captions first[i] ... first[i + 1] - 1

    def caption(self, number: int) -> str:
        """Return caption ``number`` of all."""
        return self.captions[number]

    def of_clip(self, index: int) -> range:
        """Return the numbers of a clip's captions."""
        return range(self.first[index], self.first[index + 1])

    def embedding(self, captions: list[int]) -> TextEmbedding:
        """Return the states of these captions, padded to the longest."""
        spans = [self.tokens[self.starts[m] : self.starts[m + 1]].float() for m in captions]
        tokens = torch.nn.utils.rnn.pad_sequence(spans, batch_first=True)
        lengths = torch.tensor([len(span) for span in spans])
        return TextEmbedding(tokens, torch.arange(tokens.shape[1]) < lengths[:, None])


def cached_text(root: Path, encoder: TextEncoder, encoder_hash: str, data: Captions, console: Console) -> CachedText:
    """Return the token states of every caption."""
    by_clip = [data.captions(index) for index in range(len(data))]
    captions = [caption for one in by_clip for caption in one]

    @torch.no_grad()
    def encode(spans: Spans) -> Iterator[dict[str, Tensor]]:
        for span in spans:
            states: dict[int, Tensor] = {}
            # Captions of one length together: padding would be half of the work.
            by_length = sorted(span, key=lambda index: len(captions[index]))
            for some in (by_length[start : start + _TOGETHER] for start in range(0, len(span), _TOGETHER)):
                embedding = encoder.encode([captions[index] for index in some]).to("cpu")
                states |= {
                    index: tokens[mask].half()
                    for index, tokens, mask in zip(some, embedding.tokens, embedding.mask, strict=True)
                }
            ordered = [states[index] for index in span]
            yield {"tokens": torch.cat(ordered), "lengths": torch.tensor([len(one) for one in ordered])}

    folder = root / f"text-{digest(encoder_hash, data.fingerprint)}"
    parts = parts_of(folder, len(captions), encode, "encoding captions", console)
    lengths = torch.cat([part["lengths"] for part in parts])
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    counts = torch.tensor([0, *(len(one) for one in by_clip)]).cumsum(0)
    return CachedText(torch.cat([part["tokens"] for part in parts]), starts, captions, counts.tolist())


def parts_of(
    folder: Path, count: int, compute: Callable[[Spans], Iterator[dict[str, Tensor]]], what: str, console: Console
) -> list[dict[str, Tensor]]:
    spans = [list(range(start, min(start + _PART, count))) for start in range(0, count, _PART)]
    paths = [folder / f"{number:05d}.safetensors" for number in range(len(spans))]
    missing = [(path, span) for path, span in zip(paths, spans, strict=True) if not path.is_file()]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        computed = compute([span for _, span in missing])
        quiet = not console.is_terminal
        for path, _ in track(missing, what, console=console, disable=quiet):
            tensors = next(computed)
            with atomic_path(path) as temporary:
                write_tensors(temporary, tensors)
    return [read_tensors(path) for path in paths]


def digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
