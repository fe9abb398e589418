"""The published models in full size, on the meta device: every name and shape has its place."""

import hashlib
import json
import math
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.published import diffusers, image_processor, tokenizer, transformers
from vidiff.diffusers_folder import folder_hash
from vidiff.diffusion.schedule import FlowSchedule
from vidiff.interop import wan_autoencoder, wan_transformer
from vidiff.interop.image_encoder import load_image_encoder
from vidiff.interop.wan_published import MANY_PIXELS, PUBLISHED, published
from vidiff.interop.wan_sizes import CLIP_H, CLIP_H_STATES, UMT5_XXL
from vidiff.model_folder import ModelConfig, SamplingConfig
from vidiff.models.autoencoder import VideoVAE
from vidiff.models.dit import SpaceTimeDiT
from vidiff.sampling.times import FlowSpacing
from vidiff.text.encoders import T5Config, build_text_encoder
from vidiff.types import Size

DATA = Path(__file__).parent / "data"
FACTS = json.loads((DATA / "wan_transformers.json").read_text())["transformers"]
TENSORS = json.loads((DATA / "wan_tensors.json").read_text())
TRANSFORMER, AUTOENCODERS = TENSORS["transformer"], TENSORS["autoencoders"]
TEXT, IMAGE = TENSORS["text_encoder"], TENSORS["image_encoder"]
PREFIX = "vision_model."  # of published image encoders, which transformers 5 has dropped from its own names


def spelled_out(pattern, sizes):
    """Return all names of a pattern of the fixture."""
    found = re.search(r"{([^}]+)}", pattern)
    if not found:
        return [pattern]
    numbers = re.fullmatch(r"(\d+)-(\d+)", found[1])
    if numbers:
        choices = range(int(numbers[1]), int(numbers[2]) + 1)
    else:
        choices = range(sizes[found[1]]) if found[1] in sizes else found[1].split(",")
    return [name for one in choices for name in spelled_out(pattern.replace(found[0], str(one), 1), sizes)]


def named(facts, sizes):
    """Return the shape of every tensor that the fixture names."""
    shapes = {}

    def add(name, shape):
        assert name not in shapes  # or a tensor would be counted twice
        shapes[name] = shape

    for kind in ("layers", "tensors"):
        for pattern, written in facts.get(kind, {}).items():
            terms = [re.fullmatch(r"(\d*)([A-Z]?)", term).groups() for term in written.split()]
            shape = tuple(int(times or 1) * (sizes[letter] if letter else 1) for times, letter in terms)
            for name in spelled_out(pattern, sizes):
                if kind == "tensors":
                    add(name, shape)
                else:
                    add(f"{name}.weight", shape)
                    add(f"{name}.bias", shape[:1])
    return shapes


def shapes_of(tensors):
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def on_meta(shapes):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def total(shapes):
    return sum(math.prod(shape) for shape in shapes.values())


@pytest.mark.parametrize("fact", FACTS, ids=[fact["name"] for fact in FACTS])
def test_every_tensor_of_a_published_transformer_has_its_place(fact):
    sizes = TRANSFORMER["sizes"][fact["name"]]
    expected = named(TRANSFORMER, sizes) | (named(TRANSFORMER["picture"], sizes) if "I" in sizes else {})
    assert len(expected) == fact["tensors"]
    assert total(expected) / 1e9 == pytest.approx(fact["billions"], abs=6e-4)
    config, channels, text_dim = wan_transformer.config_from_diffusers(fact["config"])
    with torch.device("meta"):
        ours = SpaceTimeDiT(config, channels, text_dim).state_dict()
        theirs = diffusers.WanTransformer3DModel(**fact["config"]).state_dict()
    assert shapes_of(wan_transformer.to_diffusers(ours, config.patch_size)) == expected
    assert shapes_of(wan_transformer.to_ours(on_meta(expected))) == shapes_of(ours)
    assert shapes_of(theirs) == expected  # so the fixture's names are those of the reference


