"""A stage measured on held-out clips while it is trained: the numbers are there, and the training is what it was."""

import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from tests.clips import write_folder
from tests.test_stages import VAE, Words
from tests.test_training import Toy
from tests.test_training import config as trainer_config
from vidiff import config
from vidiff.data.clips import open_clips
from vidiff.data.dataset import ClipDataset, DataConfig
from vidiff.data.toyworld.dataset import ToyWorldConfig
from vidiff.diffusion.guidance import Guidance
from vidiff.errors import ConfigError, DataError, UserError
from vidiff.metrics.clip_set import open_clip_set
from vidiff.metrics.results import read_results
from vidiff.model_folder import ModelConfig, SamplingConfig
from vidiff.models.autoencoder import VideoVAE
from vidiff.models.dit import DiTConfig
from vidiff.sampling.solvers import DDIM
from vidiff.train import held_out
from vidiff.train.cache import cached_latents, cached_text
from vidiff.train.denoiser_stage import DenoiserStage, DenoiserStageConfig
from vidiff.train.held_out import DEFAULT, EvaluationConfig, HeldOutEvaluation
from vidiff.train.recipe import Recipe, decisive
from vidiff.train.trainer import TrainerConfig, train
from vidiff.types import Size

QUIET = Console(quiet=True)
TRAINER = TrainerConfig(max_steps=5, batch_size=2, save_every=2, log_every=1, preview_every=100, ema_decay=0.5)
FOLDER = {"kind": "clips", "path": "held", "frames": 17, "height": 32, "width": 32}
TOYS = {"kind": "toyworld", "frames": 17, "height": 32, "width": 32}
CHEAP = ("fd-random-clips", "frame-similarity")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips")
    write_folder(root / "train", 6, length=17)
    write_folder(root / "held", 10, length=17)
    return root


@pytest.fixture(scope="module")
def build(folders, tmp_path_factory):
    """Return what builds a stage in a folder, equal every time, with or without an evaluation.

    It is measured at other steps than it is saved, so that a kill may come in between.
    """
    cache = tmp_path_factory.mktemp("cache")
    torch.manual_seed(0)
    vae = VideoVAE(VAE).eval()
    data = ClipDataset(DataConfig(folders / "train", frames=17, height=32, width=32))
    latents = cached_latents(cache, vae, "v", data, QUIET)
    text = cached_text(cache, Words(), "w", data, QUIET)
    sampling = SamplingConfig(num_steps=2, guidance=Guidance(scale=2.0), solver=DDIM(eta=0.5), negative="ugly")

    def built(folder=None, on_batch=lambda step: None, note=lambda text: None, frames=17, **settings):
        stage_config = DenoiserStageConfig(backbone=DiTConfig(dim=16, depth=1, num_heads=2), trainer=TRAINER)
        model = ModelConfig(
            backbone=stage_config.backbone, text_dim=8, size=Size(frames, 32, 32, 12.0), sampling=sampling
        )
        stage = DenoiserStage(stage_config, model, data, latents, text, vae, {})
        loss = stage.loss
        stage.loss = lambda player, batch, step, generator: on_batch(step) or loss(player, batch, step, generator)
        if folder is not None:
            held = open_clips(DataConfig(folders / "held", frames=frames, height=32, width=32))
            asked = EvaluationConfig(held.config, **({"every": 3, "count": 4, "metrics": CHEAP} | settings))
            stage.evaluation = HeldOutEvaluation(asked, model, vae, Words(), held, folder / "evaluation", note)
        return stage

    return built


def rows(folder):
    found = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row for row in found if "total" in row], [row for row in found if "total" not in row]


