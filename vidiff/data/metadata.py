"""Reading back the metadata that `write_video` stored inside a file."""

import json
import struct
from pathlib import Path
from typing import Any, BinaryIO

from vidiff.data.video_write import METADATA_KEY
from vidiff.errors import DataError

_MAX_TEXT = 1 << 20  # bytes
_CONTAINERS = {b"moov", b"udta", b"ilst"}


def read_metadata(path: Path) -> dict[str, Any] | None:
    """Return the stored metadata of an mp4, gif, webp, contact sheet or frames folder; None if it has none.

    Raises:
        DataError: if the file cannot be read or is none of these.
    """
    try:
        if path.is_dir():
            text = (path / "metadata.json").read_text("utf-8") if (path / "metadata.json").is_file() else ""
        else:
            with path.open("rb") as file:
                head = file.read(16)
                text = _mp4_comment(file) if head[4:8] == b"ftyp" else _image_text(path)
        found = json.loads(text) if text else None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except DataError:
        raise
    except (ValueError, struct.error):
        return None  # a comment that is not ours
    return found if isinstance(found, dict) else None


def _image_text(path: Path) -> str:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            match image.format:
                case "PNG":
                    text = str(image.info.get(METADATA_KEY, ""))
                case "GIF":
                    text = image.info.get("comment", b"").decode(errors="replace")
                case "WEBP":
                    text = str(image.getexif().get(0x9286, ""))
                case _:
                    text = ""
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: not an mp4, gif, webp or png file") from error
    return text


def _mp4_comment(file: BinaryIO) -> str:
    """Return the iTunes-style comment: moov / udta / meta / ilst / ©cmt / data."""
    file.seek(0, 2)
    return _find_comment(file, 0, file.tell(), depth=0)


def _find_comment(file: BinaryIO, start: int, end: int, depth: int) -> str:
    position = start
    while position + 8 <= end and depth < 8:
        file.seek(position)
        size, kind = struct.unpack(">I4s", file.read(8))
        header = 8
        if size == 1:
            (size,) = struct.unpack(">Q", file.read(8))
            header = 16
        stop = min(end, position + size) if size else end
        if size and size < header:
            return ""
        inside = position + header
        if kind in _CONTAINERS or kind == b"\xa9cmt":
            found = _find_comment(file, inside, stop, depth + 1)
        elif kind == b"meta":
            found = _find_comment(file, inside + 4, stop, depth + 1)  # a version and flags come first
        elif kind == b"data" and depth > 3 and stop - inside - 8 <= _MAX_TEXT:
            file.seek(inside + 8)  # past type and locale
            found = file.read(stop - inside - 8).decode(errors="replace")
        else:
            found = ""
        if found:
            return found
        position = stop
    return ""
