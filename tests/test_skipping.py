"""Transformers without some of their blocks."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from vidiff.diffusion.guidance import Guidance, SkipLayers
from vidiff.errors import ConfigError
from vidiff.model_folder import ModelConfig, SamplingConfig
from vidiff.models.build import build_backbone
from vidiff.models.dit import DiTConfig
from vidiff.models.two_level import TwoLevelDiTConfig
from vidiff.models.unet3d import UNet3DConfig
from vidiff.types import Conditioning, LatentSpec, TextEmbedding

SMALL = DiTConfig(dim=24, depth=3, num_heads=2, ffn_dim=32)
TWO_LEVEL = TwoLevelDiTConfig(coarse=replace(SMALL, depth=2), dim=16, depth=2, num_heads=2, ffn_dim=16)


def network(config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_backbone(config, LatentSpec(3, 8, 4), 5)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
    return model.eval()


def inputs(batch=2):
    generator = torch.Generator().manual_seed(1)
    text = TextEmbedding(torch.randn(batch, 4, 5, generator=generator), torch.ones(batch, 4, dtype=torch.bool))
    return torch.randn(batch, 3, 2, 4, 4, generator=generator), torch.full((batch,), 0.4), Conditioning(text)


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, attention="factorized", modulation="block")], ids=repr)
@torch.no_grad()
def test_skipped_blocks_are_not_there(config):
    model, (x, t, cond) = network(config), inputs()
    found = model(x, t, cond.skipping((1,)))
    assert not torch.allclose(found, model(x, t, cond))
    model.blocks = nn.ModuleList([model.blocks[0], model.blocks[2]])
    assert torch.equal(found, model(x, t, cond))


@torch.no_grad()
def test_blocks_of_two_levels_are_counted_through():
    model, (x, t, cond) = network(TWO_LEVEL), inputs()
    coarse, fine = model(x, t, cond.skipping((0,))), model(x, t, cond.skipping((3,)))
    both = model(x, t, cond.skipping((0, 3)))
    model.blocks = nn.ModuleList([model.blocks[0]])
    assert torch.equal(fine, model(x, t, cond))
    model.coarse.blocks = nn.ModuleList([model.coarse.blocks[1]])
    assert torch.equal(both, model(x, t, cond)) and not torch.allclose(coarse, both)


@pytest.mark.parametrize("config", [SMALL, TWO_LEVEL], ids=lambda c: c.kind)
@torch.no_grad()
def test_samples_that_skip_and_samples_that_do_not_share_a_call(config):
    model, (x, t, cond) = network(config), inputs()
    skipping = cond.skipping((1, 2))
    together = model(x.repeat(3, 1, 1, 1, 1), t.repeat(3), cond.joined(cond).joined(skipping))
    apart = torch.cat([model(x, t, one) for one in (cond, cond, skipping)])
    assert torch.allclose(together, apart, atol=1e-5)


def test_joined_conditionings_skip_the_same_layers_or_none():
    _, _, cond = inputs()
    joined = cond.skipping((2,)).joined(cond)
    assert joined.skips.tolist() == [True, True, False, False]
    assert joined.joined(cond.skipping((2,))).skips.tolist() == [True, True, False, False, True, True]
    assert cond.joined(cond).skips is None
    with pytest.raises(ValueError, match="same layers"):
        joined.joined(cond.skipping((1,)))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (SMALL, "has the blocks 0 to 2"),
        (TWO_LEVEL, "has the blocks 0 to 3"),
        (
            UNet3DConfig(dim=8, dim_mult=(1,), attention=(0,), cross_attention=(0,), num_heads=2),
            "no blocks to leave out",
        ),
    ],
    ids=lambda c: getattr(c, "kind", ""),
)
def test_blocks_that_are_not_there_are_refused_by_the_network_and_before(config, words):
    x, t, cond = inputs()
    with pytest.raises(ConfigError, match=words):
        network(config)(x, t, cond.skipping((7,)))
    sampling = SamplingConfig(guidance=Guidance(skip=SkipLayers(scale=1.0, layers=(7,))))
    with pytest.raises(ConfigError, match=words):
        ModelConfig(backbone=config, sampling=sampling)
