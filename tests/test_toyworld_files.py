"""Toy-world clips on disk."""

import json

import numpy as np
import pytest

from vidiff.data.dataset import ClipDataset, DataConfig
from vidiff.data.toyworld.attributes import HELD_OUT
from vidiff.data.toyworld.draw import draw_captions, draw_scene
from vidiff.data.toyworld.only import parsed
from vidiff.data.toyworld.write import ToyClips, write_folder, write_shards
from vidiff.errors import ConfigError
from vidiff.types import Size

SMALL = Size(frames=3, height=16, width=24, fps=12)


@pytest.mark.parametrize("write", [write_folder, write_shards])
def test_written_clips_are_read_as_ordinary_data(tmp_path, write):
    clips = ToyClips(3, SMALL, seed=5)
    write(clips, tmp_path / "out")
    data = ClipDataset(DataConfig(tmp_path / "out", frames=3, height=16, width=24))
    assert len(data) == 3 and data.fates.as_is == 3 and data.fps == 12
    assert data.captions(1)[0] == draw_captions(draw_scene(5, 1), 5, 1)[0].text
    assert len(data.captions(1)) == 4
    difference = np.abs(data.clip(1).numpy().astype(int) - clips.frames(1))
    assert difference.mean() < 6  # H.264


def test_a_second_run_goes_on_and_other_settings_are_refused(tmp_path):
    out = tmp_path / "out"
    write_folder(ToyClips(2, SMALL), out)
    (out / "00000001.json").unlink()
    before = (out / "00000000.mp4").stat().st_mtime_ns
    write_folder(ToyClips(2, SMALL), out)
    assert (out / "00000001.json").is_file()
    assert (out / "00000000.mp4").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="other settings"):
        write_folder(ToyClips(2, SMALL, seed=1), out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ConfigError, match="not empty"):
        write_shards(ToyClips(2, SMALL), tmp_path / "mine")


def test_shards_come_with_a_manifest(tmp_path, monkeypatch):
    monkeypatch.setattr("vidiff.data.toyworld.write.CLIPS_A_SHARD", 2)
    write_shards(ToyClips(3, SMALL), tmp_path)
    shards = json.loads((tmp_path / "MANIFEST.json").read_text())["shards"]
    assert {name: entry["samples"] for name, entry in shards.items()} == {
        "toyworld-00000.tar": 2,
        "toyworld-00001.tar": 1,
    }
    whole = (tmp_path / "toyworld-00000.tar").read_bytes()
    write_shards(ToyClips(3, SMALL), tmp_path / "again")
    assert (tmp_path / "again" / "toyworld-00000.tar").read_bytes() == whole


@pytest.mark.parametrize("size", [Size(0, 8, 8, 12), Size(3, 8, 8, 0), Size(10_000, 10_000, 1000, 12)])
def test_sizes_that_cannot_be_rendered_are_refused(size):
    with pytest.raises(ConfigError):
        ToyClips(1, size)


def test_conditions_hold_in_every_scene():
    only = parsed(["motion=left, right", "ground=sand", "relation=left of"])
    scenes = [draw_scene(0, index, only=only) for index in range(40)]
    assert {scene.objects[0].motion for scene in scenes} == {"left"}  # what is left of another cannot go right
    assert {(scene.ground, scene.relation) for scene in scenes} == {("sand", "left of")}
    assert len({scene.camera for scene in scenes}) > 3
    assert all(draw_scene(0, index, True, only).pairs() & HELD_OUT for index in range(10))
    assert ToyClips(2, SMALL, only=only).row(1)["scene"]["only"]["ground"] == ("sand",)
    assert parsed(["color=red", "color=blue,red"]) == (("color", ("red", "blue")),)


@pytest.mark.parametrize("condition", ["relation=behind", "relation=on top of", "motion=orbit"])
def test_held_out_scenes_are_found_whatever_pair_was_drawn_first(condition):
    only = parsed([condition])
    assert all(draw_scene(0, index, True, only).pairs() & HELD_OUT for index in range(40))


def test_a_half_written_shard_or_clip_is_not_read(tmp_path):
    write_shards(ToyClips(2, SMALL), tmp_path / "shards")
    (tmp_path / "shards" / ".tmp-1-ab.tar").write_bytes(b"half")
    write_folder(ToyClips(2, SMALL), tmp_path / "folder")
    (tmp_path / "folder" / ".tmp-1-ab.mp4").write_bytes(b"half")
    for name in ("shards", "folder"):
        data = ClipDataset(DataConfig(tmp_path / name, frames=3, height=16, width=24))
        assert len(data) == data.fates.total == 2


@pytest.mark.parametrize(
    ("conditions", "word"),
    [
        (["colour=red"], "unknown attribute 'colour'. Did you mean color"),
        (["red"], "'red' is a value; write color=red"),
        (["color=red", "shape=sphere"], "no training scene .* or try with --heldout"),  # a held-out pair
        (["color=redd"], "unknown color 'redd'. Did you mean red"),
        (["color"], "unknown color ''"),
        (["relation=behind", "motion=toward"], "no training scene .* relation=behind; motion=toward"),
    ],
)
def test_a_condition_that_nothing_meets_is_refused(conditions, word):
    with pytest.raises(ConfigError, match=word):
        ToyClips(1, SMALL, only=parsed(conditions))