@pytest.fixture(scope="module")
def whole(build, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(build(folder), TRAINER, folder, QUIET).state_dict()


def test_training_is_the_same_bit_for_bit(build, whole, tmp_path):
    folder, weights = whole
    plain = train(build(), TRAINER, tmp_path, QUIET).state_dict()
    assert rows(tmp_path) == (rows(folder)[0], [])
    assert all(torch.equal(plain[name], weights[name]) for name in plain)


def test_values_and_clips_are_left_at_every_evaluation(whole):
    folder, _ = whole
    training, found = rows(folder)
    assert [row["step"] for row in training] == [1, 2, 3, 4, 5]
    assert [row["step"] for row in found] == [3, 5]
    assert all(row.keys() == {"step", "eval/fd-random-clips", "eval/frame-similarity"} for row in found)
    clips = open_clip_set(folder / "evaluation" / "step-00000005").clips
    assert [clip.prompt for clip in clips] == [f"a square number {index} moves right" for index in range(4)]
    assert [clip.seed for clip in clips] == [0, 1, 2, 3] and clips[0].frames().shape == (17, 32, 32, 3)
    results = read_results(folder / "evaluation" / "step-00000005.json")
    assert results.step == 5 and results.values[0].value == found[1]["eval/fd-random-clips"]
    assert "n=4,m=8,ref=sha256:" in results.values[0].protocol and results.label == f"{folder}, step 5"


def test_what_is_left_draws_a_report_with_curves(whole, tmp_path):
    from vidiff.metrics.report import write_report

    folder, _ = whole
    found = [read_results(path) for path in sorted((folder / "evaluation").glob("step-*.json"))]
    write_report(tmp_path / "r.html", found)
    assert "training step" in (tmp_path / "r.html").read_text()


def test_scalars_are_there_for_tensorboard(whole):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(whole[0] / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("eval/fd-random-clips")] == [3, 5]


@pytest.mark.parametrize("step", [3, 4])  # the newest checkpoint is of step 2, then of step 4
def test_a_killed_run_resumes_to_the_same_numbers(build, whole, tmp_path, step):
    folder, weights = whole

    def die(now):
        if now == step:
            raise MemoryError("the process dies here")

    with pytest.raises(MemoryError):
        train(build(tmp_path, on_batch=die), TRAINER, tmp_path, QUIET)
    again = train(build(tmp_path), TRAINER, tmp_path, QUIET).state_dict()
    assert rows(tmp_path) == rows(folder)
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_clips_do_not_depend_on_how_many_are_made_and_one_line_tells_of_them(build, whole, tmp_path, capsys):
    folder, _ = whole
    train(build(tmp_path, count=9), replace(TRAINER, max_steps=3), tmp_path, Console(width=500))
    lines = [line for line in capsys.readouterr().out.splitlines() if "evaluation" in line]
    assert len(lines) == 1 and lines[0].startswith("video 3 evaluation: fd-random-clips ")
    few, many = (open_clip_set(one / "evaluation" / "step-00000003").clips for one in (folder, tmp_path))
    assert len(many) == 9
    for one, two in zip(few, many, strict=False):
        assert (one.frames().int() - two.frames().int()).abs().max() <= 1


def test_what_cannot_be_measured_is_known_before_training(build, tmp_path):
    with pytest.raises(ConfigError, match="several seeds"):
        build(tmp_path, metrics=("diversity",))
    with pytest.raises(DataError, match="has 9 frames"):
        build(tmp_path, frames=9, metrics=("fd-random-clips",))


def test_default_metrics_that_cannot_be_measured_are_left_out_with_a_note(build, tmp_path):
    notes = []
    found = build(tmp_path, frames=9, metrics=None, note=notes.append).evaluation.metrics
    assert "motion" in found and set(found) < set(DEFAULT)
    told = [note.removeprefix("evaluate: ").partition(" is left out: ") for note in notes]
    assert sorted([*found, *(name for name, _, _ in told)]) == sorted(DEFAULT)
    assert any(name == "fd-random-clips" and "9 frames" in why for name, _, why in told)


def test_metrics_are_tried_on_as_many_real_clips_as_will_be_made(build, tmp_path, monkeypatch):
    counts = []
    evaluate = held_out.evaluate
    monkeypatch.setattr(
        held_out, "evaluate", lambda sets, *rest: counts.append(len(sets.generated)) or evaluate(sets, *rest)
    )
    build(tmp_path, count=7, metrics=("frame-similarity",))  # precision takes 6 clips, but a network that is not here
    assert counts == [7]


def test_held_out_toy_clips_come_with_what_they_show(build, whole, tmp_path):
    stage = build()
    held = open_clips(ToyWorldConfig(clips=5, frames=17, height=32, width=32, fps=12, heldout=True))
    model = ModelConfig(text_dim=8, size=Size(17, 32, 32, 12.0))
    asked = EvaluationConfig(held.config, count=4, metrics=CHEAP)
    real = HeldOutEvaluation(asked, model, stage.autoencoder, Words(), held, tmp_path).real
    assert len(real) == 5 and [clip.prompt for clip in real.clips] == [held.captions(k)[0] for k in range(5)]
    assert all("stated" in clip.row and "objects" in clip.row["attributes"] for clip in real.clips)
    wrong = open_clips(replace(held.config, fps=24))
    with pytest.raises(ConfigError, match="24 frames a second, the model's clips 12"):
        HeldOutEvaluation(asked, model, stage.autoencoder, Words(), wrong, tmp_path)


def test_an_evaluation_that_fails_is_noted_and_training_goes_on(tmp_path, capsys):
    class Broken:
        every = 4

        def measure(self, model, step):
            raise UserError("the disk is full")

    stage = Toy()
    stage.evaluation = Broken()
    train(stage, trainer_config(), tmp_path / "a", Console(width=500))
    assert "toy 8: not evaluated: the disk is full" in capsys.readouterr().out
    train(Toy(), trainer_config(), tmp_path / "b", QUIET)
    assert (tmp_path / "a" / "log.jsonl").read_text() == (tmp_path / "b" / "log.jsonl").read_text()


def recipe(**settings):
    stages = [
        {"kind": "autoencoder"},
        {"kind": "denoiser", **settings},
    ]
    return config.from_dict(Recipe, {"name": "r", "data": FOLDER | {"path": "train"}, "stages": stages})


def test_an_evaluation_is_no_part_of_what_is_learned():
    plain, evaluated = recipe(), recipe(evaluate={"data": FOLDER, "every": 10})
    assert evaluated.stages[1].evaluate.count == 32
    recipe(data=TOYS, evaluate={"data": TOYS | {"seed": 1}})
    recipe(data=TOYS, evaluate={"data": TOYS | {"heldout": True}})
    assert decisive(plain.stages[1], plain) == decisive(evaluated.stages[1], evaluated)
    assert config.from_dict(Recipe, config.to_dict(evaluated)) == evaluated


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"evaluate": {"data": FOLDER | {"frames": 9}}}, "must have the frames"),
        ({"evaluate": {"data": FOLDER | {"buckets": [[16, 32]]}}}, "leave buckets out"),
        ({"evaluate": {"data": FOLDER, "every": 0}}, "every must be at least 1"),
        ({"evaluate": {"data": FOLDER, "count": 3}}, "count must be at least 4"),
        ({"evaluate": {"data": FOLDER, "metrics": ["motoin"]}}, "Did you mean motion"),
        ({"evaluate": {"data": FOLDER, "metrics": []}}, "metrics is empty"),
        ({"evaluate": {"data": FOLDER | {"path": "train", "limit": 9}}}, "is what is trained on"),
        ({"evaluate": {"data": TOYS | {"clips": 9}}, "data": TOYS}, "is what is trained on"),
        ({"evaluate": {"data": FOLDER}, "single_frames": 1.0}, "captions alone"),
    ],
)
def test_evaluations_that_cannot_work_are_refused_with_the_recipe(settings, word):
    with pytest.raises(ConfigError, match=word):
        recipe(**settings)
