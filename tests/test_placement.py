"""Parts of a published model that come to the device and leave it: the same clips, whatever the plan."""

import itertools
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from tests.damaged import drop, weights_of
from tests.published import text_to_video
from vidiff.decoding import decode_tiled
from vidiff.diffusion.guidance import Guidance
from vidiff.errors import CheckpointError, ConfigError
from vidiff.generation import Job, Settings, generate, read_run, redecode
from vidiff.inverting import invert_clip
from vidiff.memory import Strategy
from vidiff.pipeline import load
from vidiff.placement import Placement
from vidiff.sampling.solvers import DDIM
from vidiff.types import Size

SIZE = Size(5, 32, 48, 16.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    text_to_video(folder, experts=True)
    return folder


def latents(pipeline):
    sampling = replace(pipeline.config.sampling, num_steps=4, guidance=Guidance(scale=3.0))
    return pipeline.sample(["a red ball"], [0], SIZE, sampling)


def style(path):
    """Write a LoRA."""
    generator, name = torch.Generator().manual_seed(0), "transformer.blocks.0.ffn.net.2"
    parts = {"A": torch.randn(2, 40, generator=generator), "B": torch.randn(24, 2, generator=generator)}
    save_file({f"{name}.lora_{part}.weight": value for part, value in parts.items()}, path)
    return path


@pytest.fixture(scope="module")
def expected(folder):
    return latents(load(folder))


@pytest.mark.parametrize(
    ("kind", "parked"), itertools.product(["resident", "swapped", "streamed"], [False, True]), ids=str
)
def test_every_way_makes_the_same_latents_again_and_again(folder, expected, kind, parked):
    model = load(folder, strategy=Strategy("host", kind, "full", "chunks", parked))
    for _ in range(2):
        assert torch.equal(latents(model), expected)
        with model.coding():
            model.autoencoder.decode(expected)
            assert bool(model.placement._offloads) == (kind == "streamed" and not parked)


def test_blocks_are_ordinary_again_after_they_were_streamed(folder, expected):
    model = load(folder, strategy=Strategy("host", "streamed", "full", "chunks", True))
    latents(model)
    network = model.placement.networks[0]
    hooks = [len(block._forward_pre_hooks) for block in network.blocks]
    with model.coding():
        pass
    assert all(hooks) and not any(len(block._forward_pre_hooks) for block in network.blocks)
    assert torch.equal(latents(model), expected)


def test_an_expert_that_is_on_the_device_is_not_moved_there_again(folder, monkeypatch):
    # As weights sent to "cuda" lie on cuda:0, those sent to "cpu:0" lie on cpu: one device under two names.
    model = load(folder, "cpu:0", strategy=Strategy("host", "swapped", "full", "chunks", False))
    latents(model)
    moves = []
    for network in model.placement.networks:
        monkeypatch.setattr(network, "to", moves.append)
    latents(model)
    assert not moves


@pytest.mark.parametrize(
    ("kind", "parked", "read_to", "home"),
    [("resident", False, "meta", "meta"), ("resident", True, "meta", "cpu"), ("swapped", False, "cpu", "cpu")],
)
def test_weights_are_read_to_where_the_plan_has_them(folder, kind, parked, read_to, home):
    loaded = load(folder, strategy=Strategy("device", kind, "full", "chunks", parked))
    read = []  # the meta device stands for one that has memory of its own
    placement = Placement(
        Strategy("device", kind, "full", "chunks", parked),
        *(torch.device("meta"), loaded.denoiser, loaded.autoencoder),
        lambda device: read.append(device.type),
    )
    with placement.denoising():
        pass
    assert read == [read_to] and placement.home.type == home


def test_weights_are_read_when_the_encoder_is_gone_and_again_after_a_new_prompt(folder, tmp_path, monkeypatch):
    from vidiff.adapting import adapted, lora_file

    def two(model):
        model = adapted(model, [lora_file(str(style(tmp_path / "style.safetensors")))], lambda text: None)
        sampling = replace(model.config.sampling, num_steps=2)
        return [model.sample([prompt], [0], SIZE, sampling) for prompt in ("a red ball", "a blue cat", "a red ball")]

    expected = two(load(folder))
    model, gone = load(folder, strategy=Strategy("device", "resident", "full", "chunks", False)), []
    model.placement.home = torch.device("meta")  # as of a device that has memory of its own
    read = model.placement.read
    monkeypatch.setattr(
        *(model.placement, "read"), lambda device: gone.append(model.text_encoder._encoder is None) or read(device)
    )
    assert all(torch.equal(found, one) for found, one in zip(two(model), expected, strict=True))
    assert gone == [True, True]


def test_only_what_denoises_needs_the_transformer_and_a_folder_that_does_not_fit_is_known_before(folder, tmp_path):
    strategy = Strategy("device", "resident", "full", "chunks", True)
    model = load(folder, strategy=strategy)
    with model.coding():
        pass
    assert all(value.is_meta for network in model.placement.networks for value in network.parameters())
    copy = shutil.copytree(folder, tmp_path / "copy")
    weights_of(copy, drop)
    with pytest.raises(CheckpointError, match="missing: blocks"):
        load(copy, strategy=strategy)


def test_models_of_ours_have_no_plan():
    from vidiff.pipeline import find_model

    with pytest.raises(ConfigError, match="plans of memory are for published models"):
        load(find_model("sprites"), strategy=Strategy("host", "resident", "full", "chunks", False))


def test_the_text_encoder_is_built_once_for_a_clip_and_gone_while_it_is_sampled(folder, monkeypatch):
    import vidiff.pipeline as module

    built = []
    build = module.build_text_encoder
    monkeypatch.setattr(module, "build_text_encoder", lambda *args: built.append(args) or build(*args))
    model = load(folder, strategy=Strategy("host", "resident", "full", "chunks", False))
    gone = []
    sampling = replace(model.config.sampling, num_steps=2, guidance=Guidance(scale=3.0))
    model.sample(
        *(["a red ball"], [0], SIZE, sampling),
        negatives=["a blue cat"],
        on_step=lambda *step: gone.append(model.text_encoder._encoder is None),
    )
    assert len(built) == 1 and gone == [True, True]


@pytest.mark.parametrize("text", ["beside", "device", "host"])
def test_the_transformer_leaves_before_the_encoder_of_a_new_prompt_if_there_is_no_room_for_both(
    folder, monkeypatch, text
):
    import vidiff.pipeline as module

    model = load(folder, strategy=Strategy(text, "streamed", "full", "chunks", False))
    sampling = replace(model.config.sampling, num_steps=2)
    beside, build = [], module.build_text_encoder
    monkeypatch.setattr(
        *(module, "build_text_encoder"),
        lambda *args: beside.append(bool(model.placement._offloads)) or build(*args),
    )
    for prompt in ("a red ball", "a red ball", "a blue cat"):
        model.sample([prompt], [0], SIZE, sampling)
        assert model.placement._offloads
    assert beside == [text != "device"]


def test_frames_are_decoded_as_planned_and_as_planned_again(folder, tmp_path, monkeypatch):
    tiled = []
    monkeypatch.setattr(
        *("vidiff.decoding.decode_tiled", lambda vae, latents: tiled.append(latents) or decode_tiled(vae, latents))
    )
    model = load(folder, strategy=Strategy("host", "resident", "full", "tiles", False))
    sampling = replace(model.config.sampling, num_steps=2)
    settings = Settings(str(folder), SIZE, sampling, "gif", 1)
    (made,) = generate(model, [Job("a red ball", 0, tmp_path / "a.gif")], settings)
    assert len(tiled) == 1
    again = redecode(load(folder), *read_run(made.run), made.run, tmp_path / "b.gif", None)
    assert len(tiled) == 2 and again.frames_sha256 == made.frames_sha256


def test_a_clip_is_inverted_as_planned(folder):
    clip = torch.randint(256, (5, 32, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = []
    for strategy in (None, Strategy("device", "streamed", "full", "chunks", True)):
        model = load(folder, strategy=strategy)
        sampling = replace(model.config.sampling, solver=DDIM(), num_steps=2, guidance=Guidance(scale=1.0))
        with_plan = [] if strategy is None else model.placement._offloads
        found.append(invert_clip(model, clip, "a red ball", SIZE, sampling, num_iterations=1))
        assert strategy is None or with_plan
    assert torch.equal(found[0][0], found[1][0]) and found[0][1] == found[1][1]


def test_a_model_that_is_released_has_nothing_on_the_device_and_goes_on(folder, expected):
    model = load(folder, strategy=Strategy("device", "streamed", "full", "chunks", False))
    latents(model)
    model.release()
    assert model.text_encoder._encoder is None and not model.placement._offloads
    assert torch.equal(latents(model), expected)


@pytest.mark.parametrize("narrow", ["int8", "fp8"])
def test_bytes_are_made_of_what_a_lora_has_changed(folder, expected, tmp_path, narrow):
    pytest.importorskip("torchao", reason="torchao makes weights of a byte each")
    from vidiff.adapting import adapted, lora_file

    file = style(tmp_path / "style.safetensors")
    made = []
    for weights in ("full", narrow):
        model = load(folder, strategy=Strategy("host", "streamed", weights, "chunks", True))
        made.append(latents(adapted(model, [lora_file(str(file))], lambda text: None)))
    assert 0 < (made[1] - made[0]).norm() < 0.1 * made[0].norm() < 0.5 * (made[0] - expected).norm()
