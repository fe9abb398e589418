"""What an evaluation does about clips that cannot be read, are of several rates or too few; and what it tells early."""

import json
import math

import pytest

import vidiff.evaluation as vidiff_evaluation
from tests.clips import clip_bytes, frames, write_shard
from tests.test_evaluate import vidiff, write_set
from vidiff.cli.evaluating import Asked, run
from vidiff.data.video_write import write_video
from vidiff.evaluation import Hearing, Options
from vidiff.metrics.clip_set import open_clip_set
from vidiff.metrics.results import Results, Value, read_results
from vidiff.metrics.tools import Reading
from vidiff.processes import Share


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    write_set(root / "data", 24)
    write_set(root / "good", 12, 100)
    return root


def spoiled(data):
    """Return an mp4 whose header is whole and whose frames are not."""
    start = data.index(b"mdat") + 8
    return data[:start] + b"\xff" * 2_000 + data[start + 2_000 :]


@pytest.fixture
def told(tmp_path):
    """Four clips in a shard that tells of all of them, one of which is damaged."""
    row = {"num_frames": 17, "height": 32, "width": 32, "fps": 12}
    samples = []
    for index in range(4):
        data = clip_bytes(tmp_path, count=17, seed=index)
        samples += [(f"{index}.mp4", spoiled(data) if index == 2 else data), (f"{index}.json", row)]
    write_shard(tmp_path / "told" / "a.tar", samples)
    return tmp_path / "told"


def test_damage_behind_an_index_is_found_by_decoding(told):
    assert len(open_clip_set(told)) == 4
    found = open_clip_set(told, decode=True)
    assert [clip.key for clip in found.clips] == ["0", "1", "3"] and found.unreadable[0][0] == "2"
    assert all(clip.info.indexed for clip in found.clips)  # numbers are those of a set that was whole


def test_clips_that_are_not_what_their_index_tells_are_found_by_decoding(tmp_path):
    row = {"num_frames": 8, "height": 32, "width": 32, "fps": 12}
    data = clip_bytes(tmp_path, count=17)
    write_shard(tmp_path / "a.tar", [("a.mp4", data), ("a.json", row), ("b.mp4", data), ("b.json", {})])
    found = open_clip_set(tmp_path / "a.tar", decode=True)
    assert found.unreadable[0][0] == "a" and "its index says 8" in found.unreadable[0][1]


def test_damaged_clips_behind_an_index_are_left_out_by_agreement(sets, told, tmp_path, monkeypatch):
    options = ("--metrics", "fd-random-clips", "--out", tmp_path / "out", "--json", tmp_path / "r.json")
    made = ("evaluate", "--generated", sets / "good")
    assert vidiff(monkeypatch, *made, "--data", told, *options) == 2
    assert vidiff(monkeypatch, *made, "--data", sets / "data", "--train", told, "--allow-missing", *options) == 0
    found = read_results(tmp_path / "r.json")
    assert [name for name, _ in found.excluded] == ["2"]  # of the training clips


def test_clips_of_several_rates_are_measured_at_their_own(tmp_path, monkeypatch):
    for rate in (12, 24):
        for index in range(2):
            clip = frames(17, 32, 32, index)
            for folder in ("mixed", str(rate)):
                write_video(tmp_path / folder / f"{rate}-{index}.mp4", clip, rate, lossless=True)
    values = {}
    for folder in ("mixed", "12", "24"):
        options = ("--metrics", "motion", "--mixed", "--out", tmp_path / "out", "--json", tmp_path / "r.json")
        assert vidiff(monkeypatch, "evaluate", "--generated", tmp_path / folder, *options) == 0
        values[folder] = read_results(tmp_path / "r.json").values[0]
    assert values["mixed"].per_clip == values["12"].per_clip | values["24"].per_clip
    assert values["mixed"].per_clip["24-0"] == pytest.approx(2 * values["mixed"].per_clip["12-0"])
    assert "17x32x32@12+24" in values["mixed"].protocol


