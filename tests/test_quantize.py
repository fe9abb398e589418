import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from vidiff.errors import ConfigError
from vidiff.models import quantize
from vidiff.models.dit import DiTConfig, SpaceTimeDiT
from vidiff.models.offload import offloaded
from vidiff.types import Conditioning, TextEmbedding


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


def test_without_torchao_the_command_is_named(backbone: SpaceTimeDiT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    assert not quantize.available()
    with pytest.raises(ConfigError, match="pip install torchao"):
        quantize.int8_weights(backbone)


def test_int8_weights_are_close_and_can_wait_on_the_host(backbone: SpaceTimeDiT, given: tuple[Any, ...]) -> None:
    pytest.importorskip("torchao")
    expected = backbone(*given)
    quantize.lower_weights(backbone, torch.bfloat16)
    quantize.int8_weights(backbone)
    with torch.autocast("cpu", torch.bfloat16):
        found = backbone(*given)
        assert (found - expected).norm() < 0.02 * expected.norm()
        handle = offloaded(backbone.blocks, "cpu")
        assert sum(part.dtype == torch.int8 for part in handle.parts[0]) >= 10
        assert torch.equal(backbone(*given), found)


def test_a_network_without_blocks_is_refused() -> None:
    pytest.importorskip("torchao")
    with pytest.raises(ConfigError, match="has none"):
        quantize.int8_weights(nn.Linear(2, 2))
