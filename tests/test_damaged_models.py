"""What is wrong with the encoders or the configs of a published model: one line that names it, with exit code 2."""

import json
import os
import shutil
import time
from functools import partial

import numpy as np
import pytest
import torch

from tests.command import in_process
from tests.damaged import added, dropped, edited, spoiled, weights_of, widened
from tests.published import image_to_video, text_to_video
from vidiff import digests
from vidiff.diffusers_folder import folder_hash
from vidiff.files import sha256_of

SIZE = ("--size", "48x32", "--frames", "5", "--steps", "2", "--upscale", "1")
QUERY = "encoder.block.1.layer.0.SelfAttention.q.weight"


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text") / "tiny"
    text_to_video(folder)
    return folder


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    from PIL import Image

    folder = tmp_path_factory.mktemp("image") / "tiny"
    image_to_video(folder, "clip")
    Image.new("RGB", (48, 32), (200, 30, 60)).save(folder / "a.png")
    return folder


@pytest.fixture
def vidiff(monkeypatch, capsys, tmp_path):
    return partial(in_process, monkeypatch, capsys, tmp_path)


@pytest.fixture
def copied(text_folder, image_folder, tmp_path):
    """Return what copies a model with an image encoder if that is the part that is going to be damaged."""
    return lambda part: shutil.copytree(image_folder if "image" in part else text_folder, tmp_path / "copy")


def refused(vidiff, copy, part, *more):
    image = ("--image", copy / "a.png") if "image" in part else ()
    done = vidiff("generate", "a red ball", "--model", copy, *SIZE, *image, *more, "-o", "clip.mp4")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(errors) == 1 and done.stderr.endswith(f"{errors[0]}\n"), done.stderr
    assert not (copy.parent / "clip.mp4").exists()
    return errors[0]


NORM, LAYER = "post_layernorm.weight", "encoder.layers.1.mlp.fc1.weight"
TIED = "encoder.embed_tokens.weight"


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("text_encoder", added("extra.weight", 2), ["text_encoder: unexpected: extra.weight"]),
        ("text_encoder", added("two\nlines", 2), [r"unexpected: 'two\nlines'"]),
        ("text_encoder", dropped(QUERY), [f"text_encoder: missing: {QUERY}"]),
        ("text_encoder", widened(QUERY), [f"of the wrong shape: {QUERY} (3, 16, 16), expected (16, 16)"]),
        ("text_encoder", added(TIED, 2), [f"of the wrong shape: {TIED} (2,), expected (15, 16)"]),
        ("text_encoder", spoiled(QUERY), [f"model.safetensors: {QUERY} is not finite"]),
        ("text_encoder", spoiled("shared.weight", -torch.inf), ["model.safetensors: shared.weight is not finite"]),
        ("image_encoder", added("extra.weight", 2), ["image_encoder: unexpected: extra.weight"]),
        ("image_encoder", dropped(NORM), ["image_encoder: missing: ", NORM]),
        ("image_encoder", widened(LAYER), ["of the wrong shape: ", f"{LAYER} (3, 20, 14), expected (20, 14)"]),
        ("image_encoder", spoiled(LAYER), ["model.safetensors: ", f"{LAYER} is not finite"]),
    ],
)
def test_an_encoder_whose_tensors_do_not_fit_is_refused_by_name(vidiff, copied, part, change, words):
    copy = copied(part)
    weights_of(copy, change, part)
    error = refused(vidiff, copy, part)
    assert all(word in error for word in words)