def test_fewer_clips_than_were_asked_for_are_told_of(sets, tmp_path, monkeypatch, capsys):
    options = ("--data", sets / "data", "--metrics", "fd-random-clips", "--out", tmp_path / "out")
    told_of = f"{sets / 'data'}: 24 clips, fewer than the 30 of --num"
    assert vidiff(monkeypatch, "evaluate", "--generated", sets / "good", *options, "--num", 30) == 0
    assert told_of in capsys.readouterr().err
    assert vidiff(monkeypatch, "evaluate", "--generated", sets / "good", *options, "--num", 24) == 0
    assert "--num" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--by", "fd-randm-clips"), "--by fd-randm-clips: no such metric. Did you mean fd-random-clips"),
        (("--metrics", "motion", "--by", "flicker"), "--by flicker: not among --metrics motion"),
        (("--metrics", "motoin"), "--metrics motoin: no such metric. Did you mean motion"),
        (("--report", "{out}"), "out: is a folder; name a file in it"),
        (("--json", "{good}/000.txt/r.json"), "000.txt: cannot be made"),
        (("--out", "{good}/000.txt"), "000.txt: cannot be made"),
        (("--train", "nowhere"), "nowhere: no such folder, shard or pattern"),
        (("--generated", "nowhere"), "nowhere: no such folder, shard or pattern"),
        (("--prompts", "nowhere.txt"), "nowhere.txt: cannot be read"),
        (("--weights", "clip=nowhere"), "neither a folder nor a hub id"),
    ],
)
def test_what_would_fail_in_the_end_is_told_before_a_clip_is_opened(
    sets, tmp_path, monkeypatch, capsys, arguments, word
):
    def refuse(*arguments, **options):
        raise AssertionError("opened")

    monkeypatch.setattr(vidiff_evaluation, "open_clip_set", refuse)
    (tmp_path / "out").mkdir()
    filled = [text.format(good=sets / "good", out=tmp_path / "out") for text in arguments]
    sides = ("--generated", sets / "good", "--data", sets / "data")
    assert vidiff(monkeypatch, "evaluate", *sides, "--out", tmp_path / "out", *filled) == 2
    assert word in capsys.readouterr().err


def test_what_a_metric_is_called_with_its_protocol_or_kind_may_order_results(sets, tmp_path, monkeypatch):
    options = ("--data", sets / "data", "--metrics", "fd-random-clips", "--out", tmp_path / "out", "--json")
    assert vidiff(monkeypatch, "evaluate", "--generated", sets / "good", *options, tmp_path / "r.json") == 0
    name = read_results(tmp_path / "r.json").values[0].name
    assert (
        vidiff(monkeypatch, "evaluate", "--generated", sets / "good", *options, tmp_path / "r.json", "--by", name) == 0
    )


def test_short_clips_are_measured_by_what_reads_them(sets, tmp_path, monkeypatch, capsys):
    short = write_set(tmp_path / "short", 5, length=9)
    options = ("evaluate", "--generated", short, "--data", sets / "data", "--mixed", "--out", tmp_path / "out")
    assert vidiff(monkeypatch, *options, "--json", tmp_path / "r.json") == 0
    said = capsys.readouterr().err
    assert "left out: " in said and "the clip has 9 frames" in said
    measured = {value.metric for value in read_results(tmp_path / "r.json").values}
    assert "motion" in measured and not any(name.startswith("fd-") for name in measured)


def test_a_distance_of_very_few_clips_is_refused_before_any_work(sets, tmp_path, monkeypatch, capsys):
    few = write_set(tmp_path / "few", 3)
    options = ("evaluate", "--generated", few, "--data", sets / "data", "--out", tmp_path / "out")
    assert vidiff(monkeypatch, *options, "--metrics", "fd-random-clips") == 2
    assert f"fd-random-clips: {few}: 3 clips; random-clips needs 4 or more" in capsys.readouterr().err
    assert not (tmp_path / "out" / "features").exists()


def test_what_models_are_ranked_by_has_to_be_measured(sets, tmp_path, monkeypatch, capsys):
    options = ("evaluate", "--generated", sets / "good", "--data", sets / "data", "--out", tmp_path / "out")
    assert vidiff(monkeypatch, *options, "--by", "psnr") == 2
    assert "--by psnr: is only measured when asked" in capsys.readouterr().err
    assert vidiff(monkeypatch, *options, "--by", "following") == 2
    assert "following: " in capsys.readouterr().err


def test_only_the_process_that_measures_all_compares(sets, tmp_path):
    options = Options(data=sets / "data", metrics=("psnr",), out=tmp_path, share=Share(1, 2, lambda: None))
    asked = Asked(ab=(str(sets / "data"), str(sets / "data")))
    found, rows = run(asked, options, (), Reading(), Hearing(lambda line: None))
    assert len(found) == 2 and rows == []


def test_a_value_that_is_not_defined_is_plain_json(tmp_path):
    found = Results("a", (Value("diversity", "p", math.nan, "higher"),))
    (tmp_path / "r.json").write_text(json.dumps(found.to_dict(), allow_nan=False))
    assert math.isnan(read_results(tmp_path / "r.json").values[0].value)
