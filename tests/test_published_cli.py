"""Published models and LoRAs from the command line, and what is refused."""

import json
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.command import in_process
from tests.damaged import add, drop, edited, pickled, spoil, weights_of, widen
from tests.published import image_to_video, stirred, text_to_video
from vidiff.data.metadata import read_metadata

PROMPT = "a red ball rolls right"
SIZE = ("--size", "48x32", "--frames", "5", "--steps", "2", "--upscale", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "tiny"
    text_to_video(folder)
    return folder


@pytest.fixture
def vidiff(monkeypatch, capsys, tmp_path):
    return partial(in_process, monkeypatch, capsys, tmp_path)


def test_generate_shows_what_the_reference_shows(vidiff, folder, tmp_path):
    from diffusers import WanPipeline

    made = vidiff("generate", PROMPT, "--model", folder, *SIZE, "--seed", 3, "--noise-from", "reference", "-o", "x/")
    assert made.returncode == 0, made.stderr
    pipeline = WanPipeline.from_pretrained(folder)
    expected = pipeline(
        PROMPT,
        negative_prompt="",
        height=32,
        width=48,
        num_frames=5,
        num_inference_steps=2,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(3),
        max_sequence_length=512,
        output_type="np",
    ).frames[0]
    (run,) = (tmp_path / "x" / ".vidiff").iterdir()
    decoded = vidiff("decode", run, "--model", folder, "-o", tmp_path / "frames", "--format", "frames")
    assert decoded.returncode == 0, decoded.stderr
    from PIL import Image

    found = np.stack([np.array(Image.open(path)) for path in sorted((tmp_path / "frames").glob("*.png"))])
    assert np.abs(found - 255 * expected).max() < 1.5


def test_a_clip_is_made_again_from_its_recipe(vidiff, folder, tmp_path):
    made = vidiff("generate", PROMPT, "--model", folder, *SIZE, "--noise-from", "reference", "-o", "clip.mp4")
    assert made.returncode == 0, made.stderr
    assert read_metadata(tmp_path / "clip.mp4")["noise_from"] == "reference"
    again = vidiff("reproduce", "clip.mp4", "--json")
    assert json.loads(again.stdout)["same_frames"], again.stderr
    # On a CPU both draw the same; ours does so on every device.
    assert vidiff("generate", PROMPT, "--model", folder, *SIZE, "-o", "own.mp4").returncode == 0
    digests = [read_metadata(tmp_path / f"{name}.mp4")["frames_sha256"] for name in ("clip", "own")]
    assert digests[0] == digests[1]
    unknown = vidiff("generate", PROMPT, "--model", folder, *SIZE, "--noise-from", "comfy", "-o", "x.mp4")
    assert unknown.returncode == 2 and "vidiff or reference" in unknown.stderr


def lora(path, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    changes = {}
    for block in range(2):
        for part in ("to_q", "to_out.0"):
            name = f"transformer.blocks.{block}.attn1.{part}"
            changes[f"{name}.lora_A.weight"] = scale * torch.randn(2, 24, generator=generator)
            changes[f"{name}.lora_B.weight"] = torch.randn(24, 2, generator=generator)
    save_file(changes, path)
    return path


def test_a_lora_changes_the_clip_and_goes_into_its_recipe(vidiff, folder, tmp_path):
    file = lora(tmp_path / "style.safetensors")
    arguments = ("generate", PROMPT, "--model", folder, *SIZE)
    made = vidiff(*arguments, "--lora", f"{file}:0.5", "-o", "clip.mp4")
    assert made.returncode == 0, made.stderr
    assert "style.safetensors: 4 of 4 modules, diffusers names" in made.stderr
    assert vidiff(*arguments, "-o", "plain.mp4").returncode == 0
    assert vidiff(*arguments, "--lora", f"{file}:0", "-o", "none.mp4").returncode == 0
    digests = [read_metadata(tmp_path / f"{name}.mp4")["frames_sha256"] for name in ("clip", "plain", "none")]
    assert digests[0] != digests[1] == digests[2]
    assert json.loads(vidiff("reproduce", "clip.mp4", "--json").stdout)["same_frames"]
    lora(file, 2.0)
    changed = vidiff("reproduce", "clip.mp4")
    assert changed.returncode == 2 and "not the LoRA" in changed.stderr


def test_a_lora_for_one_expert_goes_into_the_recipe(vidiff, tmp_path):
    text_to_video(tmp_path / "experts", experts=True)
    file = lora(tmp_path / "style.safetensors")
    arguments = ("generate", PROMPT, "--model", tmp_path / "experts", *SIZE)
    made = vidiff(*arguments, "--lora", f"{file}:0.5@low", "-o", "clip.mp4")
    assert made.returncode == 0, made.stderr
    assert "style.safetensors: 4 of 4 modules of the low-noise expert, diffusers names" in made.stderr
    assert "high-noise" not in made.stderr
    assert read_metadata(tmp_path / "clip.mp4")["loras"][0]["expert"] == "low"
    assert json.loads(vidiff("reproduce", "clip.mp4", "--json").stdout)["same_frames"]
    unknown = vidiff(*arguments, "--lora", f"{file}@2", "-o", "other.mp4")
    assert unknown.returncode == 2 and "style.safetensors@high or" in unknown.stderr


def test_a_lora_that_would_do_nothing_is_an_error(vidiff, folder, tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"lora_te_text_model_q.lora_down.weight": torch.zeros(2, 8)}, path)
    done = vidiff("generate", PROMPT, "--model", folder, *SIZE, "--lora", path, "-o", "clip.mp4")
    assert done.returncode == 2 and str(path) in done.stderr and not (tmp_path / "clip.mp4").exists()


def test_a_lora_is_described(vidiff, tmp_path):
    shown = vidiff("models", "show", "--lora", lora(tmp_path / "style.safetensors"))
    assert shown.returncode == 0, shown.stderr
    for line in ("format: diffusers", "rank: 2", "base: unknown, of width 24", "kind: text-to-video", "4 of 4 modules"):
        assert line in shown.stdout


def test_a_clip_starts_from_a_picture(vidiff, tmp_path):
    from PIL import Image

    image_to_video(tmp_path / "i2v", "clip")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    arguments = ("generate", PROMPT, "--model", tmp_path / "i2v", *SIZE)
    made = vidiff(*arguments, "--image", "a.png", "-o", "clip.mp4")
    assert made.returncode == 0, made.stderr
    assert json.loads(vidiff("reproduce", "clip.mp4", "--json").stdout)["same_frames"]
    planned = vidiff(*arguments, "--image", "a.png", "--memory", "8", "-o", "planned.mp4")
    assert planned.returncode == 0 and "image encoder" in planned.stderr and "encode pictures: peak" in planned.stderr
    digests = [read_metadata(tmp_path / f"{name}.mp4")["frames_sha256"] for name in ("clip", "planned")]
    assert digests[0] == digests[1]
    without = vidiff(*arguments, "-o", "other.mp4")
    assert without.returncode == 2 and "--image" in without.stderr
    (tmp_path / "a.png").write_bytes(b"no picture")
    broken = vidiff(*arguments, "--image", "a.png", "-o", "other.mp4")
    assert broken.returncode == 2 and "a.png: not a picture" in broken.stderr


def test_a_plan_of_memory_is_shown_and_kept_to(vidiff, folder, tmp_path):
    arguments = ("generate", PROMPT, "--model", folder, *SIZE)
    assert vidiff(*arguments, "-o", "plain.mp4").returncode == 0
    made = vidiff(*arguments, "--memory", "8", "-o", "planned.mp4")
    assert made.returncode == 0, made.stderr
    assert "transformer, blocks" in made.stderr and "of 8.0 GiB on the device" in made.stderr
    digests = [read_metadata(tmp_path / f"{name}.mp4")["frames_sha256"] for name in ("plain", "planned")]
    assert digests[0] == digests[1]


def test_a_picture_that_is_given_is_planned(vidiff, tmp_path):
    from PIL import Image

    image_to_video(tmp_path / "both", "known")
    Image.new("RGB", (48, 32), (200, 30, 60)).save(tmp_path / "a.png")
    arguments = ("generate", PROMPT, "--model", tmp_path / "both", *SIZE, "--memory", "8", "-o", "x.mp4")
    for extra, planned in (((), False), (("--image", "a.png"), True)):
        made = vidiff(*arguments, *extra)
        assert made.returncode == 0 and ("encode pictures: peak" in made.stderr) == planned, made.stderr


@pytest.mark.parametrize("weights", ["int8", "fp8"])
def test_weights_of_a_byte_change_the_clip_and_go_into_its_recipe(vidiff, folder, tmp_path, weights):
    pytest.importorskip("torchao", reason="torchao makes weights of a byte each")
    arguments = ("generate", PROMPT, "--model", folder, *SIZE)
    assert vidiff(*arguments, "--weights", "full", "-o", "full.mp4").returncode == 0
    made = vidiff(*arguments, "--weights", weights, "-o", "narrow.mp4")
    assert made.returncode == 0, made.stderr
    assert f"transformer on the device, {weights}" in made.stderr
    recipes = [read_metadata(tmp_path / f"{name}.mp4") for name in ("full", "narrow")]
    assert [recipe["weights"] for recipe in recipes] == ["full", weights]
    assert recipes[0]["frames_sha256"] != recipes[1]["frames_sha256"]
    assert json.loads(vidiff("reproduce", "narrow.mp4", "--json").stdout)["same_frames"]


def test_weights_that_cannot_be_had_are_refused_before_anything_is_loaded(vidiff, folder, monkeypatch):
    arguments = ("generate", PROMPT, "--frames", "5", "-o", "x.mp4")
    monkeypatch.setitem(sys.modules, "torchao", None)
    for model, weights, word in (
        (folder, "fp4", "--weights is full, int8 or fp8, got 'fp4'"),
        (folder, "fp8", "pip install torchao"),
        ("sprites", "fp8", "published models"),
    ):
        done = vidiff(*arguments, "--model", model, "--weights", weights)
        assert done.returncode == 2 and word in done.stderr and "loading" not in done.stderr


@pytest.mark.parametrize(
    ("model", "memory", "word"),
    [
        ("tiny", "0.1", "0.1 GiB are given"),
        ("tiny", "much", "auto, low or a number"),
        ("sprites", "8", "published models"),
    ],
)
def test_memory_that_does_not_do_is_refused_before_anything_is_loaded(vidiff, folder, model, memory, word):
    name = folder if model == "tiny" else model
    done = vidiff("generate", PROMPT, "--model", name, "--frames", "5", "--memory", memory, "-o", "x.mp4")
    assert done.returncode == 2 and word in done.stderr


def test_models_are_listed_and_shown(vidiff, folder):
    listed = vidiff("models", "list").stdout
    assert "Wan-AI/Wan2.1-T2V-1.3B-Diffusers  Wan 2.1 T2V 1.3B  not pulled" in listed
    shown = vidiff("models", "show", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers").stdout
    for line in ("832x480, 81 frames at 16", "unipc, 50 steps, shift 5", "guidance: 5.0", "negative: 色调艳丽"):
        assert line in shown
    tiny = vidiff("models", "show", folder)
    assert tiny.returncode == 0 and "grid: reference" in tiny.stdout and "shift: 3.0" in tiny.stdout


def test_a_model_that_is_not_here_says_how_to_fetch_it(vidiff):
    done = vidiff("generate", PROMPT, "--model", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    assert done.returncode == 2 and "vidiff models pull Wan-AI/Wan2.1-T2V-1.3B-Diffusers" in done.stderr


@pytest.fixture
def copy(folder, tmp_path):
    import shutil

    return shutil.copytree(folder, tmp_path / "copy")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda copy: weights_of(copy, drop), ["missing: blocks.1.attn2.to_k.weight"]),
        (lambda copy: weights_of(copy, add), ["unexpected: blocks.1.extra.weight"]),
        (lambda copy: weights_of(copy, widen), ["wrong shape: proj_out.bias (17,), expected (16,)"]),
        (lambda copy: weights_of(copy, spoil), ["proj_out.bias is not finite"]),
        (pickled, ["diffusion_pytorch_model.bin is pickled, which is never read"]),
        (lambda copy: edited(copy / "model_index.json", _class_name="FluxPipeline"), ["FluxPipeline", "WanPipeline"]),
        (
            lambda copy: edited(copy / "model_index.json", vae=["evil_code", "Own"]),
            ["needs code of its own (evil_code)"],
        ),
        (
            lambda copy: edited(copy / "model_index.json", vae=["diffusers", "Own"]),
            ["vae is a Own", "AutoencoderKLWan"],
        ),
        (
            lambda copy: edited(copy / "model_index.json", tokenizer=["evil_code", "Own"]),
            ["needs code of its own (evil_code)"],
        ),
        (
            lambda copy: edited(copy / "transformer" / "config.json", auto_map={"AutoModel": "own.py"}),
            ["needs code of its own", "never run"],
        ),
        (lambda copy: (copy / "vae" / "config.json").unlink(), ["vae/config.json: missing"]),
        (lambda copy: (copy / "model_index.json").write_text("{"), ["cannot be read as JSON"]),
        (
            lambda copy: edited(copy / "scheduler" / "scheduler_config.json", _class_name="DDIMScheduler"),
            ["DDIMScheduler is not known"],
        ),
        (lambda copy: edited(copy / "model_index.json", boundary_ratio=0.9), ["boundary_ratio"]),
        (
            lambda copy: edited(copy / "transformer" / "config.json", patch_size=3),
            ["transformer: its config is damaged"],
        ),
        (
            lambda copy: edited(copy / "vae" / "config.json", latents_mean=["a", "b"]),
            ["vae: its config is damaged"],
        ),
        (
            lambda copy: edited(copy / "scheduler" / "scheduler_config.json", flow_shift="much"),
            ["scheduler: its config is damaged"],
        ),
    ],
    ids=[
        *(
            "missing",
            "extra",
            "misshapen",
            "nan",
            "pickle",
            "architecture",
            "vae",
            "vae code",
            "code",
            "auto_map",
            "part",
        ),
        *("json", "scheduler", "boundary", "patch", "statistics", "shift"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(vidiff, copy, tmp_path, change, words):
    change(copy)
    done = vidiff("generate", PROMPT, "--model", copy, *SIZE, "-o", "clip.mp4")
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in done.stderr
    for word in words:
        assert word in errors[0]
    assert not (tmp_path / "clip.mp4").exists()


def test_sizes_that_tokens_do_not_divide_name_the_nearest(vidiff, folder):
    done = vidiff("generate", PROMPT, "--model", folder, "--size", "40x32", "--frames", "5")
    assert done.returncode == 2 and "multiples of 16, got 40x32; try 32x32" in done.stderr


def test_folders_go_there_and_back(vidiff, folder, tmp_path):
    from diffusers import WanPipeline

    assert vidiff("models", "convert", folder, "ours").returncode == 0
    back = vidiff("models", "convert", "ours", "back")
    assert back.returncode == 0, back.stderr
    for model in (tmp_path / "ours", tmp_path / "back", folder):
        made = vidiff("generate", PROMPT, "--model", model, *SIZE, "-o", f"{model.name}.mp4")
        assert made.returncode == 0, made.stderr
    digests = {read_metadata(tmp_path / f"{name}.mp4")["frames_sha256"] for name in ("ours", "back", folder.name)}
    assert len(digests) == 1
    first, again = (WanPipeline.from_pretrained(path) for path in (folder, tmp_path / "back"))
    for name in ("transformer", "vae", "text_encoder"):
        expected, found = (getattr(pipeline, name).state_dict() for pipeline in (first, again))
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert dict(again.scheduler.config)["flow_shift"] == 3.0
    taken = vidiff("models", "convert", folder, "ours")
    assert taken.returncode == 2 and "is there already" in taken.stderr


def test_two_experts_and_pictures_convert(vidiff, tmp_path):
    from diffusers import WanImageToVideoPipeline

    image_to_video(tmp_path / "i2v", "concat")
    assert vidiff("models", "convert", "i2v", "ours").returncode == 0
    assert vidiff("models", "convert", "ours", "back").returncode == 0
    first, again = (WanImageToVideoPipeline.from_pretrained(tmp_path / name) for name in ("i2v", "back"))
    assert again.config.boundary_ratio == 0.9
    for name in ("transformer", "transformer_2"):
        expected, found = (getattr(pipeline, name).state_dict() for pipeline in (first, again))
        assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_a_model_of_another_kind_has_no_place_in_the_diffusers_layout(vidiff):
    done = vidiff("models", "convert", "sprites", "out")
    assert done.returncode == 2 and "no place for the text encoder minilm" in done.stderr


def test_weights_in_shards_are_read_one_by_one(folder, tmp_path):
    from diffusers import WanTransformer3DModel

    from vidiff.components import open_component

    model = stirred(WanTransformer3DModel.from_pretrained(folder / "transformer"))
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    component = open_component(tmp_path / "shards")
    assert len(set(component.files.values())) > 2
    assert component.shapes == {key: tuple(value.shape) for key, value in model.state_dict().items()}


def test_a_published_model_is_measured_by_the_plan_of_memory(vidiff, folder, tmp_path, monkeypatch):
    from vidiff import diffusers_folder
    from vidiff.types import Size

    scheduled = diffusers_folder._scheduled
    monkeypatch.setattr(diffusers_folder, "Size", lambda *published: Size(5, 32, 48, 16.0))
    monkeypatch.setattr(diffusers_folder, "_scheduled", lambda of: replace(scheduled(of), num_steps=2))
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\na blue cube spins\na green cone falls\n")
    asked = ("evaluate", "--model", folder, "--prompts", "prompts.txt", "--metrics", "motion,flicker", "--batch", 2)
    for memory in ((), ("--memory", "8")):
        out = f"out{len(memory)}"
        done = vidiff(*asked, *memory, "--out", out, "--json", f"{out}.json")
        assert done.returncode == 0, done.stderr
        assert ("of 8.0 GiB on the device" in done.stderr) == bool(memory)
    plain, planned = (json.loads((tmp_path / f"{name}.json").read_text())["values"] for name in ("out0", "out2"))
    assert [value["metric"] for value in plain] == ["motion", "flicker"] and len(plain[0]["per_clip"]) == 3
    assert plain == planned