@pytest.mark.parametrize("fact", AUTOENCODERS, ids=[fact["name"] for fact in AUTOENCODERS])
def test_every_tensor_of_a_published_autoencoder_has_its_place(fact):
    expected = named(fact, {})
    assert (len(expected), total(expected)) == (fact["count"], fact["parameters"])
    for part in ("encoder", "decoder"):
        if millions := fact.get(f"{part}_millions"):
            own = {name: shape for name, shape in expected.items() if name.startswith(part)}
            assert total(own) / 1e6 == pytest.approx(millions, abs=0.06)
    config = wan_autoencoder.config_from_diffusers(fact["config"])
    with torch.device("meta"):
        ours = VideoVAE(config).state_dict()
        theirs = diffusers.AutoencoderKLWan(**fact["config"]).state_dict()
    assert shapes_of(wan_autoencoder.to_diffusers(ours)) == expected
    renamed = wan_autoencoder.to_ours(on_meta(expected))
    assert shapes_of(renamed) == shapes_of(ours)
    for name in ("mean", "std"):
        if statistics := fact.get(f"latents_{name}"):
            torch.testing.assert_close(renamed[f"latent_{name}"], torch.tensor(statistics), atol=0, rtol=0)
    assert shapes_of(theirs) == expected


def umt5(sizes):
    return transformers.UMT5Config(
        vocab_size=sizes["V"],
        d_model=sizes["D"],
        d_kv=sizes["A"] // sizes["H"],
        d_ff=sizes["F"],
        num_layers=sizes["N"],
        num_heads=sizes["H"],
    )


def clip(sizes):
    return transformers.CLIPVisionConfig(
        hidden_size=sizes["D"],
        intermediate_size=sizes["F"],
        num_hidden_layers=sizes["N"],
        num_attention_heads=sizes["H"],
        image_size=round((sizes["S"] - 1) ** 0.5) * sizes["K"],
        patch_size=sizes["K"],
    )


def test_every_tensor_of_the_published_text_encoder_has_its_place():
    expected = named(TEXT, TEXT["sizes"])
    assert len(expected) == TEXT["count"]
    assert total(expected) / 1e9 == pytest.approx(TEXT["billions"], abs=6e-4)
    assert total(expected) == pytest.approx(UMT5_XXL, rel=1e-4)
    with torch.device("meta"):
        model = transformers.UMT5EncoderModel(umt5(TEXT["sizes"]))
    shapes = shapes_of(model.state_dict())
    assert shapes.pop("encoder.embed_tokens.weight") == expected["shared.weight"]  # the same tensor once more
    assert shapes == expected


def test_every_tensor_of_the_published_image_encoder_has_its_place():
    expected = named(IMAGE, IMAGE["sizes"])
    assert (len(expected), total(expected)) == (IMAGE["count"], IMAGE["parameters"])
    assert (IMAGE["parameters"], IMAGE["sizes"]["S"]) == (CLIP_H, CLIP_H_STATES)
    with torch.device("meta"):
        model = transformers.CLIPVisionModel(clip(IMAGE["sizes"]))
    assert {
        PREFIX + name.removeprefix(PREFIX): shape for name, shape in shapes_of(model.state_dict()).items()
    } == expected


def written(folder, facts, config, sizes):
    """Save random tensors of the published names, in a small size, and return them."""
    generator = torch.Generator().manual_seed(0)
    made = {name: torch.randn(shape, generator=generator) for name, shape in named(facts, sizes).items()}
    config.save_pretrained(folder)
    save_file(made, folder / "model.safetensors", metadata={"format": "pt"})
    return made


def test_published_names_are_read_as_they_are(tmp_path):
    text, image = tmp_path / "text_encoder", tmp_path / "image_encoder"
    sizes = {"D": 16, "F": 24, "V": 15, "H": 2, "A": 20, "N": 2}
    made = written(text, TEXT, umt5(sizes), sizes)
    tokenizer().save_pretrained(tmp_path / "tokenizer")
    encoder = build_text_encoder(T5Config(source=str(tmp_path), subfolder="text_encoder", tokenizer="../tokenizer"))
    read = encoder.model.state_dict()
    assert torch.equal(read.pop("encoder.embed_tokens.weight"), made["shared.weight"])
    assert read.keys() == made.keys() and all(torch.equal(read[name], made[name]) for name in made)
    sizes = {"D": 14, "F": 20, "H": 2, "S": 5, "K": 8, "N": 3}
    made = written(image, IMAGE, clip(sizes), sizes)
    image_processor().save_pretrained(tmp_path / "image_processor")
    read = load_image_encoder(image, tmp_path / "image_processor").model.state_dict()
    read = {PREFIX + name.removeprefix(PREFIX): tensor for name, tensor in read.items()}
    assert read.keys() == made.keys() and all(torch.equal(read[name], made[name]) for name in made)