def test_what_published_files_hold_beside_an_encoder_is_not_in_its_way(image_folder, tmp_path):
    from vidiff.interop.image_encoder import load_image_encoder
    from vidiff.text.encoders import T5Config, build_text_encoder

    def loaded(folder):
        text = T5Config(source=str(folder), subfolder="text_encoder", tokenizer="../tokenizer")
        image = load_image_encoder(folder / "image_encoder", folder / "image_processor")
        return build_text_encoder(text).encode(["a red ball"]).tokens, image.encode(np.full((16, 16, 3), 9, np.uint8))

    def beside_text(weights):
        weights |= {TIED: weights["shared.weight"].clone(), "lm_head.weight": torch.zeros(15, 16)}
        weights["decoder.block.0.layer.0.SelfAttention.q.weight"] = torch.zeros(16, 16)

    def beside_image(weights):
        own = {f"vision_model.{name.removeprefix('vision_model.')}": value for name, value in weights.items()}
        weights.clear()
        weights |= own | {"visual_projection.weight": torch.zeros(5, 14)}
        weights["vision_model.embeddings.position_ids"] = torch.arange(5)[None]

    copy = shutil.copytree(image_folder, tmp_path / "copy")
    weights_of(copy, beside_text, "text_encoder")
    weights_of(copy, beside_image, "image_encoder")
    shutil.copy(copy / "image_encoder" / "model.safetensors", copy / "image_encoder" / "open_clip_model.safetensors")
    for found, expected in zip(loaded(copy), loaded(image_folder), strict=True):
        assert torch.equal(found, expected)


ENCODERS = [
    *(("text_encoder", name, value) for name, value in [("d_model", "x"), ("num_layers", 10**7), ("d_ff", 2.5)]),
    *(("text_encoder", name, value) for name, value in [("num_heads", [2]), ("layer_norm_epsilon", "a")]),
    ("text_encoder", "dropout_rate", float("nan")),
    *(("image_encoder", name, value) for name, value in [("patch_size", 0), ("hidden_size", "x"), ("image_size", -1)]),
    *(("image_encoder", name, value) for name, value in [("num_hidden_layers", 10**7), ("hidden_act", "none")]),
]
NETWORKS = [
    *(("transformer", name, value) for name, value in [("attention_head_dim", 12.0), ("eps", "a"), ("eps", None)]),
    *(("transformer", name, value) for name, value in [("num_layers", 10**7), ("num_layers", True)]),
    *(("transformer", name, value) for name, value in [("ffn_dim", 10**9), ("num_attention_heads", 60_000)]),
    *(("vae", name, value) for name, value in [("dim_mult", 5), ("dim_mult", []), ("dim_mult", [1] * 2000)]),
    *(("vae", name, value) for name, value in [("patch_size", "q"), ("z_dim", "x"), ("z_dim", 10**9)]),
    *(("vae", name, value) for name, value in [("base_dim", -4), ("base_dim", None), ("num_res_blocks", 900)]),
    *(("vae", name, value) for name, value in [("temperal_downsample", "abc"), ("temperal_downsample", [1, 2, 3])]),
    *(("vae", name, value) for name, value in [("latents_mean", None), ("latents_mean", [0.0] * 3)]),
    ("vae", "latents_mean", [10**400] * 4),
    *(("vae", name, value) for name, value in [("latents_std", [1.0, 1.0, 1.0, 0.0]), ("is_residual", "yes")]),
]


@pytest.mark.parametrize("more", [(), ("--memory", "8")], ids=["whole", "planned"])
@pytest.mark.parametrize(("part", "name", "value"), ENCODERS + NETWORKS)
def test_a_damaged_config_is_named_at_once(vidiff, copied, part, name, value, more):
    copy = copied(part)
    edited(copy / part / "config.json", **{name: value})
    started = time.monotonic()
    error = refused(vidiff, copy, part, *more)
    assert f"{copy / part}: " in error and time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("model_index.json", {"transformer_2": []}, "transformer_2 is [], but must be a library and a class"),
        ("model_index.json", {"vae": "AutoencoderKLWan"}, "vae is 'AutoencoderKLWan', but must be"),
        ("transformer/config.json", {"_class_name": "FluxTransformer2DModel"}, "transformer: is a FluxTransformer2D"),
        ("transformer/config.json", {"_class_name": ["a"]}, "WanTransformer3DModel can"),
        ("vae/config.json", {"_class_name": "AutoencoderKL"}, "vae: is a AutoencoderKL, which cannot be read; Autoenc"),
        ("image_encoder/config.json", {"model_type": "siglip_vision_model"}, "clip_vision_model or clip can"),
        ("image_processor/preprocessor_config.json", {"crop_size": "x"}, "preprocessor_config.json: does not say"),
        ("image_processor/preprocessor_config.json", {"crop_size": 32}, "32 pixels a side, but"),
        ("image_processor/preprocessor_config.json", {"image_std": [0, 0, 0]}, "image_std above 0"),
        ("text_encoder/config.json", {"quantization_config": {"bits": 4}}, "text_encoder: its weights are quantized"),
        ("text_encoder/config.json", {"_attn_implementation": "some/kernel"}, "needs code of its own"),
        ("text_encoder/config.json", {"d_kv": 4}, "text_encoder: of the wrong shape"),
        ("text_encoder/config.json", {"d_model": 24}, "d_model is 24, but the transformer reads states of width 16"),
        ("image_encoder/config.json", {"hidden_size": 28}, "hidden_size is 28, but the transformer reads states of w"),
    ],
)
def test_a_part_of_another_kind_is_named_with_those_that_are_known(vidiff, copied, file, changes, words):
    copy = copied("image" if "image" in file else "text")
    edited(copy / file, **changes)
    assert words in refused(vidiff, copy, file)


