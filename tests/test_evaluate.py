"""`vidiff evaluate` from the command line: clips of any tool in, numbers with their protocols out."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.clips import frames
from vidiff.cli.main import main
from vidiff.data.toyworld.write import ToyClips, write_folder
from vidiff.data.video_write import write_video
from vidiff.errors import ConfigError, DataError
from vidiff.metrics.clip_set import open_clip_set
from vidiff.metrics.evaluate import METRICS, Tools, chosen, evaluate
from vidiff.metrics.measuring import Measuring
from vidiff.metrics.random_pyramid import RandomPyramid
from vidiff.metrics.results import read_results
from vidiff.metrics.set_metrics import MANIFOLD
from vidiff.types import Size

ROOT = Path(__file__).parents[1]
CHEAP = "fd-random-clips,fd-random-frames,frame-similarity,identity-drift"


def vidiff(monkeypatch, *arguments):
    """Run the command in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["vidiff", *map(str, arguments)])
    try:
        main()
    except SystemExit as done:
        return done.code or 0
    return 0


def write_set(folder, count, first=0, noise=0.0, length=17):
    rng = np.random.default_rng(first)
    for index in range(count):
        clip = frames(length, 32, 32, first + index).astype(np.float32)
        clip = clip + noise * rng.normal(size=clip.shape)
        write_video(folder / f"{index:03d}.mp4", clip.round().clip(0, 255).astype(np.uint8), 12)
        (folder / f"{index:03d}.txt").write_text(f"square {index}")
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    write_set(root / "data", 24)
    write_set(root / "good", 12, 100)
    write_set(root / "noisy", 12, 100, noise=30)
    return root


def test_a_folder_is_measured_and_everything_is_written(sets, tmp_path, monkeypatch, capsys):
    files = {name: tmp_path / f"r.{name}" for name in ("json", "html", "md")}
    code = vidiff(
        *(monkeypatch, "evaluate", "--generated", sets / "good", "--data", sets / "data", "--metrics", CHEAP),
        *("--out", tmp_path / "out", "--json", files["json"], "--report", files["html"], "--markdown", files["md"]),
    )
    assert code == 0
    printed = capsys.readouterr().out
    found = read_results(files["json"])
    assert [value.metric for value in found.values] == CHEAP.split(",")
    for value in found.values:
        assert value.name in printed and "n=12,m=24,ref=sha256:" in value.protocol
        assert value.interval[0] <= value.value <= value.interval[1] and value.floor is not None
    assert found.clips[3].prompt == "square 3" and found.versions["torch"] == torch.__version__
    assert found.command.startswith("vidiff evaluate --generated")
    assert "<video" in files["html"].read_text() and "fd-random-clips" in files["md"].read_text()


def test_a_second_run_computes_nothing_and_says_the_same(sets, tmp_path, monkeypatch):
    options = ("--generated", sets / "good", "--data", sets / "data", "--metrics", CHEAP, "--out", tmp_path / "out")
    assert vidiff(monkeypatch, "evaluate", *options, "--json", tmp_path / "1.json", "--batch", 3) == 0

    def refuse(self, clips):
        raise AssertionError("computed again")

    monkeypatch.setattr(RandomPyramid, "__call__", refuse)
    assert vidiff(monkeypatch, "evaluate", *options, "--json", tmp_path / "2.json") == 0
    one, two = (read_results(tmp_path / f"{k}.json") for k in (1, 2))
    assert one.values == two.values


def test_names_order_and_batches_do_not_change_a_number(sets, tmp_path):
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for index, path in enumerate(sorted((sets / "good").glob("*.mp4"), reverse=True)):
        (renamed / f"x{index:03d}.mp4").write_bytes(path.read_bytes())
        (renamed / f"x{index:03d}.txt").write_bytes(path.with_suffix(".txt").read_bytes())
    tools = Tools({"random-clips": RandomPyramid(), "random-frames": RandomPyramid(per_frame=True)})
    found = []
    for folder, batch in ((sets / "good", 8), (renamed, 5)):
        measuring = Measuring(
            open_clip_set(folder), open_clip_set(sets / "data"), tmp_path / f"cache{batch}", batch=batch
        )
        values, _ = evaluate(measuring, tools, ["fd-random-clips", "fd-random-frames", "identity-drift"])
        found.append(values)
    for one, two in zip(*found, strict=True):
        assert one.name == two.name and two.value == pytest.approx(one.value, rel=1e-6)


def test_two_folders_are_compared(sets, tmp_path, monkeypatch, capsys):
    options = ("--metrics", "frame-similarity,warping-error", "--out", tmp_path / "out")
    report = tmp_path / "r.html"
    assert vidiff(monkeypatch, "evaluate", "--ab", sets / "good", sets / "noisy", *options, "--report", report) == 0
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if line.startswith("warping-error: "))
    assert f"{sets / 'good'} is better" in line and "12 pairs of 12 prompts" in line
    assert "is better than" in printed and "Differences" in report.read_text()


