from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from vidiff.errors import ConfigError
from vidiff.models.dit import DiTConfig, SpaceTimeDiT
from vidiff.models.offload import offloaded, place_rest
from vidiff.types import Conditioning, TextEmbedding

CONFIG = DiTConfig(dim=24, depth=5, num_heads=2, ffn_dim=32)


@pytest.fixture
def backbone() -> SpaceTimeDiT:
    torch.manual_seed(0)
    backbone = SpaceTimeDiT(CONFIG, in_channels=4, text_dim=8)
    for value in backbone.parameters():
        nn.init.normal_(value, std=0.2)
    return backbone.requires_grad_(False)


def arguments(**options: tuple[int, ...]) -> tuple[Tensor, Tensor, Conditioning]:
    text = TextEmbedding(torch.randn(2, 3, 8), torch.ones(2, 3, dtype=torch.bool))
    return torch.randn(2, 4, 2, 4, 4), torch.rand(2), Conditioning(text, **options)


class Counted:
    """A copy that knows which targets there are, and which numbers lie in them."""

    def __init__(self) -> None:
        self.targets: set[int] = set()
        self.copies = 0

    def __call__(self, target: Tensor, source: Tensor) -> None:
        self.copies += 1
        self.targets.add(target.data_ptr())
        target.copy_(source)


@pytest.mark.parametrize("prefetch", [0, 1, 2, 9])
def test_offloaded_blocks_say_the_same_bit_for_bit(backbone: SpaceTimeDiT, prefetch: int) -> None:
    given = arguments()
    expected = backbone(*given)
    handle = offloaded(backbone.blocks, "cpu", prefetch)
    for _ in range(3):
        assert torch.equal(backbone(*given), expected)
    handle.close()
    assert torch.equal(backbone(*given), expected)


@pytest.mark.parametrize("prefetch", [0, 1, 2])
def test_no_more_blocks_than_one_and_those_fetched_ahead_are_on_the_device(
    backbone: SpaceTimeDiT, prefetch: int
) -> None:
    counted = Counted()
    handle = offloaded(backbone.blocks, "cpu", prefetch, copy=counted)
    backbone(*arguments())
    tensors = len(list(backbone.blocks[0].parameters()))
    assert len(counted.targets) == (1 + prefetch) * tensors
    assert counted.copies == CONFIG.depth * tensors  # each block once
    handle.close()


def test_the_next_block_is_on_its_way_before_a_block_computes(backbone: SpaceTimeDiT) -> None:
    handle = offloaded(backbone.blocks, "cpu")
    seen = []
    for block in backbone.blocks:
        block.mlp_in.register_forward_pre_hook(lambda *_: seen.append({place.block for place in handle.places}))
    backbone(*arguments())
    assert seen == [{0, 1}, {1, 2}, {2, 3}, {3, 4}, {3, 4}]


def test_blocks_that_guidance_skips_do_not_disturb(backbone: SpaceTimeDiT) -> None:
    given = arguments(skip_layers=(1, 2, 4))
    expected = backbone(*given)
    offloaded(backbone.blocks, "cpu")
    assert torch.equal(backbone(*given), expected)


def test_weights_stay_the_networks_own(backbone: SpaceTimeDiT) -> None:
    before = {name: value.data_ptr() for name, value in backbone.named_parameters()}
    offloaded(backbone.blocks, "cpu")
    backbone(*arguments())
    assert {name: value.data_ptr() for name, value in backbone.named_parameters()} == before
    broken = arguments()
    with pytest.raises(RuntimeError):
        backbone(broken[0], broken[1], Conditioning(TextEmbedding(torch.randn(3, 3, 8), broken[2].text.mask)))
    assert {name: value.data_ptr() for name, value in backbone.named_parameters()} == before


def test_the_rest_is_placed_without_the_blocks(backbone: SpaceTimeDiT) -> None:
    place_rest(backbone, backbone.blocks, "meta")
    meta = {name.split(".")[0] for name, value in backbone.named_parameters() if value.is_meta}
    assert meta and "blocks" not in meta
    assert not any(value.is_meta for value in backbone.blocks.parameters())
    assert {name.split(".")[0] for name, _ in backbone.named_parameters()} == meta | {"blocks"}


def test_what_cannot_be_offloaded_is_refused(backbone: SpaceTimeDiT) -> None:
    with pytest.raises(ConfigError, match="prefetch must be at least 0"):
        offloaded(backbone.blocks, "cpu", -1)
    other = SpaceTimeDiT(replace(CONFIG, ffn_dim=16), 4, 8)
    with pytest.raises(ConfigError, match="one shape"):
        offloaded(nn.ModuleList([backbone.blocks[0], other.blocks[0]]), "cpu")
    with pytest.raises(ConfigError, match="on the host, some are on meta"):
        offloaded(backbone.blocks.to("meta"), "cpu")
