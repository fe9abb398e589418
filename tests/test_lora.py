"""LoRAs in every dialect, added to the weights of a tiny model; what does not fit; and what a file is for."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.loras import BLOCK, CHANNELS, DIALECTS, DIM, DOWN, KINDS, MODULES, TOP, UP, factors, model, weight, written
from vidiff.errors import CheckpointError, ConfigError
from vidiff.interop.lora import apply_lora, describe, parse_lora, read_lora
from vidiff.interop.wan_transformer import BLOCK_NAMES, NAMES


def changed(path: Path, scale: float = 1.0, **options) -> dict[str, Tensor]:
    dit = model(**options)
    apply_lora(dit, read_lora(path), scale)
    return dit.state_dict()


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("alpha", [None, 1.5])
def test_each_weight_gains_the_scaled_product_in_every_dialect(tmp_path, dialect, alpha):
    dit, before = model(), model()
    coverage = apply_lora(dit, read_lora(written(tmp_path / "a.safetensors", dialect, alpha)), 0.5)
    assert (coverage.matched, coverage.unmatched) == (len(MODULES), ())
    for name, (a, b) in factors().items():
        expected = weight(before, name) + 0.5 * (1.0 if alpha is None else alpha / 3) * (b @ a)
        assert torch.allclose(weight(dit, name), expected, atol=1e-6), name
    changed_keys = {k for k, v in dit.state_dict().items() if not torch.equal(v, before.state_dict()[k])}
    assert len(changed_keys) == len(MODULES)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_lora_gives_the_same_bits_in_every_dialect(tmp_path, dialect):
    expected = changed(written(tmp_path / "a.safetensors", "diffusers", 2.0))
    found = changed(written(tmp_path / "b.safetensors", dialect, 2.0))
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    info = describe(read_lora(tmp_path / "b.safetensors"))
    assert (info.dialect, info.ranks, info.alphas, info.num_blocks) == (KINDS[dialect], (3,), (2.0,), 2)
    assert set(info.modules) == {*TOP, *BLOCK}


def test_underscored_names_of_different_modules_differ():

    for pairs in (NAMES.values(), BLOCK_NAMES.values()):
        spelled = [(name.replace(".", "_"), names[0]) for names in pairs for name in {*names}]
        assert len({flat for flat, _ in spelled}) == len(spelled)


def test_scale_0_changes_nothing_and_scales_add(tmp_path):
    path = written(tmp_path / "a.safetensors", alpha=2.0)
    before, unscaled = model().state_dict(), changed(path, 0.0)
    assert all(torch.equal(unscaled[key], value) for key, value in before.items())
    twice = model()
    for scale in (0.25, 0.75):
        apply_lora(twice, read_lora(path), scale)
    once = changed(path, 1.0)
    assert all(torch.allclose(twice.state_dict()[key], value, atol=1e-6) for key, value in once.items())
    apply_lora(twice, read_lora(path), -1.0)
    assert all(torch.allclose(twice.state_dict()[key], value, atol=1e-6) for key, value in before.items())


def test_half_precision_weights_are_rounded_once(tmp_path):
    path = written(tmp_path / "a.safetensors")
    half = model().bfloat16()
    start = {key: value.clone() for key, value in half.state_dict().items()}
    apply_lora(half, read_lora(path))
    a, b = factors()["proj_out"]
    expected = (start["out.weight"].float() + b @ a).bfloat16()
    assert half.out.weight.dtype == torch.bfloat16
    assert torch.equal(half.out.weight, expected)


def test_full_differences_and_biases_are_added(tmp_path):
    name = "diffusion_model.blocks.0.self_attn."
    tensors = {
        f"{name}q.diff": torch.full((DIM, DIM), 0.5),
        f"{name}q.diff_b": torch.full((DIM,), 0.25),
        f"{name}norm_q.diff": torch.full((DIM,), 2.0),
        "diffusion_model.blocks.0.norm3.diff_b": torch.ones(DIM),
        "diffusion_model.blocks.0.modulation.diff": torch.ones(1, 6, DIM),
        "diffusion_model.patch_embedding.diff": torch.ones(DIM, CHANNELS, 1, 2, 2),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    dit, before = model(), model()
    assert apply_lora(dit, read_lora(tmp_path / "a.safetensors"), 2.0).matched == 5
    new, old = dit.blocks[0], before.blocks[0]
    assert torch.allclose(new.attention.query.weight, old.attention.query.weight + 1)
    assert torch.allclose(new.attention.query.bias, old.attention.query.bias + 0.5)
    assert torch.allclose(new.attention.norm_query.weight, old.attention.norm_query.weight + 4)
    assert torch.allclose(new.cross_norm.bias, old.cross_norm.bias + 2)
    assert torch.equal(new.cross_norm.weight, old.cross_norm.weight)
    assert torch.allclose(new.modulation.table, old.modulation.table + 2)
    assert torch.allclose(dit.patch_embedding.weight, before.patch_embedding.weight + 2)
    assert describe(read_lora(tmp_path / "a.safetensors")).differences == 5


def test_image_modules_are_counted_as_unmatched(tmp_path):
    image = {"blocks.0.attn2.add_k_proj": (DIM, DIM), "blocks.1.attn2.add_v_proj": (DIM, DIM)}
    path = written(tmp_path / "a.safetensors", "native", modules=MODULES | image | {"vace.x": (1, 1)})
    coverage = apply_lora(model(), read_lora(path))
    assert coverage.matched == len(MODULES)
    assert coverage.unmatched == (
        "diffusion_model.blocks.0.cross_attn.k_img",
        "diffusion_model.blocks.1.cross_attn.v_img",
        "diffusion_model.vace.x",
    )
    info = describe(read_lora(path))
    assert info.image and info.foreign == 1
    assert not describe(read_lora(written(path))).image


def test_a_patch_embedding_of_36_channels_is_that_of_image_to_video(tmp_path):
    name = "diffusion_model.patch_embedding"
    path = tmp_path / "a.safetensors"
    save_file(
        {f"{name}.lora_down.weight": torch.ones(2, 36, 1, 2, 2), f"{name}.lora_up.weight": torch.ones(DIM, 2)}, path
    )
    assert describe(read_lora(path)).image
    with pytest.raises(CheckpointError, match=r"patch_embedding: .*\(24, 144\).*\(24, 16\).* image-to-video"):
        apply_lora(model(), read_lora(path))


@pytest.mark.parametrize(("width", "base"), [(1536, "1.3B"), (3072, "TI2V 5B"), (5120, "14B"), (64, None)])
def test_the_base_is_judged_from_the_width(tmp_path, width, base):
    for name, shape in (("attn2.to_k", (width, width)), ("ffn.net.0.proj", (7, width)), ("ffn.net.2", (width, 7))):
        path = written(tmp_path / "a.safetensors", modules={f"blocks.3.{name}": shape}, rank=1)
        info = describe(read_lora(path))
        assert (info.width, info.num_blocks) == (width, 4)
        assert info.base is None if base is None else base in info.base


def test_the_second_expert_gets_its_own_changes(tmp_path):
    modules = {"blocks.0.attn1.to_q": (DIM, DIM)}
    (a, b), (c, d) = (factors(seed=seed, modules=modules)["blocks.0.attn1.to_q"] for seed in (0, 1))
    path = tmp_path / "a.safetensors"
    one = "transformer.blocks.0.attn1.to_q."
    two = one.replace("transformer", "transformer_2")
    save_file({one + DOWN: a, one + UP: b, two + DOWN: c, two + UP: d}, path)
    lora = read_lora(path)
    assert describe(lora).second
    start = model().blocks[0].attention.query.weight
    for second, product, other in ((False, b @ a, two), (True, d @ c, one)):
        dit = model()
        assert apply_lora(dit, lora, second=second).unmatched == (other.rstrip("."),)
        assert torch.allclose(dit.blocks[0].attention.query.weight, start + product, atol=1e-6)
    save_file({two + DOWN: c, two + UP: d}, path)
    with pytest.raises(CheckpointError, match="second expert"):
        apply_lora(model(), read_lora(path))
    # A file for one expert alone has the plain names.
    assert apply_lora(model(), read_lora(written(path)), second=True).matched == len(MODULES)


def test_a_module_around_the_backbone_is_looked_through(tmp_path):
    outer = nn.Module()
    outer.backbone = model()
    assert apply_lora(outer, read_lora(written(tmp_path / "a.safetensors"))).matched == len(MODULES)


def test_another_width_is_an_error_that_names_both_and_changes_nothing(tmp_path):
    path = written(
        tmp_path / "a.safetensors",
        "native",
    )
    dit = model(dim=32)
    before = {key: value.clone() for key, value in dit.state_dict().items()}
    with pytest.raises(CheckpointError, match="a LoRA for width 24, this model is 32 wide") as error:
        apply_lora(dit, read_lora(path))
    assert all(part in str(error.value) for part in ("blocks.0.", "(24, 24)", "(32, 32)"))
    assert all(torch.equal(dit.state_dict()[key], value) for key, value in before.items())
    path = written(path, modules={"blocks.0.attn1.to_q": (5120, 5120)})
    with pytest.raises(CheckpointError, match=r"for width 5120 \(Wan 2.1 14B.*\), this model is 24 wide"):
        apply_lora(model(), read_lora(path))


def test_other_shapes_are_an_error_that_names_the_key(tmp_path):
    for name, tensor in (
        ("ffn.0.diff", torch.ones(7, DIM)),
        ("ffn.0.diff_b", torch.ones(7)),
        ("ffn.0.diff", torch.ones(7)),
    ):
        path = tmp_path / "a.safetensors"
        save_file({f"diffusion_model.blocks.0.{name}": tensor}, path)
        with pytest.raises(CheckpointError, match=r"blocks\.0\.ffn\.0: the \w+ \(7,.* does not fit the model's \(40,"):
            apply_lora(model(), read_lora(path))


@pytest.mark.parametrize(
    ("modules", "what"),
    [
        ({"lora_unet_down_blocks_0_attentions_0_proj_in": (4, 4)}, "a Stable Diffusion U-Net"),
        ({"double_blocks.0.img_attn.qkv": (4, 4)}, "Flux or HunyuanVideo"),
        ({"blocks.0.attn2.add_k_proj": (4, 4)}, "image-to-video"),
        ({"blocks.7.attn1.to_q": (1536, 1536)}, r"Wan 2\.1 1\.3B"),
        ({"a.b": (4, 4)}, "another model"),
    ],
)
def test_a_lora_that_matches_nothing_is_refused_with_what_it_is_for(tmp_path, modules, what):
    path = written(tmp_path / "a.safetensors", "bare", modules=modules)
    with pytest.raises(CheckpointError, match=f"seems to be for .*{what}") as error:
        apply_lora(model(), read_lora(path))
    assert next(iter(modules)) in str(error.value) and "patch_embedding" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_factorized_model_takes_what_it_has(tmp_path):
    dit = model(attention="factorized", modulation="block")
    coverage = apply_lora(dit, read_lora(written(tmp_path / "a.safetensors")))
    assert coverage.unmatched == ("transformer.condition_embedder.time_proj",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.safetensors", ("a.safetensors", 1.0)),
        ("a.safetensors:0.8", ("a.safetensors", 0.8)),
        ("a.safetensors:-1", ("a.safetensors", -1.0)),
        (r"C:\loras\a.safetensors", (r"C:\loras\a.safetensors", 1.0)),
        (r"C:\loras\a.safetensors:0.5", (r"C:\loras\a.safetensors", 0.5)),
        ("C:/loras/a.safetensors", ("C:/loras/a.safetensors", 1.0)),
        ("x:y/a.safetensors", ("x:y/a.safetensors", 1.0)),
        ("a.safetensors:b.safetensors", ("a.safetensors:b.safetensors", 1.0)),
        ("folder:2", ("folder", 2.0)),
        ("me@home/a.safetensors", ("me@home/a.safetensors", 1.0)),
        ("me@home/a.safetensors:2", ("me@home/a.safetensors", 2.0)),
        ("a@v2.safetensors:0.5", ("a@v2.safetensors", 0.5)),
        ("a.safetensors@b.safetensors", ("a.safetensors@b.safetensors", 1.0)),
        ("folder@mid", ("folder@mid", 1.0)),
    ],
)
def test_a_file_and_its_scale_are_told_apart(text, expected):
    assert parse_lora(text) == (Path(expected[0]), expected[1], None)
    for expert in ("high", "low"):
        assert parse_lora(f"{text}@{expert}") == (Path(expected[0]), expected[1], expert)


def test_a_file_whose_name_ends_like_a_scale_is_taken_whole(tmp_path):
    (tmp_path / "a:1").touch()
    assert parse_lora(f"{tmp_path}/a:1") == (tmp_path / "a:1", 1.0, None)
    assert parse_lora(f"{tmp_path}/a:1:0.5") == (tmp_path / "a:1", 0.5, None)


@pytest.mark.parametrize("name", ["a@high", "a.safetensors@low", "a.safetensors@v2"])
def test_a_file_whose_name_ends_like_an_expert_is_taken_whole(tmp_path, name):
    (tmp_path / name).touch()
    assert parse_lora(f"{tmp_path}/{name}") == (tmp_path / name, 1.0, None)
    assert parse_lora(f"{tmp_path}/{name}:0.5") == (tmp_path / name, 0.5, None)
    assert parse_lora(f"{tmp_path}/{name}@high") == (tmp_path / name, 1.0, "high")


@pytest.mark.parametrize("end", ["@mid", "@", "@1", "@High", "@high:0.5", ":0.5@mid", "@high@low"])
def test_an_expert_that_is_none_is_refused(end):
    with pytest.raises(ConfigError, match=r"a LoRA for one expert is a.safetensors@high or .*@low, got") as error:
        parse_lora(f"a.safetensors{end}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["a.safetensors:", "a.safetensors:strong", "a.safetensors:nan", "a:inf", "a" * 5000 + ":inf", "", ":1"]
)
@pytest.mark.parametrize("expert", ["", "@low"])
def test_a_bad_scale_is_refused(text, expert):
    with pytest.raises(ConfigError):
        parse_lora(text + expert)


def test_a_scale_that_is_not_finite_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="finite"):
        apply_lora(model(), read_lora(written(tmp_path / "a.safetensors")), float("inf"))
