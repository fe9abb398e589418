"""LoRAs against diffusers and PEFT: the same outputs, and files read both ways."""

import re

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.loras import CHANNELS, DIM, FFN, MODULES, TEXT, factors, musubi, written
from vidiff.errors import CheckpointError
from vidiff.interop import wan_transformer
from vidiff.interop.lora import apply_lora, describe, read_lora, to_peft
from vidiff.models.dit import SpaceTimeDiT
from vidiff.types import Conditioning, TextEmbedding

diffusers = pytest.importorskip("diffusers", reason="diffusers is the reference")


def reference() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = diffusers.WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=DIM // 2,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            text_dim=TEXT,
            ffn_dim=FFN,
            num_layers=2,
        ).eval()
        for name, parameter in net.named_parameters():
            nn.init.normal_(parameter, 1.0 if re.search(r"norm\w*\.weight$", name) else 0.0, 0.2)
    return net


def ours(net: nn.Module) -> SpaceTimeDiT:
    config, in_channels, text_dim = wan_transformer.config_from_diffusers(net.config)
    dit = SpaceTimeDiT(config, in_channels, text_dim).eval()
    dit.load_state_dict(wan_transformer.to_ours(net.state_dict()))
    return dit


def outputs(net: nn.Module, dit: SpaceTimeDiT) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, CHANNELS, 2, 4, 6, generator=generator)
    tokens = torch.randn(2, 5, TEXT, generator=generator)
    t = torch.tensor([0.137, 0.9])
    text = TextEmbedding(tokens, torch.ones(2, 5, dtype=torch.bool))
    with torch.no_grad():
        return net(x, 1000 * t, tokens).sample, dit(x, t, Conditioning(text))


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("dialect", ["diffusers", "native", "native_down", "musubi"])
def test_outputs_equal_those_of_the_reference_library(tmp_path, dialect):
    blocks = {name: shape for name, shape in MODULES.items() if dialect != "musubi" or name.startswith("blocks")}
    alpha = None if dialect == "diffusers" else 2.0  # diffusers reads alphas of the other dialects
    if dialect.startswith("native"):  # and there none outside the blocks
        blocks = {name: shape for name, shape in MODULES.items() if name.startswith("blocks")}
    path = written(tmp_path / "a.safetensors", dialect, alpha, modules=blocks)
    net = reference()
    dit = ours(net)
    before = outputs(net, dit)[0]
    read = diffusers.WanPipeline.lora_state_dict(str(path))
    net.load_lora_adapter(read, prefix="transformer")
    apply_lora(dit, read_lora(path))
    expected, found = outputs(net, dit)
    assert relative(found, expected) < 1e-4
    assert relative(before, expected) > 0.05  # so that the change is there


def test_a_scale_is_the_references_adapter_weight(tmp_path):
    net = reference()
    dit = ours(net)
    lora = read_lora(written(tmp_path / "a.safetensors"))
    net.load_lora_adapter(to_peft(lora), prefix="transformer", adapter_name="a")
    net.set_adapters(["a"], [0.3])
    apply_lora(dit, lora, 0.3)
    expected, found = outputs(net, dit)
    assert relative(found, expected) < 1e-4


def test_what_diffusers_saves_with_its_alpha_is_read(tmp_path):
    from peft import LoraConfig, get_peft_model_state_dict

    net = reference()
    dit = ours(net)
    config = LoraConfig(r=4, lora_alpha=10, target_modules=["to_q", "to_v", "ffn.net.2"], init_lora_weights=False)
    config.alpha_pattern = {"blocks.0.attn1.to_q": 2}
    net.add_adapter(config, adapter_name="a")
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=0.3)
    metadata = net.peft_config["a"].to_dict()
    diffusers.WanPipeline.save_lora_weights(
        tmp_path, get_peft_model_state_dict(net, adapter_name="a"), transformer_lora_adapter_metadata=metadata
    )
    lora = read_lora(tmp_path)
    assert describe(lora).alphas == (2.0, 10.0)
    apply_lora(dit, lora)
    expected, found = outputs(net, dit)
    assert relative(found, expected) < 1e-4


