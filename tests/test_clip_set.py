"""The clips of an evaluation: where they come from, what is known of them, and what is refused."""

import json

import pytest
import torch

from tests.clips import clip_bytes, frames, write_folder, write_shard
from vidiff.data.video_write import write_video
from vidiff.errors import DataError
from vidiff.metrics.clip_set import check_alike, check_copies, open_clip_set


def test_a_folder_gives_clips_with_their_prompts(tmp_path):
    made = write_folder(tmp_path, 3)
    found = open_clip_set(tmp_path)
    assert [clip.key for clip in found.clips] == ["clip0", "clip1", "clip2"]
    assert found.clips[1].prompt == "a square number 1 moves right"
    for clip, wanted in zip(found.clips, made, strict=True):
        assert torch.equal(clip.frames(), torch.from_numpy(wanted))
    assert found.shape == "9x32x32@12" and len({clip.digest for clip in found.clips}) == 3


def test_clips_without_a_caption_are_clips_and_recipes_inside_are_read(tmp_path):
    recipe = {"prompt": "a fox", "seed": 7, "size": {"frames": 9, "height": 32, "width": 32, "fps": 12}, "upscale": 1}
    write_video(tmp_path / "b.mp4", frames(), 12, metadata=recipe)
    write_video(tmp_path / "a.mp4", frames(seed=1), 12)
    (plain, told) = open_clip_set(tmp_path).clips
    assert (plain.prompt, plain.seed) == ("", None)
    assert (told.prompt, told.seed, told.info.indexed) == ("a fox", 7, True)
    assert told.frames().shape == (9, 32, 32, 3)


def test_a_recipe_of_an_enlarged_clip_is_not_believed(tmp_path):
    recipe = {"prompt": "a fox", "size": {"frames": 9, "height": 16, "width": 16, "fps": 12}, "upscale": 2}
    write_video(tmp_path / "a.mp4", frames(), 12, metadata=recipe)
    assert open_clip_set(tmp_path).clips[0].info.height == 32


def test_attributes_in_a_list_of_all_clips_are_read(tmp_path):
    (tmp_path / "a.mp4").write_bytes(clip_bytes(tmp_path, count=5))
    row = {"file_name": "a.mp4", "caption": "a fox", "attributes": {"color": "red"}}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    (clip,) = open_clip_set(tmp_path).clips
    assert clip.prompt == "a fox" and clip.row["attributes"] == {"color": "red"}


def test_shards_and_folders_of_the_same_clip_have_one_digest(tmp_path):
    data = clip_bytes(tmp_path, count=5)
    row = {"caption": " a  fox ", "num_frames": 5, "height": 32, "width": 32, "fps": 12, "attributes": {"color": "red"}}
    write_shard(tmp_path / "s" / "a.tar", [("one.mp4", data), ("one.json", row)])
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "one.mp4").write_bytes(data)
    (tmp_path / "f" / "one.json").write_text(json.dumps(row))
    shard, folder = (open_clip_set(tmp_path / name) for name in ("s", "f"))
    assert shard.digest == folder.digest
    for found in (shard, folder):
        (clip,) = found.clips
        assert clip.prompt == "a fox" and clip.row["attributes"] == {"color": "red"}
    assert shard.clips[0].path == "" and folder.clips[0].path.endswith("one.mp4")


def test_unreadable_clips_are_listed_with_the_reason(tmp_path):
    write_folder(tmp_path, 2)
    (tmp_path / "bad.mp4").write_bytes(b"no clip")
    found = open_clip_set(tmp_path)
    assert len(found) == 2
    ((name, why),) = found.unreadable
    assert name == "bad" and "not a clip" in why


@pytest.mark.parametrize("content", [None, b"no clip"])
def test_nothing_to_read_is_an_error(tmp_path, content):
    if content is not None:
        (tmp_path / "bad.mp4").write_bytes(content)
    with pytest.raises(DataError, match="holds no clip that can be read"):
        open_clip_set(tmp_path)


def test_a_limit_and_names_narrow_a_set(tmp_path):
    write_folder(tmp_path, 4)
    assert [clip.key for clip in open_clip_set(tmp_path, limit=2).clips] == ["clip0", "clip1"]
    assert [clip.key for clip in open_clip_set(tmp_path, only=frozenset({"clip3"})).clips] == ["clip3"]


def test_sets_of_two_rates_or_sizes_are_refused_with_an_example_of_each(tmp_path):
    write_folder(tmp_path / "a", 1)
    write_folder(tmp_path / "b", 1, fps=24)
    write_folder(tmp_path / "c", 1, height=16)
    sets = [open_clip_set(tmp_path / name, label=name) for name in "abc"]
    check_alike(sets[:1])
    with pytest.raises(DataError, match=r"3 sizes or rates: a, clip0: 32x32 at 12.*b, clip0: 32x32 at 24.*--mixed"):
        check_alike(sets)


def test_copies_do_not_count_as_samples(tmp_path):
    write_folder(tmp_path, 4)
    check_copies(open_clip_set(tmp_path))
    for index in range(3):
        (tmp_path / f"copy{index}.mp4").write_bytes((tmp_path / "clip0.mp4").read_bytes())
    with pytest.raises(DataError, match="3 of 7 files are copies, such as copy0 of clip0"):
        check_copies(open_clip_set(tmp_path))
