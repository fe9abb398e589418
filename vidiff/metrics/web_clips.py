"""Clips as browsers play them: small mp4 files in H.264 with 4:2:0 colors, and the same inside a page."""

import base64
import io
import math
import tempfile
from html import escape
from pathlib import Path

import numpy as np

from vidiff.data.sniff import container
from vidiff.data.video_io import Clip, read_clip
from vidiff.data.video_write import write_video
from vidiff.errors import DataError
from vidiff.files import size_text

CLIP_BYTES = 400_000  # of an embedded clip; larger ones are made small
_LEAST_SIDE = 96  # pixels of the longer side: below, nothing can be seen
_POSTER_SIDE = 224
_PLAYED = (66, 77, 100)  # H.264's baseline, main and high profiles; others have colors that browsers refuse
_PIXEL_ART = 128  # a longer side up to this is enlarged pixel by pixel


class Album:
    """The clips of one page, each embedded once, as long as the page's bytes last."""

    def __init__(self, max_bytes: int) -> None:
        """Begin an album of at most ``max_bytes`` of text."""
        self.max_bytes = max_bytes
        self.shrunk = 0  # clips that were encoded again
        self.omitted = 0  # clips that did not fit
        self._used = 0
        self._places: dict[str, str] = {}

    def video(self, path: str, label: str) -> str:
        """Return a muted <video> of a clip, its first frame as the poster, or a line that says why there is none."""
        options = f'muted loop playsinline preload="none" tabindex="0" aria-label="{escape(label)}"'
        if path in self._places:
            return f'<video {options} data-same="{self._places[path]}"></video>'
        if not path:
            return '<p class="absent">in a shard</p>'
        try:
            clip = read_clip(Path(path))
            data = Path(path).read_bytes()
        except (OSError, DataError) as error:
            return f'<p class="absent">{escape(str(error))}</p>'
        small = len(data) <= CLIP_BYTES and _is_played(data)
        poster = _data_url("image/webp", _poster(clip.frames[0]))
        source = _data_url("video/mp4", data if small else encoded(clip, CLIP_BYTES))
        if self._used + len(poster) + len(source) > self.max_bytes:
            self.omitted += 1
            return '<p class="absent">left out: the page is full</p>'
        self._used += len(poster) + len(source)
        self.shrunk += not small
        place = self._places[path] = f"clip{len(self._places)}"
        pixels = ' class="pixels"' if max(clip.frames.shape[1:3]) <= _PIXEL_ART else ""
        return f'<video {options} id="{place}"{pixels} poster="{poster}" src="{source}"></video>'

    def summary(self) -> str:
        """Say what the limit is and what was done to clips."""
        parts = [f"Clips take at most {size_text(self.max_bytes)} of this page"]
        if self.shrunk:
            parts.append(f"{self.shrunk} of {len(self._places)} were encoded again, small and for browsers")
        if self.omitted:
            parts.append(f"{self.omitted} did not fit")
        return f"{'; '.join(parts)}."


def encoded(clip: Clip, max_bytes: int) -> bytes:
    """Return a clip as an mp4 without metadata, made smaller until it fits or little could be seen of it.

    Raises:
        ResourceError: if it cannot be written.
    """
    side = max(clip.frames.shape[1:3])
    with tempfile.TemporaryDirectory(prefix="vidiff-") as folder:
        path = Path(folder) / "clip.mp4"
        while True:
            write_video(path, np.stack([_resized(frame, side) for frame in clip.frames]), clip.fps)
            data = path.read_bytes()
            if len(data) <= max_bytes or side <= _LEAST_SIDE:
                return data
            # Bytes go with the area, roughly.
            side = max(_LEAST_SIDE, int(side * min(0.9, math.sqrt(max_bytes / len(data)))))


def _resized(frame: np.ndarray, side: int) -> np.ndarray:
    """Return a frame of an even size, which 4:2:0 needs, that is no larger than ``side``."""
    from PIL import Image

    height, width = frame.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = (max(2, 2 * round(width * scale / 2)), max(2, 2 * round(height * scale / 2)))
    return frame if size == (width, height) else np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX))


def _poster(frame: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(_resized(frame, _POSTER_SIDE)).save(file, "webp", quality=85)
    return file.getvalue()


def _is_played(data: bytes) -> bool:
    """Return whether every browser plays this file; the profile stands behind its decoder's configuration."""
    place = data.find(b"avcC")
    return container(data) == "mov" and 0 < place < len(data) - 5 and data[place + 5] in _PLAYED


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