def test_files_of_results_are_compared_without_clips(sets, tmp_path, monkeypatch, capsys):
    for name in ("good", "noisy"):
        vidiff(
            *(monkeypatch, "evaluate", "--generated", sets / name, "--data", sets / "data", "--metrics", CHEAP),
            *("--out", tmp_path / "out", "--json", tmp_path / f"{name}.json"),
        )
    capsys.readouterr()
    told = tmp_path / "ab.json"
    assert vidiff(monkeypatch, "evaluate", "--ab", tmp_path / "good.json", tmp_path / "noisy.json", "--json", told) == 0
    assert "fd-random-frames: " in capsys.readouterr().out
    rows = {row["metric"]: row for row in json.loads(told.read_text())["comparison"]}
    with pytest.raises(DataError, match=r"comparison of two; their results are in ab-1.json and ab-2.json"):
        read_results(told)
    assert rows["fd-random-frames"]["better"] == str(sets / "good") and rows["fd-random-frames"]["p_value"] < 0.05


def test_the_best_of_several_is_named(sets, tmp_path, monkeypatch, capsys):
    options = ("--data", sets / "data", "--metrics", CHEAP, "--out", tmp_path / "out", "--by", "fd-random-frames")
    assert vidiff(monkeypatch, "evaluate", "--generated", sets / "noisy", "--generated", sets / "good", *options) == 0
    assert f"Best by fd-random-frames: {sets / 'good'}." in capsys.readouterr().out


def test_psnr_takes_the_real_clip_of_the_same_prompt(sets, tmp_path):
    again = tmp_path / "again"
    again.mkdir()
    for index in range(3):
        (again / f"other{index}.mp4").write_bytes((sets / "data" / f"{index:03d}.mp4").read_bytes())
        (again / f"other{index}.txt").write_text(f"square {index}")
    measuring = Measuring(open_clip_set(again), open_clip_set(sets / "data"), tmp_path / "cache")
    (psnr, ssim), _ = evaluate(measuring, Tools(), ["psnr", "ssim"])
    assert psnr.value == 100 and ssim.value == pytest.approx(1)
    (again / "other0.txt").write_text("nobody's prompt")
    with pytest.raises(DataError, match="no real clip has its prompt or its name"):
        evaluate(Measuring(open_clip_set(again), measuring.real, tmp_path / "cache"), Tools(), ["psnr"])


def test_true_toy_clips_follow_their_captions_and_swapped_ones_do_not(tmp_path):
    write_folder(ToyClips(4, Size(17, 64, 64, 12), seed=5), tmp_path / "data")
    data = open_clip_set(tmp_path / "data")
    made = tmp_path / "made"
    made.mkdir()
    for index, clip in enumerate(data.clips):
        (made / f"{index}.mp4").write_bytes((tmp_path / "data" / f"{clip.key}.mp4").read_bytes())
        (made / f"{index}.txt").write_text(data.clips[(index + 1) % 4].prompt if index < 2 else clip.prompt)
    measuring = Measuring(open_clip_set(made), data, tmp_path / "cache", workers=1)
    values, _ = evaluate(measuring, Tools(), ["following"])
    shares = values[0].per_clip
    assert values[0].metric == "following" and min(shares["2"], shares["3"]) >= 0.9 and shares["0"] < 0.8
    kinds = {value.metric: value for value in values}
    # Chance is one in as many values as there are.
    assert kinds["following-ground"].floor == kinds["following-shape"].floor == pytest.approx(1 / 6)
    assert 0.1 < values[0].floor < 0.4
    assert (tmp_path / "cache").joinpath("toyworld-oracle-2.jsonl").read_text().count("\n") == 4