@pytest.mark.parametrize("fact", FACTS, ids=[fact["name"] for fact in FACTS])
def test_published_settings_are_found_by_shape_and_place(fact):
    config, channels, _ = wan_transformer.config_from_diffusers(fact["config"])
    found = published(config, channels, fact["boundary"], fact["hub"])
    assert found is not None and (found.name, found.hub) == (fact["name"], fact["hub"])
    assert config.hidden_dim == found.ffn_dim and found.params == pytest.approx(fact["billions"], abs=6e-4)


def test_every_published_setting_has_its_facts():
    assert [one.name for one in PUBLISHED] == [fact["name"] for fact in FACTS]


FLOW = dict(prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000)
SCHEDULERS = {
    "reference": lambda shift: diffusers.UniPCMultistepScheduler(flow_shift=shift, **FLOW),
    "native": lambda shift: diffusers.DPMSolverMultistepScheduler(flow_shift=shift, **FLOW),
    "euler": lambda shift: diffusers.FlowMatchEulerDiscreteScheduler(shift=shift),
    "even": lambda shift: diffusers.FlowMapEulerDiscreteScheduler(shift=shift),
}


@pytest.mark.parametrize("grid", SCHEDULERS)
@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 12.0])
@pytest.mark.parametrize("steps", [1, 4, 25, 50])
def test_steps_are_those_of_the_reference(grid, shift, steps):
    scheduler = SCHEDULERS[grid](shift)
    scheduler.set_timesteps(steps)
    found = FlowSpacing(shift=shift, grid=grid).times(FlowSchedule(), steps)
    torch.testing.assert_close(found, scheduler.sigmas.double(), atol=2e-7, rtol=0)
    if grid in ("reference", "native"):  # the network is told whole steps
        assert torch.equal((found[:-1] * 1000).floor().long(), scheduler.timesteps)


def test_the_published_grid_ends_where_it_is_said_to():
    native, reference = (
        FlowSpacing(shift=5.0, grid=grid).times(FlowSchedule(), 50) for grid in ("native", "reference")
    )
    assert (1000 * native).floor().long().tolist()[:4] == [999, 995, 991, 987]
    assert (1000 * native).floor().long().tolist()[-4:] == [241, 172, 92, 0]
    assert (1000 * reference).floor().long().tolist()[-4:] == [244, 175, 96, 0]


def test_large_frames_have_the_shift_that_was_published_for_them():
    own = SamplingConfig(spacing=FlowSpacing(shift=3.0))
    config = ModelConfig(sampling=own, large_shift=(MANY_PIXELS, 5.0))
    small, large = Size(81, 480, 832, 16.0), Size(81, 720, 1280, 16.0)
    assert config.sized(own, small) == own
    assert config.sized(own, large).spacing == FlowSpacing(shift=5.0)
    chosen = SamplingConfig(spacing=FlowSpacing(shift=8.0))
    assert config.sized(chosen, large) == chosen  # what someone has set stays


def test_files_that_a_hub_names_by_their_hash_are_not_read_for_it(tmp_path, monkeypatch):
    data = b"weights"
    name = hashlib.sha256(data).hexdigest()
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "a.safetensors").write_bytes(data)
    (tmp_path / name).write_bytes(data)
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "a.safetensors").symlink_to(tmp_path / name)
    expected = folder_hash(tmp_path / "plain")
    monkeypatch.setattr("vidiff.diffusers_folder.sha256_of", None)
    assert folder_hash(tmp_path / "snapshot") == expected
