"""Writing clips: mp4, gif, webp, a contact sheet or single frames, each with its metadata inside.

The same frames give the same bytes with one version of the encoder: no clock, and one encoding thread.
"""

import json
import math
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from vidiff.errors import ConfigError, ResourceError, did_you_mean
from vidiff.files import atomic_path, os_errors_named

Format = Literal["mp4", "gif", "webp", "png-sheet", "frames"]
FORMATS: tuple[str, ...] = get_args(Format)

_SUFFIXES = {".mp4": "mp4", ".gif": "gif", ".webp": "webp", ".png": "png-sheet", "": "frames"}
METADATA_KEY = "vidiff"  # of PNG text chunks
MAX_METADATA = 100_000  # bytes: an argument of a command, which is how ffmpeg gets it, holds at most 128 KiB


def format_of(path: Path, wanted: str | None = None) -> str:
    """Return the format of an output file: ``wanted``, or what the suffix says.

    Raises:
        ConfigError: if there is no such format or the suffix says nothing.
    """
    if wanted is not None:
        if wanted not in FORMATS:
            raise ConfigError(
                f"unknown format {wanted!r}.{did_you_mean(wanted, FORMATS)} Formats: {', '.join(FORMATS)}."
            )
        return wanted
    if path.suffix.lower() not in _SUFFIXES:
        raise ConfigError(
            f"{path}: cannot tell the format from {path.suffix!r}; use .mp4, .gif, .webp, .png or --format"
        )
    return _SUFFIXES[path.suffix.lower()]


def suffix_of(format: str) -> str:
    """Return the suffix of files in ``format``; frames are a folder and have none."""
    return next(suffix for suffix, name in _SUFFIXES.items() if name == format)


def write_video(
    path: Path,
    frames: np.ndarray,
    fps: float,
    *,
    format: str | None = None,
    metadata: dict[str, Any] | None = None,
    lossless: bool = False,
) -> None:
    """Write a clip whole or not at all.

    Args:
        path: file, or folder for single frames.
        frames: uint8 (F, H, W, 3), RGB.
        fps: frames a second.
        format: one of `FORMATS`; None goes by the suffix.
        metadata: plain data stored inside, for `vidiff.data.metadata.read_metadata`.
        lossless: mp4 only: exact RGB, which few players show.

    Raises:
        ConfigError: for an unknown format, or metadata too large to store.
        ResourceError: if the file cannot be written.
    """
    text = "" if metadata is None else json.dumps(metadata, ensure_ascii=True)
    if len(text) > MAX_METADATA:
        raise ConfigError(f"{path}: {len(text)} bytes of metadata; {MAX_METADATA} are the most that fit inside")
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not frames.size:
        raise ValueError(f"frames must be uint8 (F, H, W, 3), got {frames.dtype} {frames.shape}")
    kind = format_of(path, format)
    with os_errors_named(path), atomic_path(path) as temporary:
        match kind:
            case "mp4":
                _write_mp4(temporary, frames, fps, text, lossless)
            case "gif":
                _write_gif(temporary, frames, fps, text)
            case "webp":
                _write_webp(temporary, frames, fps, text)
            case "png-sheet":
                _save_png(temporary, contact_sheet(frames), text)
            case _:
                temporary.mkdir()
                for index, frame in enumerate(frames):
                    _save_png(temporary / f"{index:05d}.png", frame, "")
                (temporary / "metadata.json").write_text(json.dumps({"fps": fps} | (metadata or {}), indent=1))


def contact_sheet(frames: np.ndarray, columns: int | None = None) -> np.ndarray:
    """Return all frames, uint8 (F, H, W, 3), in one picture, row by row, two pixels apart."""
    count, height, width = frames.shape[:3]
    columns = columns or math.ceil(math.sqrt(count * height / width))
    rows, gap = math.ceil(count / columns), 2
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for index, frame in enumerate(frames):
        row, column = divmod(index, columns)
        sheet[row * (height + gap) :, column * (width + gap) :][:height, :width] = frame
    return sheet


def write_png(path: Path, image: np.ndarray) -> None:
    """Write an uint8 (H, W, 3) picture; raises ResourceError if it cannot be written."""
    with os_errors_named(path), atomic_path(path) as temporary:
        _save_png(temporary, image, "")


def upscaled(frames: np.ndarray, factor: int) -> np.ndarray:
    """Repeat every pixel ``factor`` times along height and width, as pixel art wants it."""
    return frames.repeat(factor, axis=1).repeat(factor, axis=2)


def _write_mp4(path: Path, frames: np.ndarray, fps: float, text: str, lossless: bool) -> None:
    import imageio_ffmpeg

    height, width = frames.shape[1:3]
    even = height % 2 == 0 and width % 2 == 0
    codec = ["-c:v", "libx264rgb", "-crf", "0"] if lossless else ["-c:v", "libx264", "-crf", "12"]
    # Players want 4:2:0, which odd sizes cannot have.
    pixels = [] if lossless else ["-pix_fmt", "yuv420p" if even else "yuv444p"]
    color = [] if lossless else ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709"]
    matrix = [] if lossless else ["-vf", "scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int"]
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        *("-hide_banner", "-loglevel", "error", "-y"),
        *("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps:.6g}", "-i", "pipe:0"),
        *matrix,
        *codec,
        *pixels,
        *color,
        *("-threads", "1", "-fflags", "+bitexact", "-flags:v", "+bitexact", "-map_metadata", "-1"),
        *("-metadata", f"comment={text}", "-movflags", "+faststart", "-f", "mp4"),
        f"file:{path}",  # or a colon in a folder's name would be taken for a protocol
    ]
    data = np.ascontiguousarray(frames).tobytes()
    done = subprocess.run(command, input=data, capture_output=True, check=False)  # a list, never a shell string
    if done.returncode != 0:
        reason = done.stderr.decode(errors="replace").strip().splitlines()
        raise ResourceError(f"{path}: ffmpeg could not write it: {reason[-1] if reason else done.returncode}")


def _write_gif(path: Path, frames: np.ndarray, fps: float, text: str) -> None:
    from PIL import Image

    # One palette for the whole clip, or flat areas would flicker.
    stacked = Image.fromarray(frames.reshape(-1, *frames.shape[2:]))
    palette = stacked.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    # GIF counts hundredths of a second, so the frames' ends are rounded and not their lengths, or errors would add up;
    # browsers slow anything below two hundredths down.
    ends = [round(100 * index / fps) for index in range(len(frames) + 1)]
    durations = [max(20, 10 * (end - start)) for start, end in pairwise(ends)]
    images[0].save(
        path,
        format="gif",
        save_all=True,
        append_images=images[1:],
        duration=durations,
        loop=0,
        comment=text.encode(),
        optimize=False,
        disposal=1,
    )


def _write_webp(path: Path, frames: np.ndarray, fps: float, text: str) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x9286] = text  # UserComment
    images = [Image.fromarray(frame) for frame in frames]
    images[0].save(
        path,
        format="webp",
        save_all=True,
        append_images=images[1:],
        duration=round(1000 / fps),
        loop=0,
        lossless=True,
        exif=exif.tobytes(),
    )


def _save_png(path: Path, image: np.ndarray, text: str) -> None:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    if text:
        info.add_itxt(METADATA_KEY, text)
    Image.fromarray(image).save(path, format="png", pnginfo=info)