def test_what_cannot_be_measured_says_what_is_missing(sets, tmp_path):
    measuring = Measuring(open_clip_set(sets / "good"), None, tmp_path)
    tools = Tools({"random-clips": RandomPyramid(), "random-frames": RandomPyramid(per_frame=True)})
    for name, word in (
        ("fvd", "i3d_torchscript.pt"),
        ("clipsim", "--weights clip="),
        ("fd-random-clips", "--data"),
        ("memorized", "--train"),
        ("following", "vidiff data toyworld"),
        ("diversity", "several seeds"),
        ("motoin", "Did you mean motion"),
    ):
        with pytest.raises(ConfigError, match=word):
            chosen(measuring, tools, [name])
    assert set(chosen(measuring, tools, None)) == {
        *("warping-error", "motion", "flicker", "residual-flicker", "dynamic-degree"),
        *("frame-similarity", "identity-drift"),
    }


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((), "nothing to measure"),
        (("--generated", "nowhere"), "nowhere"),
        (("--ab", "a", "b", "--model", "c"), "--ab names both sides"),
        (("--generated", "{good}", "--data", "{data}", "--weights", "clip"), "write KIND=PATH"),
        (("--generated", "{good}", "--data", "{data}", "--weights", "clap=x"), "Did you mean clip"),
        (("--generated", "{good}", "--data", "{data}", "--weights", "i3d=x.pt@00"), "no file 'x.pt'"),
        (("--generated", "{good}", "--data", "{data}", "--protocol", "tf"), "unknown protocol"),
        (("--generated", "{good}", "--data", "{data}", "--filter", "bicubic"), "unknown filter"),
    ],
)
def test_mistakes_take_one_line_and_exit_2(sets, tmp_path, monkeypatch, capsys, arguments, word):
    filled = [text.format(good=sets / "good", data=sets / "data") for text in arguments]
    assert vidiff(monkeypatch, "evaluate", *filled, "--out", tmp_path / "out") == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and word in lines[0]


def test_damaged_clips_are_left_out_by_agreement_only(sets, tmp_path, monkeypatch, capsys):
    broken = write_set(tmp_path / "broken", 5, 200)
    (broken / "bad.mp4").write_bytes(b"no clip")
    options = ("evaluate", "--generated", broken, "--metrics", "motion", "--out", tmp_path / "out")
    assert vidiff(monkeypatch, *options) == 2
    assert "1 of 6 clips cannot be read, such as bad" in capsys.readouterr().err
    path = tmp_path / "r.json"
    assert vidiff(monkeypatch, *options, "--allow-missing", "--json", path) == 0
    assert json.loads(path.read_text())["excluded"][0][0] == "bad"


def test_too_few_and_too_short_clips_are_named(sets, tmp_path, monkeypatch, capsys):
    write_set(tmp_path / "few", 2, 300)
    write_set(tmp_path / "short", 5, 300, length=9)
    for name, word in (
        ("few", "few: 2 clips; random-clips needs 4 or more"),
        ("short", "short, 000: the clip has 9 frames"),
    ):
        options = ("--data", sets / "data", "--metrics", "fd-random-clips", "--out", tmp_path / "out")
        assert vidiff(monkeypatch, "evaluate", "--generated", tmp_path / name, *options) == 2
        assert word in capsys.readouterr().err


def test_every_metric_is_listed(monkeypatch, capsys):
    assert vidiff(monkeypatch, "evaluate", "--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [metric.name for metric in METRICS]


def test_votes_come_to_win_rates_and_ratings(tmp_path, monkeypatch, capsys):
    votes = tmp_path / "votes.jsonl"
    rows = [{"key": str(i), "left": "a", "right": "b", "winner": w, "seconds": 1.0}
            for i, w in enumerate(["left"] * 7 + ["right"] * 2 + ["tie"])]  # fmt: skip
    votes.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert vidiff(monkeypatch, "evaluate", "arena", "a", "b", "--votes", votes, "--tally") == 0
    printed = capsys.readouterr().out
    assert "a against b: wins 75%" in printed and "1 ties" in printed and "a: Elo" in printed


def test_two_processes_say_the_same_as_one(sets, tmp_path, monkeypatch):
    options = ("evaluate", "--generated", sets / "good", "--data", sets / "data", "--metrics", CHEAP, "--batch", 4)
    assert vidiff(monkeypatch, *options, "--out", tmp_path / "one", "--json", tmp_path / "one.json") == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "vidiff"]
    together = [*options, "--out", tmp_path / "two", "--json", tmp_path / "two.json"]
    done = subprocess.run([*launch, *map(str, together)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    one, two = (read_results(tmp_path / f"{name}.json") for name in ("one", "two"))
    assert one.values == two.values
    shards = list((tmp_path / "two" / "features").glob("random-clips-*/*.safetensors"))
    assert len(shards) == 4  # of each set, one by each process


def test_shares_of_the_manifold_have_intervals_within_their_range(sets, tmp_path):
    measuring = Measuring(open_clip_set(sets / "noisy"), open_clip_set(sets / "data"), tmp_path / "cache")
    values, _ = evaluate(measuring, Tools({"vidiff-evaluator": RandomPyramid()}), list(MANIFOLD))
    found = {value.metric: value for value in values}
    assert set(found) == set(MANIFOLD) and found["precision"].value < found["precision"].floor
    for name, value in found.items():
        assert 0 <= value.interval[0] <= value.value <= value.interval[1]
        assert name == "density" or value.interval[1] <= 1
