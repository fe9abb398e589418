"""Writing pictures of clips."""

import math
from pathlib import Path

import numpy as np

from vidiff.files import atomic_path


def contact_sheet(frames: np.ndarray, columns: int | None = None) -> np.ndarray:
    """Return all frames, uint8 (F, H, W, 3), in one picture, row by row, a pixel apart."""
    count, height, width = frames.shape[:3]
    columns = columns or math.ceil(math.sqrt(count * height / width))
    rows = math.ceil(count / columns)
    sheet = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, 3), 255, np.uint8)
    for index, frame in enumerate(frames):
        y, x = divmod(index, columns)
        sheet[y * (height + 1) :, x * (width + 1) :][:height, :width] = frame
    return sheet


def write_png(path: Path, image: np.ndarray) -> None:
    """Write an uint8 (H, W, 3) picture."""
    from PIL import Image

    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary, format="png")
