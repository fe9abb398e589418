"""Reading clips: bytes in, RGB frames out, with limits checked before anything is decoded.

decord reads from memory; what it cannot open, or opens wrongly, goes through the bundled ffmpeg, which gets the bytes
through a private file and an explicit demuxer, so that a clip can never name another file or an address.
"""

import io
import math
import re
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vidiff.data.sniff import container
from vidiff.errors import DataError

MAX_BYTES = 1 << 30
MAX_FRAMES = 20_000
MAX_PIXELS = 1 << 24  # of one frame
MAX_TOTAL = 1 << 32  # bytes of all decoded frames
_TIMEOUT = 120  # seconds for one clip


@dataclass(frozen=True)
class Clip:
    """Decoded frames."""

    frames: np.ndarray  # uint8 (F, H, W, 3), RGB, upright, in presentation order
    fps: float


@dataclass(frozen=True)
class ClipInfo:
    """What is known of a clip before its frames are read."""

    frames: int
    height: int  # upright
    width: int
    fps: float
    stream: int = 0  # which of its video streams
    needs_ffmpeg: bool = False  # rotated, deeper than 8 bits, full range or of many streams: decord bends these
    indexed: bool = False  # said by an index and not seen yet: held to the clip when it is read


def read_clip(
    source: Path | bytes,
    *,
    name: str = "",
    info: ClipInfo | None = None,
    max_frames: int = MAX_FRAMES,
    max_pixels: int = MAX_PIXELS,
) -> Clip:
    """Decode a whole clip.

    Args:
        source: a file, or its bytes.
        name: what to call it in errors; the path by default.
        info: what `inspect` or an index said about it, to save inspecting again; a clip that turns out differently
            is an error.
        max_frames: refuse longer clips.
        max_pixels: refuse larger frames.

    Raises:
        DataError: if it is not a clip, is damaged, breaks a limit or is not what ``info`` says.
    """
    name = name or (str(source) if isinstance(source, Path) else "clip")
    data = _bytes_of(source, name)
    if info is None:
        info = inspect(data, name=name, max_frames=max_frames, max_pixels=max_pixels)
    _check_limits(info.frames, info.width, info.height, name, max_frames, max_pixels)
    frames = None if info.needs_ffmpeg else _by_decord(data, info)
    if frames is None and info.indexed:
        seen = inspect(data, name=name, max_frames=max_frames, max_pixels=max_pixels)
        check_index(info, seen, name)
        info = seen
    if frames is None:
        frames = _by_ffmpeg(data, info, name)
    return Clip(frames, info.fps)


def inspect(
    source: Path | bytes, *, name: str = "", max_frames: int = MAX_FRAMES, max_pixels: int = MAX_PIXELS
) -> ClipInfo:
    """Decode a clip without keeping its frames, to count them and to find damage.

    Raises:
        DataError: if it is not a clip, is damaged or breaks a limit; limits are checked before anything is decoded.
    """
    name = name or (str(source) if isinstance(source, Path) else "clip")
    data = _bytes_of(source, name)
    kind = container(data)
    if kind is None:
        raise DataError(f"{name}: not a clip (mp4, mov, mkv, webm, avi or gif)")
    with _private_file(data) as path:
        source_options = _input(kind, path, max_pixels)
        told = _ffmpeg(*source_options, name=name, level="info").stderr.decode(errors="replace")
        header = _parsed(told, name)
        roughly = int(header.seconds * header.fps / 1.1) - 2  # what a header says of the length is not exact
        _check_limits(roughly, header.width, header.height, name, max_frames, max_pixels)
        done = _ffmpeg(
            *("-xerror", "-err_detect", "explode", "-stats"),
            *source_options,
            *("-map", f"0:v:{header.stream}", "-fps_mode", "passthrough", "-frames:v", str(max_frames + 1)),
            *("-f", "null", "-"),
            name=name,
        )
    counts = re.findall(r"frame=\s*(\d+)", done.stderr.decode(errors="replace"))
    if done.returncode != 0 or not counts or int(counts[-1]) == 0:
        raise DataError(f"{name}: damaged: {_reason(done.stderr)}")
    frames = int(counts[-1])
    _check_limits(frames, header.width, header.height, name, max_frames, max_pixels)
    return ClipInfo(frames, header.height, header.width, header.fps, header.stream, header.needs_ffmpeg)


