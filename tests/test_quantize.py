import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any, get_args

import pytest
import torch
from torch import nn

from tests.peak import Peak
from vidiff.errors import ConfigError
from vidiff.models import quantize
from vidiff.models.dit import DiTConfig, SpaceTimeDiT
from vidiff.models.offload import offloaded
from vidiff.types import Conditioning, TextEmbedding

KINDS: tuple[quantize.Bytes, ...] = get_args(quantize.Bytes)
STORED = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}


@pytest.fixture
def backbone() -> SpaceTimeDiT:
    torch.manual_seed(0)
    backbone = SpaceTimeDiT(DiTConfig(dim=48, depth=3, num_heads=2, ffn_dim=96), in_channels=4, text_dim=8)
    for value in backbone.parameters():
        nn.init.normal_(value, std=0.1)
    return backbone.requires_grad_(False)


@pytest.fixture
def given() -> Iterator[tuple[Any, ...]]:
    text = TextEmbedding(torch.randn(2, 3, 8), torch.ones(2, 3, dtype=torch.bool))
    with torch.no_grad():
        yield torch.randn(2, 4, 2, 4, 4), torch.rand(2), Conditioning(text)


def test_lower_weights_say_what_autocast_says(backbone: SpaceTimeDiT, given: tuple[Any, ...]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        expected = backbone(*given)
        quantize.lower_weights(backbone, torch.bfloat16)
        assert torch.equal(backbone(*given), expected)
    types = {name: value.dtype for name, value in backbone.named_parameters()}
    assert types["blocks.0.mlp_in.weight"] == types["text_projection.linear_2.weight"] == torch.bfloat16
    assert types["time_embedding.linear_1.weight"] == types["blocks.0.modulation.table"] == torch.float32
    assert types["patch_embedding.weight"] == types["out.weight"] == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_without_torchao_the_command_is_named(
    backbone: SpaceTimeDiT, monkeypatch: pytest.MonkeyPatch, kind: quantize.Bytes
) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    assert not quantize.available()
    with pytest.raises(ConfigError, match=f"{kind} weights need the torchao package.*pip install torchao"):
        quantize.byte_weights(backbone, kind)


def test_a_torchao_without_fp8_is_one_line_that_says_how_to_renew_it(monkeypatch: pytest.MonkeyPatch) -> None:
    old = ModuleType("torchao.quantization")
    monkeypatch.setattr(quantize, "available", lambda: True)
    monkeypatch.setitem(sys.modules, "torchao", ModuleType("torchao"))
    sys.modules["torchao"].quantization = old  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchao.quantization", old)
    with pytest.raises(ConfigError, match=r"does not do for fp8 weights.*pip install torchao -U") as error:
        quantize.check_available("fp8")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_bytes_are_close_and_can_wait_on_the_host(
    backbone: SpaceTimeDiT, given: tuple[Any, ...], kind: quantize.Bytes, dtype: torch.dtype
) -> None:
    pytest.importorskip("torchao", reason="torchao makes weights of a byte each")
    expected = backbone(*given)
    quantize.lower_weights(backbone, dtype)
    quantize.byte_weights(backbone, kind)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        found = backbone(*given)
        assert 0 < (found - expected).norm() < 0.06 * expected.norm()
        handle = offloaded(backbone.blocks, "cpu")
        assert sum(part.dtype == STORED[kind] for part in handle.parts[0]) >= 10
        assert torch.equal(backbone(*given), found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_layer_is_widened_in_the_bytes_that_are_counted(kind: quantize.Bytes, dtype: torch.dtype) -> None:
    pytest.importorskip("torchao", reason="torchao makes weights of a byte each")
    block = SpaceTimeDiT(DiTConfig(dim=480, depth=1, num_heads=2), in_channels=4, text_dim=8).blocks[0]
    quantize.byte_weights(block.to(dtype).requires_grad_(False), kind)
    layer = block.mlp_in
    x = torch.randn(2, 480, dtype=dtype)
    with torch.no_grad(), Peak() as peak:
        layer(x)
    counted = layer.weight.numel() * quantize.widened_bytes(kind, dtype)
    assert peak.bytes == pytest.approx(counted, rel=0.02)


def test_the_settings_of_the_process_stay_as_they_are() -> None:
    pytest.importorskip("torchao", reason="torchao makes weights of a byte each")
    from torch._inductor import config as compiler

    before = torch.get_float32_matmul_precision(), compiler.coordinate_descent_tuning
    for kind in KINDS:
        quantize.byte_weights(SpaceTimeDiT(DiTConfig(dim=48, depth=1, num_heads=2), 4, 8).requires_grad_(False), kind)
    assert before == (torch.get_float32_matmul_precision(), compiler.coordinate_descent_tuning)


def test_a_network_without_blocks_is_refused() -> None:
    pytest.importorskip("torchao", reason="torchao makes weights of a byte each")
    with pytest.raises(ConfigError, match="has none"):
        quantize.byte_weights(nn.Linear(2, 2), "int8")