@pytest.mark.filterwarnings("ignore:Adapter 'default'")  # PEFT doubts its own biases
def test_what_peft_saves_is_read(tmp_path):
    from peft import LoraConfig, get_peft_model

    net = reference()
    dit = ours(net)
    config = LoraConfig(
        r=4, lora_alpha=6, use_rslora=True, lora_bias=True, target_modules=["to_q", "proj_out"], init_lora_weights=False
    )
    wrapped = get_peft_model(net, config)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=0.3)
    wrapped.save_pretrained(tmp_path)
    assert apply_lora(dit, read_lora(tmp_path)).matched == 5
    expected, found = outputs(net, dit)
    assert relative(found, expected) < 1e-4


def test_the_export_is_read_by_the_reference_library(tmp_path):
    """With alphas, a convolution over patches, full differences, biases, and a product beside a difference."""
    path = tmp_path / "a.safetensors"
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for name, (a, b) in factors().items():
        tensors[f"{musubi(name)}.lora_down.weight"], tensors[f"{musubi(name)}.lora_up.weight"] = a, b
        tensors[f"{musubi(name)}.alpha"] = torch.tensor(2.0)
    tensors["lora_unet_patch_embedding.lora_down.weight"] = torch.randn(2, CHANNELS, 1, 2, 2, generator=generator)
    tensors["lora_unet_patch_embedding.lora_up.weight"] = torch.randn(DIM, 2, 1, 1, 1, generator=generator)
    tensors["lora_unet_time_embedding_2.diff"] = torch.randn(DIM, DIM, generator=generator) / 5
    tensors["lora_unet_text_embedding_2.diff"] = torch.randn(DIM, DIM, generator=generator) / 5
    tensors["lora_unet_blocks_0_ffn_0.diff"] = torch.randn(FFN, DIM, generator=generator) / 5
    tensors["lora_unet_blocks_0_ffn_0.diff_b"] = torch.randn(FFN, generator=generator)
    tensors["lora_unet_blocks_0_self_attn_norm_q.diff"] = torch.zeros(DIM)  # as in files in the wild
    save_file(tensors, path)
    net = reference()
    dit = ours(net)
    lora = read_lora(path)
    net.load_lora_adapter(to_peft(lora), prefix="transformer")
    apply_lora(dit, lora)
    expected, found = outputs(net, dit)
    assert relative(found, expected) < 1e-4
    save_file(to_peft(lora), tmp_path / "b.safetensors")
    again = ours(reference())
    apply_lora(again, read_lora(tmp_path / "b.safetensors"))
    assert all(torch.allclose(again.state_dict()[k], v, atol=1e-5) for k, v in dit.state_dict().items())


@pytest.mark.parametrize("key", ["blocks.0.self_attn.norm_q.diff", "blocks.0.modulation.diff", "blocks.0.ffn.0.diff_b"])
def test_what_the_format_of_peft_cannot_say_is_refused(tmp_path, key):
    save_file({f"diffusion_model.{key}": torch.ones(3)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="diffusers reads no change"):
        to_peft(read_lora(tmp_path / "a.safetensors"))
    path = written(tmp_path / "a.safetensors", modules={"x.y": (1, 1)})
    with pytest.raises(CheckpointError, match="no such module"):
        to_peft(read_lora(path))


@pytest.mark.parametrize("dialect", ["native", "native_down", "musubi"])
def test_names_are_those_of_the_reference_librarys_own_conversion(tmp_path, dialect):
    image = {f"blocks.{i}.attn2.add_{part}_proj": (DIM, DIM) for i in range(2) for part in "kv"}
    modules = {name: shape for name, shape in MODULES.items() if name.startswith("blocks")} | image
    path = written(tmp_path / "a.safetensors", dialect, 2.0, modules=modules)
    found, expected = to_peft(read_lora(path)), diffusers.WanPipeline.lora_state_dict(str(path))
    assert found.keys() == expected.keys()
    for down, up in ((key, key.replace("lora_A", "lora_B")) for key in found if "lora_A" in key):
        assert torch.allclose(found[up] @ found[down], expected[up] @ expected[down], atol=1e-6), down


def test_the_image_embedder_has_the_names_of_the_reference(tmp_path):
    tensors = {}
    for name in ("img_emb.proj.1", "img_emb.proj.3", "blocks.0.self_attn.q"):
        tensors[f"diffusion_model.{name}.lora_down.weight"] = torch.ones(2, 3)
        tensors[f"diffusion_model.{name}.lora_up.weight"] = torch.ones(4, 2)
    save_file(tensors, tmp_path / "a.safetensors")
    expected = diffusers.WanPipeline.lora_state_dict(str(tmp_path / "a.safetensors"))
    assert to_peft(read_lora(tmp_path / "a.safetensors")).keys() == expected.keys()