def test_a_time_between_experts_that_is_none_is_refused(vidiff, copied):
    copy = copied("text")
    shutil.copytree(copy / "transformer", copy / "transformer_2")
    second = {"transformer_2": ["diffusers", "WanTransformer3DModel"]}
    for boundary in ("x", 2.0, []):
        edited(copy / "model_index.json", boundary_ratio=boundary, **second)
        assert "model_index.json: " in refused(vidiff, copy, "text")


def test_a_config_without_a_class_is_read(copied):
    from vidiff.diffusers_folder import open_diffusers_folder

    copy = copied("text")
    for part in ("transformer", "vae"):
        path = copy / part / "config.json"
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "_class_name"}))
    assert open_diffusers_folder(copy).vae_config.latent_channels == 4


@pytest.mark.parametrize("more", [(), ("--memory", "8")], ids=["whole", "planned"])
@pytest.mark.parametrize("part", ["text_encoder", "image_encoder", "transformer", "vae"])
def test_code_that_comes_with_a_network_is_never_run(vidiff, copied, part, more):
    copy = copied(part)
    edited(copy / part / "config.json", auto_map={"AutoModel": "own.Model"})
    assert f"{copy / part}: needs code of its own" in refused(vidiff, copy, part, *more)


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Return a file of weights that was written some time ago, and what its folder was hashed from since."""
    read = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "_SETTLED", -1.0)
    monkeypatch.setattr("vidiff.diffusers_folder.sha256_of", lambda path: read.append(path) or sha256_of(path))
    path = tmp_path / "model" / "a.safetensors"
    path.parent.mkdir()
    path.write_bytes(bytes(1 << 20))
    return path, read


def test_large_files_are_hashed_once(weights):
    path, read = weights
    first = folder_hash(path.parent)
    assert folder_hash(path.parent) == first and read == [path.resolve()]
    times = path.stat()
    path.write_bytes(b"1" + bytes((1 << 20) - 1))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as copies have that keep their times
    changed = folder_hash(path.parent)
    assert changed != first and len(read) == 2
    path.write_bytes(bytes(1 << 20))
    assert folder_hash(path.parent) == first and len(read) == 3
    assert list(json.loads(digests.digests_path().read_text())) == [str(path.resolve())]


@pytest.mark.parametrize("text", ["{", "[]", '{"PATH": 3}', '{"PATH": []}'])
def test_a_damaged_memory_of_digests_only_costs_time(weights, text):
    path, read = weights
    first = folder_hash(path.parent)
    digests.digests_path().write_text(text.replace("PATH", str(path.resolve())))
    assert folder_hash(path.parent) == first and len(read) == 2
    assert folder_hash(path.parent) == first and len(read) == 2


def test_digests_that_may_be_old_or_cannot_be_kept_are_not_relied_on(weights, monkeypatch, tmp_path):
    path, read = weights
    monkeypatch.setattr(digests, "_SETTLED", 60.0)
    assert folder_hash(path.parent) == folder_hash(path.parent) and len(read) == 2
    assert not digests.digests_path().exists()
    monkeypatch.setattr(digests, "_SETTLED", -1.0)
    (tmp_path / "cache").write_text("no folder")
    folder_hash(path.parent)
