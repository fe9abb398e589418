"""The sprites' meter: its clips are the real ones, and it says what the reference says."""

import hashlib
import json
import os
import shutil
import sys
from contextlib import suppress
from dataclasses import asdict, replace

import numpy as np
import pytest
from PIL import Image

from tests.clips import SHARED, write_shard
from tests.loaded import loaded
from vidiff.cli.main import main
from vidiff.data.sprite_sheets import Sheets, sheet_names
from vidiff.data.sprites import character_of, stated_in
from vidiff.data.video_write import write_video
from vidiff.errors import DataError
from vidiff.metrics.clip_set import open_clip_set
from vidiff.metrics.following import following_values, missing_for_following
from vidiff.metrics.measuring import Measuring
from vidiff.metrics.results import read_results
from vidiff.metrics.sprite_oracle import judge_sprite, with_value

SPRITES, REFERENCE = SHARED / "data/sprites", SHARED / "tools/sprite_oracle.py"
COUNT = 12

HERO = character_of(
    {
        **{"sex": "female", "skin": "tanned", "hair": "messy1", "hair_color": "gray", "torso": "plate armor"},
        **{"legs": "red pants", "feet": "metal boots", "head": "red bandana", "cape": "green"},
        **{"action": "walk", "direction": "left", "background": "sand"},
    }
)
CAPTION = (
    "pixel art of a tanned lady with messy grey hair wearing plate armor, red pants, metal boots, red bandana and a "
    "green cape, strolling to the left, on a sand background"
)
STATED = stated_in(CAPTION, HERO)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sheets on which every garment is a box of its own color, at a place that tells row and column."""
    home = tmp_path_factory.mktemp("sprites") / "sheets"
    bands = ("behind_body", "body", "feet", "legs", "torso", "hair", "head")
    for name in sheet_names():
        cells = np.zeros((21, 64, 13, 64), np.uint8)
        y = 9 * bands.index(name.split("/")[0])
        for row in range(21):
            for column in range(13):
                cells[row, y : y + 8, column, 3 * column + row % 4 : 3 * column + row + 4] = 1
        sheet = Image.fromarray(cells.reshape(21 * 64, 13 * 64))
        sheet.putpalette([0, 0, 0, *hashlib.sha256(name.encode()).digest()[:3]])
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        sheet.save(home / f"{name}.png", transparency=0, compress_level=1)
    return home


@pytest.fixture(scope="module")
def sheets(folder):
    return Sheets(folder)


def followed(clip, sheets, fps=12):
    return judge_sprite(clip, fps, HERO, STATED, sheets).followed


def test_actions_go_on_go_back_or_end(sheets):
    cast, walk, shoot, fall = (
        sheets.clip(with_value(HERO, "action", name)) for name in ("cast", "walk", "shoot", "fall")
    )
    assert cast.shape == (17, 64, 64, 3) and cast.dtype == np.uint8
    assert (cast[7] == cast[5]).all() and (cast[12] == cast[0]).all()
    assert (walk[8] == walk[0]).all() and (walk[1] != walk[0]).any()
    assert (shoot[13] == shoot[0]).all() and (fall[5:] == fall[5]).all() and (fall[4] != fall[5]).any()
    assert tuple(cast[0, -1, -1]) == (206, 182, 132)


def test_what_was_changed_is_what_is_not_followed(sheets):
    assert len(STATED) == 11 and all(followed(sheets.clip(HERO), sheets).values())
    others = {"skin": "orc", "torso": "red robe", "feet": "none", "cape": "none", "direction": "up", "action": "slash"}
    for name, value in others.items():
        verdict = judge_sprite(sheets.clip(with_value(HERO, name, value)), 12, HERO, STATED, sheets)
        assert [known for known, right in verdict.followed.items() if not right] == [name]
        assert getattr(verdict.character, name) == value and verdict.psnr > 70


def test_what_cannot_be_seen_is_not_followed(sheets):
    class Barefoot:
        def clip(self, character):
            return sheets.clip(replace(character, feet="none"))

    found = followed(sheets.clip(replace(HERO, feet="none")), Barefoot())
    assert [name for name, right in found.items() if not right] == ["feet"]


def test_larger_and_faster_clips_are_brought_to_size(sheets):
    clip = sheets.clip(HERO)
    assert all(followed(clip.repeat(2, 0).repeat(2, 1).repeat(2, 2), sheets, fps=24).values())
    fallen = with_value(HERO, "action", "fall")
    verdict = judge_sprite(sheets.clip(fallen)[:6], 12, HERO, STATED, sheets)  # a short clip stands still
    assert verdict.character == fallen and verdict.psnr > 70


@pytest.mark.parametrize(
    "clip, fps, word",
    [
        (np.zeros((17, 64, 32, 3), np.uint8), 12, "square, not 32x64"),
        (np.zeros((17, 64, 64, 3), np.float32), 12, "uint8"),
        (np.zeros((0, 64, 64, 3), np.uint8), 12, "uint8"),
        (np.zeros((17, 64, 64, 3), np.uint8), 0, "frames a second"),
    ],
)
def test_what_is_no_clip_is_refused(clip, fps, word, sheets):
    with pytest.raises(DataError, match=word):
        followed(clip, sheets, fps)


@pytest.mark.parametrize(
    "change, word",
    [
        ({"torso": "plate armour"}, "Did you mean plate armor"),
        ({"hair": "../../secret"}, "no sprite has the hair .* there are: none, plain, long"),
        ({"skin": "skeleton"}, "no sprite has the skin"),
        ({"action": "fall"}, "no sprite has the direction"),
        ({"sex": ["male"]}, "no sprite has the sex"),
        ({"mood": "good"}, "do not describe a sprite: mood: unknown. They are: sex, skin"),
    ],
)
def test_attributes_that_no_sprite_has_are_refused(change, word):
    with pytest.raises(DataError, match=word):
        character_of(asdict(HERO) | change)
    with pytest.raises(DataError, match="legs, feet: missing"):
        character_of({name: value for name, value in asdict(HERO).items() if name not in ("legs", "feet")})


def test_only_what_a_caption_says_is_stated():
    fewer = stated_in("a game sprite of a tanned woman wearing red pants and a green cape, walking facing left", HERO)
    assert set(fewer) == {"skin", "legs", "cape", "action", "direction"}
    with pytest.raises(DataError, match="states none"):
        stated_in("a cat", HERO)


def spoiled(kind, path):
    path.unlink()
    if kind == "gone":
        return "1 of 273 sheets of the sprites are missing"
    if kind == "link":
        other = path.parents[9] / "elsewhere.png"
        Image.new("RGBA", (832, 1344)).save(other)
        path.symlink_to(other)
        return "leads out of"
    if kind == "small":
        Image.new("RGBA", (64, 64)).save(path)
        return "has 64x64 pixels where a sheet has 832x1344"
    path.write_bytes({"text": b"no image", "cut": b"\x89PNG\r\n\x1a\n", "huge": bytes(5 << 20)}[kind])
    return "more than 4 MiB" if kind == "huge" else "not a PNG image"


@pytest.mark.parametrize("kind", ["gone", "link", "small", "text", "cut", "huge"])
def test_wrong_sheets_are_named(kind, folder, tmp_path):
    home = tmp_path / "a/b/c/d/e/f/sheets"
    shutil.copytree(folder, home, copy_function=os.link)
    name = "legs/pants/female/red_pants_female"
    word = spoiled(kind, home / f"{name}.png")
    with pytest.raises(DataError, match=word) as error:
        Sheets(home).clip(HERO)
    assert name in str(error.value)


ROW = {
    "caption": CAPTION,
    "alt_captions": ["a tanned lady wearing metal boots"],
    "attributes": asdict(HERO),
    **{"fps": 12, "num_frames": 17, "height": 64, "width": 64},
}


def write_data(home, sheets, row=ROW):
    """Write one real clip with its attributes beside it, and return the set."""
    write_video(home / "0.mp4", sheets.clip(HERO), 12, lossless=True)
    (home / "0.json").write_text(json.dumps(row))
    return open_clip_set(home)


def write_made(home, sheets, captions):
    """Write a true clip and one with two wrong attributes, and return the set."""
    shown = (HERO, replace(HERO, legs="teal pants", background="dark"))
    for index, (character, caption) in enumerate(zip(shown, captions, strict=True)):
        write_video(home / f"{index}.mp4", sheets.clip(character), 12, lossless=True)
        (home / f"{index}.txt").write_text(caption)
    return open_clip_set(home)


@pytest.mark.parametrize("kind", ["folder", "shard"])
def test_an_evaluation_judges_sprites_beside_their_sheets(kind, folder, sheets, tmp_path, monkeypatch, capsys):
    data, made = tmp_path / "data", tmp_path / "made"
    write_data(data, sheets)
    write_made(made, sheets, [CAPTION, CAPTION])
    if kind == "shard":
        write_shard(data / "val-0.tar", [(name, (data / name).read_bytes()) for name in ("0.mp4", "0.json")])
        data = data / "val-*.tar"
    (tmp_path / "data/sheets").symlink_to(folder)
    options = {"generated": made, "data": data, "metrics": "following", "json": tmp_path / "x", "out": tmp_path / "out"}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["vidiff", "evaluate", *words])
    with suppress(SystemExit):
        main()
    assert not capsys.readouterr().err.count("error:")
    values = {value.metric: value for value in read_results(tmp_path / "x").values}
    assert values["following"].per_clip == {"0": 1, "1": pytest.approx(9 / 11)}
    drawn = f"sheets=sha256:{sheets.digest[:12]}"
    assert values["following"].protocol.startswith(f"sprite-oracle-1,{drawn},n=2,m=1,")
    assert values["following-legs"].value == 0.5 and values["following-hair_color"].value == 1


def test_answers_are_kept_until_caption_or_sheets_change(folder, sheets, tmp_path):
    real = write_data(tmp_path / "data", sheets)
    (tmp_path / "data/sheets").symlink_to(folder)
    made = write_made(tmp_path / "made", sheets, [CAPTION, CAPTION])
    measuring = Measuring(made, real, tmp_path / "cache", workers=1)
    kept = tmp_path / "cache/sprite-oracle-1.jsonl"
    first = following_values(measuring)
    assert following_values(measuring) == first and kept.read_text().count("\n") == 2
    # Found by its name, made from another caption: what that one leaves out is not asked.
    again = write_made(tmp_path / "made", sheets, [*ROW["alt_captions"], CAPTION])
    values = {value.metric: value for value in following_values(Measuring(again, real, tmp_path / "cache", workers=1))}
    assert kept.read_text().count("\n") == 3 and values["following-skin"].value == 1
    assert ",stated=2" in values["following-feet"].protocol and ",stated=1" in values["following-legs"].protocol


@pytest.mark.parametrize(
    "change, word",
    [
        ({"attributes": None}, "data, 0: has no attributes beside it; following needs --data"),
        ({"caption": ""}, "data, 0: has the attributes of a sprite but no caption"),
        ({}, "data, 0: is a sprite, judged by what its sheets draw; put their folder at .*data/sheets"),
        ({"attributes": asdict(HERO) | {"legs": "red pant"}}, "data, 0: no sprite has the legs .*Did you mean red"),
        ({"caption": "a cat"}, "data, 0: the caption 'a cat' states none"),
    ],
)
def test_what_keeps_sprites_from_being_judged_is_named(change, word, folder, sheets, tmp_path):
    real = write_data(tmp_path / "data", sheets, ROW | change)
    if change:
        (tmp_path / "data/sheets").symlink_to(folder)
    measuring = Measuring(real, real, tmp_path / "cache", workers=1)
    with pytest.raises(DataError, match=word):
        following_values(measuring)
    judged_later = "legs" in word or "a cat" in word
    assert bool(missing_for_following(measuring)) != judged_later


def test_a_clip_that_cannot_be_judged_is_named(folder, sheets, tmp_path):
    real = write_data(tmp_path / "data", sheets)
    (tmp_path / "data/sheets").symlink_to(folder)
    write_video(tmp_path / "made/0.mp4", sheets.clip(HERO)[:, :32], 12, lossless=True)
    with pytest.raises(DataError, match=r"made/0\.mp4: cannot be judged: .* square, not 64x32; crop"):
        following_values(Measuring(open_clip_set(tmp_path / "made"), real, tmp_path / "cache", workers=1))


@pytest.fixture(scope="module")
def real():
    """The first validation clips: characters, what their captions state, and frames."""
    if not (SPRITES / "sheets").is_dir():
        pytest.skip(f"{SPRITES}: the sprites are not there")
    clips = open_clip_set(SPRITES / "val-00000.tar", limit=COUNT).clips
    characters = [character_of(clip.row["attributes"]) for clip in clips]
    stated = [stated_in(clip.prompt, one) for clip, one in zip(clips, characters, strict=True)]
    return Sheets(SPRITES / "sheets"), characters, stated, [clip.frames().numpy() for clip in clips]


def share(real, clips):
    sheets, characters, stated, _ = real
    verdicts = [judge_sprite(*parts, sheets) for parts in zip(clips, [12] * COUNT, characters, stated, strict=True)]
    return np.mean([right for verdict in verdicts for right in verdict.followed.values()])


def noise():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (17, 64, 64, 3), dtype=np.uint8) for _ in range(COUNT)]


def test_composed_clips_are_the_real_ones(real):
    sheets, characters, _, clips = real
    assert all((sheets.clip(one) == clip).all() for one, clip in zip(characters, clips, strict=True))


def test_the_truth_is_right_and_other_clips_and_noise_are_at_chance(real):
    # Chance is about 0.15: between 1 in 11 (hair) and 1 in 4 (direction).
    assert share(real, real[3]) >= 0.98
    assert share(real, [*real[3][1:], real[3][0]]) < 0.3
    assert share(real, noise()) < 0.25


@pytest.fixture(scope="module")
def reference():
    if not REFERENCE.is_file():
        pytest.skip(f"{REFERENCE}: the reference is not there")
    before = list(sys.path)
    module = loaded(REFERENCE)  # it finds its neighbor by sys.path
    sys.path[:] = before
    return module


def test_the_reference_reads_captions_alike(real, reference):
    for clip in open_clip_set(SPRITES / "val-00000.tar", limit=200).clips:
        attributes = clip.row["attributes"]
        for caption in (clip.prompt, *clip.row["alt_captions"]):
            said = stated_in(caption, character_of(attributes))
            assert set(said) == set(reference.mentioned(caption, attributes))


@pytest.mark.parametrize("kind", ["real", "noisy", "blended", "reversed", "noise"])
def test_the_reference_judges_alike(kind, real, reference):
    sheets, characters, stated, clips = real
    composer = reference.Composer(SPRITES / "sheets")
    rng = np.random.default_rng(1)
    for index in range(4):
        clip = {
            "real": clips[index],
            "noisy": np.clip(clips[index] + rng.normal(0, 40, clips[index].shape), 0, 255).astype(np.uint8),
            "blended": clips[index] // 2 + clips[index + 1] // 2,
            "reversed": clips[index][::-1],
            "noise": noise()[index],
        }[kind]
        asked = asdict(characters[index])
        found = reference.estimate(clip, asked, composer)
        right = {name: found[name] == asked[name] for name in stated[index]}
        assert judge_sprite(clip, 12, characters[index], stated[index], sheets).followed == right
