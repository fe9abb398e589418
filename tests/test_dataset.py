"""Every clip is used, trimmed, re-timed or skipped with the reason, and comes out at the size and rate asked for."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from vidiff.data.dataset import ClipDataset, DataConfig
from vidiff.data.fates import write_skipped
from vidiff.data.order import batch_indices, epoch_order
from vidiff.data.video_write import write_video
from vidiff.errors import ConfigError, DataError

SPRITES = Path(__file__).parents[2] / "shared" / "data" / "sprites"
needs_sprites = pytest.mark.skipif(not SPRITES.is_dir(), reason="the sprite shards are not beside this checkout")


def counting(frames: int, height: int = 16, width: int = 16) -> np.ndarray:
    """Frame i is flat with value 5 i."""
    values = 5 * np.arange(frames, dtype=np.uint8)
    return np.broadcast_to(values[:, None, None, None], (frames, height, width, 3))


def put(folder: Path, name: str, frames: np.ndarray, fps: float = 12.0) -> Path:
    write_video(folder / f"{name}.mp4", frames, fps, lossless=True)
    (folder / f"{name}.txt").write_text(f"clip {name}")
    return folder / f"{name}.mp4"


def seen(clip: torch.Tensor) -> list[int]:
    """Return the numbers of the frames of a counting clip."""
    assert (clip == clip[:, :1, :1, :1]).all()
    return (clip[:, 0, 0, 0] // 5).tolist()


def config(path: Path, frames: int = 5, **more: object) -> DataConfig:
    return DataConfig(path, **{"frames": frames, "height": 16, "width": 16, **more})  # type: ignore[arg-type]


def shard(path: Path, samples: dict[str, tuple[bytes, dict[str, object]]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for key, (clip, row) in samples.items():
            for suffix, data in (("mp4", clip), ("json", json.dumps(row).encode())):
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def row(**more: object) -> dict[str, object]:
    return {"caption": "an orc", "num_frames": 5, "height": 16, "width": 16, "fps": 12, **more}


# Frames


def test_a_clip_of_the_right_length_comes_out_untouched(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    put(tmp_path, "a", frames)
    clip = ClipDataset(config(tmp_path)).clip(0)
    assert clip.dtype == torch.uint8
    assert np.array_equal(clip.numpy(), frames)


def test_a_longer_clip_gives_its_middle_or_the_window_asked_for(tmp_path: Path) -> None:
    put(tmp_path, "a", counting(11))
    dataset = ClipDataset(config(tmp_path))
    assert seen(dataset.clip(0)) == [3, 4, 5, 6, 7]
    assert seen(dataset.clip(0, start=0.0)) == [0, 1, 2, 3, 4]
    assert seen(dataset.clip(0, start=1.0)) == [6, 7, 8, 9, 10]
    assert dataset.fates.trimmed == 1


@pytest.mark.parametrize(
    ("stored", "wanted", "expected"),
    [(24.0, 12.0, [0, 2, 4, 6, 8]), (30.0, 12.0, [0, 2, 5, 8, 10]), (12.0, 24.0, [0, 0, 1, 2, 2])],
)
def test_a_rate_is_reached_by_the_nearest_frames(
    tmp_path: Path, stored: float, wanted: float, expected: list[int]
) -> None:
    put(tmp_path, "a", counting(13), stored)
    dataset = ClipDataset(config(tmp_path, fps=wanted))
    picked = seen(dataset.clip(0, start=0.0))
    times = np.arange(5) / wanted
    assert np.abs(np.array(picked) / stored - times).max() <= 0.5 / stored + 1e-9
    assert picked == expected
    assert dataset.fates.retimed == {f"{stored:g} fps -> {wanted:g} fps": 1}
    assert dataset.fps == wanted


def test_a_clip_that_is_too_short_at_the_rate_asked_for_is_skipped_and_never_padded(tmp_path: Path) -> None:
    put(tmp_path, "enough", counting(9), 24)
    put(tmp_path, "short", counting(8), 24)
    dataset = ClipDataset(config(tmp_path, fps=12))
    assert [dataset.key(index) for index in range(len(dataset))] == ["enough.mp4"]
    assert dataset.fates.skipped == [("short.mp4", "short.mp4: 4 frames at 12 fps, 5 are needed")]


# Size


def test_resizing_keeps_the_aspect_and_cuts_the_center(tmp_path: Path) -> None:
    frames = np.zeros((5, 32, 96, 3), np.uint8)
    frames[:, :, 32:64] = 200  # the central third, which is what a square keeps
    put(tmp_path, "a", frames)
    clip = ClipDataset(config(tmp_path)).clip(0)
    assert clip.shape == (5, 16, 16, 3)
    assert (clip[:, :, 2:14] == 200).all()


def test_windows_are_cut_out_of_large_pictures_at_places_of_their_own(tmp_path: Path) -> None:
    x, y = np.meshgrid(np.arange(48), np.arange(32))
    place = np.stack([4 * x, 4 * y, 0 * x], 2).astype(np.uint8)
    for number in range(6):
        put(tmp_path, f"c{number}", np.broadcast_to(place, (5, 32, 48, 3)))
    whole, large = (ClipDataset(config(tmp_path, height=16, width=16, pictures=(side,))) for side in (16, 32))
    corners = set()
    for index in range(6):
        window = large.clip(index)
        left, top = (int(value) // 4 for value in window[0, 0, 0, :2])
        assert torch.equal(window[0], torch.from_numpy(place[top : top + 16, left : left + 16]))
        assert torch.equal(window, large.clip(index))
        corners.add((left, top))
        assert whole.clip(index).shape == (5, 16, 16, 3)
    assert len(corners) > 3 and whole.fingerprint != large.fingerprint
    with pytest.raises(ConfigError, match="do not fit"):
        config(tmp_path, height=16, width=16, pictures=(12,))


def test_shrinking_does_not_alias(tmp_path: Path) -> None:
    checkers = (np.indices((128, 128)).sum(0) % 2 * 255).astype(np.uint8)
    put(tmp_path, "a", np.broadcast_to(checkers[None, :, :, None], (5, 128, 128, 3)))
    clip = ClipDataset(config(tmp_path)).clip(0).float()
    assert (clip[:, 2:-2, 2:-2] - 127.5).abs().max() < 3


def test_a_clip_goes_to_the_bucket_of_the_nearest_shape(tmp_path: Path) -> None:
    for name, height, width in (("square", 32, 32), ("tall", 48, 30), ("wide", 30, 50)):
        put(tmp_path, name, counting(5, height, width))
    dataset = ClipDataset(config(tmp_path, buckets=((24, 16), (16, 24))))
    buckets = {dataset.key(index): dataset.bucket(index) for index in range(3)}
    assert buckets == {"square.mp4": (16, 16), "tall.mp4": (24, 16), "wide.mp4": (16, 24)}
    for index in range(3):
        assert dataset.clip(index).shape == (5, *dataset.bucket(index), 3)


# Accounts


def test_totals_add_up_and_every_clip_left_out_is_listed(tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    put(clips, "a-used", counting(5))
    put(clips, "b-trimmed", counting(9))
    put(clips, "c-retimed", counting(13), 24)
    put(clips, "d-short", counting(3))
    (clips / "e-broken.mp4").write_bytes(b"#EXTM3U\n")
    (clips / "e-broken.txt").write_text("playlist")
    put(clips, "f-mute", counting(5)).with_suffix(".txt").unlink()
    put(clips, "g-used", counting(5))
    put(clips, "h-beyond", counting(5))
    dataset = ClipDataset(config(clips, fps=12, limit=4))
    told = dataset.fates.to_dict()
    assert told["total"] == told["used"] + len(told["skipped"]) + told["beyond_limit"] == 8
    assert (told["used"], told["as_is"], told["trimmed"], told["beyond_limit"]) == (4, 2, 2, 1)
    assert told["retimed"] == {"24 fps -> 12 fps": 1}
    assert [entry["name"][0] for entry in told["skipped"]] == ["d", "e", "f"]
    rows = {
        name.strip(): int(count)
        for name, count in (line.rsplit(maxsplit=1) for line in dataset.fates.table().splitlines())
    }
    assert rows["clips"] == rows["used"] + rows["skipped"] + rows["beyond the limit"]
    write_skipped(dataset.fates, tmp_path / "skipped.jsonl")
    listed = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert listed == told["skipped"]
    assert json.loads(json.dumps(told)) == told


def test_a_folder_where_nothing_can_be_used_is_an_error_with_the_first_reason(tmp_path: Path) -> None:
    put(tmp_path, "a", counting(3))
    with pytest.raises(DataError, match=r"none of 1 clips can be used; a\.mp4: 3 frames"):
        ClipDataset(config(tmp_path))
    with pytest.raises(DataError, match="no such folder"):
        ClipDataset(config(tmp_path / "missing"))


@pytest.mark.parametrize(
    "wrong", [{"frames": 0}, {"height": 0}, {"fps": 0.0}, {"fps": float("nan")}, {"limit": 0}, {"buckets": ((0, 8),)}]
)
def test_impossible_settings_are_refused(tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        config(tmp_path, **wrong)  # type: ignore[arg-type]


def test_progress_is_told_clip_by_clip(tmp_path: Path) -> None:
    for name in "abc":
        put(tmp_path, name, counting(5))
    told: list[int] = []
    ClipDataset(config(tmp_path), on_clip=told.append)
    assert told == [1, 2, 3]


# Shards


def test_a_shard_gives_captions_and_frames_with_or_without_an_index(tmp_path: Path) -> None:
    clip = put(tmp_path / "clips", "a", counting(5)).read_bytes()
    samples = {"full": (clip, row(alt_captions=["a green one"])), "bare": (clip, {"caption": "bare"})}
    dataset = ClipDataset(config(shard(tmp_path / "a.tar", samples)))
    assert [dataset.captions(index) for index in range(2)] == [["an orc", "a green one"], ["bare"]]
    assert seen(dataset.clip(0)) == seen(dataset.clip(1)) == [0, 1, 2, 3, 4]


def test_an_index_that_lies_is_an_error_that_names_the_clip(tmp_path: Path) -> None:
    clip = put(tmp_path / "clips", "a", counting(5)).read_bytes()
    lies = [{"num_frames": 6}, {"height": 32}, {"fps": 24}]
    samples = {f"k{index}": (clip, row(**lie)) for index, lie in enumerate(lies)}
    dataset = ClipDataset(config(shard(tmp_path / "a.tar", samples)))
    for index in range(3):
        with pytest.raises(DataError, match=f"^k{index}: holds 5 frames of 16x16 at 12 fps, but its index says"):
            dataset.clip(index)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1, 0.5, "5", None, True])
def test_an_index_that_makes_no_sense_is_not_used(tmp_path: Path, value: object) -> None:
    clip = put(tmp_path / "clips", "a", counting(5)).read_bytes()
    dataset = ClipDataset(config(shard(tmp_path / "a.tar", {"k": (clip, row(num_frames=value))})))
    assert dataset.samples[0].info.frames == 5


def test_a_clip_that_the_fast_reader_bends_is_noticed_in_a_shard_too(tmp_path: Path) -> None:
    import subprocess

    import imageio_ffmpeg

    stored = np.zeros((5, 16, 16, 3), np.uint8)
    stored[:, :8] = 250
    path = put(tmp_path / "clips", "a", stored)
    turn = ["-display_rotation", "180", "-i", str(path), "-c", "copy", str(tmp_path / "turned.mp4")]
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", *turn], check=True)
    dataset = ClipDataset(config(shard(tmp_path / "a.tar", {"k": ((tmp_path / "turned.mp4").read_bytes(), row())})))
    assert np.array_equal(dataset.clip(0).numpy(), stored[:, ::-1])


def test_a_clip_that_is_damaged_later_is_named(tmp_path: Path) -> None:
    path = put(tmp_path, "a", counting(5))
    dataset = ClipDataset(config(tmp_path))
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(DataError, match=r"^a\.mp4: "):
        dataset.clip(0)
    path.unlink()
    with pytest.raises(DataError, match=r"^a\.mp4: cannot be read"):
        dataset.clip(0)


@needs_sprites
def test_the_sprite_shards_open_by_their_index_and_every_clip_is_used() -> None:
    dataset = ClipDataset(DataConfig(SPRITES / "val-*.tar"))
    assert len(dataset) == dataset.fates.total == dataset.fates.as_is == 400
    assert dataset.fps == 12
    assert len(dataset.captions(0)) == 3
    assert dataset.clip(7).shape == (17, 64, 64, 3)


# Fingerprint


def test_the_fingerprint_changes_with_files_captions_and_preprocessing_only(tmp_path: Path) -> None:
    put(tmp_path, "a", counting(9))
    plain = ClipDataset(config(tmp_path)).fingerprint
    assert ClipDataset(config(tmp_path)).fingerprint == plain
    others = [
        ClipDataset(config(tmp_path, **change)).fingerprint  # type: ignore[arg-type]
        for change in ({"frames": 4}, {"height": 8}, {"fps": 6.0}, {"buckets": ((8, 8),)})
    ]
    (tmp_path / "a.txt").write_text("another caption")
    others.append(ClipDataset(config(tmp_path)).fingerprint)
    put(tmp_path, "b", counting(9))
    others.append(ClipDataset(config(tmp_path)).fingerprint)
    assert len({plain, *others}) == 7


# Order


def test_an_epoch_visits_every_clip_once_in_an_order_of_its_own() -> None:
    orders = [epoch_order(50, seed, epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4


@pytest.mark.parametrize(("size", "batch_size"), [(10, 3), (10, 10), (4, 11), (1, 2)])
def test_batches_walk_through_epoch_after_epoch_without_a_gap(size: int, batch_size: int) -> None:
    steps = 3 * size
    drawn = [index for step in range(steps) for index in batch_indices(size, batch_size, 5, step)]
    epochs = -(-len(drawn) // size)
    expected = [index for epoch in range(epochs) for index in epoch_order(size, 5, epoch).tolist()]
    assert drawn == expected[: len(drawn)]


def test_a_batch_depends_on_its_arguments_alone() -> None:
    late = batch_indices(100, 8, 3, 977)
    torch.manual_seed(9)
    np.random.default_rng(9)
    batch_indices(100, 8, 4, 0)
    assert batch_indices(100, 8, 3, 977) == late
    with pytest.raises(ValueError, match="at least"):
        batch_indices(0, 8, 3, 0)
