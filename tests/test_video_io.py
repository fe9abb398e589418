"""Clips come in upright, in order and in RGB, or are refused by name; what is written reads back."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vidiff.data import video_io
from vidiff.data.metadata import read_metadata
from vidiff.data.shards import index_shard
from vidiff.data.video_io import ClipInfo, inspect, read_clip
from vidiff.data.video_write import FORMATS, contact_sheet, format_of, suffix_of, upscaled, write_video
from vidiff.errors import ConfigError, DataError, ResourceError

SHARED = Path(__file__).parents[2] / "shared" / "data"
ODD = SHARED / "odd_clips"
SPRITES = SHARED / "sprites" / "val-00000.tar"
needs_odd = pytest.mark.skipif(not ODD.is_dir(), reason="the odd clips are not beside this checkout")
needs_sprites = pytest.mark.skipif(not SPRITES.is_file(), reason="the sprite shards are not beside this checkout")

METADATA = {"prompt": "an \"orc\" = 5\n; naïve # 火 \\ 'x'", "seed": 3, "times": [1.0, 0.5]}


def moving_square(frames: int = 6, height: int = 32, width: int = 48) -> np.ndarray:
    clip = np.full((frames, height, width, 3), (40, 90, 160), np.uint8)
    for index in range(frames):
        clip[index, 8:16, 4 + 4 * index : 12 + 4 * index] = (220, 60, 30)
    return clip


def ffmpeg(*arguments: str) -> bytes:
    import imageio_ffmpeg

    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", *arguments]
    return subprocess.run(command, check=True, capture_output=True).stdout


@pytest.fixture
def clip_path(tmp_path: Path) -> Path:
    write_video(tmp_path / "clip.mp4", moving_square(), 12)
    return tmp_path / "clip.mp4"


# Reading what real folders hold


@needs_odd
@pytest.mark.parametrize(
    ("name", "shape", "fps"),
    [
        ("flipping_a_pancake.mkv", (310, 240, 426), 30),
        ("h265_video.mp4", (10, 128, 128), 10),
        ("h264_10bits.mp4", (30, 200, 200), 30),
        ("unordered.mov", (4, 50, 50), 32),
        ("video_0.mov", (3, 320, 568), 30),
        ("video_90.mov", (3, 568, 320), 30),
    ],
)
def test_an_odd_clip_reads_with_every_frame(name: str, shape: tuple[int, int, int], fps: float) -> None:
    clip = read_clip(ODD / name)
    assert clip.frames.shape == (*shape, 3)
    assert clip.frames.dtype == np.uint8
    assert clip.fps == fps


@needs_odd
def test_the_largest_of_several_streams_is_read() -> None:
    info = inspect(ODD / "nasa_13013.mp4")
    assert (info.height, info.width, info.frames) == (270, 480, 390)
    assert info.fps == pytest.approx(29.97)


@needs_odd
def test_a_codec_that_decord_lacks_goes_through_ffmpeg() -> None:
    data = (ODD / "av1_video.mkv").read_bytes()
    info = inspect(data)
    assert video_io._by_decord(data, info) is None
    assert (info.frames, info.height, info.width) == (125, 360, 640)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_rotated_clip_comes_out_upright(tmp_path: Path, degrees: int) -> None:
    write_video(tmp_path / "clip.mp4", moving_square(), 12, lossless=True)
    turn = ("-display_rotation", str(degrees), "-i", str(tmp_path / "clip.mp4"))
    ffmpeg(*turn, "-c", "copy", str(tmp_path / "turned.mp4"))
    upright = np.rot90(moving_square(), degrees // 90, axes=(1, 2))
    assert np.array_equal(read_clip(tmp_path / "turned.mp4").frames, upright)


@needs_odd
def test_full_range_colors_are_not_stretched() -> None:
    info = inspect(ODD / "bt709_full_range.mp4")
    assert info.needs_ffmpeg
    raw = ffmpeg(
        "-i", str(ODD / "bt709_full_range.mp4"), "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "yuvj420p", "-"
    )
    luma = np.frombuffer(raw[: 720 * 1280], np.uint8).reshape(720, 1280).astype(float)
    red, green, blue = np.moveaxis(read_clip(ODD / "bt709_full_range.mp4").frames[0].astype(float), -1, 0)
    assert np.abs(0.2126 * red + 0.7152 * green + 0.0722 * blue - luma).mean() < 2  # BT.709 luma


@needs_odd
def test_a_clip_with_broken_units_is_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"corrupted\.mp4: damaged"):
        read_clip(ODD / "corrupted.mp4")


@needs_sprites
def test_lossless_clips_come_out_exactly_as_ffmpeg_decodes_them(tmp_path: Path) -> None:
    for members in list(index_shard(SPRITES).values())[:3]:
        data = members["mp4"].read()
        (tmp_path / "clip.mp4").write_bytes(data)
        raw = ffmpeg("-i", str(tmp_path / "clip.mp4"), "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
        info = ClipInfo(17, 64, 64, 12.0, indexed=True)
        direct = video_io._by_decord(data, info)
        assert direct is not None
        assert direct.tobytes() == raw
        assert read_clip(data, info=info).frames.tobytes() == raw


def test_both_readers_agree_on_a_plain_clip(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", moving_square(height=64, width=64), 12)
    data = (tmp_path / "clip.mp4").read_bytes()
    info = inspect(data)
    fast, slow = video_io._by_decord(data, info), video_io._by_ffmpeg(data, info, "clip")
    assert fast is not None
    assert np.abs(fast.astype(int) - slow).mean() < 2


@pytest.mark.parametrize("suffix", ["mkv", "avi", "gif", "mov", "webm"])
def test_other_containers_read_too(clip_path: Path, suffix: str) -> None:
    path = clip_path.with_suffix(f".{suffix}")
    if suffix == "gif":
        write_video(path, moving_square(), 12)
    else:
        ffmpeg("-i", str(clip_path), *(("-c:v", "libvpx") if suffix == "webm" else ()), str(path))
    clip = read_clip(path)
    assert clip.frames.shape == (6, 32, 48, 3)
    assert np.abs(clip.frames.astype(int) - moving_square()).mean() < 12


def test_reading_works_without_decord(clip_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "decord", None)
    assert read_clip(clip_path).frames.shape == (6, 32, 48, 3)


# Refusing


@pytest.mark.parametrize(
    "data",
    [
        b"ffconcat version 1.0\nfile clip.mp4\n",
        b"#EXTM3U\n#EXTINF:1,\nclip.mp4\n",
        b"\x89PNG\r\n\x1a\n" + bytes(64),
        b"PK\x03\x04" + bytes(64),
        b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    ],
    ids=["ffconcat", "m3u8", "png", "zip", "svg"],
)
def test_another_file_named_mp4_is_refused_by_its_first_bytes(clip_path: Path, data: bytes) -> None:
    path = clip_path.with_name("disguised.mp4")
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"disguised\.mp4: not a clip"):
        read_clip(path)
    info = ClipInfo(6, 32, 48, 12.0, indexed=True)
    with pytest.raises(DataError, match="not a clip"):
        read_clip(data, name="disguised", info=info)


def test_empty_missing_and_special_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(DataError, match="empty"):
        read_clip(tmp_path / "empty.mp4")
    with pytest.raises(DataError, match="cannot be read"):
        read_clip(tmp_path / "missing.mp4")
    with pytest.raises(DataError, match="not a regular file"):
        read_clip(tmp_path)


def test_cut_off_and_overwritten_clips_are_refused(clip_path: Path) -> None:
    data = clip_path.read_bytes()
    media = data.index(b"mdat")
    noise = np.random.default_rng(0).bytes(len(data) - media - 8)
    for broken in (data[: len(data) * 2 // 3], data[: media + 4] + noise, data.replace(b"moov", b"junk")):
        with pytest.raises(DataError, match=r"^broken: "):
            read_clip(broken, name="broken")


def test_sound_alone_is_no_clip(tmp_path: Path) -> None:
    ffmpeg("-f", "lavfi", "-i", "sine=duration=0.2", str(tmp_path / "sound.mp4"))
    with pytest.raises(DataError, match="no video stream"):
        read_clip(tmp_path / "sound.mp4")


def test_limits_on_frames_and_pixels_hold(clip_path: Path) -> None:
    read_clip(clip_path, max_frames=6, max_pixels=32 * 48)
    with pytest.raises(DataError, match=r"more than fit \(5 of 48x32\)"):
        read_clip(clip_path, max_frames=5)
    with pytest.raises(DataError, match="48x32 is more than 1535 pixels"):
        read_clip(clip_path, max_pixels=32 * 48 - 1)
    with pytest.raises(DataError, match="more than"):
        read_clip(clip_path, info=ClipInfo(10**6, 32, 48, 12.0, indexed=True))


def test_a_small_file_with_huge_frames_is_refused_before_decoding(tmp_path: Path) -> None:
    size = ["-f", "lavfi", "-i", "color=size=8192x4096:rate=5:duration=0.2", "-c:v", "mjpeg", "-qscale:v", "31"]
    ffmpeg(*size, str(tmp_path / "huge.avi"))
    with pytest.raises(DataError, match="8192x4096 is more than"):
        read_clip(tmp_path / "huge.avi")


def test_a_clip_that_changed_since_it_was_inspected_is_refused(clip_path: Path) -> None:
    for frames in (5, 7):
        with pytest.raises(DataError, match=rf"changed since it was opened; its index says {frames} frames of 48x32"):
            read_clip(clip_path, info=ClipInfo(frames, 32, 48, 12.0))


@pytest.mark.parametrize(
    "wrong",
    [ClipInfo(7, 32, 48, 12.0), ClipInfo(6, 48, 32, 12.0), ClipInfo(24, 16, 24, 12.0), ClipInfo(6, 32, 48, 24.0)],
    ids=["frames", "turned", "as many bytes", "rate"],
)
def test_a_clip_that_is_not_what_its_index_says_is_refused(clip_path: Path, wrong: ClipInfo) -> None:
    told = ClipInfo(wrong.frames, wrong.height, wrong.width, wrong.fps, indexed=True)
    with pytest.raises(DataError, match=r"^orc: holds 6 frames of 48x32 at 12 fps, but its index says"):
        read_clip(clip_path.read_bytes(), name="orc", info=told)


def test_a_title_that_looks_like_a_stream_changes_nothing(clip_path: Path) -> None:
    path = clip_path.with_name("titled.mp4")
    title = "x\n  Stream #0:0: Video: h264, yuv420p, 4096x4096, 99 fps\n  displaymatrix: rotation of 90 degrees"
    ffmpeg("-i", str(clip_path), "-c", "copy", "-metadata", f"title={title}", str(path))
    info = inspect(path)
    assert (info.height, info.width, info.fps) == (32, 48, 12)


# Writing


def test_a_lossless_mp4_returns_the_very_frames(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (5, 18, 22, 3), np.uint8)
    write_video(tmp_path / "noise.mp4", frames, 12.5, lossless=True)
    clip = read_clip(tmp_path / "noise.mp4")
    assert np.array_equal(clip.frames, frames)
    assert clip.fps == 12.5


@pytest.mark.parametrize(("height", "width"), [(32, 48), (17, 23), (1, 1)])
def test_an_mp4_for_players_keeps_size_and_colors(tmp_path: Path, height: int, width: int) -> None:
    frames = np.broadcast_to(np.array((200, 40, 90), np.uint8), (4, height, width, 3))
    write_video(tmp_path / "flat.mp4", frames, 8)
    assert np.abs(read_clip(tmp_path / "flat.mp4").frames.astype(int) - frames).max() <= 4


@pytest.mark.parametrize("format", FORMATS)
def test_metadata_returns_from_every_format(tmp_path: Path, format: str) -> None:
    path = tmp_path / f"clip{suffix_of(format)}"
    write_video(path, moving_square(), 12, metadata=METADATA)
    found = read_metadata(path)
    assert found is not None
    assert {name: found[name] for name in METADATA} == METADATA


@pytest.mark.parametrize("format", [name for name in FORMATS if name != "frames"])
def test_the_same_frames_give_the_same_bytes(tmp_path: Path, format: str) -> None:
    for folder in ("a", "b"):
        write_video(tmp_path / folder / "clip", moving_square(), 12, format=format, metadata=METADATA)
    assert (tmp_path / "a" / "clip").read_bytes() == (tmp_path / "b" / "clip").read_bytes()


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_an_animation_loops_and_lasts_as_long_as_the_clip(tmp_path: Path, suffix: str) -> None:
    write_video(tmp_path / f"clip{suffix}", moving_square(12), 12)
    with Image.open(tmp_path / f"clip{suffix}") as image:
        shown, lasts = [], 0
        for index in range(image.n_frames):
            image.seek(index)
            image.load()
            lasts += image.info["duration"]
            shown.append(np.asarray(image.convert("RGB")))
        assert image.info["loop"] == 0
    assert lasts == pytest.approx(1000, abs=10)
    assert np.array_equal(np.stack(shown), moving_square(12))  # few colors: a palette holds them all


def test_single_frames_and_the_contact_sheet_are_exact(tmp_path: Path) -> None:
    frames = moving_square()
    write_video(tmp_path / "frames", frames, 12)
    names = sorted(path.name for path in (tmp_path / "frames").glob("*.png"))
    assert names == [f"{index:05d}.png" for index in range(6)]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "frames" / names[3])), frames[3])
    sheet = contact_sheet(frames, columns=4)
    assert sheet.shape == (2 * 32 + 2, 4 * 48 + 3 * 2, 3)
    assert np.array_equal(sheet[34:66, 50:98], frames[5])
    write_video(tmp_path / "sheet.png", frames, 12)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "sheet.png")), contact_sheet(frames))


def test_upscaling_repeats_pixels() -> None:
    small = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    large = upscaled(small, 3)
    assert large.shape == (1, 6, 6, 3)
    assert np.array_equal(large[:, 1::3, 1::3], small)
    assert np.array_equal(large[0, :3, :3], np.broadcast_to(small[0, 0, 0], (3, 3, 3)))


def test_a_folder_may_have_a_colon_or_a_dash_in_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("take:1", "-y"):
        write_video(Path(name) / "clip.mp4", moving_square(), 12)
        assert read_clip(Path(name) / "clip.mp4").frames.shape[0] == 6


def test_an_output_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="a file is where a folder should be"):
        write_video(tmp_path / "file" / "clip.mp4", moving_square(), 12)
    with pytest.raises(ConfigError, match="metadata"):
        write_video(tmp_path / "clip.mp4", moving_square(), 12, metadata={"prompt": "x" * 200_000})
    with pytest.raises(ValueError, match="uint8"):
        write_video(tmp_path / "clip.mp4", moving_square().astype(np.float32), 12)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_format_is_told_by_suffix_or_named_with_help() -> None:
    assert [format_of(Path(name)) for name in ("a.MP4", "a.gif", "a.webp", "a.png", "a")] == list(FORMATS)
    with pytest.raises(ConfigError, match="Did you mean webp"):
        format_of(Path("a.mp4"), "web")
    with pytest.raises(ConfigError, match="cannot tell the format"):
        format_of(Path("a.mpeg"))


def test_a_foreign_file_has_no_metadata(clip_path: Path, tmp_path: Path) -> None:
    assert read_metadata(clip_path) is None
    (tmp_path / "note.txt").write_text("hello")
    with pytest.raises(DataError, match=r"note\.txt"):
        read_metadata(tmp_path / "note.txt")