@dataclass(frozen=True)
class _Header:
    """What ffmpeg says about a clip before decoding it."""

    width: int  # upright
    height: int
    fps: float
    seconds: float  # 0 where it does not say
    stream: int
    needs_ffmpeg: bool


def _bytes_of(source: Path | bytes, name: str) -> bytes:
    if isinstance(source, bytes):
        data = source
    else:
        try:
            status = source.stat()
            if not stat.S_ISREG(status.st_mode):
                raise DataError(f"{name}: not a regular file")
            if status.st_size > MAX_BYTES:
                raise DataError(f"{name}: larger than {MAX_BYTES >> 20} MiB; cut it into clips first")
            data = source.read_bytes()
        except OSError as error:
            raise DataError(f"{name}: cannot be read: {error.strerror}") from error
    if not data:
        raise DataError(f"{name}: an empty file")
    return data


def _check_limits(frames: int, width: int, height: int, name: str, max_frames: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise DataError(f"{name}: {width}x{height} is more than {max_pixels} pixels a frame")
    most = min(max_frames, MAX_TOTAL // (3 * width * height))
    if frames > most:
        raise DataError(
            f"{name}: {frames} frames are more than fit ({most} of {width}x{height}); cut it into clips first"
        )


def check_index(told: ClipInfo, seen: ClipInfo, name: str) -> None:
    """Raise a DataError if a clip is not what an index told of it."""
    same = (told.frames, told.height, told.width) == (seen.frames, seen.height, seen.width)
    if not (same and _same_rate(told, seen.fps)):
        raise DataError(
            f"{name}: holds {seen.frames} frames of {seen.width}x{seen.height} at {seen.fps:g} fps, "
            f"but its index says {told.frames} of {told.width}x{told.height} at {told.fps:g} fps"
        )


def _same_rate(info: ClipInfo, fps: float) -> bool:
    return math.isclose(info.fps, fps, rel_tol=0.02)


def _by_decord(data: bytes, info: ClipInfo) -> np.ndarray | None:
    """Return the frames as decord reads them, or None where ffmpeg should try or tell what differs from ``info``."""
    if container(data) is None:
        return None
    try:
        import decord

        # One thread: with more, how damage is concealed depends on timing.
        reader = decord.VideoReader(io.BytesIO(data), num_threads=1)
        expected = (info.height, info.width, 3)
        # Looked at before all of them are decoded: a small file can hold frames of any size.
        if len(reader) != info.frames or reader.next().shape != expected:
            return None
        if info.indexed and not _same_rate(info, float(reader.get_avg_fps())):
            return None
        frames = reader.get_batch(range(info.frames)).asnumpy()
    except Exception:  # it raises its own error class, with pages of C++ in it, and is not made for every machine
        return None
    return frames if frames.shape[1:] == expected else None


def _by_ffmpeg(data: bytes, info: ClipInfo, name: str) -> np.ndarray:
    kind = container(data)
    if kind is None:
        raise DataError(f"{name}: not a clip (mp4, mov, mkv, webm, avi or gif)")
    frame_size = info.height * info.width * 3
    with _private_file(data) as path:
        done = _ffmpeg(
            *("-xerror", "-err_detect", "explode"),
            *_input(kind, path, info.width * info.height),
            *("-map", f"0:v:{info.stream}", "-fps_mode", "passthrough", "-frames:v", str(info.frames + 1)),
            *("-fs", str((info.frames + 1) * frame_size)),
            *("-vf", "scale=flags=accurate_rnd+full_chroma_int+bicubic", "-f", "rawvideo", "-pix_fmt", "rgb24"),
            "pipe:1",
            name=name,
        )
    if done.returncode != 0:
        raise DataError(f"{name}: damaged: {_reason(done.stderr)}")
    if len(done.stdout) != info.frames * frame_size:
        raise DataError(
            f"{name}: changed since it was opened; its index says {info.frames} frames of {info.width}x{info.height}"
        )
    return np.frombuffer(done.stdout, np.uint8).reshape(info.frames, info.height, info.width, 3).copy()


def _input(kind: str, path: str, max_pixels: int) -> tuple[str, ...]:
    """Return the options that let ffmpeg open this one file, as this container, and refuse larger frames."""
    # A decoder counts whole blocks and padding, so it needs room above the picture.
    room = 2 * max_pixels + (1 << 20)
    return ("-f", kind, "-protocol_whitelist", "file", "-max_pixels", str(room), "-i", f"file:{path}")


@contextmanager
def _private_file(data: bytes) -> Iterator[str]:
    """Give ffmpeg the bytes under a name of ours: some containers cannot be read from a pipe."""
    with tempfile.TemporaryDirectory(prefix="vidiff-") as folder:
        path = Path(folder) / "clip"
        path.write_bytes(data)
        yield str(path)


def _ffmpeg(*arguments: str, name: str, level: str = "error") -> "subprocess.CompletedProcess[bytes]":
    import imageio_ffmpeg

    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", "-loglevel", level, "-threads", "1"]
    try:
        return subprocess.run([*command, *arguments], capture_output=True, check=False, timeout=_TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise DataError(f"{name}: reading it took more than {_TIMEOUT} s; it is damaged or too long") from error


def _reason(stderr: bytes) -> str:
    """Return the first complaint of ffmpeg, without addresses in memory and progress."""
    for line in stderr.decode(errors="replace").splitlines():
        text = re.sub(r"^\[[^\]]*\]\s*", "", line.strip())
        if text and not text.startswith("frame="):
            return text
    return "no frame can be decoded"


# Lines are told from a clip's own titles, which are printed too, by their place in the line.
_STREAM = re.compile(r"^  Stream #0:\d+.*?: Video: (.*(?:\n {4,}.*)*)", re.MULTILINE)
_SIZE = re.compile(r"\b(\d{1,6})x(\d{1,6})\b")
_FPS = re.compile(r"([\d.]+)(k?) fps")
_DURATION = re.compile(r"^  Duration: (\d+):(\d+):([\d.]+)", re.MULTILINE)
_ROTATION = re.compile(r"^ +[Dd]isplay ?[Mm]atrix: rotation of (-?[\d.]+) degrees", re.MULTILINE)
_DEEP = re.compile(r"p(9|10|12|14|16)[lb]e|yuv\w+\(pc[,)]")
_COVER = "(attached pic)"


def _parsed(told: str, name: str) -> _Header:
    """Read what ffmpeg prints about its input; the largest stream is the one to read."""
    streams = _STREAM.findall(told)
    found = [None if _COVER in stream else _SIZE.search(stream) for stream in streams]
    sizes = [(int(size[1]), int(size[2])) if size else (0, 0) for size in found]
    best = max(range(len(streams)), key=lambda i: sizes[i][0] * sizes[i][1], default=None)
    if best is None or 0 in sizes[best]:
        raise DataError(f"{name}: has no video stream that can be read")
    (width, height), stream = sizes[best], streams[best].split("\n", 1)[0]
    rate, duration, rotation = _FPS.search(stream), _DURATION.search(told), _ROTATION.search(streams[best])
    fps = float(rate[1]) * (1000 if rate[2] else 1) if rate else 0.0
    if not 0 < fps <= 1000:
        raise DataError(f"{name}: says no frame rate that makes sense")
    seconds = int(duration[1]) * 3600 + int(duration[2]) * 60 + float(duration[3]) if duration else 0.0
    if rotation is not None and round(float(rotation[1]) / 90) % 2:
        width, height = height, width
    needs_ffmpeg = rotation is not None or len(streams) > 1 or _DEEP.search(stream) is not None
    return _Header(width, height, fps, seconds, best, needs_ffmpeg)
