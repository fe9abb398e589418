"""Arcs, variations and noise of a clip, on a model with tiny random weights."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import tests.test_generation as generation
from tests.clips import frames
from tests.test_generation import MODEL, Words, needs_minilm, networks, settings_of
from tests.test_upscaling import Guess
from vidiff.cli.jobs import plan
from vidiff.cli.starts import Ways
from vidiff.data.metadata import read_metadata
from vidiff.data.video_write import write_video
from vidiff.errors import ConfigError, DataError
from vidiff.generation import Job, generate, is_finished, job_and_settings, recipe_of
from vidiff.inverting import NoiseFile, noise_file, read_frames, read_noise
from vidiff.pipeline import Pipeline
from vidiff.refinement import TemporalSR
from vidiff.sampling.interpolation import Arc
from vidiff.sampling.solvers import DDPM
from vidiff.types import Size, TextEmbedding

model, vidiff = generation.model, generation.vidiff  # fixtures

SHORT, LONG = "an orc", "an elf walks to the left"


class Lengthy(Words):
    """A token a word."""

    def encode(self, prompts):
        found = super().encode(prompts)
        lengths = torch.tensor([len(prompt.split()) for prompt in prompts])
        mask = torch.arange(max(lengths)) < lengths[:, None]
        return TextEmbedding(found.tokens.repeat(1, 2, 1)[:, : max(lengths)] * mask[..., None], mask)


@pytest.fixture
def pipeline():
    vae, denoiser, settings = networks()
    return Pipeline(settings, Lengthy(), vae, denoiser, "hash")


def sampled(pipeline, prompts, seeds, arcs=None, solver=MODEL.sampling.solver, **kwargs):
    sampling = replace(MODEL.sampling, solver=solver)
    return pipeline.sample(prompts, seeds, MODEL.size, sampling, arcs=arcs, **kwargs)


@pytest.mark.parametrize("solver", [MODEL.sampling.solver, DDPM()], ids=repr)
def test_the_ends_of_a_way_are_the_plain_clips_bit_for_bit(pipeline, solver):
    for prompt, other in ((SHORT, LONG), (LONG, SHORT)):
        here, there = (sampled(pipeline, [p], [s], solver=solver) for p, s in ((prompt, 1), (other, 9)))
        first, between, last = (
            sampled(pipeline, [prompt], [1], [Arc(share, 9, other)], solver=solver) for share in (0.0, 0.5, 1.0)
        )
        assert torch.equal(first, here) and torch.equal(last, there)
        assert not torch.allclose(between, here, atol=0.1) and not torch.allclose(between, there, atol=0.1)


def test_clips_on_a_way_do_not_change_one_another(pipeline):
    prompts, seeds = [SHORT, LONG, SHORT, SHORT], [1, 1, 5, 5]
    arcs = [Arc(0.3, to_prompt=LONG), Arc(0.7, 9), None, Arc(1.0, 6, LONG)]
    whole = sampled(pipeline, prompts, seeds, arcs, DDPM())
    for index, one in enumerate(whole):
        alone = sampled(pipeline, prompts[index : index + 1], seeds[index : index + 1], arcs[index : index + 1], DDPM())
        assert torch.allclose(one, alone[0], atol=1e-5)


def test_variations_go_further_with_their_strength(pipeline):
    (clip, *others) = (sampled(pipeline, [SHORT], [1], [Arc(share, 2)]) for share in (0.0, 0.1, 0.3, 0.6))
    far = [(other - clip).square().mean().item() for other in others]
    assert 0 < far[0] < far[1] < far[2]


def test_noise_takes_the_place_of_the_first_draw_of_its_sample(pipeline):
    shape = pipeline.autoencoder.latents.shape(9, 32, 32)
    own = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    plain, other = sampled(pipeline, [SHORT] * 2, [1, 2], solver=DDPM())
    found = sampled(pipeline, [SHORT] * 2, [1, 2], solver=DDPM(), noise=[own, None])
    assert torch.equal(found[0], plain) and torch.equal(found[1], other)
    assert not torch.allclose(sampled(pipeline, [SHORT], [1], noise=[-own])[0], plain)
    with pytest.raises(ConfigError, match=re.escape("noise of shape (3,) does not fit latents (4, 3, 4, 4)")):
        sampled(pipeline, [SHORT], [1], noise=[torch.zeros(3)])


def test_a_recipe_keeps_what_a_clip_starts_from(pipeline, tmp_path):
    settings = settings_of(pipeline, format="gif")
    jobs = [
        Job(SHORT, 1, tmp_path / "a.gif"),
        Job(SHORT, 1, tmp_path / "a.gif", arc=Arc(0.25, 9, LONG)),
        Job(SHORT, 1, tmp_path / "a.gif", arc=Arc(0.5, 9, LONG)),
        Job(SHORT, 0, tmp_path / "a.gif", noise=NoiseFile(tmp_path / "n.safetensors", "ab")),
    ]
    for job in jobs:
        recipe = json.loads(json.dumps(recipe_of(pipeline, job, settings)))
        assert job_and_settings(recipe, job.output, tmp_path)[0] == job
        write_video(job.output, frames(), 12, metadata=recipe)
        assert [is_finished(one, recipe_of(pipeline, one, settings)) for one in jobs] == [one == job for one in jobs]
    older = {key: value for key, value in recipe_of(pipeline, jobs[0], settings).items() if key not in ("arc", "noise")}
    assert job_and_settings(older, jobs[0].output, tmp_path)[0] == jobs[0]
    write_video(jobs[0].output, frames(), 12, metadata=older)
    assert is_finished(jobs[0], recipe_of(pipeline, jobs[0], settings))
    with pytest.raises(DataError, match="its recipe is damaged"):
        job_and_settings(older | {"arc": {"share": 2}}, jobs[0].output, tmp_path)


def test_super_resolution_reads_the_text_on_the_way_and_the_seed_of_the_end(pipeline, tmp_path):
    class Reads(Guess):
        def refine(self, clips, text, negative, seeds, sampling, **kwargs):
            self.told = (text, seeds)
            return super().refine(clips, text, negative, seeds, sampling, **kwargs)

    stage = Reads(TemporalSR())
    pipeline = replace(pipeline, refiners=(stage,))
    settings = settings_of(pipeline, stages=1, format="gif")

    def told(seed, prompt, arc=None):
        generate(pipeline, [Job(prompt, seed, tmp_path / "a.gif", arc=arc)], settings)
        text, seeds = stage.told
        return text.tokens, seeds

    plain, there = told(1, SHORT), told(9, LONG)
    half = told(1, SHORT, Arc(0.5, 9, LONG))
    assert half[1] == plain[1] and half[0].shape[1] == 6  # tokens of 2 and 6 words
    end = told(1, SHORT, Arc(1.0, 9, LONG))
    assert torch.equal(end[0], there[0]) and end[1] == there[1]


def starts_of(tmp_path, seed=None, num=1, output=None, **ways):
    return plan(SHORT, None, output or tmp_path, None, seed, num, None, ways=Ways(**ways))


def test_a_way_has_as_many_clips_as_are_asked_for_both_ends_among_them(tmp_path):
    jobs = starts_of(tmp_path, 1, 5, to_seed=9, to_prompt="an  elf")
    assert [job.arc for job in jobs] == [Arc(share, 9, "an elf") for share in (0, 0.25, 0.5, 0.75, 1)]
    assert [job.output.name for job in jobs] == [f"an-orc-1-arc-{i}.mp4" for i in range(5)]
    assert {job.seed for job in jobs} == {1}


def test_variations_name_their_seeds(tmp_path):
    jobs = starts_of(tmp_path, 7, vary=2, strength=0.5)
    assert [(job.seed, job.arc) for job in jobs] == [(7, Arc(0.5, 8)), (7, Arc(0.5, 9))]
    assert [job.output.name for job in jobs] == ["an-orc-7-vary-8.mp4", "an-orc-7-vary-9.mp4"]
    (one,) = starts_of(tmp_path, output=tmp_path / "a.gif", vary=1)
    assert one.output == tmp_path / "a.gif" and one.arc == Arc(0.3, 1)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"vary": 2, "num": 3}, "--vary makes its own clips out of one; leave out --num 3"),
        ({"vary": 2, "to_seed": 3, "to_prompt": "x"}, "leave out --to-seed and --to-prompt"),
        ({"vary": 2, "output": "a.mp4"}, "--vary 2 needs a folder"),
        ({"strength": 0.5}, "say with --vary how many"),
        ({"to_seed": 3}, "--to-seed leads from one clip to another; say with --num how many, at least 2"),
        ({"to_prompt": "an elf"}, "--to-prompt leads"),
        ({"to_prompt": " ", "num": 2}, "the prompt of --to-prompt is empty"),
        ({"to_seed": 3, "num": 2, "output": "a.mp4"}, "--num 2 needs a folder"),
        ({"noise": "n", "seed": 4}, "--noise makes one clip, of the noise alone; leave out --seed 4"),
        ({"noise": "n", "num": 2, "vary": 2}, "leave out --num 2 and --vary"),
        ({"noise": "n"}, "n: no such file; `vidiff invert` makes one"),
    ],
)
def test_starts_that_do_not_go_together_are_told_in_one_line(tmp_path, options, word):
    paths = {key: tmp_path / options[key] for key in ("noise", "output") if key in options}
    with pytest.raises(ConfigError, match=re.escape(word)) as caught:
        starts_of(tmp_path, **(options | paths))
    assert "\n" not in str(caught.value)


def test_a_list_of_prompts_takes_no_other_starts(tmp_path):
    with pytest.raises(ConfigError, match="--vary takes one prompt; leave out --from-file"):
        plan(None, tmp_path / "p.txt", None, None, None, 1, None, ways=Ways(vary=2))


def test_a_clip_of_another_size_and_rate_is_read_as_the_models(pipeline, tmp_path):
    write_video(tmp_path / "a.mp4", frames(20, 48, 80), 24, lossless=True)
    found, size = read_frames(tmp_path / "a.mp4", pipeline)
    assert found.shape == (9, 32, 32, 3) and size == MODEL.size
    write_video(tmp_path / "b.mp4", frames(7), 12, lossless=True)
    found, size = read_frames(tmp_path / "b.mp4", pipeline)
    assert size == Size(5, 32, 32, 12.0)  # 4 n + 1 frames
    assert np.abs(found.numpy().astype(int) - frames(7)[:5]).max() <= 2


@needs_minilm
def test_a_way_and_variations_are_made_and_reproduced(vidiff, model, tmp_path):
    base = ("generate", "an orc", "--model", model, "--format", "gif", "--json")
    done = vidiff(*base, "-o", tmp_path / "way", "--seed", 1, "--to-seed", 3, "--num", 2, "--batch", 2)
    assert done.returncode == 0, done.stderr
    assert [row["arc"]["share"] for row in json.loads(done.stdout)] == [0, 1]
    done = vidiff(*base, "-o", tmp_path / "varied.gif", "--vary", 1, "--strength", 0.2)
    assert done.returncode == 0, done.stderr
    recipe = read_metadata(tmp_path / "varied.gif")
    assert recipe["seed"] == 0 and recipe["arc"] == {"share": 0.2, "to_seed": 1, "to_prompt": None}
    again = vidiff("reproduce", tmp_path / "varied.gif", "--json")
    assert json.loads(again.stdout)["same_frames"] is True


@needs_minilm
def test_a_clip_goes_to_noise_and_back_and_is_reproduced_while_the_noise_is_there(vidiff, model, tmp_path):
    clip, noise = tmp_path / "in.mp4", tmp_path / "n.safetensors"
    write_video(clip, frames(), 12, lossless=True)
    done = vidiff("invert", clip, "--prompt", "an orc", "--model", model, "-o", noise, "--steps", 4, "--json")
    assert done.returncode == 0, done.stderr
    told = read_noise(noise)
    assert told.prompt == "an orc" and told.size == MODEL.size and told.sampling.num_steps == 4
    assert json.loads(done.stdout)["frames"] == 9 and "decibels" in json.loads(done.stdout)

    made = vidiff("generate", "an elf", "--noise", noise, "--model", model, "-o", tmp_path / "a.gif")
    assert made.returncode == 0, made.stderr
    recipe = read_metadata(tmp_path / "a.gif")
    assert recipe["sampling"]["solver"]["kind"] == "ddim" and len(recipe["times"]) == 5
    assert recipe["noise"] == {"path": str(noise), "sha256": noise_file(noise).sha256}

    moved = tmp_path / "moved.safetensors"
    noise.rename(moved)
    for arguments, word in (
        ((), f"{noise}: no such file; say with --noise where the noise lies"),
        (("--noise", clip), "in.mp4: not the noise that was used (sha256 "),
    ):
        done = vidiff("reproduce", tmp_path / "a.gif", *arguments)
        assert done.returncode == 2 and word in done.stderr and len(done.stderr.splitlines()) == 1
    done = vidiff("reproduce", tmp_path / "a.gif", "--noise", moved, "--json")
    assert json.loads(done.stdout)["same_frames"] is True


@needs_minilm
def test_noise_that_does_not_fit_is_one_line(vidiff, model, tmp_path):
    clip, noise = tmp_path / "in.mp4", tmp_path / "n.safetensors"
    write_video(clip, frames(), 12, lossless=True)
    vidiff("invert", clip, "--prompt", "an orc", "--model", model, "-o", noise, "--steps", 1, "--iterations", 1)
    other = tmp_path / "other"
    shutil.copytree(model, other)
    (other / "config.yaml").write_text((other / "config.yaml").read_text().replace("name: tiny", "name: another"))
    start = ("generate", "x", "-o", tmp_path / "a.gif", "--noise")
    for arguments, word in (
        ((*start, noise, "--model", other), f"was made with another model ({model}); give that one with --model"),
        ((*start, noise, "--model", model, "--frames", 5), "leave out --frames, --fps and --size"),
        ((*start, clip, "--model", model), "in.mp4: no noise of vidiff invert"),
        ((*start, model / "model.safetensors", "--model", model), "model.safetensors: no noise of vidiff invert"),
        (("invert", clip, "--prompt", "x", "--model", model, "-o", tmp_path / "n.mp4"), "kept as .safetensors"),
        (("invert", clip, "--prompt", " ", "--model", model), "the prompt is empty"),
        (("invert", clip, "--model", model), "Missing option '--prompt'"),
        (("generate", "x", "--model", model, "--vary", 2, "--strength", 1.5), "--strength"),
    ):
        done = vidiff(*arguments)
        assert done.returncode == 2 and word in done.stderr, done.stderr
        assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1
    assert not (tmp_path / "a.gif").exists()
