"""Reading clips: bytes in, RGB frames out, with limits checked before anything is decoded.

decord reads from memory; what it cannot open, or opens wrongly, goes through the bundled ffmpeg, which gets the bytes
through a private file and an explicit demuxer, so that a clip can never name another file or an address.
"""

import io
import re
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
        info: what `inspect` or a trusted index said about it, to save inspecting again; a clip that turns out
            differently is an error.
        max_frames: refuse longer clips.
        max_pixels: refuse larger frames.

    Raises:
        DataError: if it is not a clip, is damaged, breaks a limit or is not what ``info`` says.
    """
    name = name or (str(source) if isinstance(source, Path) else "clip")
    data = _bytes_of(source, name)
    if info is None:
        info = inspect(data, name=name, max_frames=max_frames, max_pixels=max_pixels)
    clip = None if info.needs_ffmpeg else _by_decord(data)
    if clip is None:
        clip = _by_ffmpeg(data, info, name)
    found = clip.frames.shape[:3]
    if found != (info.frames, info.height, info.width):
        raise DataError(
            f"{name}: holds {found[0]} frames of {found[2]}x{found[1]}, "
            f"but its index says {info.frames} of {info.width}x{info.height}"
        )
    return Clip(clip.frames, info.fps)


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
        source_options = ("-f", kind, "-protocol_whitelist", "file", "-i", path)
        told = _ffmpeg(*source_options, name=name, level="info").stderr.decode(errors="replace")
        header = _parsed(told, name)
        _check_limits(header, name, max_frames, max_pixels)
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
    if int(counts[-1]) > max_frames:
        raise DataError(f"{name}: more than {max_frames} frames; cut it into clips first")
    return ClipInfo(int(counts[-1]), header.height, header.width, header.fps, header.stream, header.needs_ffmpeg)


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
            if source.stat().st_size > MAX_BYTES:
                raise DataError(f"{name}: larger than {MAX_BYTES >> 20} MiB; cut it into clips first")
            data = source.read_bytes()
        except OSError as error:
            raise DataError(f"{name}: cannot be read: {error.strerror}") from error
    if not data:
        raise DataError(f"{name}: an empty file")
    return data


def _check_limits(header: _Header, name: str, max_frames: int, max_pixels: int) -> None:
    pixels = header.width * header.height
    frames = header.seconds * header.fps
    if pixels > max_pixels:
        raise DataError(f"{name}: {header.width}x{header.height} is more than {max_pixels} pixels a frame")
    if frames > 1.1 * max_frames + 2 or frames * pixels * 3 > MAX_TOTAL:
        raise DataError(f"{name}: about {frames:.0f} frames are more than fit; cut it into clips first")


def _by_decord(data: bytes) -> Clip | None:
    """Return the frames as decord reads them, or None where ffmpeg should try."""
    if container(data) is None:
        return None
    import decord

    try:
        # One thread: with more, how damage is concealed depends on timing.
        reader = decord.VideoReader(io.BytesIO(data), num_threads=1)
        frames = reader.get_batch(range(min(len(reader), MAX_FRAMES))).asnumpy()
        return Clip(frames, float(reader.get_avg_fps()))
    except Exception:  # decord raises its own error class, with pages of C++ in it
        return None


def _by_ffmpeg(data: bytes, info: ClipInfo, name: str) -> Clip:
    kind = container(data)
    if kind is None:
        raise DataError(f"{name}: not a clip (mp4, mov, mkv, webm, avi or gif)")
    with _private_file(data) as path:
        done = _ffmpeg(
            *("-xerror", "-err_detect", "explode"),
            *("-f", kind, "-protocol_whitelist", "file", "-i", path),
            *("-map", f"0:v:{info.stream}", "-fps_mode", "passthrough", "-frames:v", str(info.frames + 1)),
            *("-vf", "scale=flags=accurate_rnd+full_chroma_int+bicubic", "-f", "rawvideo", "-pix_fmt", "rgb24"),
            "pipe:1",
            name=name,
        )
    count, rest = divmod(len(done.stdout), info.height * info.width * 3)
    if done.returncode != 0 or rest or count == 0:
        raise DataError(f"{name}: damaged: {_reason(done.stderr)}")
    return Clip(np.frombuffer(done.stdout, np.uint8).reshape(count, info.height, info.width, 3), info.fps)


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


_STREAM = re.compile(r"Stream #0:\d+.*?: Video: (.*)")
_SIZE = re.compile(r"\b(\d{1,6})x(\d{1,6})\b")
_FPS = re.compile(r"([\d.]+)(k?) fps")
_DURATION = re.compile(r"Duration: (\d+):(\d+):([\d.]+)")
_ROTATION = re.compile(r"rotation of (-?[\d.]+) degrees")
_DEEP = re.compile(r"p(9|10|12|14|16)[lb]e|\(pc[,)]")


def _parsed(told: str, name: str) -> _Header:
    """Read what ffmpeg prints about its input; the largest stream is the one to read."""
    streams = _STREAM.findall(told)
    sizes = [(int(size[1]), int(size[2])) if (size := _SIZE.search(stream)) else (0, 0) for stream in streams]
    best = max(range(len(streams)), key=lambda i: sizes[i][0] * sizes[i][1], default=None)
    if best is None or 0 in sizes[best]:
        raise DataError(f"{name}: has no video stream that can be read")
    (width, height), stream = sizes[best], streams[best]
    rate, duration, rotation = _FPS.search(stream), _DURATION.search(told), _ROTATION.search(told)
    fps = float(rate[1]) * (1000 if rate[2] else 1) if rate else 0.0
    if not 0 < fps <= 1000:
        raise DataError(f"{name}: says no frame rate that makes sense")
    seconds = int(duration[1]) * 3600 + int(duration[2]) * 60 + float(duration[3]) if duration else 0.0
    if rotation is not None and round(float(rotation[1]) / 90) % 2:
        width, height = height, width
    needs_ffmpeg = rotation is not None or len(streams) > 1 or _DEEP.search(stream) is not None
    return _Header(width, height, fps, seconds, best, needs_ffmpeg)
