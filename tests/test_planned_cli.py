"""What the command line plans the memory of a published model for."""

from functools import partial

import pytest
import torch

from tests.command import in_process
from tests.published import text_to_video
from vidiff.errors import ConfigError

PROMPT = "a red ball rolls right"
SIZE = ("--size", "48x32", "--frames", "5", "--steps", "2", "--upscale", "1")
SKIP = ("--set", "guidance.skip.scale=2", "--set", "guidance.skip.layers=[1]")
PERPENDICULAR = ("--set", "guidance.perpendicular=0.5", "--negative", "a cat")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "tiny"
    text_to_video(folder)
    return folder


@pytest.fixture
def vidiff(monkeypatch, capsys, tmp_path):
    return partial(in_process, monkeypatch, capsys, tmp_path)


@pytest.mark.parametrize(
    ("prompt", "options", "samples"),
    [
        ("a", (), 2),
        ("a", ("--guidance", "1"), 1),
        ("a", PERPENDICULAR, 3),
        ("a", ("--set", "guidance.perpendicular=0.5"), 2),
        ("a", SKIP, 3),
        ("a | b | c", ("--travel", "blend"), 4),
        ("a | b | c", ("--travel", "time"), 2),
        ("a | b | c", ("--travel", "time", "--batch", "2"), 4),
        ("a | b | c", ("--travel", "blend", *SKIP, *PERPENDICULAR), 8),
    ],
)
def test_the_plan_counts_all_samples_of_a_call(vidiff, folder, monkeypatch, prompt, options, samples):
    planned = []

    def plan(*_, **task):
        planned.append(task["samples"])
        raise ConfigError("only planned")

    monkeypatch.setattr("vidiff.memory.plan", plan)
    done = vidiff("generate", prompt, "--model", folder, *SIZE, "--memory", "8", *options, "-o", "x.mp4")
    assert planned == [samples], done.stderr


def test_models_that_invert_or_are_evaluated_are_planned_as_they_work(vidiff, folder, tmp_path, monkeypatch):
    planned = []

    def plan(*_, **task):
        planned.append({name: task[name] for name in ("budget", "clips", "samples", "dtype", "weights", "inverts")})
        raise ConfigError("only planned")

    monkeypatch.setattr("vidiff.memory.plan", plan)
    (tmp_path / "p.txt").write_text(PROMPT)
    model = ("--model", folder, "--memory", "8")
    measured = ("evaluate", "--prompts", "p.txt", "--metrics", "motion", "--batch", "3")
    for arguments in (("invert", "clip.mp4", "--prompt", PROMPT), measured):
        done = vidiff(*arguments, *model)
        assert done.returncode == 2 and "only planned" in done.stderr, done.stderr
    full = {"budget": 8.0, "dtype": torch.float32}
    assert planned == [
        full | {"clips": 1, "samples": 1, "weights": ("full",), "inverts": True},
        full | {"clips": 3, "samples": 2, "weights": None, "inverts": False},
    ]
    for arguments, word in (
        ((*measured, "--model", "sprites", "--memory", "8"), "--memory is for published models"),
        ((*measured, *model, "--metrics", "likelihood"), "leave out --memory"),
    ):
        done = vidiff(*arguments)
        assert done.returncode == 2 and word in done.stderr, done.stderr


def test_a_clip_that_is_made_again_is_planned_as_it_was_made(vidiff, folder, monkeypatch):
    made = vidiff("generate", PROMPT, "--model", folder, *SIZE, *PERPENDICULAR, "-o", "clip.mp4")
    assert made.returncode == 0, made.stderr
    planned = []
    monkeypatch.setattr("vidiff.cli.placing.strategy_for", lambda *_, samples, **task: planned.append(samples(None)))
    assert vidiff("reproduce", "clip.mp4").returncode == 0
    assert planned == [3]
