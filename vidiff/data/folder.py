"""Captioned clips in a plain folder: a text file beside each, or one list for all."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vidiff.data.shards import CAPTION_SUFFIXES, VIDEO_SUFFIXES
from vidiff.errors import DataError

LISTS = ("metadata.jsonl", "metadata.csv")
MAX_CAPTION = 10_000  # bytes
_MAX_FILE = 1 << 20  # bytes of a file beside a clip
_MAX_LIST = 256 << 20  # bytes


def read_folder(folder: Path) -> list[tuple[Path, list[str] | DataError]]:
    """Return the clips of a folder, in the order of their names or of the list, each with its captions.

    A clip whose caption is missing or cannot be read comes with the error instead.

    Raises:
        DataError: if the list itself cannot be read or names files outside the folder.
    """
    listed = _list_of(folder)
    if listed is not None:
        return [(clip, _told(row, place)) for place, clip, row in _listed(folder, listed)]
    found = (path for path in folder.rglob("*") if not path.name.startswith("."))  # hidden, such as half-written ones
    clips = sorted(path for path in found if path.suffix.lower().lstrip(".") in VIDEO_SUFFIXES)
    return [(path, _beside(path)) for path in clips if path.is_file()]


def listed_rows(folder: Path) -> dict[Path, dict[str, Any]]:
    """Return all that the list of a folder says of each clip; nothing if it has none. Raises as `read_folder`."""
    listed = _list_of(folder)
    return {} if listed is None else {clip: row for _, clip, row in _listed(folder, listed)}


def caption_text(data: bytes, place: str) -> str:
    """Return a caption as one line of text.

    Raises:
        DataError: if it is not UTF-8, empty, or too long.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: not UTF-8 at byte {error.start}") from error
    return checked_caption(text, place)


def checked_caption(text: object, place: str) -> str:
    """Return ``text`` on one line if it is a caption; raise a DataError that names ``place`` if it is not."""
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{place}: the caption is empty")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise DataError(f"{place}: character {error.start} of the caption is half of a surrogate pair") from error
    if size > MAX_CAPTION:
        raise DataError(f"{place}: the caption has {size} bytes; {MAX_CAPTION} are the most")
    if "\0" in text:
        raise DataError(f"{place}: the caption holds a NUL character; is it UTF-16?")
    return " ".join(text.split())


def captions_of(row: object, place: str) -> list[str]:
    """Return the caption and the alternative captions of a JSON object; raise a DataError if it has none."""
    if not isinstance(row, dict):
        raise DataError(f"{place}: not an object with a caption")
    others = row.get("alt_captions") or []
    if not isinstance(others, list):
        raise DataError(f"{place}: alt_captions is not a list")
    return [checked_caption(text, place) for text in [row.get("caption", row.get("text")), *others]]


def _beside(clip: Path) -> list[str] | DataError:
    try:
        for suffix in CAPTION_SUFFIXES:
            path = clip.with_suffix(f".{suffix}")
            if path.is_file():
                data = _small(path)
                return (
                    captions_of(_json(data, path), str(path)) if suffix == "json" else [caption_text(data, str(path))]
                )
    except DataError as error:
        return error
    except OSError as error:
        return DataError(f"{clip}: its caption cannot be read: {error.strerror}")
    return DataError(f"{clip}: no caption; put it into {clip.with_suffix('.txt').name} beside the clip")


def _small(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(_MAX_FILE + 1)
    if len(data) > _MAX_FILE:
        raise DataError(f"{path}: larger than {_MAX_FILE >> 20} MiB, which is no caption")
    return data


def _json(data: bytes, path: Path) -> object:
    try:
        return json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}") from error


def _list_of(folder: Path) -> Path | None:
    return next((folder / name for name in LISTS if (folder / name).is_file()), None)


def _told(row: dict[str, Any], place: str) -> list[str] | DataError:
    try:
        return captions_of(row, place)
    except DataError as error:
        return error


def _listed(folder: Path, path: Path) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """Yield the place of each row, the clip that it is about, and the row."""
    if path.stat().st_size > _MAX_LIST:
        raise DataError(f"{path}: larger than {_MAX_LIST >> 20} MiB")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}") from error
    rows = _csv_rows(text, path) if path.suffix == ".csv" else _json_rows(text, path)
    for number, row in rows:
        place = f"{path}:{number}"
        if not isinstance(row, dict) or not isinstance(name := row.get("file_name"), str) or not name:
            raise DataError(f"{place}: needs file_name and caption")
        clip = folder / name
        if not clip.resolve().is_relative_to(folder.resolve()):
            raise DataError(f"{place}: {name} lies outside {folder}")
        yield place, clip, row


def _csv_rows(text: str, path: Path) -> Iterator[tuple[int, object]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not CSV: {error}") from error


def _json_rows(text: str, path: Path) -> Iterator[tuple[int, object]]:
    # Not splitlines: the strings of JSON may hold other line ends.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}:{number}: not JSON: {error}") from error
