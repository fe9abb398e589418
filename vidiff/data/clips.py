"""What training asks of its data, whether it is read from files or rendered."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from vidiff.data.dataset import ClipDataset, DataConfig
from vidiff.data.fates import Fates
from vidiff.data.toyworld.dataset import ToyWorld, ToyWorldConfig

ClipsConfig = DataConfig | ToyWorldConfig


class Clips(Protocol):
    """Captioned clips by index."""

    fates: Fates
    fingerprint: str
    """A hash of all that decides what comes out, for caches."""

    @property
    def config(self) -> ClipsConfig: ...

    @property
    def fps(self) -> float: ...

    def __len__(self) -> int: ...

    def key(self, index: int) -> str:
        """Return a clip's name, for messages."""
        ...

    def captions(self, index: int) -> list[str]:
        """Return the main caption, then the alternative ones."""
        ...

    def groups(self) -> list[int] | None:
        """Return the number of each clip's bucket, or None where all clips have one shape."""
        ...

    def clip(self, index: int, start: float = 0.5) -> Tensor:
        """Return a sample, uint8 (F, H, W, 3); of a longer clip, the window that ``start`` in [0, 1] asks for."""
        ...


def open_clips(config: ClipsConfig, on_clip: Callable[[int], None] = lambda done: None) -> Clips:
    """Return the clips that ``config`` means; ``on_clip`` hears how many were looked at.

    Raises:
        DataError: if nothing can be used; the message says why.
    """
    match config:
        case DataConfig():
            return ClipDataset(config, on_clip)
        case ToyWorldConfig():
            return ToyWorld(config)
